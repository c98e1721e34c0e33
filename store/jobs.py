"""Jobs in SQL: submit, cancel, look up, list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.orm import Session, defer

from core.attacks import Attack
from core.canonical import digest
from core.plan import Model, Plan, PlannedStage
from core.stages import Stage as StageSpec
from core.stages.train import Train
from store import events
from store.database import CHUNK, chunks, db_now, dialect_of, insert_new
from store.models import (
    EVALUATIONS,
    JOB_ENDED,
    JOB_MODELS,
    JOB_STAGES,
    JOBS,
    LIVE,
    PARENTS,
    STAGES,
    Job,
    JobStage,
    JobState,
    Stage,
    StageState,
    cell_of,
)
from store.stages import IS_TRAINED, Bell, recount, roll_up, wake, wanted_by_live_job

FEW = 20
"""Rows fetched at once where the first few are likely to be all that is asked for."""


@dataclass(frozen=True)
class Submission:
    """What a request asks to be stored."""

    kind: str
    spec: dict[str, Any]
    name: str
    suite: str | None
    tags: list[str]
    priority: int


_LOCKED = (STAGES.c.id, STAGES.c.key, STAGES.c.state, STAGES.c.queue, STAGES.c.priority, STAGES.c.cancel_requested)
_KEYS, _IDS = bindparam("keys", expanding=True), bindparam("ids", expanding=True)
_OF_KEYS = select(STAGES.c.id, STAGES.c.key, STAGES.c.state).where(STAGES.c.key.in_(_KEYS))
_LOCK_KEYS = select(*_LOCKED).where(STAGES.c.key.in_(_KEYS)).order_by(STAGES.c.id).with_for_update()
_LOCK_IDS = select(*_LOCKED).where(STAGES.c.id.in_(_IDS)).order_by(STAGES.c.id).with_for_update()
_JOB = insert(JOBS).values(created_at=db_now()).returning(JOBS.c.id)


def submit(session: Session, wanted: Submission, plan: Plan) -> tuple[int, list[Bell]]:
    """Return the id of a new job that shares every stage already known, and the bells of its ready stages."""
    ordered = sorted(plan.stages.values(), key=lambda stage: (stage.depth, stage.key))
    _insert_missing(session, ordered, plan.device, wanted.priority)
    found = _lock(session, [stage.key for stage in ordered])
    ids = {key: row.id for key, row in found.items()}
    _insert_edges(session, ordered, ids)
    unfinished = sum(row.state != StageState.SUCCEEDED for row in found.values())
    job_id = session.scalar(
        _JOB,
        {
            "kind": wanted.kind, "name": wanted.name, "suite": wanted.suite, "tags": wanted.tags, "spec": wanted.spec,
            "state": JobState.QUEUED, "priority": wanted.priority, "pairing": plan.pairing, "unfinished": unfinished,
            "last_event": 1,
        },
    )  # fmt: skip
    assert job_id is not None  # noqa: S101 - INSERT ... RETURNING returns a row
    events.first(session, job_id, "job.queued", {"stages": len(ids)})
    _attach(session, job_id, plan, ids, found)
    revived, lifted = _revive(
        session, [row.id for row in found.values() if _wants_life(row, wanted.priority)], wanted.priority
    )
    bells = [Bell(row.id, row.queue) for row in found.values() if row.state == StageState.READY]
    blocked = [row.id for row in found.values() if row.state == StageState.BLOCKED]
    for chunk in chunks(sorted([*blocked, *revived])):
        bells += wake(session, chunk)
    if any(row.state == StageState.RUNNING for row in found.values()):
        _join_running(session, job_id)
    others = [waiting for waiting in events.lock_jobs(session, revived + lifted) if waiting != job_id]
    if others:
        recount(session, others)
    for waiting in others:
        roll_up(session, waiting)  # a cancelled job waits no longer for a stage that now goes on
    if not bells:  # what is ready keeps a job alive
        roll_up(session, job_id)
    return job_id, bells


def _insert_missing(session: Session, ordered: Sequence[PlannedStage], device: str, priority: int) -> None:
    """Insert the stages nobody has asked for yet, in one order for everyone: (depth, key)."""
    for chunk in chunks(ordered):  # the specs of thousands at once take memory that never comes back
        insert_new(session, STAGES, [_stage_row(stage, device, priority) for stage in chunk], created_at=db_now())


def queue_of(device: str) -> str:
    """Return the queue of a device class's stages."""
    return "gpu" if device == "cuda" else "cpu"


