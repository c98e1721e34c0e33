"""The process that runs stages: its lease, its watchdog, its database going away."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError

from core.errors import Interrupted
from store import keeping, migrate, stages, workers
from store.database import Database, db_now
from store.models import Stage, Worker
from store.settings import Settings
from store.stages import Claim
from tests import factories
from tests.processes import Process, Processes, wait_until
from tests.servers import PostgresServer
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from worker import process
from worker.devices import queues
from worker.keeper import Keeper
from worker.process import EXIT_STUCK, WorkerProcess
from worker.watch import Watch

BEAT = 0.2


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url, state_dir=tmp_path, heartbeat_seconds=BEAT, lease_seconds=1.5, checkpoint_seconds=0
    )


@pytest.fixture
def worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(settings)
    monkeypatch.setattr(worker._runner, "run", until_told)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with factories.opened(database_url) as database:
        yield database


def until_told(_: Claim, watch: Watch) -> None:
    """Work that goes on until it is told to stop."""
    while True:
        watch.check()
        time.sleep(0.01)


def reason_of(worker: WorkerProcess) -> str:
    """Return why the worker's work stopped."""
    with pytest.raises(Interrupted) as stop:
        worker.work()
    return stop.value.reason


def once_it_works(worker: WorkerProcess, do: Callable[[], None]) -> None:
    """Do something from another thread as soon as the worker has begun; where that fails, the work ends."""

    def wait_and_do() -> None:
        try:
            wait_until("it works", lambda: worker._watch)
            do()
        except BaseException:
            worker.drain()
            raise

    threading.Thread(target=wait_and_do, daemon=True).start()


