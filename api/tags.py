"""ETags of tables that have been answered, so that an unchanged one is known without being made again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

KEPT = 1_000


class Tags:
    """The newest ETags by question, each with the stamp of the data its table was made from."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Hashable, str]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, question: Hashable, stamp: Hashable) -> str | None:
        """Return the tag of the answer, None where the data have changed or nobody has asked."""
        with self._lock:
            before, tag = self._known.get(question, (None, None))
        return tag if before == stamp else None

    def learn(self, question: Hashable, stamp: Hashable, tag: str) -> None:
        """Note the tag of an answer; `stamp` was taken before the data were read, so it is never too new."""
        with self._lock:
            self._known[question] = (stamp, tag)
            self._known.move_to_end(question)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
