"""ETags of tables that have been answered, so that an unchanged one is known without being made again."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

KEPT = 1_000
KEPT_SECONDS = 60.0


class Tags:
    """The newest ETags by question, each with the stamp of the data its table was made from.

    None is known for longer than a minute: a database that was repaired or restored has other data under an old stamp.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: OrderedDict[Hashable, tuple[Hashable, str, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._clock = clock

    def of(self, question: Hashable, stamp: Hashable) -> str | None:
        """Return the tag of the answer, None where the data have changed, a minute is over or nobody has asked."""
        with self._lock:
            before, tag, at = self._known.get(question, (None, None, 0.0))
        return tag if before == stamp and self._clock() - at < KEPT_SECONDS else None

    def learn(self, question: Hashable, stamp: Hashable, tag: str) -> None:
        """Note the tag of an answer; `stamp` was taken before the data were read, so it is never too new."""
        with self._lock:
            self._known[question] = (stamp, tag, self._clock())
            self._known.move_to_end(question)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
