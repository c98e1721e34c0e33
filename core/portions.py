"""How many examples go through a network at once, and what happens when memory runs out: fewer do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

from core.errors import OutOfMemory

T = TypeVar("T")
AT_ONCE = {"cpu": 500, "cuda": 5000}
"""Images attacked or looked at at once, by device class, where memory allows."""
OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "DefaultCPUAllocator: can't allocate memory",
)
"""What torch says where memory that its own CUDA allocator does not hand out has run out: a plain RuntimeError.

cuBLAS is not initialized where its handle finds no memory; cuDNN 9 names what failed (..._DEVICE_ALLOCATION_FAILED), or
has no engine left when none of their workspaces could be had.
"""


def _unheard(line: str) -> None:
    del line


class Portion:
    """A number of examples that is halved as often as memory runs out, down to `least`; `tell` hears of each time."""

    def __init__(self, size: int, tell: Callable[[str], None] = _unheard, least: int = 1):
        self.size = size
        self._asked = size
        self._tell = tell
        self._least = least

    @classmethod
    def of_images(cls, device: str, tell: Callable[[str], None] = _unheard) -> Portion:
        """Return how many images a device of that class attacks or looks at at once."""
        return cls(AT_ONCE[device], tell)

    @property
    def lowered(self) -> int | None:
        """The size, where memory did not allow the one asked for."""
        return self.size if self.size < self._asked else None

    def lower_to(self, size: int) -> None:
        """Take at most so many from now on, as an earlier attempt had to."""
        self.size = min(self.size, max(size, self._least))

    def fit(self, work: Callable[[int], T], left: int) -> T:
        """Return `work(size)` of `left` examples at most; where memory runs out twice, done again with half as many.

        The second time is after everything that nobody needs has been given back. Inside the recording of a CUDA
        graph nothing is done again: whoever records has to begin anew.

        Raises:
            OutOfMemory: it has too little for a single example, or for `least`; says how much was asked for.
        """
        tried = 0
        while True:
            size = min(self.size, left)
            try:
                return work(size)
            except RuntimeError as error:
                if not ran_out(error) or capturing():
                    raise
                needed = str(error).strip() or type(error).__name__
            # outside the handler: the exception's frames hold the tensors that have to go
            _give_back()
            if size == tried:
                self._halve(size, needed)
            tried = size

    def over(self, total: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """Yield `work(begin, size)` of one part after the other, until all `total` examples have been in one."""
        begin = 0
        while begin < total:
            size, found = self.fit(lambda size, begin=begin: (size, work(begin, size)), total - begin)
            begin += size
            yield found

    def _halve(self, size: int, needed: str) -> None:
        if size <= self._least:
            whole = "one example at a time" if size == 1 else f"the {size} examples that have to go together"
            raise OutOfMemory(f"the device has too little memory for {whole}: {needed}")
        self.size = max((size + 1) // 2, self._least)
        self._tell(f"out of memory with {size} examples at once, going on with {self.size}: {needed}")


def ran_out(error: BaseException | None) -> bool:
    """Return whether memory ran out, be it that this error only followed: a recording cut short ends with its own."""
    import torch

    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def capturing() -> bool:
    """Return whether what is launched now is recorded into a CUDA graph."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _give_back() -> None:
    """Free tensors in dead reference cycles, then the memory that torch holds in reserve."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
