"""Every statement that a real worker process sends names the fence it holds, in whatever way its stages end."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from core.defenses.natural import Natural
from store import jobs
from store.database import Database
from store.settings import Settings
from tests import factories
from tests.processes import wait_until
from tests.store.test_fenced_sql import ALLOWED, FENCED, GUARD
from worker.process import WorkerProcess

CLAIM = re.compile(r"UPDATE stages SET state=\S+, fence=\(stages\.fence \+ \S+\), .* AND stages\.state = ")
OWN = re.compile(r"UPDATE workers SET .* WHERE workers\.incarnation = ")
OF_NOBODY = re.compile(r"DELETE FROM artifacts WHERE artifacts\.sha256 IN ")
"""Rows that are locked, and to which nothing refers."""
OF_A_STAGE = re.compile(
    r"(UPDATE|DELETE FROM|INSERT INTO) (stages|attempts|results|evaluations|stage_artifacts|checkpoints|stage_logs)\b"
)


@contextmanager
def transactions(worker: WorkerProcess) -> Iterator[list[list[str]]]:
    """Yield the transactions of a worker's own engine, its heartbeat's too, as lists of statements."""
    found: list[list[str]] = []
    open_now: dict[int, list[str]] = {}

    def begin(connection: Any) -> None:
        open_now[id(connection.connection.dbapi_connection)] = []

    def note(connection: Any, _: Any, statement: str, *__: Any) -> None:
        open_now.setdefault(id(connection.connection.dbapi_connection), []).append(" ".join(statement.split()))

    def commit(connection: Any) -> None:
        found.append(open_now.pop(id(connection.connection.dbapi_connection), []))

    listeners = (("begin", begin), ("before_cursor_execute", note), ("commit", commit))
    for name, listener in listeners:
        event.listen(worker._database.engine, name, listener)
    yield found
    for name, listener in listeners:
        event.remove(worker._database.engine, name, listener)


def unfenced(statements: list[str]) -> list[str]:
    """Return what a transaction changes of a stage without the fence: on its own, or before the fence was asked for."""
    if any(CLAIM.match(statement) for statement in statements):
        return []  # it takes a new fence
    guarded, bad = False, list[str]()
    for statement in statements:
        guarded = guarded or bool(GUARD.match(statement))
        if (OF_A_STAGE.match(statement) and not guarded) or (
            statement.startswith(("UPDATE", "DELETE"))
            and not (
                FENCED.search(statement)
                or OWN.match(statement)
                or OF_NOBODY.match(statement)
                or any(one.match(statement) for one in ALLOWED.values())
            )
        ):
            bad.append(statement)
    return bad


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with factories.opened(database_url) as database:
        yield database


@pytest.fixture
def worker(database_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    chosen = Settings(
        database_url=database_url, state_dir=tmp_path, heartbeat_seconds=0.2, lease_seconds=30, checkpoint_seconds=0.1,
        max_failures=1,
    )  # fmt: skip
    worker = WorkerProcess(chosen)
    worker.start()
    yield worker
    worker.stop()


def test_every_transaction(database: Database, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark to its end, a training cancelled, one failed, one refused, one drained."""
    endless = {"iterations": 1_000_000, "batch_size": 2}
    with transactions(worker) as seen:
        done = factories.post(database, factories.body())
        worker.work()
        assert factories.job(database, done).state == "succeeded"

        cancelled = factories.post(database, factories.trainings([1], training=endless))
        running = threading.Thread(target=_cancel_once_running, args=(database, cancelled))
        running.start()
        worker.work()
        running.join()
        assert factories.job(database, cancelled).state == "cancelled"

        failed = factories.post(database, factories.trainings([2]))
        with monkeypatch.context() as broken:
            broken.setattr(Natural, "gradients", None)
            worker.work()
        assert factories.job(database, failed).state == "failed"

        refused = factories.post(database, factories.trainings([3]))
        with monkeypatch.context() as newer:
            newer.setattr(Natural, "version", 2)
            worker.work()
        assert set(factories.states(database, refused).values()) == {"ready"}

        drained = factories.post(database, factories.trainings([4], training=endless))
        threading.Timer(1.0, worker.drain).start()
        worker.work()
        assert set(factories.states(database, drained).values()) == {"ready"}
        time.sleep(0.2)
    for statements in seen:
        assert unfenced(statements) == [], statements
    everything = [statement for statements in seen for statement in statements]
    for table in ("results", "evaluations", "stage_artifacts", "checkpoints", "stage_logs"):
        assert any(re.match(rf"(INSERT INTO|UPDATE) {table}\b", statement) for statement in everything), table


def _cancel_once_running(database: Database, job_id: int) -> None:
    wait_until("it runs", lambda: set(factories.states(database, job_id).values()) == {"running"}, every=0.01)
    with database.write() as session:
        jobs.cancel(session, job_id)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE stages SET progress=? WHERE stages.id = ?",
        "INSERT INTO stage_logs (stage_id) VALUES (?)",
        "DELETE FROM checkpoints WHERE checkpoints.stage_id = ?",
        "UPDATE workers SET stage_id=?",
    ],
)
def test_a_write_without_its_fence_would_be_noticed(statement: str) -> None:
    assert unfenced(["SELECT stages.id FROM stages WHERE stages.key = ?", statement]) == [statement]
