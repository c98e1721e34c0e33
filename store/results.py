"""Matrices: queries over evaluations. Integers come out; shares and intervals are made from them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from core.fields import parse_pixels
from core.stages.train import Train
from core.statistics import mean_interval, wilson
from store.models import Evaluation, Job, JobModel, JobStage, Stage, StageState

NOT_ASKED = "not evaluated: no job in this scope asks for this pair"


@dataclass(frozen=True)
class Filters:
    """What a matrix is narrowed to; None means no restriction."""

    job: int | None = None
    suite: str | None = None
    dataset: str | None = None
    device: str | None = None
    limit: int | None = None
    network: str | None = None
    attack: str | None = None
    eps: str | None = None
    steps: int | None = None
    labels: Sequence[str] = ()
    seeds: Sequence[int] = ()
    pairing: Literal["same", "independent"] | None = None


@dataclass(frozen=True)
class Scope:
    """Results that may stand in one table: one dataset, one device class, the same test images."""

    dataset: str
    device: str
    image_limit: int


@dataclass(frozen=True)
class SeedCount:
    """The integers of one target and one set of examples."""

    target_seed: int
    substitute_seed: int | None
    n: int
    n_correct: int
    evaluation: str
    """Key of the evaluate stage."""


@dataclass
class Cell:
    """One cell: what was counted, and why something is missing."""

    counts: list[SeedCount] = field(default_factory=list[SeedCount])
    missing: list[str] = field(default_factory=list[str])
    whitebox: bool = False

    @property
    def n(self) -> int:
        """Examples, over all seeds."""
        return sum(count.n for count in self.counts)

    @property
    def n_correct(self) -> int:
        """Examples classified correctly, over all seeds."""
        return sum(count.n_correct for count in self.counts)

    @property
    def accuracy(self) -> float | None:
        """Share classified correctly, or None where nothing was counted."""
        return self.n_correct / self.n if self.counts else None

    @property
    def shares(self) -> list[float]:
        """Accuracy of each seed."""
        return [count.n_correct / count.n for count in self.counts]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval: Wilson's for one seed, Student's t of the seeds' accuracies for several."""
        if not self.counts:
            return None
        return mean_interval(self.shares) or wilson(self.n_correct, self.n)

    @property
    def reason(self) -> str | None:
        """Why the cell is null, or what is missing from it."""
        if not self.counts and not self.missing:
            return NOT_ASKED
        return "; ".join(dict.fromkeys(self.missing)) or None


@dataclass(frozen=True)
class Axis:
    """A row or a column: a model's recipe, an attack, or both."""

    key: str
    label: str
    recipe: str | None = None
    attack: dict[str, Any] | None = None


@dataclass
class Matrix:
    """A table of cells; `cells[row.key, column.key]`."""

    scope: Scope | None
    pairing: str | None
    rows: list[Axis]
    columns: list[Axis]
    cells: dict[tuple[str, str], Cell]
    others: list[Scope]


@dataclass(frozen=True)
class _Row:
    """An evaluation as the matrices read it."""

    evaluation: Evaluation
    key: str
    state: str
    error: dict[str, Any] | None


def whitebox(session: Session, filters: Filters) -> Matrix:
    """Return attacks by targets: each target under examples crafted on itself, and on clean images."""
    scope, others = _scope(session, filters)
    if scope is None:
        return Matrix(None, None, [], [], {}, others)
    names = _names(session, filters, scope, "target")
    asked = _asked_as_targets(session, filters)
    rows = [
        row
        for row in _read(session, filters, scope, whitebox_only=True)
        if row.evaluation.target_recipe in names and row.evaluation.target_id in asked
    ]
    attacks = _attack_axes(rows)
    columns = _model_axes(names, {row.evaluation.target_recipe for row in rows})
    cells = _cells(rows, _by_attack)
    return Matrix(scope, None, attacks, columns, cells, others)


def blackbox(session: Session, filters: Filters) -> Matrix:
    """Return substitutes by targets: each target under examples crafted on each substitute."""
    scope, others = _scope(session, filters)
    if scope is None:
        return Matrix(None, None, [], [], {}, others)
    targets = _names(session, filters, scope, "target")
    substitutes = _names(session, filters, scope, "substitute", every_label=True)
    pairing = filters.pairing or _pairing(session, filters, scope)
    shown = [
        row
        for row in _read(session, filters, scope, whitebox_only=False)
        if row.evaluation.substitute_recipe in substitutes
    ]
    transferred = {row.evaluation.attack_id for row in shown if not row.evaluation.whitebox}
    shown = [row for row in shown if row.evaluation.attack_id in transferred]
    asked = _asked_as_targets(session, filters)
    shown = [row for row in shown if row.evaluation.target_recipe in targets and row.evaluation.target_id in asked]
    pairs = [row for row in shown if _paired(row.evaluation, pairing)]
    rows = _substitute_axes(pairs, substitutes)
    columns = _model_axes(targets, {row.evaluation.target_recipe for row in pairs})
    cells = _cells(pairs, _by_substitute)
    return Matrix(scope, pairing, rows, columns, cells, others)