def _stage_row(stage: PlannedStage, device: str, priority: int) -> dict[str, Any]:
    train = stage.spec if isinstance(stage.spec, Train) else None
    return {
        "key": stage.key,
        "kind": stage.spec.kind,
        "title": stage.title[:300],
        "spec": stage.spec.model_dump(mode="json"),
        "recipe": train and train.recipe,
        "seed": train and train.seed,
        "dataset": stage.dataset,
        "queue": queue_of(device),
        "state": StageState.BLOCKED,
        "priority": priority,
        "flop": stage.flop,
    }


def _lock(session: Session, keys: Sequence[str]) -> dict[str, Any]:
    """Return key -> row of the stages, locked in id order, so that none completes unseen while we attach."""
    if len(keys) <= CHUNK:
        rows = session.execute(_LOCK_KEYS, {"keys": keys}).all()
    else:  # in the order of ids over all of them
        known = [row for chunk in chunks(keys) for row in session.execute(_OF_KEYS, {"keys": chunk})]
        ids = sorted(row.id for row in known)
        rows = [row for chunk in chunks(ids) for row in session.execute(_LOCK_IDS, {"ids": chunk})]
    return {row.key: row for row in rows}


def _insert_edges(session: Session, ordered: Sequence[PlannedStage], ids: dict[str, int]) -> None:
    edges = [
        {"stage_id": ids[stage.key], "parent_id": ids[parent]} for stage in ordered for parent in stage.spec.parents()
    ]
    insert_new(session, PARENTS, edges)


def _wants_life(row: Any, priority: int) -> bool:
    """Return whether `_revive` has something to do for a stage."""
    return (
        row.cancel_requested
        or row.state in (StageState.FAILED, StageState.CANCELLED)
        or (row.state in LIVE and row.priority < priority)
    )


def _attach(session: Session, job_id: int, plan: Plan, ids: dict[str, int], found: dict[str, Any]) -> None:
    wants = [
        {
            "job_id": job_id,
            "stage_id": ids[stage.key],
            "position": position,
            "reused": found[stage.key].state == StageState.SUCCEEDED,
        }
        for position, stage in enumerate(plan.ordered)
    ]
    insert_new(session, JOB_STAGES, wants)
    models = _model_rows(job_id, "target", plan.targets, ids) + _model_rows(job_id, "substitute", plan.substitutes, ids)
    insert_new(session, JOB_MODELS, models)
    insert_new(session, EVALUATIONS, _evaluation_rows(plan, ids))


def _model_rows(job_id: int, role: str, models: Sequence[Model], ids: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "job_id": job_id, "stage_id": ids[model.key], "role": role, "recipe": model.train.recipe,
            "label": model.label[:200], "position": position,
        }
        for position, model in enumerate(models)
    ]  # fmt: skip


def _evaluation_rows(plan: Plan, ids: dict[str, int]) -> list[dict[str, Any]]:
    trains = {model.key: model.train for model in [*plan.targets, *plan.substitutes]}
    attacks: dict[int, dict[str, Any]] = {}
    recipes = {key: train.recipe for key, train in trains.items()}
    rows: list[dict[str, Any]] = []
    for stage in plan.stages.values():
        seen = stage.evaluation
        if seen is None:
            continue
        substitute = trains[seen.substitute] if seen.substitute else None
        attack = attacks.get(id(seen.attack)) or attacks.setdefault(id(seen.attack), _attack_columns(seen.attack))
        rows.append(
            {
                "stage_id": ids[stage.key],
                "target_id": ids[seen.target],
                "target_recipe": recipes[seen.target],
                "target_seed": trains[seen.target].seed,
                "substitute_id": ids[seen.substitute] if seen.substitute else None,
                "substitute_recipe": recipes[seen.substitute] if seen.substitute else None,
                "substitute_seed": substitute and substitute.seed,
                "whitebox": seen.whitebox,
                **attack,
                "dataset": plan.dataset,
                "device": plan.device,
                "image_limit": stage.images,
                "cell": cell_of(
                    recipes[seen.target],
                    recipes[seen.substitute] if seen.substitute else None,
                    attack["attack_id"],
                ),
            }
        )
    return rows


