"""Why a stage waits: every one that does not run says so, in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from store import jobs, workers
from store.database import chunks, db_now
from store.models import STAGES, Stage, StageState
from store.stages import IS_READY, MAX_BACKOFF_SECONDS

RANKED = 1_000
"""Ready stages whose place in the queue is counted; those behind are "more than that"."""

_ORDER = (STAGES.c.priority.desc(), STAGES.c.id)
_FIRST = (
    select(STAGES.c.id, func.row_number().over(order_by=_ORDER).label("place"))
    .where(STAGES.c.queue == bindparam("of"), IS_READY)
    .order_by(*_ORDER)
    .limit(RANKED)
    .subquery()
)
_PLACES = select(_FIRST.c.id, _FIRST.c.place).where(_FIRST.c.id.in_(bindparam("ids", expanding=True)))
_NOW = select(db_now())


@dataclass(frozen=True)
class Reasons:
    """What the waiting stages of a job wait for."""

    parents: dict[int, list[str]]
    places: dict[int, int]
    served: set[str]
    now: float

    def of(self, stage: Stage) -> str | None:
        """Return the reason, or None where the stage runs or has succeeded."""
        if stage.state == StageState.BLOCKED:
            names = self.parents.get(stage.id, [])
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            return f"waits for {'; '.join(names[:2])}{more}"
        if stage.state == StageState.READY:
            return self._of_ready(stage)
        if stage.state == StageState.RUNNING:
            return "is being stopped" if stage.cancel_requested else _still(stage.progress or {})
        if stage.state in (StageState.FAILED, StageState.CANCELLED):
            return str((stage.error or {}).get("message", "cancelled"))
        return None

    def _of_ready(self, stage: Stage) -> str:
        if 0 < stage.not_before - self.now <= MAX_BACKOFF_SECONDS:
            message = (stage.error or {}).get("message", "")
            return f"tries again in {stage.not_before - self.now:.0f} s after: {message}"
        if stage.queue not in self.served:
            return unserved(stage.queue)
        return self._place(stage) + _left_by(stage.error or {})

    def _place(self, stage: Stage) -> str:
        place = self.places.get(stage.id)
        ahead = f"more than {RANKED}" if place is None else str(place)
        return f"queued in {stage.queue} behind {ahead} stages" if place != 0 else f"next in the queue {stage.queue}"


def unserved(queue: str) -> str:
    """Return what stages wait for where no live worker serves their queue."""
    where = " on a machine with a CUDA device" if queue == "gpu" else ""
    return f"no live worker serves the queue {queue}; start one with `python -m worker`{where}"


def _still(progress: dict[str, Any]) -> str | None:
    seconds = progress.get("still_seconds")
    return f"its worker lives, but has made no progress for {seconds} s" if seconds else None


def _left_by(error: dict[str, Any]) -> str:
    host = error.get("refused_by")
    return f"; the worker on {host} left it to the others: {error.get('message')}" if host else ""


def reasons(session: Session, stages: Sequence[Stage], alive_seconds: float) -> Reasons:
    """Return what those of the stages wait for that wait; what none of them needs is not asked for."""
    ready = [stage for stage in stages if stage.state == StageState.READY]
    return Reasons(
        parents=jobs.unfinished_parent_titles(session, [s.id for s in stages if s.state == StageState.BLOCKED]),
        places=_places(session, ready),
        served=workers.live_queues(session, alive_seconds) if ready else set(),
        now=session.scalar(_NOW) or 0.0 if any(stage.error for stage in ready) else 0.0,
    )


def _places(session: Session, ready: Sequence[Stage]) -> dict[int, int]:
    """Return ready stage -> number of stages ahead of it in its queue."""
    places: dict[int, int] = {}
    for queue in {stage.queue for stage in ready}:
        for chunk in chunks([stage.id for stage in ready if stage.queue == queue]):
            places.update({row.id: row.place - 1 for row in session.execute(_PLACES, {"of": queue, "ids": chunk})})
    return places
