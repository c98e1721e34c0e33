"""Defense kind `fgsm_adv`: FGSM adversarial training."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from core.attacks.fgsm import FGSM
from core.defenses.base import AdversarialTraining
from core.fields import Flag, Pixels


class FgsmTraining(AdversarialTraining):
    """Clean and FGSM examples (Goodfellow et al. 2015; eq. 3 of the paper)."""

    kind: Literal["fgsm_adv"] = "fgsm_adv"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Length of the training attack's step, in pixel units."""
    clip: Flag = True
    """Whether adversarial examples are clipped to [0, 1]."""

    def attack(self) -> FGSM:
        """Return FGSM."""
        return FGSM(eps=self.eps, loss="training", clip=self.clip)