def _attack_columns(attack: Attack) -> dict[str, Any]:
    return {
        "attack_id": attack.identity(), "attack": attack.model_dump(mode="json"),
        "attack_label": attack.label()[:200],
    }  # fmt: skip


def _revive(session: Session, ids: Sequence[int], priority: int) -> tuple[list[int], list[int]]:
    """Return the failed and cancelled stages that now live again, and those no longer to be cancelled.

    The priority of all that live is raised.
    """
    revived: list[int] = []
    lifted: list[int] = []
    for chunk in chunks(ids):
        revived += session.scalars(
            update(Stage)
            .where(Stage.id.in_(chunk), Stage.state.in_([StageState.FAILED, StageState.CANCELLED]))
            .values(
                state=StageState.BLOCKED, failures=0, losses=0, not_before=0.0, error=None, finished_at=None,
                announced_at=0.0,
            )
            .returning(Stage.id)
        )  # fmt: skip
        stopping = update(Stage).where(Stage.id.in_(chunk), Stage.cancel_requested.is_(True))
        lifted += session.scalars(stopping.values(cancel_requested=False).returning(Stage.id))
        lower = (Stage.id.in_(chunk), Stage.state.in_(LIVE), Stage.priority < priority)
        session.execute(update(Stage).where(*lower).values(priority=priority))
    return revived, lifted


def _join_running(session: Session, job_id: int) -> None:
    """Note that a job which came while some of its stages run is running."""
    running = session.execute(
        select(Stage.key, Stage.title)
        .join(JobStage, JobStage.stage_id == Stage.id)
        .where(JobStage.job_id == job_id, Stage.state == StageState.RUNNING)
        .order_by(JobStage.position)
    ).all()
    for stage in running:
        events.append(session, [job_id], "stage.running", {"key": stage.key, "title": stage.title})
    if running:
        session.execute(
            update(Job).where(Job.id == job_id).values(state=JobState.RUNNING, started_at=db_now())
        )  # fmt: skip


def cancel(session: Session, job_id: int) -> JobState | None:
    """Return the job's state after asking it to stop; None where there is no such job.

    Stages that another live job wants go on; those that nobody else wants are cancelled now, or, where a worker
    runs them, as soon as it has stopped.
    """
    mine = select(JobStage.stage_id).where(JobStage.job_id == job_id)
    locked = session.scalars(
        select(Stage.id).where(Stage.id.in_(mine), Stage.state.in_(LIVE)).order_by(Stage.id).with_for_update()
    ).all()
    state = session.scalar(select(Job.state).where(Job.id == job_id).with_for_update())
    if state is None:
        return None
    if state == JobState.CANCELLING or state in JOB_ENDED:
        return JobState(state)
    session.execute(update(Job).where(Job.id == job_id).values(cancel_requested=True, state=JobState.CANCELLING))
    events.append(session, [job_id], "job.cancelling", {})
    for chunk in chunks(locked):
        unwanted = (Stage.id.in_(chunk), ~wanted_by_live_job(job_id))
        session.execute(
            update(Stage)
            .where(*unwanted, Stage.state.in_([StageState.BLOCKED, StageState.READY]))
            .values(state=StageState.CANCELLED, finished_at=db_now())
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(Stage)
            .where(*unwanted, Stage.state == StageState.RUNNING)
            .values(cancel_requested=True)
            .execution_options(synchronize_session=False)
        )
    roll_up(session, job_id)
    return JobState(session.scalar(select(Job.state).where(Job.id == job_id)) or JobState.CANCELLING)


