"""The monitor of a stage that runs in a worker: told to stop by the heartbeat, asked by the computation."""

import threading
import time
from collections.abc import Callable
from typing import Any

from core.errors import Interrupted
from store.stages import Claim

STILL_SECONDS = 120.0
"""Work that says nothing of its progress for so long is said to stand still; a crafting may do so for a while."""


class Watch:
    """Carries the order to stop in, and progress, log lines and checkpoints out."""

    def __init__(
        self, claim: Claim, asked: float, checkpoint_seconds: float, keep: Callable[[Claim, bytes], None]
    ):  # fmt: skip
        """`asked` is when, on the monotonic clock, the claim was asked for: its lease lasts from no earlier."""
        self.claim = claim
        self._keep = keep
        self._checkpoint_seconds = checkpoint_seconds
        self._last_checkpoint = time.monotonic()
        self._renewed = asked
        self._stop: str | None = None
        self._stopped_at = 0.0
        self._recorded = False
        self._progress: dict[str, Any] | None = None
        self._seen: dict[str, Any] | None = None
        self._moved = asked
        self._lines: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise `Interrupted` where the stage was told to stop."""
        if self._stop is not None:
            raise Interrupted(self._stop)

    def progress(self, done: int, total: int, **figures: float) -> None:
        """Note how far the work is."""
        self._progress = {"done": done, "total": total, **figures}

    def wants_checkpoint(self) -> bool:
        """Return whether the time between checkpoints has passed."""
        return time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds

    def save_checkpoint(self, data: bytes) -> None:
        """Keep a checkpoint under this claim's fence."""
        self._keep(self.claim, data)
        self._last_checkpoint = time.monotonic()

    def clock(self) -> float:
        """Return seconds that only go forward."""
        return time.monotonic()

    def stop(self, reason: str) -> bool:
        """Return whether the work is told to stop for this reason now.

        The first reason stands, except that a drain yields to a cancel or a loss.
        """
        if not self._recorded and (self._stop is None or (self._stop == "drain" and reason != "drain")):
            self._stop, self._stopped_at = reason, time.monotonic()
            return True
        return False

    def recorded(self) -> None:
        """Note that the result is recorded: nothing stops this work any more, as it has ended in SQL."""
        self._recorded = True

    def obeyed(self) -> None:
        """Note that the work has stopped: what is left is to record it, which may wait as long as the lease lasts."""
        self._stop = None

    def told(self) -> str | None:
        """Return why the work was told to stop, None where it was not."""
        return self._stop

    def overdue(self, grace: float, drain_grace: float) -> bool:
        """Return whether cancelled or lost work has gone on for `grace` seconds, or drained work for `drain_grace`."""
        allowed = drain_grace if self._stop == "drain" else grace
        if self._stop is None or self._recorded:
            return False
        return time.monotonic() - self._stopped_at > allowed

    def renewed_at(self, moment: float) -> None:
        """Note on the monotonic clock when the renewal that has just succeeded was asked for."""
        self._renewed = moment

    def since_renewal(self) -> float:
        """Return the seconds since the lease was last renewed."""
        return time.monotonic() - self._renewed

    def latest_progress(self) -> dict[str, Any] | None:
        """Return the newest progress; where none has come for STILL_SECONDS, with the seconds since."""
        now = time.monotonic()
        if self._progress is not self._seen:
            self._seen, self._moved = self._progress, now
        still = now - self._moved
        if still < STILL_SECONDS:
            return self._progress
        return {**(self._progress or {"done": 0, "total": 0}), "still_seconds": round(still)}

    def add_line(self, line: str) -> None:
        """Add a line to the log."""
        with self._lock:
            self._lines.append((time.time(), line))

    def take_lines(self) -> list[tuple[float, str]]:
        """Return the lines not yet written, and forget them."""
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def put_back(self, lines: list[tuple[float, str]]) -> None:
        """Take lines back that could not be written."""
        with self._lock:
            self._lines = lines + self._lines
