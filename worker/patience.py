"""Waiting for what is away: longer and longer, for as long as the work is not told to stop."""

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from store import migrate
from store.database import AWAY, Database
from worker.watch import Watch

log = logging.getLogger(__name__)
T = TypeVar("T")
FIRST_SECONDS = 0.2
LONGEST_SECONDS = 10.0
SLICE_SECONDS = 0.1


def await_schema(url: str) -> None:
    """Return once SQL answers; on a schema that is not this code's the process ends, and says what to do."""
    database = Database(url)
    for seconds in _waits():
        try:
            migrate.require(database)
        except AWAY as error:
            log.warning("waits for the database that DATABASE_URL names: %s", error)
            time.sleep(seconds)
        except migrate.WrongSchema as error:
            sys.exit(f"gauntlet: {error}")
        else:
            database.close()
            return


def patiently(
    ask: Callable[[], T], away: tuple[type[Exception], ...], watch: Watch, what: str,
    first: Callable[[], None] = lambda: None,
) -> T:  # fmt: skip
    """Return what `ask` returns, asked again while it raises one of `away`; `first` is done before the first wait.

    The stage's log says for what it waits. The lease is renewed meanwhile; where it cannot be, the wait ends.

    Raises:
        Interrupted: the work is told to stop.
    """
    began = time.monotonic()
    waited = False
    for seconds in _waits():
        try:
            answer = ask()
        except away as error:
            log.warning("stage %s waits, %s: %s", watch.claim.key[:12], what, error)
            if not waited:
                waited = True
                watch.add_line(f"waits, {what}: {error}")
                first()
            _pause(watch, seconds)
        else:
            if waited:
                watch.add_line(f"goes on after {time.monotonic() - began:.1f} s")
            return answer
    raise AssertionError("the waits never end")


def _waits() -> Iterator[float]:
    seconds = FIRST_SECONDS
    while True:
        yield seconds * random.uniform(0.5, 1.0)
        seconds = min(LONGEST_SECONDS, 2 * seconds)


def _pause(watch: Watch, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch.check()
        time.sleep(SLICE_SECONDS)
