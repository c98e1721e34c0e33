"""What every attack is: a frozen spec that turns images into adversarial images.

`Attack.__call__` does once what every attack needs: it checks the arguments, keeps the weights out of the backward
passes, and refuses a result outside the ball or the pixel box. A kind writes `run`, `passes` and its fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, final

from core import losses
from core.errors import GauntletError
from core.fields import Flag, Pixels
from core.kinds import Kind
from core.monitor import UNWATCHED, Monitor
from core.passes import Passes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SLACK = 1e-6
"""How far float32 rounding may carry an example out of its ball or the pixel box."""


@dataclass(frozen=True)
class Oracle:
    """What an attack may ask: the model's logits, the gradient of the loss it climbs, who the examples are."""

    model: Callable[[Tensor], Tensor]
    """Images to logits."""
    loss: Callable[[Tensor], Tensor]
    """Logits to the loss that the attack raises, per example."""
    labels: Tensor
    """True classes."""
    indices: Tensor
    """Position of each example in its dataset: random numbers belong to it."""
    stream: int | Tensor = 0
    """Second key of the random numbers, beside the attack's seed: 0 in evaluations, in training the iteration's key."""
    known: tuple[Tensor, Tensor] | None = None
    """Images whose gradient someone has already paid for, and that gradient up to a positive factor. Only for the very
    tensor that is handed to `run`."""
    monitor: Monitor = UNWATCHED
    """Asked before every step whether to go on."""

    def gradient(self, images: Tensor) -> Tensor:
        """Return the gradient of the loss with respect to `images`; no weight gradient is ever computed."""
        import torch

        self.monitor.check()
        if self.known is not None and images is self.known[0]:
            return self.known[1]
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            return torch.autograd.grad(self.loss(self.model(images)).sum(), images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of `images`, without a graph."""
        import torch

        self.monitor.check()
        with torch.no_grad():
            return self.model(images)


class Attack(Kind, ABC):
    """Base of every attack."""

    @final
    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        smoothing: float = 0.0,
        indices: Tensor | None = None,
        monitor: Monitor = UNWATCHED,
    ) -> Tensor:
        """Return adversarial images for `images` in [0, 1]; the model's weights, buffers and mode stay as they are.

        `smoothing` is the label smoothing the model was trained with: an attack with ``loss="training"`` climbs those
        targets. `indices` are the images' positions in their dataset (default: 0, 1, ...).

        Raises:
            ValueError: the model is in training mode, shapes disagree, or images lie outside [0, 1].
            GauntletError: the result left the ball or the pixel box, or is not finite: a bug in the attack.
            Interrupted: the monitor said so, between two steps.
        """
        import torch

        _check_arguments(model, images, labels)
        images = images.detach()
        oracle = Oracle(
            model=model,
            loss=_climbed(labels, self.softness(smoothing)),
            labels=labels,
            indices=torch.arange(len(images), device=images.device) if indices is None else indices,
            monitor=monitor,
        )
        with _weights_left_out(model):
            adversarial = self.run(images, oracle).detach()
        self._check_result(images, adversarial)
        return adversarial

    @abstractmethod
    def run(self, images: Tensor, oracle: Oracle) -> Tensor:
        """Return adversarial images; nothing is checked here, so training loops call this directly."""

    @abstractmethod
    def passes(self) -> Passes:
        """Return the cost per example."""

    def radius(self) -> Fraction | None:
        """Return the largest change of a pixel, in pixel units; None where the attack bounds something else."""
        return None

    def caution(self) -> str | None:
        """Return why what withstands this attack is to be read with care, or None."""
        return None

    def in_box(self) -> bool:
        """Return whether the result is promised to lie in [0, 1]."""
        return True

    def softness(self, smoothing: float) -> float:
        """Return the label smoothing of the loss this attack climbs on a model trained with `smoothing`."""
        del smoothing
        return 0.0

    def label(self) -> str:
        """Return the name for people: the kind, then what differs from its defaults."""
        return " ".join([self.kind.upper(), *(_words(name, value) for name, value in self.differences().items())])

    def _check_result(self, images: Tensor, adversarial: Tensor) -> None:
        radius = self.radius()
        if not bool(adversarial.isfinite().all()):
            raise GauntletError(f"{self.label()}: the result is not finite")
        if radius is not None and (moved := (adversarial - images).abs().max().item()) > radius + SLACK:
            raise GauntletError(f"{self.label()}: a pixel moved by {moved:.8g}, more than {float(radius):.8g}")
        if self.in_box() and not -SLACK <= adversarial.min().item() <= adversarial.max().item() <= 1 + SLACK:
            raise GauntletError(f"{self.label()}: the result leaves [0, 1]")


class GradientAttack(Attack, ABC):
    """Base of attacks that climb a loss inside an L-infinity ball."""

    eps: Pixels
    """Radius of the ball, in pixel units."""
    loss: Literal["label", "training"] = "label"
    """What is climbed: cross entropy of the true label, or of the targets the model was trained on."""
    clip: Flag = True
    """Whether the result is clipped to the pixel box [0, 1]."""

    def radius(self) -> Fraction:
        """Return eps."""
        return self.eps

    def in_box(self) -> bool:
        """Return `clip`."""
        return self.clip

    def softness(self, smoothing: float) -> float:
        """Return `smoothing` where the training loss is climbed, else 0."""
        return smoothing if self.loss == "training" else 0.0

    def label(self) -> str:
        """Return for instance "IFGSM eps=0.3 k=30 soft loss": eps and k always, then what differs."""
        shown = self.model_dump(mode="json", include={"eps", "steps"})
        others = self.differences(leave_out=frozenset(shown))
        words = [_words({"steps": "k"}.get(name, name), value) for name, value in {**shown, **others}.items()]
        return " ".join([self.kind.upper(), *words])


def ball(images: Tensor, eps: float, clip: bool) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest pixels within eps of `images` and, where `clip`, within [0, 1]."""
    low, high = images - eps, images + eps
    return (low.clamp_(min=0), high.clamp_(max=1)) if clip else (low, high)


def ascend(images: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Return images moved by `step_size` along the sign of the gradient; where that is 0 they stay."""
    import torch

    return torch.add(images, gradient.sign(), alpha=step_size)


def _words(name: str, value: Any) -> str:
    if name == "loss":
        return {"training": "soft loss"}[value]
    if isinstance(value, bool):
        return ("" if value else "no ") + name.replace("_", " ")
    return f"{name}={value}"


def _climbed(labels: Tensor, smoothing: float) -> Callable[[Tensor], Tensor]:
    @cache
    def targets(classes: int, dtype: torch.dtype) -> Tensor:
        return losses.soft_targets(labels, classes, smoothing, dtype)

    def loss(logits: Tensor) -> Tensor:
        return losses.cross_entropy(logits, targets(logits.shape[1], logits.dtype))

    return loss


def _check_arguments(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call eval() first")
    if not images.is_floating_point() or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(f"expected float images [B, C, H, W] and labels [B], got {images.shape} and {labels.shape}")
    if len(images) == 0:
        raise ValueError("there are no images")
    if not 0 <= images.min().item() <= images.max().item() <= 1:
        raise ValueError("images must lie in [0, 1]")


@contextmanager
def _weights_left_out(model: nn.Module) -> Generator[None]:
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)
