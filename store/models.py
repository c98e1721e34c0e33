"""The tables. Times are seconds since 1970 on the database's clock; specs and results are JSON.

jobs ──< job_stages >── stages ──< stage_parents          a job shares stages with other jobs
  │                        │
  ├──< job_models          ├──< attempts                  one per claim, told apart by its fence
  └──< events              ├─── results                   exactly one per succeeded stage
                           ├─── evaluations               integers the matrices are built from
                           ├──< stage_artifacts >── artifacts
                           ├──< checkpoints
                           └──< stage_logs
workers    leases    idempotency_keys    tallies (sums over evaluations)    lost_results
"""

from enum import StrEnum
from hashlib import sha256
from typing import Any, ClassVar, cast

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Id = BigInteger().with_variant(Integer(), "sqlite")
KEY = String(64)


def partial(name: str, *columns: Any, where: str) -> Index:
    """Return an index over some rows only; a query uses it whose condition is `where`, in literals."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class StageState(StrEnum):
    """blocked -> ready -> running -> succeeded | failed | cancelled; see docs/architecture.md."""

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE = (StageState.BLOCKED, StageState.READY, StageState.RUNNING)
ENDED = (StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED)


class JobState(StrEnum):
    """A pure function of the job's stages and its cancel flag, frozen once it is one of the last three."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


JOB_LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)
"""Asked for by IN: NOT IN the others is a scan of every job there ever was."""
JOB_ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: Json, list[Any]: Json}


class Job(Base):
    """What a user asked for."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state", "state"), Index("ix_jobs_name", "name"), Index("ix_jobs_suite", "suite"))

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(200), default="")
    suite: Mapped[str | None] = mapped_column(String(100))
    tags: Mapped[list[Any]] = mapped_column(Json)
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(12))
    priority: Mapped[int] = mapped_column(Integer)
    pairing: Mapped[str] = mapped_column(String(12))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    unfinished: Mapped[int] = mapped_column(Integer, default=0)
    """Stages of the job that have not ended: counted under the job's lock, and no more once it has ended."""
    last_event: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)


class Stage(Base):
    """A memoized unit of work; `key` is the sha256 of its canonical spec."""

    __tablename__ = "stages"
    __table_args__ = (
        partial("ix_stages_ready", "queue", text("priority DESC"), "id", where="state = 'ready'"),
        partial("ix_stages_blocked", "id", where="state = 'blocked'"),
        partial("ix_stages_lease", "lease_expires", where="state = 'running'"),
        partial("ix_stages_measured", "queue", "id", where="state = 'succeeded' AND kind IN ('train', 'craft')"),
        partial("ix_stages_train", "dataset", "seed", "id", where="kind = 'train'"),
        partial("ix_stages_trained", "id", where="kind = 'train' AND state = 'succeeded'"),
        partial("ix_stages_draw", "id", where="kind = 'draw'"),
        Index("ix_stages_state", "state", "queue"),
        Index("ix_stages_recipe", "recipe"),
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    key: Mapped[str] = mapped_column(KEY, unique=True)
    kind: Mapped[str] = mapped_column(String(20))
    title: Mapped[str] = mapped_column(String(300))
    spec: Mapped[dict[str, Any]]
    recipe: Mapped[str | None] = mapped_column(KEY)
    seed: Mapped[int | None] = mapped_column(Id)
    dataset: Mapped[str] = mapped_column(String(60))
    queue: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(10))
    priority: Mapped[int] = mapped_column(Integer)
    flop: Mapped[float] = mapped_column(Float)
    fence: Mapped[int] = mapped_column(Id, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires: Mapped[float | None] = mapped_column(Float)
    not_before: Mapped[float] = mapped_column(Float, default=0.0)
    """When a ready stage may first be claimed: when it became ready, or the end of its backoff; 0 in rows older
    than this rule."""
    announced_at: Mapped[float] = mapped_column(Float, default=0.0)
    """When its bell was last rung."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    device_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)


class StageParent(Base):
    """`stage_id` needs the result of `parent_id`."""

    __tablename__ = "stage_parents"
    __table_args__ = (Index("ix_stage_parents_parent_id", "parent_id"),)

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    parent_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)


class JobStage(Base):
    """`job_id` wants `stage_id`; `reused` where it had succeeded before the job came."""

    __tablename__ = "job_stages"
    __table_args__ = (Index("ix_job_stages_stage_id", "stage_id"),)

    job_id: Mapped[int] = mapped_column(Id, ForeignKey("jobs.id"), primary_key=True)
    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer)
    reused: Mapped[bool] = mapped_column(default=False)


class JobModel(Base):
    """A model of a job under the label the job gave it; `role` is target or substitute."""

    __tablename__ = "job_models"
    __table_args__ = (Index("ix_job_models_recipe", "recipe"),)

    job_id: Mapped[int] = mapped_column(Id, ForeignKey("jobs.id"), primary_key=True)
    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(12), primary_key=True)
    recipe: Mapped[str] = mapped_column(KEY)
    label: Mapped[str] = mapped_column(String(200))
    position: Mapped[int] = mapped_column(Integer)


class Attempt(Base):
    """One claim of a stage; open while `ended_at` is null."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_outcome", "outcome"),)

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(Id, primary_key=True)
    worker: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str | None] = mapped_column(String(12))
    error: Mapped[dict[str, Any] | None]


