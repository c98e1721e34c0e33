"""Network kind `mnist_cnn`: Table 4."""

from __future__ import annotations

from typing import ClassVar, Literal

from core.layers import Conv, Dense, Layer
from core.networks.base import Network


class MnistCnn(Network):
    """The paper's network for 28 x 28 grey images (Table 4); images are fed as they are, in [0, 1]."""

    kind: Literal["mnist_cnn"] = "mnist_cnn"
    """The kind's name."""
    input_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)

    def layers(self) -> tuple[Layer, ...]:
        """Return Table 4."""
        return (
            Conv(32, 5, padding=2, pool=2),
            Conv(64, 5, padding=2, pool=2),
            Dense(1024),
            Dense(self.classes, relu=False),
        )
