"""Defenses: one file per kind."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from core.defenses.base import Defense
from core.kinds import discover, union_of

DEFENSES = discover("core.defenses", Defense, "gauntlet.defenses")
if TYPE_CHECKING:
    AnyDefense = Defense
else:
    AnyDefense = union_of(DEFENSES)
DEFENSE: TypeAdapter[Defense] = TypeAdapter(AnyDefense)

__all__ = ["DEFENSE", "DEFENSES", "AnyDefense", "Defense"]
