"""What every defense is: a frozen spec that answers a batch with the gradients of its training loss.

The arithmetic is done once. The clean forward and backward pass gives the weight gradient and, from the same backward,
the input gradient that starts an attack; attack passes leave the weights out, and training passes leave the images
out. `passes` counts what is left, and the tests count it again on the running network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from core import losses
from core.attacks.base import GradientAttack, Oracle
from core.fields import Number, Share
from core.kinds import Kind
from core.monitor import UNWATCHED, Monitor
from core.passes import Passes
from core.random import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


class Gradients(NamedTuple):
    """What a defense makes of one batch."""

    weights: list[Tensor]
    """Gradient of the batch's mean loss, aligned with `Batch.params`."""
    losses: dict[str, Tensor]
    """Detached scalars; `loss` is what is minimised."""


@dataclass(frozen=True)
class Batch:
    """One training iteration's examples and the model they train."""

    model: nn.Module
    params: Sequence[Tensor]
    """The weights that are trained."""
    images: Tensor
    """Clean images in [0, 1]."""
    labels: Tensor
    """True classes."""
    targets: Tensor
    """Training targets: probabilities per class."""
    indices: Tensor
    """Positions in the training set."""
    iteration: int | Tensor
    """Number of the iteration; a 0-dim tensor where the iteration is captured once and replayed."""
    seed: int
    """Seed of this training's random numbers."""
    monitor: Monitor = UNWATCHED
    """Asked before every attack step whether to go on."""

    @property
    def stream(self) -> Tensor:
        """Return the key of this iteration's random numbers."""
        return fold(self.seed, self.iteration)

    def losses(self, logits: Tensor) -> Tensor:
        """Return the cross entropy of the training targets, per example."""
        return losses.cross_entropy(logits, self.targets)

    def oracle(self, known: Tensor | None = None) -> Oracle:
        """Return what a training-time attack climbs: the training loss, from `known`, the clean input gradient."""
        return Oracle(
            model=self.model,
            loss=self.losses,
            labels=self.labels,
            indices=self.indices,
            stream=self.stream,
            known=None if known is None else (self.images, known),
            monitor=self.monitor,
        )

    def weight_gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the weight gradient of `loss`, in the weights' own memory layout."""
        import torch

        return self.in_weight_layout(torch.autograd.grad(loss, self.params))

    def in_weight_layout(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients, copied where they lie in memory otherwise than their weights.

        Fused optimisers read them as they lie, and a second differentiation, or float64, leaves some transposed.
        """
        import torch

        return [
            gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
            for gradient, weight in zip(gradients, self.params, strict=True)
        ]


class Clean(NamedTuple):
    """The clean pass: one forward, one backward."""

    loss: Tensor
    """Mean over the batch."""
    weights: list[Tensor]
    """Weight gradient of the batch's summed loss; empty where it was not asked for."""
    images: Tensor | None
    """Gradient with respect to the images of the summed loss; None where it was not asked for."""


def clean_pass(batch: Batch, *, weights: bool, images: bool) -> Clean:
    """Return loss and gradients of the clean images: of the sum, so that an image's gradient knows no batch size."""
    import torch

    clean = batch.images.detach().requires_grad_(images)
    loss = batch.losses(batch.model(clean)).sum()
    wanted = [*(batch.params if weights else []), *([clean] if images else [])]
    found = list(torch.autograd.grad(loss, wanted))
    of_images = found.pop() if images else None
    return Clean(loss.detach() / len(clean), batch.in_weight_layout(found) if weights else [], of_images)


def add_scaled(weights: list[Tensor], others: list[Tensor], factor: float) -> list[Tensor]:
    """Return weights + factor * others, in place; nothing is added where `others` is empty."""
    if others:
        for weight, other in zip(weights, others, strict=True):
            weight.add_(other, alpha=factor)
    return weights


class Defense(Kind, ABC):
    """Base of every defense."""

    only_loss: ClassVar[str] = "loss"
    """The one term that `loss` consists of, where `gradients` reports no terms: `clean` or `adversarial`, which says in
    which panel of the curves it is drawn. The default is for kinds that do not say."""

    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Training targets: 1 - this on the true class, this spread over the others; 0 is hard, the paper's soft is .25."""

    @abstractmethod
    def gradients(self, batch: Batch) -> Gradients:
        """Return the weight gradient of the training loss on `batch`, and the losses; never waits for the device."""

    @abstractmethod
    def passes(self) -> Passes:
        """Return the cost of one training iteration per example."""

    @property
    def additive(self) -> bool:
        """Whether its loss is a mean over the examples: parts of a batch, weighted by their share, add up to it."""
        return True

    @property
    def targets_letter(self) -> str:
        """Return H for hard and S for soft targets."""
        return "S" if self.label_smoothing > 0 else "H"

    def caution(self, precision: str = "float32") -> str | None:
        """Return why results of this spec, trained in that precision, are to be read with care, or None."""
        del precision
        return None

    def label(self) -> str:
        """Return the name for people, such as "fgsm_adv eps=0.4 S"; a smoothing of 0 or .25 is said by the letter."""
        shown = self.differences(leave_out=frozenset({"label_smoothing"}))
        if self.label_smoothing not in {0, 0.25}:
            shown["label_smoothing"] = self.label_smoothing
        return " ".join([self.kind, *(f"{name}={value}" for name, value in shown.items()), self.targets_letter])


class AdversarialTraining(Defense, ABC):
    """Base of defenses that mix clean and adversarial examples: alpha * J(x) + (1 - alpha) * J(x_adv), eq. 3."""

    alpha: Share = 0.6
    """Weight of the clean loss; 0 trains on adversarial examples only, 1 on clean ones only."""

    @abstractmethod
    def attack(self) -> GradientAttack:
        """Return the attack that makes the training examples; it starts at the clean images."""

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of eq. 3; the attack's first step is paid for by the clean pass."""
        alpha, size = self.alpha, len(batch.images)
        clean = clean_pass(batch, weights=alpha > 0, images=alpha < 1)
        if alpha == 1:
            return Gradients([w / size for w in clean.weights], {"loss": clean.loss, "clean": clean.loss})
        images = self.attack().run(batch.images, batch.oracle(known=clean.images))
        loss, figures = self.adversarial_loss(batch, images)
        weights = add_scaled(batch.weight_gradient((1 - alpha) * loss), clean.weights, alpha / size)
        total = alpha * clean.loss + (1 - alpha) * loss.detach()
        return Gradients(weights, {"loss": total, "clean": clean.loss, **figures})

    def adversarial_loss(self, batch: Batch, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is minimised on the adversarial `images`, here mean J(x_adv), and its detached parts."""
        loss = batch.losses(batch.model(images)).mean()
        return loss, {"adversarial": loss.detach()}

    def passes(self) -> Passes:
        """Return the clean pass, the attack's gradients but the first, and the adversarial pass."""
        if self.alpha == 1:
            return Passes(forward=1, full_backward=1)
        further = self.attack().passes().input_backward - 1
        if self.alpha == 0:
            return Passes(forward=further + 2, input_backward=further + 1, full_backward=1)
        return Passes(forward=further + 2, input_backward=further, full_backward=2)
