"""Matrices: queries over evaluations. Integers come out; shares and intervals are made from them.

SQL sums what a cell counts, so that the work here grows with the cells and not with the evaluations behind them. The
seeds of a cell and the reasons for what is missing are listed where the table has no more than `LISTED` evaluations.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Double, and_, cast, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, aliased

from core.fields import parse_pixels
from core.statistics import accuracy_interval
from store.database import chunks
from store.labels import called, told_apart
from store.models import JOB_LIVE, Evaluation, Job, JobModel, JobStage, LostResult, Stage, StageState, Tally
from store.repeats import repeated_by

LISTED = 5_000
"""Evaluations of a table up to which each is told; beyond that, only their sums."""
NEWEST = 50
"""Jobs looked at in one go for the newest scope."""
NOTHING = "no evaluations yet, or none that fit the filters"
NOT_ASKED = "not evaluated: nothing in this scope has or waits for this pair"


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
    pairing: Literal["all", "same", "independent"] | None = None


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


@dataclass(frozen=True)
class Sums:
    """What SQL adds up over the seeds of a cell; shares are n_correct / n of a seed."""

    evaluations: int = 0
    """Planned, whether finished or not."""
    seeds: int = 0
    """Finished."""
    n: int = 0
    n_correct: int = 0
    shares: float = 0.0
    squares: float = 0.0
    lowest: float = 1.0
    highest: float = 0.0

    @classmethod
    def of(cls, n: int, n_correct: int) -> "Sums":
        """Return the sums of one finished evaluation."""
        share = n_correct / n
        return cls(1, 1, n, n_correct, share, share**2, share, share)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.evaluations + other.evaluations, self.seeds + other.seeds, self.n + other.n,
            self.n_correct + other.n_correct, self.shares + other.shares, self.squares + other.squares,
            min(self.lowest, other.lowest), max(self.highest, other.highest),
        )  # fmt: skip


@dataclass
class Cell:
    """One cell: what was counted, and why something is missing."""

    sums: Sums = Sums()
    independent: int | None = None
    """Independent repetitions behind the finished seeds: the smaller of the numbers of targets and of substitutes; None
    where every seed is one, as where no two share a model."""
    counts: list[SeedCount] = field(default_factory=list[SeedCount])
    """One per finished seed, where the table is small enough to list them."""
    missing: list[str] = field(default_factory=list[str])
    whitebox: bool = False

    @property
    def n(self) -> int:
        """Examples, over all seeds."""
        return self.sums.n

    @property
    def n_correct(self) -> int:
        """Examples classified correctly, over all seeds."""
        return self.sums.n_correct

    @property
    def accuracy(self) -> float | None:
        """Share classified correctly, or None where nothing was counted."""
        return self.n_correct / self.n if self.sums.seeds else None

    @property
    def spread(self) -> float | None:
        """Largest minus smallest accuracy of a seed, None where there is only one."""
        return self.sums.highest - self.sums.lowest if self.sums.seeds > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval: Wilson's for one seed; for several it holds both their spread and that of images."""
        found = self.sums
        if not found.seeds:
            return None
        return accuracy_interval(found.seeds, found.shares, found.squares, found.n // found.seeds, self.independent)

    @property
    def reason(self) -> str | None:
        """Why the cell is null, or what is missing from it."""
        if not self.sums.evaluations:
            return NOT_ASKED
        unfinished = self.sums.evaluations - self.sums.seeds
        if unfinished and not self.missing:
            return f"{unfinished} of {self.sums.evaluations} evaluations have not succeeded; a narrower table says why"
        return "; ".join(dict.fromkeys(self.missing)) or None


@dataclass(frozen=True)
class Axis:
    """A row or a column: a model's recipe, an attack, or both."""

    key: str
    label: str
    recipe: str | None = None
    attack: dict[str, Any] | None = None
    attack_label: str | None = None


@dataclass
class Matrix:
    """A table of cells; `cells[row.key, column.key]`."""

    scope: Scope | None
    pairing: str | None
    rows: list[Axis]
    columns: list[Axis]
    cells: dict[tuple[str, str], Cell]
    others: list[Scope]
    reason: str | None = None
    """Why it has no cell."""


@dataclass(frozen=True)
class _Group:
    """Evaluations that a cell counts together."""

    first: Evaluation
    """Any of them: recipes and attack are alike."""
    same: bool | None
    """Whether target and substitute have one seed; None on clean images."""
    whitebox: bool
    sums: Sums
    independent: int | None
    """Of pairs of seeds, how many share no model: the smaller of the numbers of targets and of substitutes."""


def whitebox(session: Session, filters: Filters) -> Matrix:
    """Return attacks by targets: each target under examples crafted on itself, and on clean images."""
    scope, every = _scope(session, filters)
    if scope is None:
        return Matrix(None, None, [], [], {}, every, NOTHING)
    names = _names(session, filters, scope, "target")
    groups = [
        group for group in _groups(session, filters, scope, whitebox_only=True) if group.first.target_recipe in names
    ]
    attacks = _attack_axes(groups)
    columns = _model_axes(names, {group.first.target_recipe for group in groups})
    cells = _cells(session, filters, scope, groups, _by_attack)
    return _matrix(scope, None, attacks, columns, cells, every, NOTHING)


def blackbox(session: Session, filters: Filters) -> Matrix:
    """Return substitutes by targets: each target under examples crafted on each substitute."""
    scope, every = _scope(session, filters)
    if scope is None:
        return Matrix(None, None, [], [], {}, every, NOTHING)
    targets = _names(session, filters, scope, "target")
    substitutes = _names(session, filters, scope, "substitute", every_label=True)
    pairing = filters.pairing or _pairing(session, filters, scope)
    shown = [
        group
        for group in _groups(session, filters, scope, whitebox_only=False, crossed=pairing != "same")
        if group.first.substitute_recipe in substitutes
    ]
    transferred = {group.first.attack_id for group in shown if not group.whitebox}
    pairs = [
        group
        for group in shown
        if group.first.attack_id in transferred
        and group.first.target_recipe in targets
        and (pairing == "all" or group.same == (pairing == "same"))
    ]
    crossed = {group.first.cell for group in pairs if not group.whitebox}
    pairs = [group for group in pairs if not (group.whitebox and group.first.cell in crossed)]
    rows = _substitute_axes(pairs, substitutes)
    columns = _model_axes(targets, {group.first.target_recipe for group in pairs})
    cells = _cells(session, filters, scope, pairs, _by_substitute)
    reason = _why_empty(targets, substitutes, shown, pairing)
    return _matrix(scope, pairing, rows, columns, cells, every, reason)


def _why_empty(
    targets: dict[str, str], substitutes: dict[str, str], shown: Sequence[_Group], pairing: str
) -> str:  # fmt: skip
    """Return why no target in scope meets a substitute."""
    if not targets or not substitutes:
        return "no job in this scope has a substitute" if targets else "no job in this scope has such a target"
    if any(not group.whitebox for group in shown):
        return f"no such target meets a substitute by pairing {pairing}, or under this attack; leave a filter out"
    return "every substitute is the target itself; the white-box matrix has it"


def _matrix(
    scope: Scope, pairing: str | None, rows: list[Axis], columns: list[Axis], cells: dict[tuple[str, str], Cell],
    every: list[Scope], why_empty: str,
) -> Matrix:  # fmt: skip
    """Return the table; where nothing fits it has no scope, and says why."""
    if not rows or not columns:
        return Matrix(None, pairing, [], [], {}, every, why_empty)
    return Matrix(scope, pairing, rows, columns, cells, [other for other in every if other != scope])


def self_strength(session: Session, filters: Filters, scope: Scope) -> dict[str, Cell]:
    """Return row key -> the substitute's own accuracy on the examples crafted on it."""
    cells: dict[str, Cell] = defaultdict(Cell)
    for group in _groups(session, filters, scope, whitebox_only=True, every_target=True):
        if group.first.substitute_id is not None:
            cell = cells[_by_substitute(group.first)[0]]
            cell.sums, cell.whitebox = cell.sums + group.sums, True
    return dict(cells)


def stamp(session: Session) -> tuple[Any, ...]:
    """Return a version of the results: another value after any change that a matrix could show, and cheap to ask for.

    Every change of a stage is told to a live job, whose `last_event` grows; jobs only ever come, and end once. A result
    is withdrawn whether or not a job lives that wants it.
    """
    newest = select(func.max(Job.id)).scalar_subquery()
    withdrawn = select(func.count()).select_from(LostResult).scalar_subquery()
    live = select(newest, withdrawn, func.count(), func.sum(Job.id), func.sum(Job.last_event)).where(
        Job.state.in_(JOB_LIVE)
    )
    return tuple(session.execute(live).one())


def _by_attack(e: Evaluation) -> tuple[str, str]:
    return e.attack_id, e.target_recipe


def _by_substitute(e: Evaluation) -> tuple[str, str]:
    return f"{e.substitute_recipe}:{e.attack_id}", e.target_recipe


def _scope(session: Session, filters: Filters) -> tuple[Scope | None, list[Scope]]:
    """Return the newest comparable group that fits the filters, and all there are."""
    everything = _scopes(session) if filters.job is None else _scopes_of(session, filters.job)
    fits = [scope for scope in everything if _fits(scope, filters)]
    if not fits:
        return None, everything
    sure = len(fits) == 1 and filters.suite is None
    return (fits[0] if sure else _newest(session, filters, fits)), everything


def _fits(scope: Scope, filters: Filters) -> bool:
    return (
        filters.dataset in (None, scope.dataset)
        and filters.device in (None, scope.device)
        and filters.limit in (None, scope.image_limit)
    )


_SCOPE = (Evaluation.dataset, Evaluation.device, Evaluation.image_limit)


def _scopes(session: Session) -> list[Scope]:
    """Return every scope in order, by a loose index scan: from each, one step through the index leads to the next."""
    found: list[Scope] = []
    step = select(*_SCOPE).order_by(*_SCOPE).limit(1)
    row = session.execute(step).one_or_none()
    while row is not None:
        found.append(Scope(*row))
        row = session.execute(step.where(tuple_(*_SCOPE) > tuple_(*row))).one_or_none()
    return found


def _scopes_of(session: Session, job: int) -> list[Scope]:
    mine = select(*_SCOPE).join(JobStage, JobStage.stage_id == Evaluation.stage_id).where(JobStage.job_id == job)
    return [Scope(*row) for row in session.execute(mine.distinct().order_by(*_SCOPE))]


def _newest(session: Session, filters: Filters, fits: Sequence[Scope]) -> Scope | None:
    """Return the scope of the newest job that fits, by one evaluation of each; a job has one scope.

    None where no job of the suite asked for has results in any of them.
    """
    last = fits[-1] if filters.suite is None else None
    one: Any = (
        select(Evaluation.stage_id)
        .join(JobStage, JobStage.stage_id == Evaluation.stage_id)
        .where(JobStage.job_id == Job.id)
        .limit(1)
        .correlate(Job)
        .scalar_subquery()
    )
    jobs = select(one).select_from(Job).order_by(Job.id.desc())
    if filters.suite is not None:
        jobs = jobs.where(Job.suite == filters.suite)
    for page in range(20):
        ids = session.scalars(jobs.limit(NEWEST).offset(page * NEWEST)).all()
        rows = session.execute(select(Evaluation.stage_id, *_SCOPE).where(Evaluation.stage_id.in_(ids))).all()
        scopes = {row[0]: Scope(*row[1:]) for row in rows}
        newest = next((scopes[found] for found in ids if found in scopes and scopes[found] in fits), None)
        if newest is not None or not ids:
            return newest or last
    return last


def _names(session: Session, filters: Filters, scope: Scope, role: str, *, every_label: bool = False) -> dict[str, str]:
    """Return recipe -> label of the models in that role, the newest job's label first, in its order."""
    asked = and_(JobModel.role == role, *_jobs_wanted(filters, JobModel.job_id))
    if filters.labels and not every_label:
        asked = and_(asked, or_(*map(called, filters.labels)))
    last = select(JobModel.recipe, func.max(JobModel.job_id).label("job")).where(asked).group_by(JobModel.recipe)
    last = last.subquery()
    place, some = func.min(JobModel.position).label("place"), func.min(JobModel.stage_id).label("some")
    named = (
        select(JobModel.recipe, func.min(JobModel.label).label("label"), last.c.job, place, some)
        .join(last, and_(last.c.recipe == JobModel.recipe, last.c.job == JobModel.job_id))
        .where(asked)
        .group_by(JobModel.recipe, last.c.job)
        .subquery()
    )
    rows = session.execute(
        select(named.c.recipe, named.c.label, Stage.spec)
        .join(Stage, Stage.id == named.c.some)
        .where(Stage.dataset == scope.dataset)
        .order_by(named.c.job.desc(), named.c.place)
    )
    return {recipe: label for recipe, label, spec in rows if filters.network in (None, spec["network"]["kind"])}


def _jobs_wanted(filters: Filters, job_id: Any) -> list[Any]:
    """Return the conditions that the filters put on a job."""
    conditions = [] if filters.job is None else [job_id == filters.job]
    if filters.suite is not None:
        conditions.append(job_id.in_(select(Job.id).where(Job.suite == filters.suite)))
    return conditions


def _pairing(session: Session, filters: Filters, scope: Scope) -> str:
    """Return the pairing of the newest job in scope."""
    attacker = (
        select(JobModel.stage_id)
        .join(Stage, Stage.id == JobModel.stage_id)
        .where(JobModel.job_id == Job.id, JobModel.role == "substitute", Stage.dataset == scope.dataset)
        .exists()
    )
    query = select(Job.pairing).where(attacker, *_jobs_wanted(filters, Job.id)).order_by(Job.id.desc()).limit(1)
    return session.scalar(query) or "same"


def _wanted(filters: Filters, scope: Scope, *, whitebox: Sequence[bool], every_target: bool) -> list[Any]:
    """Return the conditions on evaluations; those on recipes and attacks are left to the groups."""
    conditions: list[Any] = [*_within(Evaluation, scope), Evaluation.whitebox.in_(whitebox)]
    conditions += _asked_for(filters, Evaluation.stage_id)
    if filters.job is None:  # a job has one execution, and asks for nothing twice
        again = aliased(Evaluation)
        conditions.append(~repeated_by(again, *_asked_for(filters, again.stage_id)))
    if filters.seeds:
        conditions.append(Evaluation.target_seed.in_(list(filters.seeds)))
    if not every_target:
        # an attacker's own model of a target's recipe, attacked by nobody but itself, is no further seed of the target
        asked = select(JobModel.stage_id).where(JobModel.role == "target", *_jobs_wanted(filters, JobModel.job_id))
        conditions.append(or_(Evaluation.whitebox.is_(False), Evaluation.target_id.in_(asked)))
    return conditions


def _asked_for(filters: Filters, stage_id: Any) -> list[Any]:
    """Return the conditions on evaluations that a job or a suite puts."""
    jobs = _jobs_wanted(filters, JobStage.job_id)
    return [stage_id.in_(select(JobStage.stage_id).where(*jobs))] if jobs else []


def _groups(
    session: Session, filters: Filters, scope: Scope, *, whitebox_only: bool, every_target: bool = False,
    crossed: bool = False,
) -> list[_Group]:  # fmt: skip
    """Return the evaluations in scope, summed by cell and by whether the seeds of target and substitute are one.

    `crossed` counts how many seeds of either stand behind pairs of different seeds.

    Grouped by n too, so that only integers are summed; in doubles, where they are exact, because their squares are
    larger than 32 bits.
    """
    correct, e = cast(Evaluation.n_correct, Double), Evaluation
    keys = (e.whitebox, e.cell, e.target_seed == e.substitute_seed, e.n)
    sums = (func.min(e.stage_id), func.count(), func.sum(correct), func.sum(correct * correct))
    seeds = (func.count(e.target_seed.distinct()), func.count(e.substitute_seed.distinct())) if crossed else ()
    query = select(*keys, *sums, func.min(e.n_correct), func.max(e.n_correct), *seeds).group_by(*keys)

    def summed(whitebox: Sequence[bool], *more: Any) -> Sequence[Any]:
        wanted = _wanted(filters, scope, whitebox=whitebox, every_target=every_target)
        return session.execute(query.where(*wanted, *more)).all()

    rows: Sequence[Any]
    if whitebox_only:
        rows = summed([True])
    elif crossed or not _tallied(filters):
        rows = summed([False, True])
    else:
        rows = [*summed([True]), *session.execute(_tallies(scope)).all(), *summed([False], e.n.is_(None))]
    firsts = _evaluations(session, [row[4] for row in rows])
    groups = [_group(firsts[row[4]], row) for row in rows]
    groups.sort(key=lambda group: group.first.stage_id)
    return [group for group in groups if _attack_fits(group.first.attack, filters)]


def _within(table: type[Evaluation | Tally], scope: Scope) -> list[Any]:
    return [table.dataset == scope.dataset, table.device == scope.device, table.image_limit == scope.image_limit]


def _tallied(filters: Filters) -> bool:
    """Return whether the running sums are of what is asked for: of all jobs and seeds."""
    return filters.job is None and filters.suite is None and not filters.seeds


def _tallies(scope: Scope) -> Any:
    """Return the query of the running sums, as rows of `_groups`."""
    t = Tally
    sums = (t.first, t.evaluations, t.total, t.squares, t.lowest, t.highest)
    return select(literal(value=False), t.cell, t.same, t.n, *sums).where(*_within(t, scope))


def _group(first: Evaluation, row: Any) -> _Group:
    whitebox, _, same, n, _, count, total, squares, lowest, highest, *seeds = row
    independent = min(seeds) if seeds and n is not None and same is not None and not same else None
    sums = Sums(evaluations=count)
    if n is not None:
        sums = Sums(
            count, count, n * count, int(total), total / n, squares / n**2, lowest / n, highest / n
        )  # fmt: skip
    return _Group(first, None if same is None else bool(same), bool(whitebox), sums, independent)


def _evaluations(session: Session, stage_ids: Sequence[int]) -> dict[int, Evaluation]:
    found: dict[int, Evaluation] = {}
    for chunk in chunks(stage_ids):
        rows = session.scalars(select(Evaluation).where(Evaluation.stage_id.in_(chunk)))
        found.update({row.stage_id: row for row in rows})
    return found


def _attack_fits(attack: dict[str, Any], filters: Filters) -> bool:
    wanted = {"kind": filters.attack, "eps": filters.eps, "steps": filters.steps}
    return all(value is None or attack.get(name) == value for name, value in wanted.items())


def _attack_axes(groups: Iterable[_Group]) -> list[Axis]:
    axes: dict[str, Axis] = {}
    for group in groups:
        e = group.first
        axes.setdefault(e.attack_id, Axis(e.attack_id, e.attack_label, attack=e.attack, attack_label=e.attack_label))
    return sorted(axes.values(), key=_attack_order)


def _attack_order(axis: Axis) -> tuple[Any, ...]:
    """Clean first, then by kind, radius, steps: weak to strong within a kind."""
    attack = axis.attack or {}
    eps = float(parse_pixels(attack.get("eps", 0)))
    return attack.get("kind") != "none", attack.get("kind"), eps, attack.get("steps", 0), axis.label


def _model_axes(names: dict[str, str], present: set[str]) -> list[Axis]:
    return [Axis(recipe, label, recipe=recipe) for recipe, label in told_apart(names, present).items()]


def _substitute_axes(groups: Sequence[_Group], names: dict[str, str]) -> list[Axis]:
    axes: dict[str, Axis] = {}
    names = told_apart(names, {str(group.first.substitute_recipe) for group in groups})
    attacks = {group.first.attack_id for group in groups}
    for group in groups:
        e = group.first
        recipe = str(e.substitute_recipe)
        label = names[recipe] if len(attacks) == 1 else f"{names[recipe]}, {e.attack_label}"
        key = f"{recipe}:{e.attack_id}"
        axes.setdefault(key, Axis(key, label, recipe=recipe, attack=e.attack, attack_label=e.attack_label))
    order = {recipe: place for place, recipe in enumerate(names)}
    return sorted(axes.values(), key=lambda axis: (order[str(axis.recipe)], _attack_order(axis)))


def _cells(
    session: Session, filters: Filters, scope: Scope, groups: Sequence[_Group],
    where: Callable[[Evaluation], tuple[str, str]],
) -> dict[tuple[str, str], Cell]:  # fmt: skip
    cells: dict[tuple[str, str], Cell] = defaultdict(Cell)
    for group in groups:
        cell = cells[where(group.first)]
        cell.sums, cell.whitebox = cell.sums + group.sums, cell.whitebox or group.whitebox
        if group.independent is not None:
            cell.independent = max(cell.independent or 0, group.independent)
    if sum(cell.sums.evaluations for cell in cells.values()) <= LISTED:
        _list(session, filters, scope, groups, cells, where)
    return dict(cells)


def _list(
    session: Session, filters: Filters, scope: Scope, groups: Sequence[_Group], cells: dict[tuple[str, str], Cell],
    where: Callable[[Evaluation], tuple[str, str]],
) -> None:  # fmt: skip
    """Add to the cells what each evaluation of the groups counted, or why it is missing."""
    owner = aliased(Stage)
    shown = {(group.first.cell, group.same): where(group.first) for group in groups}
    numbers = sorted({cell for cell, _ in shown})
    query = (
        select(Evaluation, owner.key, owner.state, owner.error)
        .join(owner, owner.id == Evaluation.stage_id)
        .where(*_wanted(filters, scope, whitebox=sorted({g.whitebox for g in groups}), every_target=False))
        .order_by(Evaluation.stage_id)
    )
    for chunk in chunks(numbers):
        for e, key, state, error in session.execute(query.where(Evaluation.cell.in_(chunk))):
            same = None if e.substitute_seed is None else e.target_seed == e.substitute_seed
            if (e.cell, same) in shown:
                _tell(cells[shown[e.cell, same]], e, key, state, error)


def _tell(cell: Cell, e: Evaluation, key: str, state: str, error: dict[str, Any] | None) -> None:
    if e.n is not None and e.n_correct is not None:
        cell.counts.append(SeedCount(e.target_seed, e.substitute_seed, e.n, e.n_correct, key))
        return
    cell.missing.append(why_missing(e.target_seed, state, error))


def why_missing(seed: int, state: str, error: dict[str, Any] | None) -> str:
    """Return why an evaluation of the target of that seed counts nothing."""
    if state in (StageState.BLOCKED, StageState.READY, StageState.RUNNING):
        return f"seed {seed}: not finished ({state})"
    message = (error or {}).get("message")
    return f"seed {seed}: {state}" + (f": {message}" if message else "")