class Result(Base):
    """What a succeeded stage found, written once under the winning fence."""

    __tablename__ = "results"

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(Id)
    payload: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float)


class LostResult(Base):
    """A result that was withdrawn, because an artifact of it was lost or altered; `artifacts` is name -> sha256.

    The one exception to "results never change": what it said stays on record here.
    """

    __tablename__ = "lost_results"

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(Id, primary_key=True)
    payload: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    artifacts: Mapped[dict[str, Any]]
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    withdrawn_at: Mapped[float] = mapped_column(Float)


class Evaluation(Base):
    """One target under one set of examples. Planned with its stage; `n` and `n_correct` come with the result."""

    __tablename__ = "evaluations"
    __table_args__ = (
        # everything a matrix counts, so that a million evaluations are summed without reading their rows
        Index(
            "ix_evaluations_cells",
            "dataset",
            "device",
            "image_limit",
            "whitebox",
            "cell",
            "target_seed",
            "substitute_seed",
            "n",
            "n_correct",
            "target_id",
            "stage_id",
        ),
        Index("ix_evaluations_target_id", "target_id"),
        Index(
            "ix_evaluations_unfinished", "dataset", "device", "image_limit",
            postgresql_where=text("n IS NULL"), sqlite_where=text("n IS NULL"),
        ),
    )  # fmt: skip

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    target_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"))
    target_recipe: Mapped[str] = mapped_column(KEY)
    target_seed: Mapped[int] = mapped_column(Id)
    substitute_id: Mapped[int | None] = mapped_column(Id, ForeignKey("stages.id"))
    substitute_recipe: Mapped[str | None] = mapped_column(KEY)
    substitute_seed: Mapped[int | None] = mapped_column(Id)
    whitebox: Mapped[bool]
    attack_id: Mapped[str] = mapped_column(KEY)
    attack: Mapped[dict[str, Any]]
    attack_label: Mapped[str] = mapped_column(String(200))
    dataset: Mapped[str] = mapped_column(String(60))
    device: Mapped[str] = mapped_column(String(10))
    image_limit: Mapped[int] = mapped_column(Integer)
    n: Mapped[int | None] = mapped_column(Integer)
    n_correct: Mapped[int | None] = mapped_column(Integer)
    cell: Mapped[int] = mapped_column(Id)
    """`cell_of` its target's recipe, its substitute's recipe and its attack: what a matrix counts together."""


class Tally(Base):
    """What the finished black-box evaluations of a cell and a sort of pairs add up to; kept by store/tallies.py."""

    __tablename__ = "tallies"

    cell: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    same: Mapped[bool] = mapped_column(primary_key=True)
    """Whether targets and substitutes are of one seed."""
    image_limit: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    dataset: Mapped[str] = mapped_column(String(60))
    device: Mapped[str] = mapped_column(String(10))
    first: Mapped[int] = mapped_column(Id)
    """One of the stages; recipes and attack are alike in all."""
    evaluations: Mapped[int] = mapped_column(Integer)
    total: Mapped[int] = mapped_column(Id)
    """Sum of n_correct."""
    squares: Mapped[int] = mapped_column(Id)
    """Sum of n_correct squared."""
    lowest: Mapped[int] = mapped_column(Integer)
    highest: Mapped[int] = mapped_column(Integer)


