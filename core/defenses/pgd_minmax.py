"""Defense kind `pgd_minmax`: training on PGD examples only."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from core.attacks.pgd import PGD
from core.defenses.base import Batch, Defense, Gradients
from core.fields import Flag, Pixels
from core.passes import Passes


class PgdMinmax(Defense):
    """Minimise the loss at the worst point of the ball (Madry et al. 2018; eq. 4 of the paper)."""

    only_loss: ClassVar[str] = "adversarial"
    kind: Literal["pgd_minmax"] = "pgd_minmax"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Radius of the training attack, in pixel units."""
    steps: Annotated[int, Field(strict=True, ge=1, le=1000)] = 40
    """Steps of the training attack."""
    step_size: Pixels = Fraction(1, 100)
    """Length of one step, in pixel units."""
    random_start: Flag = True
    """Whether the attack starts at a uniform point of the ball, new in every iteration; else at the clean image."""
    clip: Flag = True
    """Whether adversarial examples are clipped to [0, 1]."""

    def attack(self) -> PGD:
        """Return PGD with one run."""
        return PGD(
            eps=self.eps, steps=self.steps, step_size=self.step_size, random_start=self.random_start,
            loss="training", clip=self.clip,
        )  # fmt: skip

    def unfit(self) -> tuple[str, str] | None:
        """Return what rules out the training attack."""
        return self.attack().unfit()

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of mean J(x_adv)."""
        images = self.attack().run(batch.images, batch.oracle())
        loss = batch.losses(batch.model(images)).mean()
        return Gradients(batch.weight_gradient(loss), {"loss": loss.detach()})

    def passes(self) -> Passes:
        """Return the attack's gradients and one full pass; the clean images are never shown, so nothing is shared."""
        return Passes(forward=self.steps + 1, input_backward=self.steps, full_backward=1)
