"""Defense kind `hamm_minimax`: FGSM adversarial training with a penalty on the loss gradient."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from core.attacks.fgsm import FGSM
from core.defenses.base import AdversarialTraining, Batch
from core.fields import Flag, Number, Pixels
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor

_ORDERS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}


class HammMinimax(AdversarialTraining):
    """Clean and FGSM examples, and at the latter J + constant * eps * N * |grad J|^power (Hamm 2018; eq. 5).

    Mixed with clean examples as in eq. 3, as the paper does. Its printed constant, norm and power are unreadable; the
    defaults are Hamm's penalty, half of the squared Euclidean norm. x_adv is held fixed; the penalty is differentiated
    a second time.
    """

    kind: Literal["hamm_minimax"] = "hamm_minimax"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Length of the training attack's step, in pixel units; a factor of the penalty too."""
    constant: Annotated[Number, Field(gt=0, le=1000)] = 0.5
    """Factor of the penalty, beside eps and the N that `reduction` places."""
    norm: Literal["l1", "l2", "linf"] = "l2"
    """Norm of the gradient with respect to the pixels; l1 is the dual of a step within eps in every pixel."""
    power: Annotated[int, Field(strict=True, ge=1, le=2)] = 2
    """Power of the norm, 1 or 2."""
    reduction: Literal["batch-mean", "batch-sum", "example-mean", "example-sum"] = "batch-mean"
    """batch-mean, as printed: N times the norm over the whole batch of N of the gradient of J's mean; batch-sum: of its
    sum. example-mean and example-sum: mean and sum over the batch of the norms of each example's own gradient."""
    clip: Flag = True
    """Whether adversarial examples are clipped to [0, 1]."""

    @property
    def additive(self) -> bool:
        """Return whether the penalty is a mean over the examples: of their own norms, or of squared l2 norms."""
        squared = self.reduction == "batch-mean" and self.norm == "l2" and self.power == 2
        return self.alpha == 1 or self.reduction == "example-mean" or squared

    def attack(self) -> FGSM:
        """Return FGSM."""
        return FGSM(eps=self.eps, loss="training", clip=self.clip)

    def adversarial_loss(self, batch: Batch, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return eq. 5 on the FGSM examples; `sensitivity` is its second term."""
        import torch

        images = images.detach().requires_grad_()
        each = batch.losses(batch.model(images))
        gradient = torch.autograd.grad(each.sum(), images, create_graph=True)[0]
        adversarial = each.mean()
        sensitivity = self.constant * float(self.eps) * self._size(gradient)
        return adversarial + sensitivity, {"adversarial": adversarial.detach(), "sensitivity": sensitivity.detach()}

    def passes(self) -> Passes:
        """Return FGSM training's, one gradient more, and its differentiation: up the network once, with the weights.

        That last pass leaves the images out: a forward pass and the half of a full backward pass that is the weights'.
        """
        found = super().passes()
        if self.alpha == 1:
            return found
        return Passes(found.forward + 1, found.input_backward + 1, found.full_backward + 0.5)

    def _size(self, gradient: Tensor) -> Tensor:
        """Return N |grad J|^power as `reduction` reads it; `gradient` holds each example's own gradient."""
        import torch

        n, order = len(gradient), _ORDERS[self.norm]
        if self.reduction in {"batch-mean", "batch-sum"}:
            whole = gradient.flatten() / (n if self.reduction == "batch-mean" else 1)
            return n * torch.linalg.vector_norm(whole, order) ** self.power
        each = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1) ** self.power
        return each.mean() if self.reduction == "example-mean" else each.sum()
