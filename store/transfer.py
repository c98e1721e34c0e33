"""Finished stages out of one service's SQL and artifact store, into a file, and from such a file into another's."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from core import bundle
from core.bundle import Bundle, BundleError, CarriedModel, FileEntry, JobEntry, Manifest, StageEntry
from core.canonical import digest
from core.execution import Execution
from store import idempotency, jobs, lost, stages
from store.artifacts import ArtifactStore
from store.database import Database, chunks, db_now
from store.jobs import Submission
from store.models import Artifact, Attempt, Job, Result, Stage, StageArtifact, StageParent, StageState
from store.stages import StoredArtifact

CARRIED = tuple(kind.model_fields["kind"].default for kind in bundle.ORDER)
IMPORTED = "imported"
"""Tag of the jobs that a file brought, and the field of a stage's environment that says where it came from."""
LEFT_OUT = "left_out"
"""Field of an imported stage's environment: the artifacts that stayed behind, as the file named them."""


class ImportConflict(BundleError):
    """The file says something else of a stage than this service has found itself; nothing was imported."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    stages: int
    """Stages whose results were new here."""
    known: int
    """Stages that had the same result here already."""
    artifacts: int
    """Artifacts put into the store."""
    jobs: list[int]
    """The jobs that stand for the file's."""
    unfinished: dict[int, int]
    """Job that stands for one of the file's -> stages of that one which the file lacks, if any."""
    executions: list[Execution]
    """How its stages were executed."""


