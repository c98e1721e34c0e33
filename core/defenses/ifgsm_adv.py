"""Defense kind `ifgsm_adv`: IFGSM adversarial training."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from core.attacks.ifgsm import IFGSM
from core.defenses.base import AdversarialTraining
from core.fields import Flag, Pixels


class IfgsmTraining(AdversarialTraining):
    """Clean and IFGSM examples (Kurakin et al. 2017; eq. 3 of the paper)."""

    kind: Literal["ifgsm_adv"] = "ifgsm_adv"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the training attack, in pixel units."""
    steps: Annotated[int, Field(strict=True, ge=1, le=1000)] = 30
    """Steps of the training attack; each is eps / steps long."""
    clip: Flag = True
    """Whether adversarial examples are clipped to [0, 1]."""

    def attack(self) -> IFGSM:
        """Return IFGSM."""
        return IFGSM(eps=self.eps, steps=self.steps, loss="training", clip=self.clip)
