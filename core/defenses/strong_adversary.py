"""Defense kind `strong_adversary`: training on examples pushed across the nearest linearised class boundary."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from core.attacks.base import ascend
from core.defenses.base import Batch, Defense, Gradients
from core.fields import Flag, Pixels
from core.passes import Passes

if TYPE_CHECKING:
    from torch import Tensor


class StrongAdversary(Defense):
    """Learning with a strong adversary (Huang et al. 2015): minimise mean J(x + r), r the worst within eps.

    Of the paper's two adversaries this is the one from the network's Jacobian T: r = eps * sign(T_j - T_y) towards the
    wrong class j of least (z_y - z_j) / |T_j - T_y|_1, where the linearised network changes its mind first. Theirs
    from the loss gradient is `fgsm_adv` with alpha 0. We linearise logits: the probabilities of the paper saturate.
    """

    only_loss: ClassVar[str] = "adversarial"
    kind: Literal["strong_adversary"] = "strong_adversary"
    """The kind's name."""
    eps: Pixels = Fraction(3, 10)
    """Length of the adversary's step in every pixel, in pixel units."""
    rivals: Annotated[int, Field(strict=True, ge=1, le=9)] = 9
    """Wrong classes among which the nearest is sought, of largest logits; 9 are all of ten. Each is a gradient."""
    clip: Flag = True
    """Whether adversarial examples are clipped to [0, 1]."""

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of mean J(x + r); clean examples are not shown."""
        moved = ascend(batch.images, self._nearest(batch), float(self.eps))
        images = moved.clamp_(0, 1) if self.clip else moved
        loss = batch.losses(batch.model(images)).mean()
        return Gradients(batch.weight_gradient(loss), {"loss": loss.detach()})

    def passes(self) -> Passes:
        """Return the clean forward pass with a gradient per rival, and the adversarial pass."""
        return Passes(forward=2, input_backward=self.rivals, full_backward=1)

    def _nearest(self, batch: Batch) -> Tensor:
        """Return grad (z_j - z_y), where j is each example's nearest rival."""
        import torch

        images = batch.images.detach().requires_grad_()
        logits, truth = batch.model(images), batch.labels.unsqueeze(1)
        rivals = logits.detach().scatter(1, truth, float("-inf")).topk(min(self.rivals, logits.shape[1] - 1)).indices
        leads = logits.gather(1, rivals) - logits.gather(1, truth)
        towards, nearest = torch.zeros_like(images), logits.new_full((len(images), 1, 1, 1), float("inf"))
        for rival, lead in enumerate(leads.unbind(1)):
            batch.monitor.check()
            gradient = torch.autograd.grad(lead.sum(), images, retain_graph=rival < leads.shape[1] - 1)[0]
            slope = gradient.abs().sum((1, 2, 3), keepdim=True).clamp(min=1e-30)
            distance = -lead.detach().view(-1, 1, 1, 1) / slope
            towards = gradient.where(distance < nearest, towards)
            nearest = distance.minimum(nearest)
        return towards
