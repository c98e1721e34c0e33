"""Network kind `svhn_cnn`: Table 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from core.layers import Conv, Dense, Layer
from core.networks.base import Network

if TYPE_CHECKING:
    from torch import nn


class SvhnCnn(Network):
    """The paper's network for 32 x 32 colour images (Table 5).

    The paper removes the mean and divides by the deviation "so that pixel values are within [-1, 1]", which
    contradicts itself; `input` names the readings. The third, eps counted in the [-1, 1] space, is an attack's eps of
    12/255 on `pixel`.
    """

    kind: Literal["svhn_cnn"] = "svhn_cnn"
    """The kind's name."""
    input: Literal["pixel", "per-image"] = "pixel"
    """First layer: pixel maps [0, 1] to [-1, 1]; per-image standardises each image."""
    input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    def layers(self) -> tuple[Layer, ...]:
        """Return Table 5."""
        return (
            Conv(32, 5),
            Conv(64, 5, pool=2),
            Conv(128, 3, pool=2),
            Dense(512),
            Dense(self.classes, relu=False),
        )

    def scaling(self) -> nn.Module:
        """Return the layer that `input` names."""
        from core.scaling import PixelRange, Standardise

        return PixelRange() if self.input == "pixel" else Standardise()
