"""Stage kinds: train, craft, evaluate, and what figures need. The folder is the registry."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from core.kinds import discover, union_of
from core.stages.base import Context, Outcome, Stage
from core.stages.draw import MEDIA, VALUES
from core.stages.train import CURVE

STAGES = discover("core.stages", Stage, "gauntlet.stages")
if TYPE_CHECKING:
    AnyStage = Stage
else:
    AnyStage = union_of(STAGES)
STAGE: TypeAdapter[Stage] = TypeAdapter(AnyStage)
DESCRIPTIONS = {CURVE, *(MEDIA.keys() - {VALUES})}
"""Artifacts that may differ where the result is the same: a curve has times, another matplotlib draws other pixels. No
stage computes from them."""

__all__ = ["DESCRIPTIONS", "STAGE", "STAGES", "AnyStage", "Context", "Outcome", "Stage"]
