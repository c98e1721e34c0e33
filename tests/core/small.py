"""Small networks, images and monitors that the tests of `core` share."""

from typing import ClassVar, Literal, TypeVar

import torch
from torch import nn

from core.errors import Interrupted
from core.kinds import Kind
from core.layers import Conv, Dense, Layer
from core.monitor import Unwatched
from core.networks.base import Network
from core.random import uniform

torch.set_num_threads(1)  # on tiny tensors threads only wait for one another

K = TypeVar("K", bound=Kind)


class TinyNet(Network):
    """Two convolutions and two dense layers over 3 x 8 x 8 images, 4 classes."""

    kind: Literal["tiny"] = "tiny"
    input_shape: ClassVar[tuple[int, int, int]] = (3, 8, 8)
    classes: ClassVar[int] = 4

    def layers(self) -> tuple[Layer, ...]:
        return (Conv(5, 3, padding=1, pool=2), Conv(6, 3, padding=1, pool=2), Dense(12), Dense(4, relu=False))


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    return TinyNet().build(seed).to(dtype)


def tiny_images(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose classes a tiny network can learn: the class shifts one channel's brightness."""
    indices = torch.arange(n)
    labels = indices * 7 % 4
    images = uniform(seed, 0, indices, TinyNet.input_shape, dtype)
    images[:, 0] = images[:, 0] / 2 + labels.view(-1, 1, 1).to(dtype) / 8
    return images, labels


def tiny_pixels(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = tiny_images(n, seed)
    return (images * 255).round().to(torch.uint8), labels


def small(cls: type[K], **fields: object) -> K:
    """Return the kind with defaults, but with three steps where it takes steps, and the tiny network's three rivals."""
    fields = {name: 3 for name in ("steps", "rivals") if name in cls.model_fields} | fields
    return cls(**fields)


class Recording(Unwatched):
    """Keeps checkpoints; interrupts at a given call of `check`; asks for a checkpoint at a given question."""

    def __init__(self, stop_at: int = -1, reason: str = "drain", checkpoint_at: int = -1):
        self.stop_at, self.reason, self.checkpoint_at = stop_at, reason, checkpoint_at
        self.checks = self.questions = 0
        self.checkpoints: list[bytes] = []
        self.reports: list[tuple[int, int, dict[str, float]]] = []

    def check(self) -> None:
        self.checks += 1
        if self.checks == self.stop_at:
            raise Interrupted(self.reason)

    def progress(self, done: int, total: int, **figures: float) -> None:
        self.reports.append((done, total, figures))

    def wants_checkpoint(self) -> bool:
        self.questions += 1
        return self.questions == self.checkpoint_at

    def save_checkpoint(self, data: bytes) -> None:
        self.checkpoints.append(data)
