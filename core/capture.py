"""One training iteration as a CUDA graph: its kernels are launched as one, with no Python and no gaps between."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.portions import Portion

    Iterate = Callable[[Tensor, "int | Tensor"], dict[str, Tensor]]

EAGER = 3
"""Iterations that run before the capture: libraries choose their kernels, the optimiser makes its state."""
AHEAD = 16
"""Replays that may wait on the device: enough that it never idles, so few that an order to stop is soon obeyed."""


class Captured:
    """An iteration that is captured after its first `EAGER` calls and replayed from then on.

    Every call is one iteration of the training, the eager ones too. What comes back is overwritten by the next call.
    The iteration is handed over at each call and not kept: a graph in a reference cycle would live until some garbage
    collection, and be destroyed wherever that happens to run. Where the recording runs out of memory it begins again,
    from the eager iterations, with what `portion` then allows.
    """

    def __init__(self, batch_size: int, portion: Portion):
        import torch

        self._indices = torch.zeros(batch_size, dtype=torch.int64, device="cuda")
        self._iteration = torch.zeros((), dtype=torch.int64, device="cuda")
        self._portion = portion
        self._eager = 0
        self._warm = portion.size
        self._replays: deque[torch.cuda.Event] = deque()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._losses: dict[str, Tensor] = {}

    def __call__(self, iterate: Iterate, indices: Tensor, iteration: int) -> dict[str, Tensor]:
        """Return the losses of the iteration on the images at `indices`; waits at most for the one `AHEAD` before."""
        self._indices.copy_(indices)
        self._iteration.fill_(iteration)
        if self._graph is None and self._eager >= EAGER:
            self._graph = self._portion.fit(lambda _: self._recorded(iterate), len(indices))
        if self._graph is None:
            return self._beside(iterate)
        self._graph.replay()
        self._keep_pace()
        return self._losses

    def _keep_pace(self) -> None:
        import torch

        event = self._replays.popleft() if len(self._replays) == AHEAD else torch.cuda.Event(blocking=True)
        event.synchronize()
        event.record()
        self._replays.append(event)

    def _beside(self, iterate: Iterate) -> dict[str, Tensor]:
        """Run eagerly on the stream of the capture, as CUDA graphs want their warm-up."""
        import torch

        stream, current = _stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                losses = iterate(self._indices, self._iteration)
        finally:
            current.wait_stream(stream)
        self._eager, self._warm = self._eager + 1, self._portion.size
        return losses

    def _recorded(self, iterate: Iterate) -> torch.cuda.CUDAGraph | None:
        """Return the graph of the iteration; recording it runs nothing. None where its parts have to warm up first."""
        import torch

        if self._portion.size != self._warm:
            self._eager = 0
            return None
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # the outer stream: where the end of a recording fails torch leaves its own in place
        with uncollected(), torch.cuda.stream(current), torch.cuda.graph(graph, stream=_stream()):
            self._losses = iterate(self._indices, self._iteration)
        return graph


@contextmanager
def uncollected() -> Generator[None]:
    """Collect garbage now and none inside: to free what is on the device is not permitted while a graph is recorded."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _stream() -> torch.cuda.Stream:
    """Return the stream of all captures; for every further one cuBLAS would keep a workspace until the process ends."""
    import torch

    return torch.cuda.Stream()
