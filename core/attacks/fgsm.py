"""Attack kind `fgsm`: one step along the sign of the gradient."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from core.attacks.base import GradientAttack, Oracle, ascend
from core.fields import Pixels
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor


class FGSM(GradientAttack):
    """Fast gradient sign method (Goodfellow et al. 2015)."""

    kind: Literal["fgsm"] = "fgsm"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the ball and length of the step, in pixel units."""

    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return clip01(x + eps * sign(grad_x J(x, y))), eq. 1; the clip is ours, the paper prints none."""
        adversarial = ascend(images, oracle.gradient(images), float(self.eps))
        return adversarial.clamp_(0, 1) if self.clip else adversarial

    def passes(self) -> Passes:
        """Return one gradient."""
        return Passes(forward=1, input_backward=1)
