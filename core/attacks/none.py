"""Attack kind `none`: the clean images."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from core.attacks.base import Attack, Oracle
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor


class NoAttack(Attack):
    """No attack: clean accuracy is robust accuracy under this kind."""

    kind: Literal["none"] = "none"
    """The kind's name."""

    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return the images as they are."""
        return images.clone()

    def passes(self) -> Passes:
        """Return nothing."""
        return Passes()

    def radius(self) -> Fraction:
        """Return 0."""
        return Fraction(0)

    def label(self) -> str:
        """Return "clean"."""
        return "clean"
