"""Attack kind `pgd`: projected gradient ascent from random points of the ball."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from core import losses
from core.attacks.base import GradientAttack, Oracle, ascend, ball
from core.fields import Flag, Pixels, Seed, format_pixels
from core.passes import Passes
from core.random import fold, uniform

if TYPE_CHECKING:
    from torch import Tensor


class PGD(GradientAttack):
    """Projected gradient descent on the negative loss (Madry et al. 2018), L-infinity."""

    kind: Literal["pgd"] = "pgd"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the ball, in pixel units."""
    steps: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 40
    """Number of steps."""
    step_size: Pixels = Fraction(1, 100)
    """Length of one step, in pixel units."""
    restarts: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1
    """Runs per example; the one with the largest lead of a wrong class over the true one is kept, per example."""
    random_start: Flag = True
    """Whether a run starts at a uniform point of the ball; else at the clean image."""
    seed: Seed = 0
    """Seed of the random starts."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts above 1 need random_start: without it all runs are alike")
        return self

    def unfit(self) -> tuple[str, str] | None:
        """Return a step that goes nowhere, or a seed of nothing."""
        if self.step_size == 0:
            return "step_size", "steps of length 0 never move: give more"
        if self.seed and not self.random_start:
            return "seed", "seed is that of the random start: leave it out, or give random_start"
        return None

    def caution(self) -> str | None:
        """Return that the steps end before the ball does."""
        reach = self.steps * self.step_size
        if reach >= self.eps:
            return None
        return f"its {self.steps} steps of {format_pixels(self.step_size)} reach {format_pixels(reach)}, less than eps"

    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return, per example, the worst of `restarts` runs: robust means that every run failed."""
        worst = self._once(images, oracle, 0)
        if self.restarts == 1:
            return worst
        lead = losses.lead(oracle.logits(worst), oracle.labels)
        for restart in range(1, self.restarts):
            other = self._once(images, oracle, restart)
            its_lead = losses.lead(oracle.logits(other), oracle.labels)
            better = its_lead > lead
            worst = other.where(better.view(-1, 1, 1, 1), worst)
            lead = its_lead.where(better, lead)
        return worst

    def passes(self) -> Passes:
        """Return one gradient per step of every run, and one more look at each run's end where they are compared."""
        compared = self.restarts if self.restarts > 1 else 0
        return Passes(forward=self.restarts * self.steps + compared, input_backward=self.restarts * self.steps)

    def _once(self, images: Tensor, oracle: Oracle, restart: int) -> Tensor:
        low, high = ball(images, float(self.eps), self.clip)
        adversarial = self._start(images, oracle, restart).clamp_(low, high) if self.random_start else images
        for _ in range(self.steps):
            gradient = oracle.gradient(adversarial)
            adversarial = ascend(adversarial, gradient, float(self.step_size)).clamp_(low, high)
        return adversarial

    def _start(self, images: Tensor, oracle: Oracle, restart: int) -> Tensor:
        draws = uniform(self.seed, fold(oracle.stream, restart), oracle.indices, images.shape[1:], images.dtype)
        return images + (2 * draws - 1) * float(self.eps)
