"""One training iteration as a CUDA graph: its kernels are launched as one, with no Python and no gaps between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Iterate = Callable[[Tensor, "int | Tensor"], dict[str, Tensor]]

EAGER = 3
"""Iterations that run before the capture: libraries choose their kernels, the optimiser makes its state."""


class Captured:
    """An iteration that is captured after its first `EAGER` calls and replayed from then on.

    Every call is one iteration of the training, the eager ones too. What comes back is overwritten by the next call.
    """

    def __init__(self, iterate: Iterate, batch_size: int):
        import torch

        self._iterate = iterate
        self._indices = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
        self._iteration = torch.zeros((), dtype=torch.int64, device="cuda")
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._losses: dict[str, Tensor] = {}

    def __call__(self, indices: Tensor, iteration: int | Tensor) -> dict[str, Tensor]:
        """Return the losses of the iteration on the images at `indices`, without waiting for the device."""
        self._indices.copy_(indices)
        self._iteration.fill_(iteration)
        self._calls += 1
        if self._calls <= EAGER:
            return self._beside()
        graph = self._graph = self._graph or self._recorded()
        graph.replay()
        return self._losses

    def _beside(self) -> dict[str, Tensor]:
        """Run eagerly on the stream of the capture, as CUDA graphs want their warm-up."""
        import torch

        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._iterate(self._indices, self._iteration)
        current.wait_stream(self._stream)
        return losses

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Return the graph of the iteration; recording it runs nothing."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._losses = self._iterate(self._indices, self._iteration)
        return graph