def self_strength(session: Session, filters: Filters, scope: Scope) -> dict[str, Cell]:
    """Return row key -> the substitute's own accuracy on the examples crafted on it."""
    rows = [row for row in _read(session, filters, scope, whitebox_only=True) if row.evaluation.substitute_id]
    cells = _cells(rows, _by_self)
    return {row: cell for (row, _), cell in cells.items()}


def _by_attack(e: Evaluation) -> tuple[str, str]:
    return e.attack_id, e.target_recipe


def _by_substitute(e: Evaluation) -> tuple[str, str]:
    return f"{e.substitute_recipe}:{e.attack_id}", e.target_recipe


def _by_self(e: Evaluation) -> tuple[str, str]:
    return f"{e.substitute_recipe}:{e.attack_id}", ""


def _paired(evaluation: Evaluation, pairing: str) -> bool:
    return (evaluation.target_seed == evaluation.substitute_seed) == (pairing == "same")


def _scope(session: Session, filters: Filters) -> tuple[Scope | None, list[Scope]]:
    """Return the newest comparable group that fits the filters, and the others."""
    columns = (Evaluation.dataset, Evaluation.device, Evaluation.image_limit)
    everything = [Scope(*row) for row in session.execute(select(*columns).distinct().order_by(*columns))]
    if filters.job is not None:
        everything = [Scope(*row) for row in session.execute(_of_job(select(*columns), filters.job).distinct())]
    fits = [scope for scope in everything if _fits(scope, filters)]
    if not fits:
        return None, everything
    newest = fits[0] if len(fits) == 1 else _newest(session, filters, fits)
    return newest, [scope for scope in everything if scope != newest]


def _fits(scope: Scope, filters: Filters) -> bool:
    return (
        filters.dataset in (None, scope.dataset)
        and filters.device in (None, scope.device)
        and filters.limit in (None, scope.image_limit)
    )


def _newest(session: Session, filters: Filters, fits: Sequence[Scope]) -> Scope:
    query = (
        select(Evaluation.dataset, Evaluation.device, Evaluation.image_limit)
        .join(JobStage, JobStage.stage_id == Evaluation.stage_id)
        .join(Job, Job.id == JobStage.job_id)
        .order_by(Job.id.desc())
    )
    if filters.suite is not None:
        query = query.where(Job.suite == filters.suite)
    for row in session.execute(query.limit(1_000)):
        if Scope(*row) in fits:
            return Scope(*row)
    return fits[-1]


def _of_job(query: Any, job: int) -> Any:
    return query.join(JobStage, JobStage.stage_id == Evaluation.stage_id).where(JobStage.job_id == job)


def _names(session: Session, filters: Filters, scope: Scope, role: str, *, every_label: bool = False) -> dict[str, str]:
    """Return recipe -> label of the models in that role, the newest job's label first, in its order."""
    query = (
        select(JobModel.recipe, JobModel.label, Stage.spec)
        .join(Job, Job.id == JobModel.job_id)
        .join(Stage, Stage.id == JobModel.stage_id)
        .where(JobModel.role == role, Stage.dataset == scope.dataset)
        .order_by(Job.id.desc(), JobModel.position)
    )
    for column, value in ((Job.id, filters.job), (Job.suite, filters.suite)):
        query = query if value is None else query.where(column == value)
    names: dict[str, str] = {}
    for recipe, label, spec in session.execute(query):
        wanted = every_label or not filters.labels or label in filters.labels
        if wanted and filters.network in (None, spec["network"]["kind"]):
            names.setdefault(recipe, label)
    return _told_apart(names)


def _asked_as_targets(session: Session, filters: Filters) -> set[int]:
    """Return the models under attack. An attacker's own model of a target's recipe is no further seed of the target."""
    query = select(JobModel.stage_id).join(Job, Job.id == JobModel.job_id).where(JobModel.role == "target")
    for column, value in ((Job.id, filters.job), (Job.suite, filters.suite)):
        query = query if value is None else query.where(column == value)
    return set(session.scalars(query))


def _told_apart(names: dict[str, str]) -> dict[str, str]:
    """Return the names with the start of the recipe's key behind those that several recipes share."""
    taken: dict[str, int] = defaultdict(int)
    for label in names.values():
        taken[label] += 1
    return {recipe: f"{label} [{recipe[:6]}]" if taken[label] > 1 else label for recipe, label in names.items()}


