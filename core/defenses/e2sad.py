"""Defense kind `e2sad`: the paper's two-step adversarial defense."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from core import losses
from core.attacks.base import ascend
from core.attacks.fgsm import FGSM
from core.defenses.base import Batch, Defense, Gradients, add_scaled, clean_pass
from core.fields import Flag, Number, Pixels, Share
from core.passes import Passes
from core.random import normal, uniform

if TYPE_CHECKING:
    from torch import Tensor


class Nearest(NamedTuple):
    """The smallest distance from x1 at which a gradient still means something, rather than rounding."""

    field: str
    """What the distance is called."""
    float32: float
    """In float32: nearer, more than 2 % of the signs are others in float64, after 400 iterations. The surer a model of
    hard targets grows, the farther off rounding decides."""
    coarse: float
    """In bf16: here 85 % of the signs are those of float32 (`entropy`: 91 %), after 250 iterations on MNIST. The
    defaults of `noise` and `vat` are nearer: 58 and 65 %. tf32, which lies between, was not measured."""


class E2SAD(Defense):
    """Efficient two-step adversarial defense (eq. 6 to 8, Algorithm 1).

    Equation 7 read literally climbs a function at its minimum: the gradient is exactly 0 and its sign is rounding
    noise. `second_step` names the readings that are defined; D(a, b) is the cross entropy of f(b) under f(a).
    """

    kind: Literal["e2sad"] = "e2sad"
    """The kind's name."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.25
    """Training targets: 1 - this on the true class, this spread over the others; 0 is hard, the paper's soft is .25."""
    alpha: Share = 0.6
    """Weight of the clean loss; 1 - alpha is the first adversarial examples'."""
    dissimilarity_weight: Annotated[Number, Field(ge=0, le=1000)] = 0.1
    """Weight of the dissimilarity between first and second adversarial examples: the paper's lambda."""
    eps1: Pixels = Fraction(3, 10)
    """Length of the first step, from the clean image, in pixel units."""
    eps2: Pixels = Fraction(1, 10)
    """Length of the second step, from the first adversarial example, in pixel units; the two may add up."""
    second_step: Literal["entropy", "noise", "uniform", "vat", "literal"] = "entropy"
    """Where and of what the second gradient is taken: entropy climbs CE(f(x''), f(x1)) at x1; noise, uniform and vat
    climb D(x1, x'') at a point near x1; literal climbs D at x1 itself, where its gradient is 0."""
    sigma: Annotated[Number, Field(gt=0, le=1)] = 1e-3
    """Standard deviation of the start of `noise`, in pixel units."""
    radius: Pixels = Fraction(1, 10)
    """Half-width of the start of `uniform`, in pixel units; left out, the dataset's eps2."""
    xi: Annotated[Number, Field(gt=0, le=100)] = 0.1
    """Euclidean distance of the start of `vat` from x1, in pixel units."""
    power_iterations: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """Gradients of `vat`; each starts along the one before, the first in a random direction."""
    detach_target: Flag = False
    """Whether f(x1), the target of the dissimilarity, is a constant in the loss; the paper prints it as a variable."""
    clip: Flag = True
    """Whether both adversarial examples are clipped to [0, 1]."""

    _NEAREST: ClassVar[dict[str, Nearest]] = {
        "noise": Nearest("sigma", 1e-4, 0.03), "uniform": Nearest("radius", 1e-4, 0.05),
        "vat": Nearest("xi", 1e-3, 1.0),
    }  # fmt: skip
    _BELONG_TO: ClassVar[dict[str, str]] = {
        "sigma": "noise", "radius": "uniform", "xi": "vat", "power_iterations": "vat",
    }  # fmt: skip

    @model_validator(mode="after")
    def _no_idle_parameter(self) -> E2SAD:
        for name, step in self._BELONG_TO.items():
            if self.second_step != step and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} only means something where second_step is "{step}"')
        return self

    def filled(self, defaults: Mapping[str, Any]) -> Self:
        """Return the spec on a dataset's scale: where `uniform` says no radius, it is the dataset's eps2, as on MNIST.

        `sigma` and `xi` stay: they say where a derivative is taken, not how far the images differ.
        """
        if self.second_step == "uniform" and "eps2" in defaults:
            defaults = {**defaults, "radius": defaults["eps2"]}
        return super().filled(defaults)

    def unfit(self) -> tuple[str, str] | None:
        """Return the distance from x1 that is too small for a gradient to be more than rounding."""
        nearest = self._NEAREST.get(self.second_step)
        if nearest is None or float(getattr(self, nearest.field)) >= nearest.float32:
            return None
        said = f"{self.second_step} this near to x1 is decided by rounding"
        return nearest.field, f"{said}: give {nearest.field} of at least {nearest.float32}"

    @property
    def ill_conditioned(self) -> str | None:
        """Return why rounding decides the second step, or None."""
        if self.second_step == "literal":
            why = "is the sign of a gradient that is exactly zero"
        elif self.unfit():
            why = "is taken where its gradient is all but zero"
        else:
            return None
        return f"ill-conditioned: the second step {why}, so rounding decides it"

    def caution(self, precision: str = "float32") -> str | None:
        """Return a warning where rounding decides the second step and training takes it."""
        if self.dissimilarity_weight == 0:
            return None
        nearest = self._NEAREST.get(self.second_step)
        if precision != "float32" and nearest and float(getattr(self, nearest.field)) < nearest.coarse:
            return f"ill-conditioned: so near to x1 rounding in {precision} decides much of the second step"
        return self.ill_conditioned

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of alpha J(x) + (1 - alpha) J(x1) + lambda mean CE(f(x1), f(x2)), eq. 8."""
        alpha, size = self.alpha, len(batch.images)
        clean = clean_pass(batch, weights=alpha > 0, images=self._takes_steps)
        if not self._takes_steps:
            return Gradients([weight / size for weight in clean.weights], {"loss": clean.loss, "clean": clean.loss})
        x1 = self._first(batch, clean.images)
        loss, figures = self._adversarial_loss(batch, x1.requires_grad_())
        weights = add_scaled(batch.weight_gradient(loss), clean.weights, alpha / size)
        return Gradients(weights, {"loss": alpha * clean.loss + loss.detach(), "clean": clean.loss, **figures})

    def examples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return x1 and x2 (eq. 6 and 7) as `gradients` makes them, whatever the weights of the loss."""
        x1 = self._first(batch, None).requires_grad_()
        return x1.detach(), self._second(batch, x1, batch.model(x1))

    def passes(self) -> Passes:
        """Return the passes over x, x1 and x2, and those of the second step that the pass over x1 does not pay for."""
        if not self._takes_steps:
            return Passes(forward=1, full_backward=1)
        passes = Passes(2, input_backward=int(self.alpha == 0), full_backward=(self.alpha > 0) + self._trains_on_x1)
        if self.dissimilarity_weight == 0:
            return passes
        gradients = self.power_iterations if self.second_step == "vat" else 1
        elsewhere = 0 if self.second_step in {"entropy", "literal"} else gradients
        return Passes(
            forward=passes.forward + elsewhere + 1,
            input_backward=passes.input_backward + gradients,
            full_backward=passes.full_backward + 1,
        )

    @property
    def _takes_steps(self) -> bool:
        return self.alpha < 1 or self.dissimilarity_weight > 0

    @property
    def _trains_on_x1(self) -> bool:
        return self.alpha < 1 or (self.dissimilarity_weight > 0 and not self.detach_target)

    def _first(self, batch: Batch, known: Tensor | None) -> Tensor:
        """Return x1 = clip01(x + eps1 * sign(grad J(x))), eq. 6; `known` is that gradient if it is paid for."""
        return FGSM(eps=self.eps1, loss="training", clip=self.clip).run(batch.images, batch.oracle(known=known))

    def _adversarial_loss(self, batch: Batch, x1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return eq. 8 without its clean term, and its parts."""
        logits = batch.model(x1)
        adversarial = batch.losses(logits).mean()
        figures = {"adversarial": adversarial.detach()}
        terms = [(1 - self.alpha) * adversarial] if self.alpha < 1 else []
        if self.dissimilarity_weight > 0:
            x2 = self._second(batch, x1, logits)
            target = logits.detach() if self.detach_target else logits
            dissimilarity = losses.dissimilarity(target, batch.model(x2)).mean()
            figures["dissimilarity"] = dissimilarity.detach()
            terms.append(self.dissimilarity_weight * dissimilarity)
        return sum(terms[1:], terms[0]), figures

    def _second(self, batch: Batch, x1: Tensor, logits: Tensor) -> Tensor:
        """Return x2 = clip01(x1 + eps2 * sign(gradient)), eq. 7; always from x1, wherever the gradient was taken."""
        if self.second_step in {"entropy", "literal"}:
            gradient = self._gradient_at_x1(x1, logits)
        else:
            gradient = self._gradient_near_x1(batch, x1, logits)
        x2 = ascend(x1.detach(), gradient, float(self.eps2))
        return x2.clamp_(0, 1) if self.clip else x2

    def _gradient_at_x1(self, x1: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient at x1 itself, from the forward pass that x1's own loss has paid for."""
        import torch

        climbed = (
            losses.entropy(logits) if self.second_step == "entropy" else losses.dissimilarity(logits.detach(), logits)
        )
        return torch.autograd.grad(climbed.sum(), x1, retain_graph=True)[0]

    def _gradient_near_x1(self, batch: Batch, x1: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient of D(x1, x'') at a random x'' near x1, which `vat` refines."""
        import torch

        target, x1 = logits.detach(), x1.detach()
        offset = self._offset(batch, x1)
        gradient = offset
        for _ in range(self.power_iterations):
            batch.monitor.check()
            start = (x1 + offset).requires_grad_()
            climbed = losses.dissimilarity(target, batch.model(start)).sum()
            gradient = torch.autograd.grad(climbed, start)[0]
            offset = self._to_length_xi(gradient)
        return gradient

    def _offset(self, batch: Batch, x1: Tensor) -> Tensor:
        shape, dtype = x1.shape[1:], x1.dtype
        if self.second_step == "uniform":
            draws = uniform(batch.seed, batch.stream, batch.indices, shape, dtype)
            return (2 * draws - 1) * float(self.radius)
        draws = normal(batch.seed, batch.stream, batch.indices, shape, dtype)
        return self.sigma * draws if self.second_step == "noise" else self._to_length_xi(draws)

    def _to_length_xi(self, direction: Tensor) -> Tensor:
        # first to a largest element of 1: squares of the gradients of a confident model underflow in float32
        direction = direction / direction.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
        length = direction.square().sum((1, 2, 3), keepdim=True).sqrt()
        return direction * (self.xi / length.clamp(min=1))  # at least 1 by now, unless the direction is 0