_BY_ID = select(Job).where(Job.id == bindparam("job")).execution_options(populate_existing=True)
_STAGES_OF = (
    select(Stage, JobStage.reused)
    .join(JobStage, JobStage.stage_id == Stage.id)
    .where(JobStage.job_id == bindparam("job"))
    .order_by(JobStage.position)
)
_STAGES_WITHOUT_SPECS_OF = _STAGES_OF.options(defer(Stage.spec, raiseload=True))
_IMAGES_OF = (
    select(func.max(EVALUATIONS.c.image_limit))
    .join(JOB_STAGES, JOB_STAGES.c.stage_id == EVALUATIONS.c.stage_id)
    .where(JOB_STAGES.c.job_id == bindparam("job"))
)
_FIRST_OF_ATTACK = (
    select(func.min(EVALUATIONS.c.stage_id))
    .join(JOB_STAGES, JOB_STAGES.c.stage_id == EVALUATIONS.c.stage_id)
    .where(JOB_STAGES.c.job_id == bindparam("job"))
    .group_by(EVALUATIONS.c.attack_id)
)
_ATTACKS_OF = (
    select(EVALUATIONS.c.attack).where(EVALUATIONS.c.stage_id.in_(_FIRST_OF_ATTACK)).order_by(EVALUATIONS.c.stage_id)
)
_SPECS = select(STAGES.c.id, STAGES.c.spec).where(STAGES.c.id.in_(_IDS))
_MODELS_OF = (
    select(STAGES.c.key, STAGES.c.spec, JOB_MODELS.c.recipe, JOB_MODELS.c.label, JOB_MODELS.c.role, STAGES.c.seed)
    .join(STAGES, STAGES.c.id == JOB_MODELS.c.stage_id)
    .where(JOB_MODELS.c.job_id == bindparam("job"))
    .order_by(JOB_MODELS.c.role.desc(), JOB_MODELS.c.position)
)


def by_id(session: Session, job_id: int) -> Job | None:
    """Return a job, as it is now."""
    return session.scalar(_BY_ID, {"job": job_id})


def posted_as(session: Session, suite: str) -> bool:
    """Return whether any job was posted as that suite."""
    return session.scalar(select(Job.id).where(Job.suite == suite).limit(1)) is not None


def stages_of(session: Session, job_id: int, *, specs: bool = True) -> list[tuple[Stage, bool]]:
    """Return a job's stages, with whether each was reused, in the order they were planned.

    Without their specs, which are most of what there is of them, reading a large job takes a fraction.
    """
    query = _STAGES_OF if specs else _STAGES_WITHOUT_SPECS_OF
    return [(row[0], row[1]) for row in session.execute(query, {"job": job_id})]


