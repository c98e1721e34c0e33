"""What the API answers with."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from core.execution import Execution


class Reply(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ErrorDetail(Reply):
    """What went wrong with a stage, or with one claim of it."""

    cause: str
    """Class of the error; parent where a stage it needs failed, lost where its worker was."""
    message: str
    """What happened, in a sentence."""
    traceback: str | None = None
    """Where in the code, for an error of a worker."""


class StageBase(Reply):
    """What every view of a stage shows."""

    key: str
    """sha256 of the stage's canonical spec."""
    kind: str
    """train, craft, evaluate, surface, sweep, samples or draw."""
    title: str
    """What it does, for people."""
    state: str
    """blocked, ready, running, succeeded, failed or cancelled."""
    waits_for: str | None
    """What a blocked or ready stage waits for, or that a running one is being stopped; null where it has ended."""
    reason: str | None
    """Why a failed or cancelled stage has ended so; null elsewhere."""
    progress: dict[str, Any] | None
    """How far a running stage is: done, total and the newest losses."""
    device_seconds: float
    """Seconds it has held a device, over all attempts."""


class StageReply(StageBase):
    """A stage as a job shows it."""

    reused: bool
    """Whether it had succeeded before this job asked for it."""


class ProgressReply(Reply):
    """How far a job is."""

    stages: int
    """Stages the job is made of."""
    by_state: dict[str, int]
    """Stage state -> number of stages."""
    fraction: float
    """Share of the job's floating-point operations that is done."""


class CostReply(Reply):
    """What a job costs."""

    estimated_seconds: float
    """Device time of all its stages if none were shared, at the rate this service has measured or assumes."""
    remaining_seconds: float
    """Device time of the stages not finished."""
    used_seconds: float
    """Device time its stages have used, shared ones included."""
    reused_seconds: float
    """Device time of stages that had succeeded before the job came: what sharing saved."""
    flop: float
    """Floating-point operations of all its stages."""
    rate: float
    """Floating-point operations per second that the estimates assume."""
    rate_measured: bool
    """Whether the rate comes from finished stages of this device class, rather than from an assumption."""


class JobSummary(Reply):
    """A job in a list."""

    id: int
    """Its number."""
    kind: str
    """benchmark, train, evaluate or figure."""
    name: str
    """Its name."""
    suite: str | None
    """The suite it was posted as."""
    tags: list[str]
    """Words to find it by."""
    state: str
    """queued, running, cancelling, succeeded, failed or cancelled."""
    priority: int
    """Higher runs first."""
    created_at: float
    """Seconds since 1970."""
    started_at: float | None
    """When its first stage started, seconds since 1970."""
    finished_at: float | None
    """When it ended, seconds since 1970."""
    last_event: int
    """Number of the newest thing that happened to it: what comes later is behind it in its history."""
    progress: ProgressReply
    """How far it is."""


class ModelLabel(Reply):
    """A model of a job."""

    key: str
    """Key of its train stage."""
    recipe: str
    """Key without the seed: a row or column of a matrix."""
    label: str
    """Its name in tables."""
    role: str
    """target or substitute."""
    seed: int
    """Its seed."""


class JobReply(JobSummary):
    """A job with its stages."""

    spec: dict[str, Any]
    """What was asked for, with every default written out: schedule, network, attacks, substitutes, seeds, images."""
    execution: Execution | None
    """Device class, threads and layout it was resolved to when it was posted; null for a job that computes nothing."""
    pairing: str | None
    """Which substitutes a target meets: those of its own seed (same) or of all others (independent); null for jobs that
    attack nothing."""
    cost: CostReply
    """What it costs."""
    models: list[ModelLabel]
    """Its models."""
    stages: list[StageReply]
    """Its stages, parents before children."""
    links: dict[str, str]
    """Where its results are."""
    cautions: list[str]
    """What to know before believing its results, every difference from the paper's protocol among it."""


class PlanStage(Reply):
    """A stage a job would need."""

    key: str
    """sha256 of its canonical spec."""
    kind: str
    """train, craft, evaluate, surface, sweep, samples or draw."""
    title: str
    """What it does."""
    state: str
    """new, or the state of the stage that is already known."""
    parents: list[str]
    """Keys of the stages it needs."""
    flop: float
    """Floating-point operations."""
    estimated_seconds: float
    """Device time, at `rate`."""


