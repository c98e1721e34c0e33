"""Attack kind `mifgsm`: iterative FGSM with momentum."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.attacks.base import GradientAttack, Oracle, ascend, ball
from core.fields import Number, Pixels
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor


class MIFGSM(GradientAttack):
    """Momentum iterative FGSM (Dong et al. 2018, eq. 6 and 7), made to transfer; with decay 0 it is IFGSM."""

    kind: Literal["mifgsm"] = "mifgsm"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the ball and length of the whole path, in pixel units."""
    steps: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 10
    """Number of steps; each is eps / steps long."""
    decay: Annotated[Number, Field(ge=0, le=10)] = 1.0
    """Share of the accumulated direction that each step keeps: the paper's mu."""

    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return x_T of g_{t+1} = mu g_t + grad J / |grad J|_1, x_{t+1} = clip(x_t + eps/T * sign(g_{t+1}))."""
        low, high = ball(images, float(self.eps), self.clip)
        step_size = float(self.eps / self.steps)
        adversarial, direction = images, images.new_zeros(())
        for _ in range(self.steps):
            gradient = oracle.gradient(adversarial)
            length = gradient.abs().sum((1, 2, 3), keepdim=True)
            # an example without a gradient keeps its direction instead of turning into NaN
            direction = self.decay * direction + gradient / length.clamp(min=1e-30)
            adversarial = ascend(adversarial, direction, step_size).clamp_(low, high)
        return adversarial

    def passes(self) -> Passes:
        """Return one gradient per step."""
        return Passes(forward=self.steps, input_backward=self.steps)
