"""The one thing long computations know about the world that runs them."""

from typing import Protocol


class Monitor(Protocol):
    """What a stage's computation may ask and tell while it runs. Cheap enough to call every iteration."""

    def check(self) -> None:
        """Return at once, or raise `Interrupted` where the stage was cancelled, drained or lost its lease."""
        ...

    def progress(self, done: int, total: int, **figures: float) -> None:
        """Note that `done` of `total` units of work are finished; `figures` are the newest losses."""
        ...

    def wants_checkpoint(self) -> bool:
        """Return whether a checkpoint is due."""
        ...

    def save_checkpoint(self, data: bytes) -> None:
        """Store `data`, from which the same computation can be resumed."""
        ...

    def clock(self) -> float:
        """Return seconds that only go forward; differences say how long something took."""
        ...


class Unwatched:
    """A monitor for computations outside the service: never stops, keeps nothing."""

    def check(self) -> None:
        """Return at once."""

    def progress(self, done: int, total: int, **figures: float) -> None:
        """Forget it."""

    def wants_checkpoint(self) -> bool:
        """Return False."""
        return False

    def save_checkpoint(self, data: bytes) -> None:
        """Forget it."""

    def clock(self) -> float:
        """Return 0: nobody asks how long it took."""
        return 0.0


UNWATCHED: Monitor = Unwatched()
"""The monitor where nobody watches."""
