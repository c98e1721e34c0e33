"""The paper's tables with our cells beside the published ones."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy.orm import Session

from api import views
from api.schemas import CellReply, Reply, ScopeReply
from core import protocol
from core.datasets import DATASETS
from core.execution import Execution
from core.paper import SUITES, Published, Source, losses_of, of_suite, published, tables
from core.statistics import prediction_interval
from core.suites import suites
from store import paper
from store.paper import Measured
from store.results import Cell, Scope, Sums

Verdict = Literal["yes", "no", "unknown"]
FEWEST_SEEDS = 3
"""Below it chance explains anything: with two seeds the interval is 15 of their deviations wide to each side."""


class PaperMeasurement(CellReply):
    """What we counted where the paper printed a number, under one reading of the attack's loss."""

    loss: str | None
    """The loss the attack climbs, which the paper leaves open: label or training; null on clean images."""
    difference: float | None
    """Our accuracy minus the published one."""
    prediction: tuple[float, float] | None
    """Where one further run of ours would fall in 95 % of cases, by the spread of the seeds; null below two seeds."""
    explained_by_chance: Verdict
    """Whether the published value lies in `prediction`; unknown below three seeds: two are too few for a spread."""
    command: str | None
    """What would run the cell, where something is missing from it."""


class PaperCell(Reply):
    """A published cell and ours."""

    published: float
    """Accuracy as printed."""
    measured: list[PaperMeasurement]
    """Ours, one per loss; one on clean images."""


class ExecutionReply(Reply):
    """One way in which the suite or job was executed; results of two are never mixed in a table."""

    key: str
    """Pass as `execution` for this one's table."""
    execution: dict[str, Any]
    """Device class, threads, layout, precision."""
    evaluations: int
    """Finished evaluations."""


class OriginReply(Reply):
    """Where evaluations of the table were computed."""

    environment: dict[str, Any]
    """Versions and device; for imported results also where they came from."""
    evaluations: int
    """How many of them."""


class PaperReply(Reply):
    """A table of the paper, published beside measured."""

    table: int
    """Its number."""
    kind: str
    """whitebox: attacks by targets. blackbox: substitutes by targets."""
    source: str
    """Where the published values are from."""
    dataset: str
    """The paper's dataset."""
    suite: str | None
    """The suite whose cells are shown; null for a job that was not posted as one."""
    job: int | None
    """The job whose cells are shown, where one was asked for."""
    description: str
    """What the suite is."""
    protocol: Literal["paper", "reduced"]
    """Whether it follows the paper's protocol."""
    reductions: list[str]
    """Every way in which it does not."""
    choices: list[str]
    """What the paper leaves open, and how our models have it."""
    scope: ScopeReply
    """Dataset, device class and test images of our cells."""
    execution: dict[str, Any]
    """How our models were trained and attacked."""
    execution_key: str
    """What `execution` is called in an address."""
    others: list[ExecutionReply]
    """Other executions that have results; ask for one with execution=."""
    rows: list[str]
    """Attacks, or substitutes."""
    columns: list[str]
    """Targets."""
    cells: list[list[PaperCell]]
    """One list per row."""
    origins: list[OriginReply]
    """Where our cells were computed."""
    cautions: list[str]
    """What to know before believing our cells."""


def reply(
    session: Session, number: int, source: Source, fallback: Execution, *, device: str | None = None,
    execution: str | None = None,
) -> PaperReply:  # fmt: skip
    """Return Table `number` with the cells of `source`."""
    table = published(number)
    found = paper.measured(session, table, source, fallback, device=device, execution=execution)
    standing = found.standing
    origins = paper.origins(session, found.evaluations)
    return PaperReply(
        table=number,
        kind="blackbox" if table.blackbox else "whitebox",
        source=tables()["source"],
        dataset=table.dataset,
        suite=source.suite,
        job=source.job,
        description=" ".join(suites().get(source.suite or "", {}).get("description", "").split()),
        protocol="reduced" if standing.reductions else "paper",
        reductions=list(standing.reductions),
        choices=list(standing.choices),
        scope=views.scope(Scope(standing.dataset, found.execution.device, standing.images)),
        execution=found.execution.model_dump(mode="json"),
        execution_key=paper.execution_key(found.execution),
        others=[
            ExecutionReply(
                key=paper.execution_key(other.execution),
                execution=other.execution.model_dump(mode="json"),
                evaluations=other.evaluations,
            )
            for other in found.others
        ],
        rows=list(table.rows),
        columns=list(table.columns),
        cells=[[_cell(table, found, row, column) for column in table.columns] for row in table.rows],
        origins=[OriginReply(environment=origin.environment, evaluations=origin.evaluations) for origin in origins],
        cautions=protocol.of_models((name, model.train) for name, model in standing.models.items()),
    )


def _cell(table: Published, found: Measured, row: str, column: str) -> PaperCell:
    printed = table.accuracies[row, column]
    losses = losses_of(row)
    return PaperCell(published=printed, measured=[_beside(table, found, row, column, loss) for loss in losses])


def _beside(table: Published, found: Measured, row: str, column: str, loss: str | None) -> PaperMeasurement:
    cell = found.cells.get((row, column, loss))
    printed = table.accuracies[row, column]
    absent = None if cell else _why_absent(table, found, row, column, loss)
    shown = views.cell(cell or Cell(Sums(evaluations=1), missing=[str(absent)]))
    prediction = cell and _prediction(table, cell)
    source = of_suite(SUITES[table.number]) if absent and absent != NOT_RUN else found.standing.source
    return PaperMeasurement(
        **{name: getattr(shown, name) for name in CellReply.model_fields},
        loss=loss,
        difference=None if shown.accuracy is None else shown.accuracy - printed,
        prediction=prediction,
        explained_by_chance=_explained(printed, prediction, shown.n_seeds),
        command=source.command if shown.reason else None,
    )


NOT_RUN = "not run"


def _why_absent(table: Published, found: Measured, row: str, column: str, loss: str | None) -> str:
    standing = found.standing
    lacking: str | None = next((name for name in _models(table, row, column) if name not in standing.models), None)
    if lacking:
        return f"{standing.source.said} has no model that stands for {lacking}"
    attacked = loss in standing.transfer if table.blackbox else (row, loss) in standing.attacks
    if not attacked or (table.blackbox and row not in standing.substitutes):
        reading = f", loss {loss}" if loss else ""
        return f"{standing.source.said} does not attack so ({row}{reading})"
    return NOT_RUN


def _models(table: Published, row: str, column: str) -> Sequence[str]:
    return (row, column) if table.blackbox else (column,)


def _prediction(table: Published, cell: Cell) -> tuple[float, float] | None:
    """Return where the paper's run would fall if it were one more of our seeds, on all of the test images.

    Seeds share their test images, so that the spread does not hold what fewer images than the paper's leave open.
    """
    if not cell.counts:
        return None
    share, ours, theirs = cell.n_correct / cell.n, cell.counts[0].n, DATASETS[table.dataset].test_size
    of_images = share * (1 - share) * max(0.0, 1 / ours - 1 / theirs)
    return prediction_interval([seed.n_correct / seed.n for seed in cell.counts], variance=of_images)


def _explained(printed: float, prediction: tuple[float, float] | None, seeds: int) -> Verdict:
    if prediction is None or seeds < FEWEST_SEEDS:
        return "unknown"
    low, high = prediction
    return "yes" if low <= printed <= high else "no"