class PlanReply(Reply):
    """What posting the job would do; nothing was stored."""

    kind: str
    """Kind of the job."""
    dataset: str
    """Dataset."""
    device: str
    """Device class."""
    pairing: str | None
    """Which substitutes a target meets; null for a job that attacks nothing."""
    images: int
    """Test images per evaluation, 0 where the job evaluates nothing."""
    stages: list[PlanStage]
    """Stages, parents before children."""
    new: int
    """Stages that would have to run."""
    done: int
    """Stages that have succeeded already."""
    cost: CostReply
    """What it would cost."""
    waits_for: str | None
    """Why nothing of it would begin now: no live worker serves its queue. Null where one does."""
    cautions: list[str]
    """What to know before believing its results, every difference from the paper's protocol among it."""


class JobPage(Reply):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    """This page."""
    cursor: int | None
    """Pass as `cursor` for the next page; null at the end."""


class AttemptReply(Reply):
    """One claim of a stage by a worker."""

    fence: int
    """Its number; it only grows."""
    worker: str
    """Id of the worker process."""
    started_at: float
    """Seconds since 1970 on the database's clock."""
    ended_at: float | None
    """When it ended; null while it runs."""
    outcome: str | None
    """succeeded, failed, cancelled, released, refused or lost; null while it runs."""
    error: ErrorDetail | None
    """What went wrong."""


class ImportReply(Reply):
    """Where an imported result came from; fields that a newer version has written are kept."""

    model_config = ConfigDict(extra="allow")

    host: str | None = None
    """The machine that wrote the file."""
    file: str | None = None
    """sha256 of the file."""


class EnvironmentReply(Reply):
    """What a result was computed with; fields that a kind of stage adds are kept."""

    model_config = ConfigDict(extra="allow")

    gauntlet: str | None = None
    """Version of this package."""
    commit: str | None = None
    """Commit of the code, with +changes where files differed from it; null outside a git checkout."""
    python: str | None = None
    """Version of Python."""
    torch: str | None = None
    """Version of torch."""
    platform: str | None = None
    """Operating system."""
    host: str | None = None
    """Name of the machine."""
    device: str | None = None
    """Name of the GPU or the processor."""
    seconds: float | None = None
    """Seconds of the computation itself."""
    micro_batch: int | None = None
    """Examples at once after memory had run out; null where it never did."""
    imported: ImportReply | None = None
    """Where it came from, for a result of another machine."""


class StageDetail(StageBase):
    """A stage with everything known of it."""

    spec: dict[str, Any]
    """Its spec."""
    parents: list[str]
    """Keys of the stages it needs."""
    queue: str
    """Queue it waits in."""
    fence: int
    """Number of the latest claim; it only grows."""
    failures: int
    """Attempts of this life that ended in an error."""
    losses: int
    """Attempts of this life that were lost with their worker or its device."""
    error: ErrorDetail | None
    """The latest failure."""
    attempts: list[AttemptReply]
    """Every claim."""
    result: dict[str, Any] | None
    """What it found."""
    environment: EnvironmentReply | None
    """Versions, machine and device it ran on."""
    artifacts: dict[str, str]
    """Name -> sha256; GET /artifacts/{sha256}."""


class LogLine(Reply):
    """A line of a stage's log."""

    number: int
    """Pass as `after` for the lines behind it; it only grows, with gaps."""
    at: float
    """Seconds since 1970 on the worker's clock."""
    fence: int
    """The claim it belongs to."""
    line: str
    """The text."""


class ModelReply(Reply):
    """A trained model."""

    key: str
    """Key of its train stage: what an evaluate job names."""
    recipe: str
    """Key without the seed."""
    label: str
    """Its newest name in tables."""
    dataset: str
    """What it was trained on."""
    seed: int
    """Its seed."""
    defense: dict[str, Any]
    """Its defense."""
    weights: str
    """sha256 of its weights (safetensors)."""
    clean_accuracy: float | None
    """Share of clean test images it classifies correctly, where that was evaluated."""
    n: int | None
    """Test images behind `clean_accuracy`."""


class ModelPage(Reply):
    """Trained models, newest first."""

    models: list[ModelReply]
    """This page."""
    cursor: int | None
    """Pass as `cursor` for the next page; null at the end."""


class WorkerReply(Reply):
    """A worker process."""

    id: str
    """Fresh at every start."""
    host: str
    """Host name."""
    pid: int
    """Process id."""
    device: str
    """Device class."""
    device_name: str
    """Name of the device."""
    queues: list[str]
    """Queues it serves."""
    versions: dict[str, Any]
    """Versions it runs."""
    alive: bool
    """Whether it has reported within the last heartbeats."""
    seconds_since_seen: float
    """Seconds since its last report."""
    draining: bool
    """Whether it takes no more work."""
    stage: str | None
    """Key of the stage it runs."""
    leaves: list[str]
    """Why it could not run stages lately that others may: it leaves them to those."""