def _pairing(session: Session, filters: Filters, scope: Scope) -> str:
    """Return the pairing of the newest job in scope."""
    query = (
        select(Job.pairing)
        .join(JobModel, JobModel.job_id == Job.id)
        .join(Stage, Stage.id == JobModel.stage_id)
        .where(Stage.dataset == scope.dataset, JobModel.role == "substitute")
        .order_by(Job.id.desc())
        .limit(1)
    )
    for column, value in ((Job.id, filters.job), (Job.suite, filters.suite)):
        query = query if value is None else query.where(column == value)
    return session.scalar(query) or "same"


def _read(session: Session, filters: Filters, scope: Scope, *, whitebox_only: bool) -> list[_Row]:
    owner = aliased(Stage)
    query = (
        select(Evaluation, owner.key, owner.state, owner.error)
        .join(owner, owner.id == Evaluation.stage_id)
        .where(
            Evaluation.dataset == scope.dataset,
            Evaluation.device == scope.device,
            Evaluation.image_limit == scope.image_limit,
        )
        .order_by(Evaluation.stage_id)
    )
    if whitebox_only:
        query = query.where(Evaluation.whitebox.is_(True))
    if filters.job is not None:
        query = _of_job(query, filters.job)
    elif filters.suite is not None:
        jobs = select(Job.id).where(Job.suite == filters.suite)
        wanted = select(JobStage.stage_id).where(JobStage.job_id.in_(jobs))
        query = query.where(Evaluation.stage_id.in_(wanted))
    if filters.seeds:
        query = query.where(Evaluation.target_seed.in_(list(filters.seeds)))
    rows = [_Row(*row) for row in session.execute(query)]
    return [row for row in rows if _attack_fits(row.evaluation.attack, filters)]


def _attack_fits(attack: dict[str, Any], filters: Filters) -> bool:
    wanted = {"kind": filters.attack, "eps": filters.eps, "steps": filters.steps}
    return all(value is None or attack.get(name) == value for name, value in wanted.items())


def _attack_axes(rows: Iterable[_Row]) -> list[Axis]:
    axes: dict[str, Axis] = {}
    for row in rows:
        e = row.evaluation
        axes.setdefault(e.attack_id, Axis(e.attack_id, e.attack_label, attack=e.attack))
    return sorted(axes.values(), key=_attack_order)


def _attack_order(axis: Axis) -> tuple[Any, ...]:
    """Clean first, then by kind, radius, steps: weak to strong within a kind."""
    attack = axis.attack or {}
    eps = float(parse_pixels(attack.get("eps", 0)))
    return attack.get("kind") != "none", attack.get("kind"), eps, attack.get("steps", 0), axis.label


def _model_axes(names: dict[str, str], present: set[str]) -> list[Axis]:
    return [Axis(recipe, label, recipe=recipe) for recipe, label in names.items() if recipe in present]


def _substitute_axes(rows: Iterable[_Row], names: dict[str, str]) -> list[Axis]:
    axes: dict[str, Axis] = {}
    attacks = {row.evaluation.attack_id for row in rows}
    for row in rows:
        e = row.evaluation
        recipe = str(e.substitute_recipe)
        label = names[recipe] if len(attacks) == 1 else f"{names[recipe]}, {e.attack_label}"
        key = f"{recipe}:{e.attack_id}"
        axes.setdefault(key, Axis(key, label, recipe=recipe, attack=e.attack))
    order = list(names)
    return sorted(axes.values(), key=lambda axis: (order.index(str(axis.recipe)), _attack_order(axis)))


def _cells(rows: Iterable[_Row], where: Callable[[Evaluation], tuple[str, str]]) -> dict[tuple[str, str], Cell]:
    cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
    for row in rows:
        e = row.evaluation
        cell = cells[where(e)]
        cell.whitebox = cell.whitebox or e.whitebox
        if row.state == StageState.SUCCEEDED and e.n is not None and e.n_correct is not None:
            cell.counts.append(SeedCount(e.target_seed, e.substitute_seed, e.n, e.n_correct, row.key))
        else:
            cell.missing.append(why_missing(e.target_seed, row.state, row.error))
    return dict(cells)


def why_missing(seed: int, state: str, error: dict[str, Any] | None) -> str:
    """Return why an evaluation of the target of that seed counts nothing."""
    if state in (StageState.BLOCKED, StageState.READY, StageState.RUNNING):
        return f"seed {seed}: not finished ({state})"
    return f"seed {seed}: {state}: {(error or {}).get('message', 'cancelled')}"


def cautions(session: Session, recipes: Sequence[str]) -> list[str]:
    """Return, for the models of a table, why their results are to be read with care."""
    rows = session.scalars(select(Stage.spec).where(Stage.recipe.in_(list(recipes))).order_by(Stage.id))
    trains = (Train.model_validate(spec) for spec in rows)
    said = (f"{train.defense.label()}: {train.defense.caution}" for train in trains if train.defense.caution)
    return list(dict.fromkeys(said))
