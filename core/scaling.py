"""First layers of networks: what happens to images in [0, 1] before the first convolution. Loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class PixelRange(nn.Module):
    """Maps [0, 1] to [-1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        """Return 2 * images - 1."""
        return 2 * images - 1


class Standardise(nn.Module):
    """Removes each image's mean and divides by its standard deviation."""

    def forward(self, images: Tensor) -> Tensor:
        """Return images of mean 0 and deviation 1; as in TensorFlow the divisor is at least 1 / sqrt(pixels)."""
        pixels = images[0].numel()
        centred = images - images.mean((1, 2, 3), keepdim=True)
        variance = centred.square().mean((1, 2, 3), keepdim=True)
        return centred / variance.clamp(min=1 / pixels).sqrt()