class SuiteReply(Reply):
    """A named suite."""

    name: str
    """What to post: {"suite": name}."""
    description: str
    """What it is."""
    spec: dict[str, Any]
    """The job it stands for."""


class SeedReply(Reply):
    """One model under one set of examples."""

    seed: int
    """The target's seed."""
    substitute_seed: int | None
    """The substitute's seed."""
    accuracy: float
    """Share classified correctly."""
    n: int
    """Examples."""
    n_correct: int
    """Examples classified correctly."""
    interval: tuple[float, float]
    """Wilson's 95 % interval."""
    evaluation: str
    """Key of the evaluate stage."""


class CellReply(Reply):
    """A cell of a matrix."""

    accuracy: float | None
    """Share classified correctly over all seeds; null where nothing was counted, with `reason`."""
    n: int
    """Examples, over all seeds."""
    n_correct: int
    """Examples classified correctly, over all seeds."""
    interval: tuple[float, float] | None
    """95 %: Wilson's for one seed; for several the t interval over their accuracies, and what the number of test images
    leaves open besides."""
    spread: float | None
    """Largest minus smallest accuracy over the seeds; null for one seed."""
    n_seeds: int
    """Seeds behind the numbers."""
    seeds: list[SeedReply]
    """Per seed; left out of a table over more than 5,000 evaluations, which a filter makes narrower."""
    whitebox: bool
    """Whether the examples were crafted on the target itself."""
    reason: str | None
    """Why the cell is null, or what is missing from it."""


class AxisReply(Reply):
    """A row or a column."""

    key: str
    """Stable name for programs."""
    label: str
    """Name for people."""
    recipe: str | None = None
    """Key of the model without its seed."""
    attack: dict[str, Any] | None = None
    """The attack."""
    attack_label: str | None = None
    """Its name for people, which `label` has too where the rows are of several attacks."""
    self_accuracy: float | None = None
    """Rows of the black-box matrix: the substitute's own accuracy on its examples, which shows how strong they are."""


class ScopeReply(Reply):
    """Results that may stand in one table."""

    dataset: str
    """Dataset."""
    device: str
    """Device class; classes are never mixed."""
    images: int
    """Test images behind each evaluation: the first that many of the test set."""
    note: str = ""
    """What to know about the images."""


class MatrixReply(Reply):
    """A table of accuracies."""

    matrix: str
    """whitebox or blackbox."""
    scope: ScopeReply | None
    """What the table is about; null where there is no evaluation."""
    pairing: str | None
    """Which substitutes a target meets."""
    rows: list[AxisReply]
    """Attacks, or substitutes."""
    columns: list[AxisReply]
    """Targets."""
    cells: list[list[CellReply]]
    """One list per row."""
    others: list[ScopeReply]
    """Other scopes that have results; narrow with dataset=, device=, images= or job=."""
    reason: str | None = None
    """Why the table has no cell."""
    cautions: list[str] = []
    """What to know before believing the table."""


class ModelName(Reply):
    """A model in a figure."""

    key: str
    """Key of its train stage."""
    label: str
    """Its name in the figure."""


class FigureReply(Reply):
    """A figure."""

    key: str
    """Key of the stage that draws it."""
    figure: dict[str, Any]
    """What is drawn, with every default filled in."""
    state: str
    """State of that stage; there are links once it has succeeded."""
    dataset: str
    """Dataset."""
    title: str
    """Title."""
    caption: str | None
    """What the figure shows: images, directions, units; null until it is drawn."""
    models: list[ModelName]
    """The models it shows, in its order."""
    links: dict[str, str]
    """values (JSON), png, svg and, for surfaces, page (HTML, interactive) -> where they are."""


class SurfaceReply(FigureReply):
    """A figure of loss surfaces, with its values."""

    values: dict[str, Any] | None
    """Title, caption, and per model t, loss[i][j] and accuracy[i][j] at t1 = t[i], t2 = t[j], and the path; null where
    `reason` says why."""
    reason: str | None
    """Why there are no values: not drawn yet, or their file is missing or damaged."""


class EventReply(Reply):
    """Something that happened to a job."""

    seq: int
    """Its number within the job; without gaps."""
    at: float
    """Seconds since 1970 on the database's clock."""
    kind: str
    """job.queued, stage.running, stage.succeeded, job.failed, ..."""
    data: dict[str, Any]
    """Which stage, and why."""


class HealthReply(Reply):
    """Whether the service lives, or is ready."""

    status: str
    """ok, or what is missing."""
    checks: dict[str, str] = {}
    """Check -> ok or what is wrong."""