def cell_of(target_recipe: str, substitute_recipe: str | None, attack_id: str) -> int:
    """Return the number of a matrix cell: 63 bits of a hash, which are compared faster than three long texts."""
    named = f"{target_recipe}:{substitute_recipe or ''}:{attack_id}"
    return int.from_bytes(sha256(named.encode()).digest()[:8], "big") >> 1


class Artifact(Base):
    """Stored bytes, addressed by their sha256."""

    __tablename__ = "artifacts"

    sha256: Mapped[str] = mapped_column(KEY, primary_key=True)
    size: Mapped[int] = mapped_column(Id)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(Float)


class StageArtifact(Base):
    """The artifact a stage's result holds under `name`."""

    __tablename__ = "stage_artifacts"
    __table_args__ = (Index("ix_stage_artifacts_sha256", "sha256"),)

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    sha256: Mapped[str] = mapped_column(KEY, ForeignKey("artifacts.sha256"))


class Checkpoint(Base):
    """An artifact a running training can be resumed from; the newest two of a stage are kept."""

    __tablename__ = "checkpoints"

    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    fence: Mapped[int] = mapped_column(Id)
    sha256: Mapped[str] = mapped_column(KEY)
    created_at: Mapped[float] = mapped_column(Float)


class StageLog(Base):
    """One line of a stage's log."""

    __tablename__ = "stage_logs"
    __table_args__ = (Index("ix_stage_logs_stage_id", "stage_id", "id"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    stage_id: Mapped[int] = mapped_column(Id, ForeignKey("stages.id"))
    fence: Mapped[int] = mapped_column(Id)
    at: Mapped[float] = mapped_column(Float)
    line: Mapped[str] = mapped_column(Text)


class Event(Base):
    """Something that happened to a job; `seq` has no gaps, because it is taken under the job's row lock."""

    __tablename__ = "events"

    job_id: Mapped[int] = mapped_column(Id, ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]]


class Worker(Base):
    """A worker process; `incarnation` is fresh at every start."""

    __tablename__ = "workers"

    incarnation: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(String(10))
    device_name: Mapped[str] = mapped_column(String(200))
    queues: Mapped[list[Any]] = mapped_column(Json)
    versions: Mapped[dict[str, Any]]
    stage_id: Mapped[int | None] = mapped_column(Id, ForeignKey("stages.id"))
    draining: Mapped[bool] = mapped_column(default=False)
    started_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)


class Lease(Base):
    """A named right that one process holds at a time, such as the keeper's; the database itself holds one for good."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    expires: Mapped[float] = mapped_column(Float)


class IdempotencyKey(Base):
    """An Idempotency-Key, the sha256 of the request it came with, and the job it made.

    Until there is a job, the request of `owner` is in progress; it has died where that takes longer than `expires`.
    """

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(KEY)
    owner: Mapped[str | None] = mapped_column(String(32))
    expires: Mapped[float | None] = mapped_column(Float)
    job_id: Mapped[int | None] = mapped_column(Id, ForeignKey("jobs.id"))
    answer: Mapped[str | None] = mapped_column(Text)
    """The body that the first request was answered with, and that every repetition is."""
    created_at: Mapped[float] = mapped_column(Float)


def _table(model: type[Base]) -> Table:
    return cast(Table, model.__table__)


JOBS, STAGES, PARENTS, JOB_STAGES, JOB_MODELS = map(_table, (Job, Stage, StageParent, JobStage, JobModel))
ATTEMPTS, RESULTS, EVALUATIONS, EVENTS, WORKERS = map(_table, (Attempt, Result, Evaluation, Event, Worker))
ARTIFACTS, STAGE_ARTIFACTS, CHECKPOINTS, STAGE_LOGS = map(_table, (Artifact, StageArtifact, Checkpoint, StageLog))
LOST_RESULTS, TALLIES = _table(LostResult), _table(Tally)
"""The tables themselves. Statements that run for every request and every stage are made of them, once, with parameters:
building one of mapped classes each time costs several times what the database takes to run it."""
