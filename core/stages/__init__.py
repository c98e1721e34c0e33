"""Stage kinds: train, craft, evaluate, and what figures need. The folder is the registry."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from core.kinds import discover, union_of
from core.stages.base import Context, Outcome, Stage

STAGES = discover("core.stages", Stage, "gauntlet.stages")
if TYPE_CHECKING:
    AnyStage = Stage
else:
    AnyStage = union_of(STAGES)
STAGE: TypeAdapter[Stage] = TypeAdapter(AnyStage)

__all__ = ["STAGE", "STAGES", "AnyStage", "Context", "Outcome", "Stage"]
