"""Attacks: one file per kind."""

from typing import TYPE_CHECKING

from core.attacks.base import Attack
from core.kinds import discover, union_of

ATTACKS = discover("core.attacks", Attack, "gauntlet.attacks")
if TYPE_CHECKING:
    AnyAttack = Attack
else:
    AnyAttack = union_of(ATTACKS)

__all__ = ["ATTACKS", "AnyAttack", "Attack"]
