"""From rows to replies."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy.orm import Session

from api.schemas import (
    AxisReply,
    CellReply,
    CostReply,
    JobSummary,
    MatrixReply,
    ProgressReply,
    ScopeReply,
    SeedReply,
    StageReply,
)
from core.datasets import DATASETS
from core.statistics import wilson
from store import jobs, stages, waiting
from store.models import Job, Stage, StageState
from store.results import Axis, Cell, Matrix, Scope

ASSUMED_RATE = {"cpu": 4e10, "cuda": 2e13}
"""Floating-point operations per second of a device class before any stage has been measured on it."""
Counts = dict[str, tuple[int, float, float]]
Running = tuple[float, dict[str, Any] | None]
"""Floating-point operations of a running stage, and how far it is."""


def counted(rows: Sequence[Stage]) -> Counts:
    """Return what `store.jobs.counts` says of a job of these stages."""
    counts: Counts = {}
    for row in rows:
        number, flop, seconds = counts.get(row.state, (0, 0.0, 0.0))
        counts[row.state] = (number + 1, flop + row.flop, seconds + row.device_seconds)
    return counts


def progress(counts: Counts, running: Sequence[Running] = ()) -> ProgressReply:
    """Return how far a job is, by floating-point operations; one that was cancelled or failed stays where it ended."""
    total = sum(flop for _, flop, _ in counts.values())
    done = sum(flop for state, (_, flop, _) in counts.items() if state == StageState.SUCCEEDED)
    for flop, reached in running:
        if reached and reached.get("total"):
            done += flop * reached["done"] / reached["total"]
    number = sum(count for count, _, _ in counts.values())
    return ProgressReply(
        stages=number,
        by_state={state: count for state, (count, _, _) in sorted(counts.items())},
        fraction=1.0 if counts.keys() == {StageState.SUCCEEDED} else round(done / total, 4) if total else 0.0,
    )


def summary(job: Job, counts: Counts, running: Sequence[Running] = ()) -> JobSummary:
    """Return a job as lists show it."""
    return JobSummary(
        id=job.id, kind=job.kind, name=job.name, suite=job.suite, tags=job.tags, state=job.state,
        priority=job.priority, created_at=job.created_at, started_at=job.started_at, finished_at=job.finished_at,
        last_event=job.last_event, progress=progress(counts, running),
    )  # fmt: skip


def cost(session: Session, device: str, every: Sequence[tuple[float, str, bool, float]]) -> CostReply:
    """Return what stages cost, each given as (flop, state, reused, device seconds)."""
    measured = stages.measured_rate(session, jobs.queue_of(device))
    rate = measured or ASSUMED_RATE[device]
    return CostReply(
        estimated_seconds=sum(flop for flop, *_ in every) / rate,
        remaining_seconds=sum(flop for flop, state, *_ in every if state != StageState.SUCCEEDED) / rate,
        used_seconds=sum(seconds for *_, seconds in every),
        reused_seconds=sum(seconds for _, _, reused, seconds in every if reused),
        flop=sum(flop for flop, *_ in every),
        rate=rate,
        rate_measured=measured is not None,
    )


def stage(row: Stage, reused: bool, reasons: waiting.Reasons) -> StageReply:
    """Return a stage as its job shows it."""
    return StageReply(**of_stage(row, reasons), reused=reused)


def of_stage(row: Stage, reasons: waiting.Reasons) -> dict[str, Any]:
    """Return what every view of a stage shows, the fields of StageBase."""
    said, ended = reasons.of(row), row.state in (StageState.FAILED, StageState.CANCELLED)
    return {
        "key": row.key, "kind": row.kind, "title": row.title, "state": row.state, "waits_for": None if ended else said,
        "reason": said if ended else None, "progress": row.progress if row.state == StageState.RUNNING else None,
        "device_seconds": row.device_seconds,
    }  # fmt: skip


def pairing(kind: str, chosen: str) -> str | None:
    """Return the pairing of a job of that kind; None where it attacks nothing."""
    return chosen if kind in ("benchmark", "evaluate") else None


def scope(found: Scope) -> ScopeReply:
    """Return a scope with what is to be known of its dataset."""
    dataset = DATASETS.get(found.dataset)
    return ScopeReply(
        dataset=found.dataset, device=found.device, images=found.image_limit, note=dataset.note if dataset else ""
    )


def cell(found: Cell | None) -> CellReply:
    """Return a cell; one that nobody asked for is null with its reason."""
    found = found or Cell()
    seeds = [
        SeedReply(
            seed=count.target_seed, substitute_seed=count.substitute_seed, accuracy=count.n_correct / count.n,
            n=count.n, n_correct=count.n_correct, interval=wilson(count.n_correct, count.n),
            evaluation=count.evaluation,
        )
        for count in found.counts
    ]  # fmt: skip
    return CellReply(
        accuracy=found.accuracy, n=found.n, n_correct=found.n_correct, interval=found.interval,
        spread=found.spread, n_seeds=found.sums.seeds, seeds=seeds, whitebox=found.whitebox, reason=found.reason,
    )  # fmt: skip


def matrix(name: str, found: Matrix, strength: dict[str, Cell], cautions: list[str]) -> MatrixReply:
    """Return a matrix with every cell of its rows and columns."""
    return MatrixReply(
        matrix=name,
        scope=scope(found.scope) if found.scope else None,
        pairing=found.pairing,
        rows=[axis(row, strength) for row in found.rows],
        columns=[axis(column) for column in found.columns],
        cells=[[cell(found.cells.get((row.key, column.key))) for column in found.columns] for row in found.rows],
        others=[scope(other) for other in found.others],
        reason=found.reason,
        cautions=cautions,
    )


def axis(axis: Axis, strength: Mapping[str, Cell] = MappingProxyType({})) -> AxisReply:
    """Return a row or a column."""
    own = strength.get(axis.key)
    return AxisReply(
        key=axis.key, label=axis.label, recipe=axis.recipe, attack=axis.attack, attack_label=axis.attack_label,
        self_accuracy=own.accuracy if own else None,
    )  # fmt: skip