def specs(session: Session, stage_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the specs of a few stages, in that order."""
    found = {row.id: row.spec for row in session.execute(_SPECS, {"ids": stage_ids})}
    return [found[stage_id] for stage_id in stage_ids]


def images_of(session: Session, job_id: int) -> int | None:
    """Return how many test images a job's evaluations look at; None where it has none."""
    return session.scalar(_IMAGES_OF, {"job": job_id})


def attacks_of(session: Session, job_id: int) -> list[dict[str, Any]]:
    """Return the attacks of a job's evaluations, each once."""
    return list(session.scalars(_ATTACKS_OF, {"job": job_id}))


_UNFINISHED_PARENTS = (
    select(PARENTS.c.stage_id, STAGES.c.title, STAGES.c.state)
    .join(STAGES, STAGES.c.id == PARENTS.c.parent_id)
    .where(PARENTS.c.stage_id.in_(_IDS), STAGES.c.state != StageState.SUCCEEDED)
    .order_by(STAGES.c.id)
)


def unfinished_parent_titles(session: Session, blocked: Sequence[int]) -> dict[int, list[str]]:
    """Return blocked stage id -> titles of the parents it waits for."""
    waiting: dict[int, list[str]] = {}
    for chunk in chunks(blocked):
        for row in session.execute(_UNFINISHED_PARENTS, {"ids": chunk}):
            waiting.setdefault(row.stage_id, []).append(f"{row.title} ({row.state})")
    return waiting


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and the cursor of the next page (None at the end)."""

    jobs: list[Job]
    cursor: int | None


def newest(
    session: Session, *, before: int | None = None, limit: int = 50, state: str | None = None, name: str | None = None,
    tag: str | None = None, suite: str | None = None,
) -> Page:  # fmt: skip
    """Return one page of jobs, without their specs."""
    query = select(Job).options(defer(Job.spec, raiseload=True)).order_by(Job.id.desc()).limit(limit + 1)
    for column, value in ((Job.state, state), (Job.name, name), (Job.suite, suite)):
        query = query if value is None else query.where(column == value)
    if before is not None:
        query = query.where(Job.id < before)
    if tag is not None:
        query = query.where(_has_tag(session, tag))
    jobs = list(session.scalars(query))
    more = len(jobs) > limit
    return Page(jobs[:limit], jobs[limit - 1].id if more else None)


def _has_tag(session: Session, tag: str) -> Any:
    if dialect_of(session) == "postgresql":
        return Job.tags.op("?")(tag)
    each = func.json_each(Job.tags).table_valued("value")
    return select(each.c.value).where(each.c.value == tag).exists()


def counts(session: Session, job_ids: Sequence[int]) -> dict[int, dict[str, tuple[int, float, float]]]:
    """Return job id -> stage state -> (stages, floating-point operations, device seconds)."""
    query = (
        select(JobStage.job_id, Stage.state, func.count(), func.sum(Stage.flop), func.sum(Stage.device_seconds))
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(JobStage.job_id.in_(list(job_ids)))
        .group_by(JobStage.job_id, Stage.state)
    )
    found: dict[int, dict[str, tuple[int, float, float]]] = {job_id: {} for job_id in job_ids}
    for job_id, state, number, flop, seconds in session.execute(query):
        found[job_id][state] = (number, flop or 0.0, seconds or 0.0)
    return found


def running(session: Session, job_ids: Sequence[int]) -> dict[int, list[tuple[float, dict[str, Any] | None]]]:
    """Return job id -> floating-point operations and progress of its running stages."""
    query = (
        select(JobStage.job_id, Stage.flop, Stage.progress)
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(JobStage.job_id.in_(list(job_ids)), Stage.state == StageState.RUNNING)
    )
    found: dict[int, list[tuple[float, dict[str, Any] | None]]] = {}
    for job_id, flop, progress in session.execute(query):
        found.setdefault(job_id, []).append((flop, progress))
    return found


def states_of_keys(session: Session, keys: Sequence[str]) -> dict[str, str]:
    """Return key -> state of the stages that are known."""
    found: dict[str, str] = {}
    for chunk in chunks(keys):
        found.update({row.key: row.state for row in session.execute(_OF_KEYS, {"keys": chunk})})
    return found


class TrainedModels:
    """The trained models of the database, as a plan asks for them."""

    def __init__(self, session: Session):
        self._session = session

    def by_key(self, key: str) -> Train | None:
        """Return the succeeded train stage of that key."""
        return self._one(Stage.key == key)

    def like(self, train: Train) -> Train | None:
        """Return a succeeded train stage equal to `train`, apart from its execution."""
        exact = self.by_key(train.identity())
        if exact is not None:
            return exact
        wanted = _without_execution(train)
        rows = self._session.scalars(
            select(Stage.spec)
            .where(
                IS_TRAINED, Stage.dataset == train.dataset, Stage.seed == train.seed,
                Stage.spec["defense"]["kind"].as_string() == train.defense.kind,
                Stage.spec["network"]["kind"].as_string() == train.network.kind,
            )
            .order_by(Stage.id.desc())
            .execution_options(yield_per=FEW)
        )  # fmt: skip
        try:  # the newest is the likeliest, and there may be thousands
            found = (Train.model_validate(spec) for spec in rows)
            return next((model for model in found if _without_execution(model) == wanted), None)
        finally:
            rows.close()

    def _one(self, *condition: Any) -> Train | None:
        spec = self._session.scalar(select(Stage.spec).where(IS_TRAINED, *condition))
        return None if spec is None else Train.model_validate(spec)


def _without_execution(stage: StageSpec) -> str:
    return digest({name: value for name, value in stage.canonical().items() if name != "execution"})


def models_of(session: Session, job_id: int) -> list[dict[str, Any]]:
    """Return a job's models by role and position: key, spec, recipe, label, role, seed."""
    return [dict(row) for row in session.execute(_MODELS_OF, {"job": job_id}).mappings()]
