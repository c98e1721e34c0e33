"""A network, its gradients, attacks and losses in plain numpy: nothing of core but the rows of the architecture.

Convolutions as sums over the offsets of their kernel, derivatives by hand, ReLU before pooling as the paper prints it.
"""

from typing import Any

import numpy as np

from core.layers import Conv, Dense


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return J per example and its derivative by the logits: p - t."""
    return -(targets * np.log(softmax(logits))).sum(1), softmax(logits) - targets


def entropy(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return H per example and its derivative by the logits: -p (log p + H)."""
    p = softmax(logits)
    found = -(p * np.log(p)).sum(1, keepdims=True)
    return found[:, 0], -p * (np.log(p) + found)


def soft_targets(labels: np.ndarray, classes: int, delta: float) -> np.ndarray:
    return np.where(np.arange(classes) == labels[:, None], 1 - delta, delta / (classes - 1))


class PlainNetwork:
    """Forward and input gradient in float64."""

    def __init__(self, network: Any, module: Any):
        self.rows = network.layers()
        weights = [weight.detach().double().numpy() for weight in module.parameters()]
        self.weights = list(zip(weights[::2], weights[1::2], strict=True))
        self.doubled = getattr(network, "input", None) == "pixel"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.trace: list[Any] = []
        x = 2 * images - 1 if self.doubled else images
        for row, (weight, bias) in zip(self.rows, self.weights, strict=True):
            x = self._conv(row, x, weight, bias) if isinstance(row, Conv) else self._dense(row, x, weight, bias)
        return x

    def gradient(self, images: np.ndarray, loss: Any) -> np.ndarray:
        """Return the derivative by the images of the summed loss."""
        slope = loss(self(images))[1]
        for row, (weight, _), seen in reversed(list(zip(self.rows, self.weights, self.trace, strict=True))):
            slope = self._back_conv(row, slope, weight, seen) if isinstance(row, Conv) else self._back_dense(
                row, slope, weight, seen)  # fmt: skip
        return 2 * slope if self.doubled else slope

    def _conv(self, row: Conv, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        z = correlate(x, weight, row.padding) + bias[:, None, None]
        out = np.maximum(z, 0)
        n, filters, height, width = (*out.shape[:2], out.shape[2] // row.pool, out.shape[3] // row.pool)
        blocks = out[:, :, : height * row.pool, : width * row.pool]
        blocks = blocks.reshape(n, filters, height, row.pool, width, row.pool)
        pooled = blocks.max((3, 5))
        self.trace.append((z, blocks == pooled[:, :, :, None, :, None]))
        return pooled

    def _back_conv(self, row: Conv, slope: np.ndarray, weight: np.ndarray, seen: Any) -> np.ndarray:
        z, largest = seen
        slope = slope.reshape(len(z), *largest.shape[1:3], largest.shape[4])
        spread = (slope[:, :, :, None, :, None] * largest).reshape(
            len(z), z.shape[1], largest.shape[2] * row.pool, largest.shape[4] * row.pool
        )
        whole = np.zeros_like(z)
        whole[:, :, : spread.shape[2], : spread.shape[3]] = spread
        mirrored = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        return correlate(whole * (z > 0), mirrored, row.size - 1 - row.padding)

    def _dense(self, row: Dense, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        z = x.reshape(len(x), -1) @ weight.T + bias
        self.trace.append(z)
        return np.maximum(z, 0) if row.relu else z

    def _back_dense(self, row: Dense, slope: np.ndarray, weight: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (slope * (z > 0) if row.relu else slope) @ weight


def correlate(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = (padded.shape[axis] - weight.shape[axis] + 1 for axis in (2, 3))
    found = sum(
        np.tensordot(weight[:, :, i, j], padded[:, :, i : i + height, j : j + width], (1, 1))
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )
    return found.transpose(1, 0, 2, 3)


def attack(
    network: PlainNetwork,
    images: np.ndarray,
    loss: Any,
    *,
    eps: float,
    step_size: float,
    steps: int,
    start: np.ndarray | float = 0.0,
    decay: float | None = None,
) -> np.ndarray:
    """Return the signed ascent of all the kinds: a start, a step, a number of steps, and with `decay` a momentum."""
    low, high = np.maximum(images - eps, 0), np.minimum(images + eps, 1)
    x, velocity = np.clip(images + start, low, high), 0.0
    for _ in range(steps):
        direction = network.gradient(x, loss)
        if decay is not None:
            velocity = decay * velocity + direction / np.abs(direction).sum((1, 2, 3), keepdims=True)
            direction = velocity
        x = np.clip(x + step_size * np.sign(direction), low, high)
    return x
