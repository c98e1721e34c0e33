"""The monitor of a running stage: which order to stop stands, when it is overdue, what its clocks say."""

import time
from typing import Any

import pytest

from core.errors import Interrupted
from store.stages import Claim
from worker import watch
from worker.watch import Watch

CLAIM = Claim(1, 2, "k" * 64, "train", "train natural", {})


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def a_watch(asked: float | None = None, every: float = 60.0, keep: Any = None) -> Watch:
    return Watch(CLAIM, time.monotonic() if asked is None else asked, every, keep)


@pytest.mark.parametrize(
    ("orders", "standing"),
    [
        (["cancel"], "cancel"),
        (["drain"], "drain"),
        (["drain", "cancel"], "cancel"),
        (["drain", "lost"], "lost"),
        (["cancel", "drain"], "cancel"),
        (["lost", "drain"], "lost"),
        (["cancel", "lost"], "cancel"),
        (["lost", "cancel"], "lost"),
        (["drain", "drain"], "drain"),
    ],
)
def test_orders(orders: list[str], standing: str) -> None:
    seen = a_watch()
    seen.check()
    for order in orders:
        seen.stop(order)
    with pytest.raises(Interrupted) as interrupted:
        seen.check()
    assert interrupted.value.reason == standing


def test_only_the_order_that_takes_effect_says_so() -> None:
    seen = a_watch()
    assert [seen.stop(order) for order in ("drain", "drain", "lost", "lost", "cancel")] == [
        True, False, True, False, False,
    ]  # fmt: skip


def test_overdue(clock: Clock) -> None:
    """A drain may take its time, but not for ever; cancelled or lost work may not, counted from that order on."""
    seen = a_watch(clock.now)
    clock.now += 1000
    assert not seen.overdue(8, 90)
    seen.stop("drain")
    clock.now += 90
    assert not seen.overdue(8, 90)
    clock.now += 0.1
    assert seen.overdue(8, 90)
    seen.stop("lost")
    clock.now += 8
    assert not seen.overdue(8, 90)
    clock.now += 0.1
    assert seen.overdue(8, 90)
    seen.obeyed()
    assert not seen.overdue(8, 90)


def test_recorded_work_is_never_overdue(clock: Clock) -> None:
    seen = a_watch(clock.now)
    seen.stop("cancel")
    seen.recorded()
    clock.now += 100
    assert not seen.overdue(8, 90)


def test_renewal_clock(clock: Clock) -> None:
    """It starts when the claim was asked for, not when it was granted, and so does every renewal."""
    seen = a_watch(clock.now - 2)
    assert seen.since_renewal() == 2
    clock.now += 10
    seen.renewed_at(clock.now - 1)
    assert seen.since_renewal() == 1


def test_checkpoints(clock: Clock) -> None:
    kept: list[tuple[Claim, bytes]] = []
    seen = a_watch(clock.now, 60, lambda claim, data: kept.append((claim, data)))
    assert not seen.wants_checkpoint()
    clock.now += 60
    assert seen.wants_checkpoint()
    seen.save_checkpoint(b"state")
    assert kept == [(CLAIM, b"state")]
    assert not seen.wants_checkpoint()


def test_lines(clock: Clock) -> None:
    """Each is taken once; those that could not be written come first the next time."""
    seen = a_watch(clock.now)
    seen.add_line("one")
    taken = seen.take_lines()
    assert taken == [(1000.0, "one")]
    seen.add_line("two")
    seen.put_back(taken)
    assert [line for _, line in seen.take_lines()] == ["one", "two"]
    assert seen.take_lines() == []


def test_progress(clock: Clock) -> None:
    """Where none comes for a while, it says for how long; each report is a sign of life, also of the same number."""
    seen = a_watch(clock.now)
    assert seen.latest_progress() is None
    seen.progress(3, 10, loss=0.5)
    assert seen.latest_progress() == {"done": 3, "total": 10, "loss": 0.5}
    clock.now += watch.STILL_SECONDS
    assert seen.latest_progress() == {"done": 3, "total": 10, "loss": 0.5, "still_seconds": 120}
    seen.progress(3, 10, loss=0.5)
    assert seen.latest_progress() == {"done": 3, "total": 10, "loss": 0.5}


def test_no_progress_ever(clock: Clock) -> None:
    seen = a_watch(clock.now)
    clock.now += watch.STILL_SECONDS + 1
    assert seen.latest_progress() == {"done": 0, "total": 0, "still_seconds": 121}
