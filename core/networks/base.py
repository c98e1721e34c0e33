"""What every network is: a frozen spec that builds a torch module from a seed.

Images enter as floats in [0, 1]; normalisation is the module's first layer. Logits come out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from core.errors import SpecError
from core.kinds import Kind
from core.layers import Layer, initialise, with_shapes

if TYPE_CHECKING:
    from torch import nn


class Network(Kind, ABC):
    """Base of every network."""

    input_shape: ClassVar[tuple[int, int, int]]
    """Channels, height, width."""
    classes: ClassVar[int] = 10
    """Number of classes."""

    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """Return the rows of the architecture's table."""

    def scaling(self) -> nn.Module | None:
        """Return the layer before the first row, where there is one."""
        return None

    @property
    def flop(self) -> int:
        """Return the operations of one image's forward pass, two per multiply-add; needs no torch."""
        return sum(layer.flop(shape) for layer, shape in with_shapes(self.layers(), self.input_shape))

    def blank(self) -> nn.Module:
        """Return the module in evaluation mode with unset weights; draws no random number."""
        import torch
        from torch import nn

        with torch.device("meta"):
            first = self.scaling()
            rows = [layer.modules(shape) for layer, shape in with_shapes(self.layers(), self.input_shape)]
            modules = ([] if first is None else [first]) + [module for row in rows for module in row]
        return nn.Sequential(*modules).eval().to_empty(device="cpu")

    def check(self) -> None:
        """Let one image without data through the network, which computes shapes only.

        Raises:
            SpecError: the image does not pass, or what comes out is not a logit for each class.
        """
        import torch

        image = torch.empty(1, *self.input_shape, device="meta")
        try:
            out = tuple(self.blank().to("meta")(image).shape)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SpecError(
                f"the network {self.kind} cannot take images of shape {self.input_shape}: {reason}", ("network",)
            ) from error
        if out != (1, self.classes):
            raise SpecError(
                f"the network {self.kind} gives {out[1:]} for an image, not {self.classes} logits", ("network",)
            )

    def build(self, seed: int) -> nn.Module:
        """Return the module in evaluation mode, initialised from `seed`; torch's global generator is left alone."""
        import torch

        module = self.blank()
        initialise(module, torch.Generator().manual_seed(seed))
        return module
