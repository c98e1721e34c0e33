"""Field types that stages and figures share: bounded grids of distances, and attacks that have a radius."""

from typing import Annotated

from pydantic import AfterValidator, Field

from core.attacks import AnyAttack
from core.attacks.base import Attack
from core.fields import Pixels

MAX_POINTS = 81
MAX_RADII = 41

Points = Annotated[int, Field(strict=True, ge=2, le=MAX_POINTS)]
"""Number of values of one coordinate, its ends included."""
Reach = Annotated[Pixels, Field(gt=0)]
"""Largest value of a coordinate that starts at 0, in pixel units."""
Radii = Annotated[list[Pixels], Field(min_length=1, max_length=MAX_RADII)]
"""Radii of attacks, in pixel units."""


def _with_radius(attack: Attack) -> Attack:
    if "eps" not in type(attack).model_fields:
        raise ValueError(f"{attack.kind} has no eps; name an attack that has")
    return attack


RadiusAttack = Annotated[AnyAttack, AfterValidator(_with_radius)]
"""An attack that has a radius."""