def test_conscience_does_not_wait_for_sql(
    worker: WorkerProcess, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that hangs, as on a dead network, does not keep the work from stopping before its lease ends."""
    factories.post(database, factories.trainings())
    answer = threading.Event()
    monkeypatch.setattr(worker, "_renew", lambda _: answer.wait(10))
    began = time.monotonic()
    assert reason_of(worker) == "lost"
    assert time.monotonic() - began < settings.lease_seconds
    answer.set()


def test_renewed_work_goes_on(worker: WorkerProcess, database: Database, settings: Settings) -> None:
    """Beyond its first lease, until it is drained; the worker is seen to be busy, then draining."""
    factories.post(database, factories.trainings())
    threading.Timer(2 * settings.lease_seconds, worker.drain).start()
    began = time.monotonic()
    assert reason_of(worker) == "drain"
    assert time.monotonic() - began > 1.9 * settings.lease_seconds
    wait_until("the drain is told", lambda: _row(database).draining)


def test_cancelled_work_stops(worker: WorkerProcess, database: Database) -> None:
    job_id = factories.post(database, factories.trainings())
    once_it_works(worker, lambda: _cancel(database, job_id))
    assert reason_of(worker) == "cancel"


def test_taken_over_work_stops(worker: WorkerProcess, database: Database) -> None:
    factories.post(database, factories.trainings())

    def take() -> None:
        with database.write() as session:  # in one transaction, for no renewal comes in between
            session.execute(update(Stage).values(lease_expires=0.0))
            assert [keeping.reap(session, orphan, 5) for orphan in keeping.orphans(session)]

    once_it_works(worker, take)
    assert reason_of(worker) == "lost"


def _cancel(database: Database, job_id: int) -> None:
    from store import jobs

    with database.write() as session:
        jobs.cancel(session, job_id)


def _row(database: Database) -> Any:
    with database.read() as session:
        return workers.all_workers(session, 10)[0][0]


def test_lines_outlive_a_failed_heartbeat(
    worker: WorkerProcess, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.post(database, factories.trainings())
    renew = stages.renew
    failures = iter([True, True])

    def fails_twice(*arguments: Any) -> Any:
        if next(failures, False):
            raise OperationalError("renew", None, Exception("away"))
        return renew(*arguments)

    def talks(claim: Claim, watch: Watch) -> None:
        watch.add_line("said while the database was away")
        wait_until("written", lambda: _said(database, claim) == ["said while the database was away"], 60)

    monkeypatch.setattr(stages, "renew", fails_twice)
    monkeypatch.setattr(worker._runner, "run", talks)
    claim = worker._claim()
    assert claim is not None
    worker._run(claim, time.monotonic())


def _said(database: Database, claim: Claim) -> list[str]:
    with database.read() as session:
        return [line.line for line in stages.log_of(session, claim.stage_id, 0, 10)]


STUCK = """
import sys, threading, time
from store.settings import settings
from worker import process
process.GRACE_SECONDS = process.DRAIN_SECONDS = 0.3
worker = process.WorkerProcess(settings())
worker._runner.run = lambda claim, watch: time.sleep(60)
{}
worker.start()
worker.work()
"""
HANGS = "process.LAST_WORDS_SECONDS = 0.3; worker._give_back = lambda watch: time.sleep(60)"
FAILS_ONCE = """
enforce = worker._enforce
def fails_once(*arguments):
    worker._enforce = enforce
    raise ValueError("once")
worker._enforce = fails_once
"""
DRAINS = """
def is_drained(claim, watch):
    while not (settings().state_dir / "drain").exists():
        time.sleep(0.05)
    worker.drain()
    time.sleep(60)
worker._runner.run = is_drained
"""
CANNOT_RENEW = "worker._renew = lambda watch: time.sleep(60)"


@pytest.fixture
def stuck(database: Database, settings: Settings, tmp_path: Path) -> Iterator[Any]:
    """Starts a process whose work hears nothing; the stage runs when it is there."""
    started: list[Process] = []

    def start(more: str = "", **environment: str) -> tuple[Process, int]:
        job_id = factories.post(database, factories.trainings())
        known = {
            "DATABASE_URL": settings.database_url, "STATE_DIR": str(tmp_path), "HEARTBEAT_SECONDS": "0.2",
            "PYTHONPATH": str(Path(__file__).parents[2]), **environment,
        }  # fmt: skip
        started.append(Process("stuck", [sys.executable, "-c", STUCK.format(more)], tmp_path, known))
        wait_until("it runs", lambda: set(factories.states(database, job_id).values()) == {"running"}, 60, every=0.01)
        return started[0], job_id

    yield start
    for process_ in started:
        process_.end()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("more", ["", FAILS_ONCE], ids=["", "an error in the watchdog"])
def test_stuck_work_ends_with_its_process(database: Database, stuck: Any, more: str) -> None:
    """Work that does not hear that it was cancelled: the stage is cancelled and its process ends."""
    process_, job_id = stuck(more)
    _cancel(database, job_id)
    assert process_.wait(50) == EXIT_STUCK
    assert set(factories.states(database, job_id).values()) == {"cancelled"}
    assert factories.job(database, job_id).state == "cancelled"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stuck_work_ends_though_sql_hangs(database: Database, stuck: Any) -> None:
    """The confirmation of a cancellation has a moment, not as long as it likes."""
    process_, job_id = stuck(HANGS)
    _cancel(database, job_id)
    assert process_.wait(50) == EXIT_STUCK
    assert set(factories.states(database, job_id).values()) == {"running"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stuck_work_does_not_outlive_its_lease(database: Database, stuck: Any) -> None:
    """Where the lease is not renewed, the process has ended before it ends, however long the grace would be."""
    process_, job_id = stuck(CANNOT_RENEW + "; process.GRACE_SECONDS = 60", LEASE_SECONDS="4", HEARTBEAT_SECONDS="1")
    assert process_.wait(50) == EXIT_STUCK
    with database.read() as session:
        left = session.scalar(select(Stage.lease_expires - db_now()).where(Stage.state == "running"))
    assert left is not None
    assert left > 0
    assert set(factories.states(database, job_id).values()) == {"running"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stuck_work_does_not_drain_for_ever(database: Database, stuck: Any, tmp_path: Path) -> None:
    """As when the main process is gone: the stage goes back unharmed, though its lease could be renewed for ever."""
    process_, job_id = stuck(DRAINS)
    (tmp_path / "drain").touch()
    assert process_.wait(50) == EXIT_STUCK
    assert set(factories.states(database, job_id).values()) == {"ready"}
    row = next(iter(factories.stages_by_title(database).values()))
    assert (row.losses, row.failures) == (0, 0)


def test_promised_times() -> None:
    """At default settings stuck work is gone 15 s after its cancellation, and before Docker ends a draining worker."""
    chosen = Settings()
    told = chosen.heartbeat_seconds + process.POLL_SECONDS
    assert told + process.GRACE_SECONDS + process.LAST_WORDS_SECONDS < 15
    worker = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())["services"]["worker"]
    grace = float(worker["stop_grace_period"].removesuffix("s"))
    assert grace > process.DRAIN_SECONDS + process.POLL_SECONDS + process.SAVE_SECONDS


def test_identity_is_fresh(settings: Settings, database: Database) -> None:
    """Two workers of one host and one process id, as after a restart in a container, are two."""
    first, second = WorkerProcess(settings), WorkerProcess(settings)
    first.start()
    second.start()
    try:
        with database.read() as session:
            rows = [row for row, *_ in workers.all_workers(session, 10)]
        assert len({row.incarnation for row in rows}) == 2
        assert len({(row.host, row.pid) for row in rows}) == 1
        factories.post(database, factories.trainings())
        held = first._claim()
        assert held is not None
        second._sure = False  # it asks what it holds: nothing, for it is not its predecessor
        assert second._claim() is None
    finally:
        first.stop()
        second.stop()


def test_registers_once_sql_answers(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first attempt was committed and only its answer lost."""
    register = workers.register
    tries = iter([None])

    def commits_then_fails(session: Any, row: Any) -> None:
        register(session, row)
        if next(tries, "none left") is None:
            session.commit()
            raise OperationalError("commit", None, Exception("connection lost"))

    monkeypatch.setattr(workers, "register", commits_then_fails)
    monkeypatch.setattr(process, "RETRY_SECONDS", 0.01)
    worker = WorkerProcess(settings)
    worker.start()
    with database.read() as session:
        assert len(workers.all_workers(session, 10)) == 1
    worker.stop()
    with database.read() as session:
        assert workers.all_workers(session, 10) == []


def test_registers_anew(worker: WorkerProcess, database: Database) -> None:
    """Where its row is gone, as after the database was restored from a backup, it is there again with a heartbeat."""

    def known() -> bool:
        with database.read() as session:
            return bool(workers.all_workers(session, 10))

    def forget() -> None:
        with database.write() as session:
            session.execute(delete(Worker))
        wait_until("it is there again", known)
        worker.drain()

    factories.post(database, factories.trainings())
    once_it_works(worker, forget)
    assert reason_of(worker) == "drain"
    row = _row(database)
    assert (row.incarnation, row.queues) == (worker._incarnation, ["cpu"])


@pytest.mark.parametrize(
    ("chosen", "cuda", "expected"),
    [("", False, ["cpu"]), ("", True, ["gpu", "cpu"]), (" gpu , ", False, ["gpu"]), ("cpu,gpu", True, ["cpu", "gpu"])],
)
def test_queues(chosen: str, cuda: bool, expected: list[str]) -> None:
    assert queues(Settings(worker_queues=chosen), lambda: cuda) == expected


def test_next_keeper_acts_at_once(settings: Settings, database: Database) -> None:
    """Where the one before was stopped; while it lives, only one acts."""
    first, second = Keeper(settings), Keeper(settings)
    first.tick()
    second.tick()
    assert (first._ticks, second._ticks) == (1, 0)
    first.stop()
    first.run()
    second.tick()
    assert second._ticks == 1
    second.stop()
    second.run()


@pytest.mark.slow
@pytest.mark.xdist_group("worker-servers")
def test_database_down(tmp_path: Path) -> None:
    """The worker stops by its own clock, a new one waits, the API says 503; then everything goes on by itself."""
    lease = 1.5
    with PostgresServer() as postgres:
        url = postgres.create_database("gauntlet")
        migrate.upgrade(url)
        environment = {"DATABASE_URL": url, "HEARTBEAT_SECONDS": "0.3", "LEASE_SECONDS": str(lease)}
        with Processes(tmp_path, environment) as service:
            service.ensure("api", "keeper", "worker")
            spec = specs.training(200)
            job = service.post(spec)
            service.running_at(service.stage(job)["key"], done=5)
            postgres.kill()
            began = time.monotonic()
            stopped = "its lease could not be renewed"
            wait_until("it stops", lambda: stopped in service["worker"].log, lease, every=0.02)
            assert time.monotonic() - began < lease
            assert not service.client.ready()
            newcomer = service.start("worker2")
            wait_until("it waits", lambda: "waits for the database" in newcomer.log)
            postgres.start()
            assert_as_calm(service, service.succeeded(job), spec)
            stage = service.stage(job)
            assert [attempt["outcome"] for attempt in stage["attempts"]] == ["lost", "succeeded"]
            assert (stage["losses"], stage["failures"]) == (1, 0)
            wait_until("both workers are there", lambda: len(service.workers()) == 2)
