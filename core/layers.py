"""Networks as data: the rows of an architecture table, from which module, initial weights and cost are made.

Counting operations needs no torch, so that a plan can say what a training costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING

from core.errors import SpecError

if TYPE_CHECKING:
    import torch
    from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """ReLU convolution with stride 1 and bias, then max pooling."""

    filters: int
    size: int
    padding: int = 0
    pool: int = 1
    """Edge of the pooled blocks; 1 pools nothing."""

    def before_pooling(self, shape: Shape) -> Shape:
        """Return the shape after the convolution."""
        grown = 2 * self.padding - self.size + 1
        return self.filters, shape[1] + grown, shape[2] + grown

    def output(self, shape: Shape) -> Shape:
        """Return the shape after this row."""
        filters, height, width = self.before_pooling(shape)
        return filters, height // self.pool, width // self.pool

    def flop(self, shape: Shape) -> int:
        """Return the operations on one image, two per multiply-add."""
        return 2 * prod(self.before_pooling(shape)) * shape[0] * self.size**2

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return the torch layers; pooling before ReLU is the same function at a fraction of the ReLU's work."""
        from torch import nn

        from core.convolution import FEW_CHANNELS, ImageConvolution

        kind = ImageConvolution if shape[0] <= FEW_CHANNELS else nn.Conv2d
        convolution = kind(shape[0], self.filters, self.size, padding=self.padding)
        return [convolution, *([nn.MaxPool2d(self.pool)] if self.pool > 1 else []), nn.ReLU()]


@dataclass(frozen=True)
class Dense:
    """Fully connected layer with bias."""

    units: int
    relu: bool = True

    def output(self, shape: Shape) -> Shape:
        """Return the shape after this row."""
        del shape
        return (self.units,)

    def flop(self, shape: Shape) -> int:
        """Return the operations on one image, two per multiply-add."""
        return 2 * prod(shape) * self.units

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return the torch layers."""
        from torch import nn

        flatten = [nn.Flatten()] if len(shape) > 1 else []
        return [*flatten, nn.Linear(prod(shape), self.units), *([nn.ReLU()] if self.relu else [])]


Layer = Conv | Dense


def with_shapes(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Yield every layer with the shape that enters it.

    Raises:
        SpecError: a layer cannot take what the one before it gives.
    """
    for number, layer in enumerate(layers, 1):
        if isinstance(layer, Conv) and len(shape) != 3:
            raise SpecError(f"row {number} of the network is a convolution, but what enters it is flat: {shape}")
        after = layer.output(shape)
        if min(after) < 1:
            raise SpecError(f"row {number} of the network makes images of shape {shape} into {after}: nothing is left")
        yield layer, shape
        shape = after


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill weights and biases uniformly within 1 / sqrt(fan in): what PyTorch's own layers start from.

    Raises:
        TypeError: a layer holds weights and is neither a convolution, a fully connected layer nor a normalisation.
    """
    import torch
    from torch import nn

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / sqrt(layer.weight[0].numel())
            with torch.no_grad():
                for weight in layer.parameters(recurse=False):
                    weight.uniform_(-bound, bound, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"do not know how to initialise {type(layer).__name__}")
