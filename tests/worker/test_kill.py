"""Real processes, killed, stopped and told to end in the middle of real work: the results are the undisturbed run's."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from store import stages
from store.artifacts import FolderStore
from store.models import Stage as StageRow
from tests.processes import alive, wait_until
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from tests.worker.conftest import EMBEDDED, SERVERS, Service

pytestmark = pytest.mark.slow


def outcomes(stage: dict[str, Any]) -> list[str]:
    """Return how each attempt at a stage ended."""
    return [attempt["outcome"] for attempt in stage["attempts"]]


def checkpoints(service: Service, key: str) -> list[str]:
    """Return the sha256 of a stage's checkpoints, newest first."""
    with service.database.read() as session:
        stage_id = session.scalar(select(StageRow.id).where(StageRow.key == key))
        assert stage_id is not None
        return stages.checkpoints(session, stage_id)


def midway(service: Service, spec: dict[str, Any], kept: int = 2) -> tuple[dict[str, Any], str]:
    """Return a job and its first training, once that runs and has `kept` checkpoints."""
    job = service.post(spec)
    key = service.stage(job, "train")["key"]
    wait_until("checkpoints", lambda: len(checkpoints(service, key)) >= kept, every=0.01)
    return job, key


def kill_main(service: Service) -> None:
    child = service["worker"].child()
    service["worker"].kill()
    wait_until("the child has drained and ended", lambda: not alive(child), 60)
    service.start("worker")


def kill_child(service: Service) -> None:
    os.kill(service["worker"].child(), signal.SIGKILL)


def kill_worker(service: Service) -> None:
    child = service["worker"].child()
    service["worker"].kill()
    os.kill(child, signal.SIGKILL)
    service.start("worker")


def kill_keeper(service: Service) -> None:
    service["keeper"].kill()
    service.start("keeper")


def kill_api(service: Service) -> None:
    service["api"].kill()
    service.start("api")


def end_child(service: Service) -> None:
    os.kill(service["worker"].child(), signal.SIGTERM)


def end_worker(service: Service) -> None:
    assert service["worker"].terminate(10) == 0
    assert "ERROR" not in service["worker"].log
    service.start("worker")


RELEASED, LOST, UNTOUCHED = ["released", "succeeded"], ["lost", "succeeded"], ["succeeded"]


@pytest.mark.parametrize(
    ("service", "kill", "expected"),
    [
        pytest.param(*stack.values, kill, expected, marks=stack.marks, id=f"{stack.values[0]}-{kill.__name__}")
        for kill, expected, stacks in (
            (kill_main, RELEASED, [EMBEDDED]),  # its child hears that the line is dead
            (kill_child, LOST, [EMBEDDED]),
            (kill_worker, LOST, [SERVERS]),
            (kill_keeper, UNTOUCHED, [SERVERS]),
            (kill_api, UNTOUCHED, [EMBEDDED]),
            (end_child, RELEASED, [SERVERS]),
            (end_worker, RELEASED, [EMBEDDED, SERVERS]),
        )
        for stack in stacks
    ],
    indirect=["service"],
)
def test_killed_in_training(service: Service, kill: Callable[[Service], None], expected: list[str]) -> None:
    """The training goes on from its newest checkpoint, the rest of the benchmark follows, all as if undisturbed."""
    spec = specs.white_box(iterations=80)
    job, key = midway(service, spec)
    kill(service)
    assert_as_calm(service, service.succeeded(job), spec)
    stage = service.client.get(f"/stages/{key}")
    assert outcomes(stage) == expected
    assert (stage["losses"], stage["failures"]) == (expected.count("lost"), 0)
    went_on = [line for line in service.log_of(key) if line.endswith(": going on")]
    assert len(went_on) == len(expected) - 1


@pytest.mark.parametrize("service", [EMBEDDED], indirect=True)
def test_torn_checkpoint(service: Service) -> None:
    """The newest checkpoint is cut short on disk: the one before is taken."""
    spec = specs.training(80)
    job, key = midway(service, spec)
    service["worker"].end()
    newest, before = checkpoints(service, key)
    path = FolderStore(Path(service.environment["STATE_DIR"]) / "artifacts").path(newest)
    os.truncate(path, path.stat().st_size // 2)
    service.start("worker")
    assert_as_calm(service, service.succeeded(job), spec)
    said = [line for line in service.log_of(key) if line.startswith("checkpoint ")]
    assert said == [f"checkpoint {newest[:12]}: torn, trying the one before", f"checkpoint {before[:12]}: going on"]


def test_broker_flushed(service: Service) -> None:
    """Every message is deleted again and again while the benchmark runs."""
    spec = specs.benchmark()
    job = service.post(spec)
    for _ in range(30):
        service.flush()
        time.sleep(0.1)
    assert_as_calm(service, service.succeeded(job), spec)


@pytest.mark.parametrize("service", [EMBEDDED], indirect=True)
def test_bell_lost(service: Service) -> None:
    """The only message is deleted before anyone reads it: the keeper rings again."""
    service["worker"].send(signal.SIGSTOP)  # the main process only, which has no business with SQL
    job = service.post(specs.training(1))
    wait_until("the API's bell", service.bells)
    service.flush()
    wait_until("the keeper's", service.bells)
    service["worker"].send(signal.SIGCONT)
    service.succeeded(job, 60)


@pytest.mark.parametrize("service", [SERVERS], indirect=True)
def test_redis_down(service: Service) -> None:
    """Posting does not wait for a broker that is gone; an idle worker looks by itself, and finds its way back to it."""
    assert service.redis is not None
    service.stop("worker")
    service.start("worker2", LOOK_SECONDS="1")
    wait_until("it is there", service.workers)
    service.redis.kill()
    began = time.monotonic()
    job = service.post(specs.training(1))
    assert time.monotonic() - began < 2
    service.succeeded(job)
    wait_until("the keeper says so", lambda: "keeper could not reach the broker: " in service["keeper"].log)
    service.stop("worker2")
    service.redis.start()
    service.start("worker")
    service.succeeded(service.post(specs.training(1)))
    service.redis.kill()
    service.redis.start()
    service.succeeded(service.post(specs.training(1)), 60)


@pytest.mark.parametrize("service", [SERVERS], indirect=True)  # stopped inside a SQLite transaction it would hold all
def test_stopped_past_its_lease(service: Service) -> None:
    """Another worker takes over; the first, let go, stops by itself and writes nothing."""
    spec = specs.training(400)
    service["worker"].end()
    sleeper = service.start("worker2", HEARTBEAT_SECONDS="1", CHECKPOINT_SECONDS="1000")
    try:
        job = service.post(spec)
        key = service.stage(job)["key"]
        service.running_at(key)
        child = sleeper.child()
        os.kill(child, signal.SIGSTOP)
        service.start("worker")
        job = service.succeeded(job)
        os.kill(child, signal.SIGCONT)
        wait_until("the sleeper is idle", lambda: service.at_work(child) is None)
        assert_as_calm(service, job, spec)
        stage = service.stage(job)
        assert outcomes(stage) == ["lost", "succeeded"]
        assert len([line for line in service.log_of(key) if line.startswith("done in ")]) == 1
        assert alive(child)
    finally:
        sleeper.end()
