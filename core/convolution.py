"""The convolution that images enter, with a gradient for the images that a CPU computes fast.

oneDNN takes as long for the gradient of an image of one channel as of sixteen: on two cores 22 ms for 250 images of
MNIST, a fifth of an attack step, and 6 ms as the matrix product that it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import fold

FEW_CHANNELS = 3
"""Up to so many the matrix product was faster: 3.4 times with one channel, 1.6 times with three, slower with eight."""


class ImageConvolution(nn.Conv2d):
    """A convolution of stride 1 whose input gradient, on a CPU, is a matrix product and a sum of shifted images."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is nn.Conv2d's
        """Return what nn.Conv2d does."""
        if input.device.type != "cpu" or not input.requires_grad or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        # apart, so that whoever asks for one of the two gradients does not pay for the other
        result = super().forward(input.detach())
        return _Joined.apply(result, _Shown.apply(input, result.shape, self))


class _Joined(torch.autograd.Function):
    """The convolution's result, whose gradient goes to the weights' branch and to the images' branch."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, shown: Tensor) -> Tensor:
        del ctx, shown
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return gradient, gradient


class _Shown(torch.autograd.Function):
    """A stand-in for the result, without memory of its own, whose gradient goes to the images alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, shape: torch.Size, layer: nn.Conv2d) -> Tensor:
        # no argument that has a gradient: autograd would then come here for the weights' gradient as well
        ctx.weight, ctx.padding, ctx.size = layer.weight, layer.padding, images.shape[2:]
        return images.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        columns = ctx.weight.flatten(1).t() @ gradient.flatten(2)
        return fold(columns, ctx.size, ctx.weight.shape[2:], padding=ctx.padding), None, None
