"""Evaluation: adversarial examples and predictions over a whole set, in batches, in full precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.compute import configured, unit_images
from core.monitor import Monitor, Unwatched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from core.attacks.base import Attack
    from core.execution import Execution

_UNWATCHED = Unwatched()


def craft(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    execution: Execution,
    *,
    smoothing: float = 0.0,
    monitor: Monitor = _UNWATCHED,
    batch: int = 500,
) -> Tensor:
    """Return float32 adversarial images on the CPU for `images`, whole numbers or floats in [0, 1].

    Random numbers belong to an image's position in `images`, so the first n images of a set get the same ones.

    Raises:
        Interrupted: the monitor said so, between two attack steps.
    """
    import torch

    done: list[Tensor] = []
    positions = torch.arange(len(images), device=execution.device)
    with configured(execution):
        for indices in positions.split(batch):
            begin, end = int(indices[0]), int(indices[0]) + len(indices)
            clean, truth = unit_images(images[begin:end], execution), labels[begin:end].to(execution.device)
            adversarial = attack(model, clean, truth, smoothing=smoothing, indices=indices, monitor=monitor)
            done.append(adversarial.to("cpu", torch.float32, memory_format=torch.contiguous_format))
            monitor.progress(end, len(images))
    return torch.cat(done)


def predict(model: nn.Module, images: Tensor, execution: Execution, batch: int = 1000) -> Tensor:
    """Return the predicted classes, int64 on the CPU, of `images`, whole numbers or floats in [0, 1]."""
    import torch

    with configured(execution), torch.no_grad():
        batches = [model(unit_images(piece, execution)).argmax(1) for piece in images.split(batch)]
        return torch.cat(batches).cpu()


def correct_bits(predictions: Tensor, labels: Tensor) -> bytes:
    """Return one bit per example, 1 where the prediction is right, first example in the highest bit."""
    import numpy as np

    return np.packbits((predictions == labels).cpu().numpy()).tobytes()


def bits_to_correct(data: bytes, n: int) -> NDArray[np.bool_]:
    """Return the n truth values that `correct_bits` packed."""
    import numpy as np

    packed: Any = np.frombuffer(data, np.uint8)
    return np.unpackbits(packed, count=n).astype(bool)