def export(
    database: Database, store: ArtifactStore, path: Path, *, suite: str | None, job: int | None,
    weights: bool = False, examples: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Return how much was written to `path`: the finished stages of a job, or of every job posted as a suite.

    Raises:
        BundleError: the file exists, or nothing of that job or suite has finished.
    """
    if path.exists():
        raise BundleError(f"{path} exists; name another file")
    with database.read() as session:
        manifest = _manifest(session, suite, job)
    if not manifest.stages:
        raise BundleError(f"nothing of {f'job {job}' if job else f'the suite {suite}'} has finished here")
    leave_out = [name for name, wanted in zip(bundle.LARGE, (weights, examples), strict=True) if not wanted]
    with database.read() as session:
        absent = _not_here(session, manifest, leave_out)
    number = bundle.write(path, manifest, store.get, leave_out, absent)
    counts = {"jobs": len(manifest.jobs), "stages": len(manifest.stages), "artifacts": number}
    return {**counts, "left behind": len(absent)} if absent else counts


def _manifest(session: Session, suite: str | None, job: int | None) -> Manifest:
    query = select(Job).order_by(Job.id)
    query = query.where(Job.suite == suite) if suite is not None else query.where(Job.id == job)
    entries: list[JobEntry] = []
    found: dict[str, StageEntry] = {}
    for row in session.scalars(query).all():
        every = [stage for stage, _ in jobs.stages_of(session, row.id)]
        finished = _whole(session, [stage for stage in every if _is_carried(stage)])
        if not finished:
            continue
        found |= {key: _stage_entry(session, stage) for key, stage in finished.items() if key not in found}
        whole = None if IMPORTED in row.tags else len(every)  # a job that was imported had more, maybe
        entries.append(_job_entry(session, row, list(finished.values()), whole))
    return Manifest(origin=_origin(), jobs=entries, stages=found)


def _is_carried(stage: Stage) -> bool:
    return stage.state == StageState.SUCCEEDED and stage.kind in CARRIED


def _whole(session: Session, finished: Sequence[Stage]) -> dict[str, Stage]:
    """Return key -> stage of those, parents first, all of whose parents are carried too; a withdrawn one is not."""
    parents: dict[int, set[int]] = {}
    for chunk in chunks([stage.id for stage in finished]):
        query = select(StageParent.stage_id, StageParent.parent_id).where(StageParent.stage_id.in_(chunk))
        for stage_id, parent_id in session.execute(query):
            parents.setdefault(stage_id, set()).add(parent_id)
    kept: dict[int, Stage] = {}
    for stage in finished:
        if parents.get(stage.id, set()) <= kept.keys():
            kept[stage.id] = stage
    return {stage.key: stage for stage in kept.values()}


def _not_here(session: Session, manifest: Manifest, leave_out: Sequence[str]) -> set[str]:
    """Return the sha256 of artifacts that are wanted in the file, and that an import left behind."""
    files = (pair for stage in manifest.stages.values() for pair in stage.artifacts.items())
    named = {file.sha256 for name, file in files if name not in leave_out}
    kept = (select(Artifact.sha256).where(Artifact.sha256.in_(chunk)) for chunk in chunks(sorted(named)))
    return named - {sha256 for query in kept for sha256 in session.scalars(query)}


def _origin() -> dict[str, Any]:
    return {"host": platform.node(), "gauntlet": version("gauntlet"), "written_by": "gauntlet export"}


def _job_entry(session: Session, row: Job, finished: Sequence[Stage], planned: int | None) -> JobEntry:
    keys = {stage.key for stage in finished}
    return JobEntry.model_validate(
        {
            "kind": row.kind, "name": row.name, "suite": row.suite, "tags": row.tags, "spec": row.spec,
            "pairing": row.pairing, "dataset": finished[0].dataset,
            "device": finished[0].spec["execution"]["device"],
            "models": [
                CarriedModel(key=model["key"], role=model["role"], label=model["label"])
                for model in jobs.models_of(session, row.id)
                if model["key"] in keys
            ],
            "stages": [stage.key for stage in finished], "planned": planned,
        }
    )  # fmt: skip


def _stage_entry(session: Session, stage: Stage) -> StageEntry:
    result = session.get_one(Result, stage.id)
    here = select(StageArtifact.name, Artifact.sha256, Artifact.size, Artifact.media_type).join(
        Artifact, Artifact.sha256 == StageArtifact.sha256
    )
    files = {
        row.name: FileEntry(sha256=row.sha256, size=row.size, media_type=row.media_type)
        for row in session.execute(here.where(StageArtifact.stage_id == stage.id))
    }
    files = {**_left_out(result), **files}
    return StageEntry(
        title=stage.title, spec=stage.spec, payload=result.payload, environment=result.environment, artifacts=files,
        device_seconds=stage.device_seconds,
    )  # fmt: skip


def _left_out(result: Result) -> dict[str, FileEntry]:
    """Return the artifacts of an imported stage that stayed behind."""
    return {name: FileEntry.model_validate(file) for name, file in result.environment.get(LEFT_OUT, {}).items()}


def import_file(database: Database, store: ArtifactStore, path: Path) -> Imported:
    """Return what was new after bringing a file's results into SQL and its artifacts into the store, all or nothing.

    Repeating it changes nothing. An imported stage's environment says where its result comes from.

    Raises:
        BundleError: the file does not verify.
        ImportConflict: a stage has another result here, or is being computed here now.
    """
    found = bundle.read(path)
    if not found.specs:
        raise BundleError(f"{path} holds no finished stage; run what wrote it to the end, or further")
    with database.read() as session:
        _refuse_conflicts(session, found)
    for data in found.artifacts.values():  # before any row refers to them; without rows they are garbage to collect
        store.put(data)
    with database.write() as session:
        before = _known(session, list(found.specs))
        made = {_import_job(session, found, job): job for job in found.manifest.jobs}
        for key in found.specs:
            if key in before:
                _complete(session, found, key, before[key])
    new = len(found.specs) - len(before)
    lacks = {number: (job.planned or 0) - len(job.stages) for number, job in made.items()}
    lacks = {number: lacking for number, lacking in lacks.items() if lacking > 0}
    return Imported(
        new, len(before), len(found.artifacts), list(made), lacks, bundle.executions(found.specs.values())
    )  # fmt: skip


def _known(session: Session, keys: Sequence[str]) -> dict[str, Stage]:
    """Return the stages of these keys that have succeeded here."""
    states = jobs.states_of_keys(session, keys)
    done = [key for key, state in states.items() if state == StageState.SUCCEEDED]
    rows = (stages.by_key(session, key) for key in done)
    return {row.key: row for row in rows if row is not None}


def _refuse_conflicts(session: Session, found: Bundle) -> None:
    """Raise where any stage of the file has another result here, or is being computed here."""
    states = jobs.states_of_keys(session, list(found.specs))
    wrong = [
        f"{found.manifest.stages[key].title} ({key[:12]}) is being computed here"
        for key, state in states.items()
        if state == StageState.RUNNING
    ]
    for key, row in _known(session, list(found.specs)).items():
        difference = _difference(session, row, found.manifest.stages[key])
        if difference:
            wrong.append(f"{found.manifest.stages[key].title} ({key[:12]}): {difference}")
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ImportConflict(f"{len(wrong)} stages are otherwise here than in the file, nothing was imported: {shown}")


def _difference(session: Session, row: Stage, entry: StageEntry) -> str | None:
    """Return in what the file's result of a stage differs from the one here."""
    result = session.get_one(Result, row.id)
    here = {name: file.sha256 for name, file in _left_out(result).items()} | _artifacts(session, row.id)
    return bundle.difference(result.payload, here, entry)


def _artifacts(session: Session, stage_id: int) -> dict[str, str]:
    found = stages.result_of(session, stage_id)
    return found[1] if found else {}


def _import_job(session: Session, found: Bundle, job: JobEntry) -> int:
    """Return the job that stands for the file's, made of its finished stages and ended with them."""
    said = job.model_dump(mode="json", exclude={"planned"})  # which came later: the name has to stay what it was
    named = f"import:{digest([found.sha256, said])}"
    before = idempotency.known(session, named)
    if before is not None and before.job_id is not None and len(_known(session, job.stages)) == len(job.stages):
        return before.job_id
    plan = found.plan(job)
    tags = list(dict.fromkeys([*job.tags, IMPORTED]))[-20:]
    wanted = Submission(job.kind, job.spec, job.name, job.suite, tags, priority=0)
    job_id, _ = jobs.submit(session, wanted, plan)
    _refuse_conflicts(session, found)  # again: until now, workers may have gone on
    for planned in plan.ordered:
        _succeed(session, found, planned.key)
    if before is None:
        idempotency.remember(session, named, found.sha256, job_id)
    return job_id


def _succeed(session: Session, found: Bundle, key: str) -> None:
    """Give a stage that has no result yet the file's, under a fence of its own, as if a worker had it claimed."""
    entry = found.manifest.stages[key]
    worker = f"{IMPORTED}:{found.sha256[:12]}"
    claimed = session.execute(
        update(Stage)
        .where(Stage.key == key, Stage.state == StageState.READY)
        .values(
            state=StageState.RUNNING, fence=Stage.fence + 1, lease_owner=worker, lease_expires=db_now(),
            started_at=db_now(),
        )
        .returning(Stage.id, Stage.fence)
    ).one_or_none()  # fmt: skip
    if claimed is None:
        return
    session.execute(
        insert(Attempt).values(stage_id=claimed.id, fence=claimed.fence, worker=worker, started_at=db_now())
    )
    here = {name: file for name, file in entry.artifacts.items() if file.sha256 in found.artifacts}
    behind = {name: file.model_dump() for name, file in entry.artifacts.items() if name not in here}
    origin = {IMPORTED: {**found.manifest.origin, "file": found.sha256}, **({LEFT_OUT: behind} if behind else {})}
    stored = [_stored(name, file) for name, file in here.items()]
    environment = {**{name: value for name, value in entry.environment.items() if name != LEFT_OUT}, **origin}
    lost.succeed(session, claimed.id, claimed.fence, entry.payload, environment, stored)
    session.execute(update(Stage).where(Stage.id == claimed.id).values(device_seconds=entry.device_seconds))


def _complete(session: Session, found: Bundle, key: str, row: Stage) -> None:
    """Add the artifacts that an earlier import left out and this file brings."""
    here = _artifacts(session, row.id)
    for name, file in found.manifest.stages[key].artifacts.items():
        if name not in here and file.sha256 in found.artifacts:
            stages.add_artifact(session, row.id, _stored(name, file))


def _stored(name: str, file: FileEntry) -> StoredArtifact:
    return StoredArtifact(name, file.sha256, file.size, file.media_type)
