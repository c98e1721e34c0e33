"""Attacks: one file per kind."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from core.attacks.base import Attack
from core.kinds import discover, union_of

ATTACKS = discover("core.attacks", Attack, "gauntlet.attacks")
if TYPE_CHECKING:
    AnyAttack = Attack
else:
    AnyAttack = union_of(ATTACKS)
ATTACK: TypeAdapter[Attack] = TypeAdapter(AnyAttack)

__all__ = ["ATTACK", "ATTACKS", "AnyAttack", "Attack"]
