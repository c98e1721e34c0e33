"""What an operator watches, counted in SQL when it is asked for: no process keeps a count that could be wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from store import workers
from store.database import db_now
from store.models import Attempt, Job, JobState, Stage, StageState, Worker
from store.settings import QUEUES
from store.stages import IS_READY, REFUSED, is_due

OPEN = "open"
"""Outcome of an attempt that goes on."""
OUTCOMES = ("succeeded", "failed", "cancelled", "released", REFUSED, "lost")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Gauge:
    """Samples of one name; `labels` are the names of each sample's label values."""

    name: str
    says: str
    labels: Sequence[str]
    samples: Sequence[tuple[Any, ...]]
    """Label values, then the number."""
    kind: str = "gauge"


def gauges(session: Session, alive_seconds: float) -> list[Gauge]:
    """Return everything /metrics shows."""
    since = case((Stage.not_before > 0, Stage.not_before), else_=Stage.created_at)
    age = db_now() - func.min(since)
    left, kept = workers.lease_age(session, workers.KEEPER), workers.lease_age(session, workers.KEPT)
    counted = {
        "stages": select(Stage.queue, Stage.state, func.count()).group_by(Stage.queue, Stage.state),
        "jobs": select(Job.state, func.count()).group_by(Job.state),
        "workers": select(Worker.device, func.count()).where(workers.is_alive(alive_seconds)).group_by(Worker.device),
        "oldest": select(Stage.queue, age).where(IS_READY, is_due()).group_by(Stage.queue),
        "attempts": select(func.coalesce(Attempt.outcome, OPEN), func.count()).group_by(Attempt.outcome),
    }
    rows = {name: [tuple(row) for row in session.execute(query)] for name, query in counted.items()}
    ended = [(outcome, number) for outcome, number in rows["attempts"] if outcome != OPEN]
    return [
        Gauge(
            "gauntlet_stages", "Stages by queue and state.", ("queue", "state"),
            _with_zeros(rows["stages"], QUEUES, StageState),
        ),
        Gauge("gauntlet_jobs", "Jobs by state.", ("state",), _with_zeros(rows["jobs"], JobState)),
        Gauge(
            "gauntlet_workers", "Live workers by device class.", ("device",), _with_zeros(rows["workers"], DEVICES)
        ),
        Gauge("gauntlet_ready_age_seconds", "Since the oldest ready stage may run.", ("queue",), rows["oldest"]),
        Gauge(
            "gauntlet_attempts_total", "Attempts that ended; released, refused and lost ones run again.",
            ("outcome",), _with_zeros(ended, OUTCOMES), "counter",
        ),
        Gauge("gauntlet_keeper_up", "Whether a keeper holds its lease.", (), [(int((left or -1.0) > 0),)]),
        Gauge(
            "gauntlet_keeper_complete_seconds", "Since a keeper has last done all its duties.", (),
            [] if kept is None else [(-kept,)],
        ),
    ]  # fmt: skip


def _with_zeros(rows: Sequence[tuple[Any, ...]], *values: Iterable[str]) -> list[tuple[Any, ...]]:
    """Return a row for every combination of label values: an alarm on a sample that is not there never fires."""
    counted = {row[:-1]: row[-1] for row in rows}
    return [(*labels, number) for labels, number in {**dict.fromkeys(product(*values), 0), **counted}.items()]
