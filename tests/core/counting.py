"""Counts the passes of the tiny network as they happen, below autograd, by the shapes of its convolutions."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.passes import Passes

FIRST, SECOND = 3, 5
"""Input channels of the tiny network's two convolutions."""


class CountPasses(TorchDispatchMode):
    """Counts forward, input-only and full backward passes by the second convolution.

    `first_layer` counts gradients with respect to the images themselves: whoever computes one without need pays for
    the first layer's share of an input backward.
    """

    def __init__(self, batch_size: int):
        super().__init__()
        self.batch_size = batch_size
        self.forward = self.input_backward = self.full_backward = self.first_layer = 0.0

    @property
    def passes(self) -> Passes:
        return Passes(self.forward, self.input_backward, self.full_backward)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].shape[1] == SECOND:
            self.forward += len(args[0]) / self.batch_size
        if (
            func is torch.ops.aten.convolution.default
            and len(args[0]) == SECOND
            and args[1].shape[1] == self.batch_size
        ):
            self.full_backward += 0.5  # the weights' half, which a second differentiation writes as a convolution
        if func is torch.ops.aten.convolution_backward.default:
            self._backward(args[0], args[2], args[-1])
        if func is torch.ops.aten.col2im.default:
            self.first_layer += len(args[0]) / self.batch_size
        return func(*args, **(kwargs or {}))

    def _backward(self, gradient, weight, wanted):
        share = len(gradient) / self.batch_size
        _, of_weight, _ = wanted
        if weight.shape[1] == FIRST:
            return
        if of_weight:
            self.full_backward += share
        else:
            self.input_backward += share
