"""Commit-then-error: transactions that are committed, and whose answer is lost, as when the connection breaks.

Whoever asked cannot know, and asks again. In this process:

    with losing(Plan.of("every=2")) as plan: ...

In a real process: LOST_ANSWERS="share=0.2 seed=3" in its environment, and `ON_PATH` first in its PYTHONPATH.
"""

import os
import random
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from store.database import Database

ROOT = Path(__file__).parents[1]
ON_PATH = os.pathsep.join([str(Path(__file__).with_name("lost_answers")), str(ROOT)])


@dataclass
class Plan:
    """Which answers are lost: a random share of them, or each `every`-th."""

    share: float = 0.0
    every: int = 0
    seed: int = 0
    lost: int = 0
    heard: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    @classmethod
    def of(cls, text: str) -> "Plan":
        """Return the plan that `text` describes: `share=0.2 seed=3`, or `every=5`.

        Raises:
            ValueError: it describes none.
        """
        given = dict(part.split("=", 1) for part in text.split())
        numbers = {"every": int, "seed": int, "share": float}
        plan = cls(**{name: numbers[name](value) for name, value in given.items() if name in numbers})
        if set(given) - set(numbers) or not (plan.share or plan.every):
            raise ValueError(f'LOST_ANSWERS={text!r}: write "share=0.2", "share=0.2 seed=3" or "every=5"')
        return plan

    def loses(self) -> bool:
        """Return whether the next answer is lost."""
        with self._lock:
            lost = self._dice.random() < self.share
            lost = lost or (self.every > 0 and (self.lost + self.heard + 1) % self.every == 0)
            self.lost += lost
            self.heard += not lost
        return lost


class AnswerLost(OperationalError):
    """What a broken connection raises, though the transaction was committed."""

    def __init__(self) -> None:
        super().__init__("COMMIT", None, Exception("the connection was lost (a test: the transaction is committed)"))


def losing_write(plan: Plan) -> Any:
    """Return a `Database.write` that loses the answers that the plan says."""
    whole = Database.write

    @contextmanager
    def write(self: Database) -> Generator[Session]:
        with whole(self) as session:
            yield session
        if plan.loses():
            raise AnswerLost

    return write


@contextmanager
def losing(plan: Plan) -> Iterator[Plan]:
    """Lose answers to every database of this process, for as long as the block lasts."""
    whole = Database.write
    Database.write = losing_write(plan)
    try:
        yield plan
    finally:
        Database.write = whole


def install(text: str) -> None:
    """Lose answers for as long as this process lasts."""
    Database.write = losing_write(Plan.of(text))
