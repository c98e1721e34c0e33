"""Attack kind `ifgsm`: k steps of length eps / k."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.attacks.base import GradientAttack, Oracle, ascend, ball
from core.fields import Pixels
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor


class IFGSM(GradientAttack):
    """Iterative FGSM (Kurakin et al. 2016) with the paper's step size eps / steps: its whole path is eps long."""

    kind: Literal["ifgsm"] = "ifgsm"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the ball and length of the whole path, in pixel units."""
    steps: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 10
    """Number of steps, the paper's k; each is eps / steps long."""

    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return x_k of x_j = clip(x_{j-1} + eps/k * sign(grad J(x_{j-1}, y)), max(0, x-eps), min(1, x+eps)), eq. 2."""
        low, high = ball(images, float(self.eps), self.clip)
        step_size = float(self.eps / self.steps)
        adversarial = images
        for _ in range(self.steps):
            adversarial = ascend(adversarial, oracle.gradient(adversarial), step_size).clamp_(low, high)
        return adversarial

    def passes(self) -> Passes:
        """Return one gradient per step."""
        return Passes(forward=self.steps, input_backward=self.steps)
