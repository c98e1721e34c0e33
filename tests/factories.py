"""Makes plans, jobs and finished stages, so that a test states only what matters to it. Nothing here needs torch.

Specs are real ones on mnist-mini, one iteration long; results are made up.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from core.execution import Execution
from core.jobs import JOB
from core.plan import Plan, plan
from store import jobs, keeping, stages
from store.database import Database, db_now
from store.jobs import Submission, TrainedModels
from store.models import Base, Stage
from store.stages import Bell, Claim, StoredArtifact

EXECUTION = Execution(threads=1)
LEASE = 60.0
FGSM: dict[str, Any] = {"kind": "fgsm"}
IMAGES = 10


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """Yield the database, and close it."""
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def body(**more: Any) -> dict[str, Any]:
    """Return the smallest benchmark there is: train natural, look at it clean and under FGSM; four stages."""
    small = {
        "kind": "benchmark",
        "dataset": "mnist-mini",
        "training": {"iterations": 1, "batch_size": 2},
        "attacks": [FGSM],
        "substitutes": [],
        "limit": IMAGES,
    }
    chosen = {"defense": {"kind": "natural"}} if "defenses" not in more else {}
    return {**small, **chosen, **more}


def trainings(seeds: Sequence[int] = (0,), kind: str = "natural", **more: Any) -> dict[str, Any]:
    """Return a job of unconnected train stages, one per seed."""
    schedule = {"iterations": 1, "batch_size": 2}
    return {
        "kind": "train", "dataset": "mnist-mini", "defense": {"kind": kind}, "seeds": list(seeds), "training": schedule,
        **more,
    }  # fmt: skip


def transfer(**more: Any) -> dict[str, Any]:
    """Return a benchmark with a substitute: the evaluation of the transfer has two parents that can run at once."""
    return body(substitutes=[{"kind": "fgsm_adv"}], transfer=[FGSM], **more)


def planned(spec: dict[str, Any], session: Session | None = None, execution: Execution = EXECUTION) -> Plan:
    """Return the plan of a job's body; `session` where it names trained models."""
    models: Any = TrainedModels(session) if session else None
    return plan(JOB.validate_python(spec), execution, models)


def submit(
    session: Session, spec: dict[str, Any] | None = None, *, execution: Execution = EXECUTION, suite: str | None = None
) -> tuple[int, list[Bell]]:
    """Submit a job's body and return its id and bells."""
    job = JOB.validate_python(spec or body())
    wanted = Submission(
        kind=str(getattr(job, "kind", "")), spec=job.model_dump(mode="json", exclude_none=True), name=job.name,
        suite=suite, tags=list(job.tags), priority=job.priority,
    )  # fmt: skip
    return jobs.submit(session, wanted, plan(job, execution, TrainedModels(session)))


def post(database: Database, spec: dict[str, Any] | None = None, **more: Any) -> int:
    """Submit a job in a transaction of its own and return its id."""
    with database.write() as session:
        return submit(session, spec, **more)[0]


def claim(database: Database, worker: str = "w", lease: float = LEASE) -> Claim:
    """Claim the next stage; there must be one."""
    found = try_claim(database, worker, lease)
    assert found is not None, "nothing is ready"
    return found


def try_claim(database: Database, worker: str = "w", lease: float = LEASE) -> Claim | None:
    """Claim the next stage, if there is one."""
    with database.write() as session:
        return stages.claim(session, ["gpu", "cpu"], worker, lease)


def stored(name: str, data: bytes | str = b"") -> StoredArtifact:
    """Return an artifact that only SQL knows."""
    content = data.encode() if isinstance(data, str) else data
    return StoredArtifact(name, hashlib.sha256(content).hexdigest(), len(content), "application/octet-stream")


def result(claim: Claim, n_correct: int = 7) -> tuple[dict[str, Any], list[StoredArtifact]]:
    """Return a payload and artifacts such as a stage of that kind has."""
    if claim.kind == "train":
        return {"iterations": 1, "last_losses": {"loss": 2.3}}, [stored("weights", claim.key)]
    if claim.kind == "craft":
        return {"n": IMAGES, "max_distance": 0.3}, [stored("examples", claim.key)]
    if claim.kind in ("surface", "sweep", "samples", "draw"):
        return {"n": IMAGES}, [stored(claim.kind, claim.key)]
    n = claim.spec["limit"] or 2000
    return {"n": n, "n_correct": min(n_correct, n)}, [stored("correct", claim.key)]


def succeed(database: Database, claim: Claim, n_correct: int = 7) -> list[Bell]:
    """Publish a made-up result under the claim's fence."""
    payload, artifacts = result(claim, n_correct)
    with database.write() as session:
        return stages.succeed(session, claim.stage_id, claim.fence, payload, {"test": True}, artifacts)


def fail(database: Database, claim: Claim, *, final: bool = True, message: str = "broken", at_most: int = 3) -> None:
    """End the claim's attempt with an error."""
    with database.write() as session:
        error = {"cause": "Test", "message": message}
        stages.fail(session, claim.stage_id, claim.fence, error, final=final, max_failures=at_most)


def finish(database: Database, n_correct: Callable[[Claim], int] = lambda _: 7) -> list[Claim]:
    """Run everything that is ready, and what becomes ready, to success; return the claims in order."""
    done: list[Claim] = []
    while (next_one := try_claim(database)) is not None:
        succeed(database, next_one, n_correct(next_one))
        done.append(next_one)
    return done


def pass_time(database: Database, seconds: float) -> None:
    """Move every moment that SQL compares its clock with `seconds` into the past."""
    with database.write() as session:
        for table, column in (
            ("stages", "lease_expires"), ("stages", "not_before"), ("stages", "announced_at"), ("workers", "seen_at"),
            ("leases", "expires"),
        ):  # fmt: skip
            session.execute(text(f"UPDATE {table} SET {column} = {column} - :seconds"), {"seconds": seconds})


def expire(database: Database, claim: Claim) -> None:
    """Let one claim's lease end."""
    with database.write() as session:
        session.execute(update(Stage).where(Stage.id == claim.stage_id).values(lease_expires=db_now() - 1))


def reap(database: Database, max_losses: int = 5) -> list[Bell]:
    """Take back what has expired, as the keeper does."""
    with database.write() as session:
        keeping.shorten(session, LEASE)
        found = keeping.orphans(session)
    return [bell for stage_id in found for bell in _taken_back(database, stage_id, max_losses)]


def _taken_back(database: Database, stage_id: int, max_losses: int) -> list[Bell]:
    with database.write() as session:
        return keeping.reap(session, stage_id, max_losses)


def stage(database: Database, stage_id: int) -> Stage:
    """Return a stage's row."""
    with database.read() as session:
        return session.get_one(Stage, stage_id)


def stages_by_title(database: Database) -> dict[str, Stage]:
    """Return every stage by its title."""
    with database.read() as session:
        return {row.title: row for row in session.scalars(select(Stage).order_by(Stage.id))}


def states(database: Database, job_id: int) -> dict[str, str]:
    """Return the states of a job's stages by title."""
    with database.read() as session:
        return {row.title: row.state for row, _ in jobs.stages_of(session, job_id)}


def job(database: Database, job_id: int) -> Any:
    """Return a job's row."""
    with database.read() as session:
        return jobs.by_id(session, job_id)


def everything(database: Database) -> dict[str, list[Any]]:
    """Return every row of every table: what must not change when a statement changes nothing."""
    with database.read() as session:
        return {
            table.name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key.columns))]
            for table in Base.metadata.sorted_tables
        }


def empty(database: Database) -> None:
    """Forget every row."""
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
