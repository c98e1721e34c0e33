"""How many examples go through a network at once, and what happens when memory runs out: fewer do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from core.errors import OutOfMemory

T = TypeVar("T")


def _unheard(line: str) -> None:
    del line


class Portion:
    """A number of examples that is halved as often as memory runs out; `tell` hears of each time."""

    def __init__(self, size: int, tell: Callable[[str], None] = _unheard):
        self.size = size
        self._asked = size
        self._tell = tell

    @property
    def lowered(self) -> int | None:
        """The size, where memory did not allow the one asked for."""
        return self.size if self.size < self._asked else None

    def lower_to(self, size: int) -> None:
        """Take at most so many from now on, as an earlier attempt had to."""
        self.size = min(self.size, size)

    def fit(self, work: Callable[[int], T], left: int) -> T:
        """Return `work(size)` of `left` examples at most, done again with half as many as often as memory runs out.

        Raises:
            OutOfMemory: it has too little for a single example; says how much was asked for.
        """
        import torch

        while True:
            size = min(self.size, left)
            try:
                return work(size)
            except torch.OutOfMemoryError as error:
                needed = str(error).strip() or type(error).__name__
            # outside the handler: the exception's frames hold the tensors that have to go
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size <= 1:
                raise OutOfMemory(f"the device has too little memory for one example at a time: {needed}")
            self.size = (size + 1) // 2
            self._tell(f"out of memory with {size} examples at once, going on with {self.size}: {needed}")
