"""Evaluation: adversarial examples and predictions over a whole set, in batches, in full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.compute import configured, unit_images
from core.monitor import UNWATCHED, Monitor
from core.portions import Portion

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from core.attacks.base import Attack
    from core.execution import Execution


def craft(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    execution: Execution,
    *,
    smoothing: float = 0.0,
    monitor: Monitor = UNWATCHED,
    portion: Portion | None = None,
) -> Tensor:
    """Return float32 adversarial images on the CPU for `images`, whole numbers or floats in [0, 1].

    Random numbers belong to an image's position in `images`, so the first n images of a set get the same ones.
    `portion` says how many go through at once, and learns what memory allowed.

    Raises:
        OutOfMemory: the device cannot hold the passes of a single image.
        Interrupted: the monitor said so, between two attack steps.
    """
    import torch

    def some(begin: int, size: int) -> Tensor:
        indices = positions[begin : begin + size]
        clean, truth = (
            unit_images(images[begin : begin + size], execution),
            labels[begin : begin + size].to(execution.device),
        )
        adversarial = attack(model, clean, truth, smoothing=smoothing, indices=indices, monitor=monitor)
        monitor.progress(begin + len(indices), len(images))
        return adversarial.to("cpu", torch.float32, memory_format=torch.contiguous_format)

    positions = torch.arange(len(images), device=execution.device)
    with configured(execution):
        return _in_portions(some, len(images), portion or Portion.of_images(execution.device))


def predict(model: nn.Module, images: Tensor, execution: Execution, portion: Portion | None = None) -> Tensor:
    """Return the predicted classes, int64 on the CPU, of `images`, whole numbers or floats in [0, 1].

    Raises:
        OutOfMemory: the device cannot hold the pass of a single image.
    """
    import torch

    def some(begin: int, size: int) -> Tensor:
        return model(unit_images(images[begin : begin + size], execution)).argmax(1).cpu()

    with configured(execution), torch.no_grad():
        return _in_portions(some, len(images), portion or Portion.of_images(execution.device))


def _in_portions(some: Callable[[int, int], Tensor], total: int, portion: Portion) -> Tensor:
    """Return the parts that `some(begin, size)` makes, one after the other, in one tensor."""
    import torch

    return torch.cat(list(portion.over(total, some)))


def correct_bits(predictions: Tensor, labels: Tensor) -> bytes:
    """Return one bit per example, 1 where the prediction is right, first example in the highest bit."""
    import numpy as np

    return np.packbits((predictions == labels).cpu().numpy()).tobytes()
