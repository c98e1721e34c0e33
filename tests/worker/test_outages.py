"""Everything that a job depends on goes away in the middle of it, and comes back: the results are the calm run's.

OUTAGE_SECONDS says for how long; leases and heartbeats are shortened as in every test of processes. For the outages
of the design run `OUTAGE_SECONDS=600 pytest tests/worker/test_outages.py -k "redis or bucket or disk"`, and
`OUTAGE_SECONDS=120 ... -k postgresql`.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.api import ENDED
from store import migrate
from store.admin import doctor
from store.database import Database
from tests import s3, servers
from tests.disk import fill, mounted
from tests.processes import Processes, wait_until
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from worker.spool import Spool

OUTAGE = float(os.environ.get("OUTAGE_SECONDS", "2"))
LEASE = 4.0
ROLES = ("api", "keeper", "worker")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker-outages"), pytest.mark.timeout(300 + 3 * OUTAGE)]


class Stack(Processes):
    """A service on servers that the test may stop."""

    def __init__(
        self, folder: Path, postgres: servers.PostgresServer, redis: servers.RedisServer, s3_server: s3.S3Server,
        proxy: s3.Proxy,
    ):  # fmt: skip
        self.postgres, self.redis, self.proxy = postgres, redis, proxy
        url = postgres.create_database("gauntlet")
        migrate.upgrade(url)
        bucket = f"s3://{s3_server.create_bucket()}/artifacts"
        environment = {
            **s3.KEYS, "DATABASE_URL": url, "REDIS_URL": redis.url, "ARTIFACT_URL": bucket,
            "AWS_ENDPOINT_URL": proxy.url, "LEASE_SECONDS": str(LEASE),
            "CHECKPOINT_SECONDS": "3",
        }  # fmt: skip
        super().__init__(folder, environment)
        self.database = Database(url)
        self.store = s3.opened(s3_server.url, bucket)

    def sound(self) -> bool:
        """Return whether the invariants hold and every artifact is there."""
        assert doctor(self.database, self.store) == []
        return True


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory, s3_server: s3.S3Server) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("outages")
    with servers.PostgresServer() as postgres, servers.RedisServer() as redis, s3.Proxy(s3_server) as proxy:
        with Stack(folder, postgres, redis, s3_server, proxy) as stack:
            yield stack
        stack.database.close()


@pytest.fixture
def stack(module_stack: Stack) -> Iterator[Stack]:
    module_stack.ensure(*ROLES)
    yield module_stack
    module_stack.proxy.refusing = None
    for server in (module_stack.postgres, module_stack.redis):
        with contextlib.suppress(servers.ServerError):
            if not server.answers():
                server.start()


def answer(service: Processes, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, service.client.url + path, timeout=30, trust_env=False, **more)


def refused(service: Processes, method: str, path: str, **more: Any) -> bool:
    """Check that the API says to come again, and when."""
    found = answer(service, method, path, **more)
    assert found.status_code == 503, found.text
    assert int(found.headers["Retry-After"]) > 0
    assert found.json()["error"]["code"] == "unavailable"
    return True


def outcomes(stage: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in stage["attempts"]]


def spooled(service: Processes) -> list[str]:
    return Spool(Path(service.environment["STATE_DIR"]) / "spool").waiting()


def unharmed(service: Processes, job: dict[str, Any]) -> None:
    """Check that no stage of the job was counted as failed, and that nothing is left in the spool."""
    stages = [service.client.get(f"/stages/{stage['key']}") for stage in job["stages"]]
    assert {stage["failures"] for stage in stages} == {0}
    wait_until("the spool is empty", lambda: not spooled(service))


def computed(service: Processes, key: str) -> int:
    """Return how often the log says that the stage was computed to its end."""
    return sum(line.startswith("done in ") for line in service.log_of(key))


def test_redis(stack: Stack) -> None:
    """Its messages are lost with it; jobs are posted meanwhile."""
    spec, other = specs.benchmark(), specs.training(10)
    job = stack.post(spec)
    stack.running_at(stack.stage(job)["key"], done=-1)
    stack.redis.kill()
    second = stack.post(other)
    time.sleep(OUTAGE)
    stack.redis.start()
    stack.redis.flush()
    assert_as_calm(stack, stack.succeeded(job, 120), spec)
    assert_as_calm(stack, stack.succeeded(second), other)
    assert {tuple(outcomes(stack.client.get(f"/stages/{stage['key']}"))) for stage in job["stages"]} == {("succeeded",)}
    stack.succeeded(stack.post(specs.training(1)))  # an idle worker hears bells again
    assert stack.sound()


@pytest.mark.parametrize("seconds", [0.3, OUTAGE + LEASE], ids=["within the lease", "beyond it"])
def test_postgresql(stack: Stack, seconds: float) -> None:
    """In the middle of a training. What is posted meanwhile is refused, and made once when it is posted again."""
    spec, key = specs.white_box(iterations=100), f"outage-{seconds}"
    job = stack.post(spec)
    stack.running_at(stack.stage(job)["key"], done=5)
    stack.postgres.kill()
    other = specs.training(3)
    assert refused(stack, "POST", "/jobs", json=other, headers={"Idempotency-Key": key})
    assert refused(stack, "POST", f"/jobs/{job['id']}/cancel")
    time.sleep(seconds)
    stack.postgres.start()
    wait_until("the API is ready", stack.client.ready)
    second = stack.client.post_job(other, key=key)
    assert stack.client.post_job(other, key=key)["id"] == second["id"]
    job = stack.succeeded(job, 120)
    assert_as_calm(stack, job, spec)
    assert_as_calm(stack, stack.succeeded(second), other)
    unharmed(stack, job)
    assert stack.sound()


def found_and_not_published(stack: Stack) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return a job, its spec and its training, which has ended while the bucket refuses: its result is in the spool."""
    stack.proxy.refusing = 503
    spec = specs.training(10)
    job = stack.post(spec)
    key = stack.stage(job)["key"]
    wait_until("its result is in the spool", lambda: key in spooled(stack), 60)
    wait_until("its log is written", lambda: computed(stack, key) == 1)
    return job, spec, key


@pytest.mark.parametrize("how", ["waits", "loses its lease", "is killed"])
def test_postgresql_when_a_stage_has_ended(stack: Stack, how: str) -> None:
    """What was found is published by who found it, by its next claim here, or by the next process."""
    job, spec, key = found_and_not_published(stack)
    begin = len(stack["worker"].log)
    stack.postgres.kill()
    stack.proxy.refusing = None
    if how == "is killed":
        os.kill(stack["worker"].child(), signal.SIGKILL)
    else:
        said = "could not be renewed" if how == "loses its lease" else "is found but cannot be recorded"
        wait_until("the worker says so", lambda: said in stack["worker"].log[begin:], 3 * LEASE)
    stack.postgres.start()
    assert_as_calm(stack, stack.succeeded(job), spec)
    unharmed(stack, job)
    assert computed(stack, key) == 1, "it was computed again"
    assert outcomes(stack.stage(job)) in (["succeeded"], ["lost", "succeeded"])
    if outcomes(stack.stage(job)) != ["succeeded"]:
        assert any(line.endswith("has waited in the spool") for line in stack.log_of(key))
    assert stack.sound()


def test_bucket_refuses(stack: Stack) -> None:
    """Once a training has ended, for longer than a lease, and then again and again while its result is read."""
    spec = specs.white_box(iterations=40)
    earlier = stack.succeeded(stack.post(specs.training(3)))
    artifact = stack.stage(earlier)["artifacts"]["weights"]
    job = stack.post(spec)
    key = stack.stage(job)["key"]
    stack.running_at(key, done=-1)
    stack.proxy.refusing = 503
    waits = "waits, its result is found but cannot be stored"
    wait_until("it says why it waits", lambda: any(waits in line for line in stack.log_of(key)))
    assert refused(stack, "GET", f"/artifacts/{artifact}")
    assert not stack.client.ready()
    time.sleep(OUTAGE + LEASE)
    assert stack.client.get(f"/stages/{key}")["state"] == "running"
    stack.proxy.refusing = None
    while (state := stack.client.job(job["id"])["state"]) not in ENDED:
        stack.proxy.refusing = 500 if stack.proxy.refusing is None else None
        time.sleep(0.3)
    stack.proxy.refusing = None
    assert state == "succeeded"
    job = stack.client.job(job["id"])
    assert_as_calm(stack, job, spec)
    unharmed(stack, job)
    assert {tuple(outcomes(stack.client.get(f"/stages/{stage['key']}"))) for stage in job["stages"]} == {("succeeded",)}
    assert answer(stack, "GET", f"/artifacts/{artifact}").status_code == 200
    assert stack.sound()


def test_bucket_refuses_and_the_worker_is_killed(stack: Stack) -> None:
    """The next process has the result from the spool."""
    job, spec, key = found_and_not_published(stack)
    os.kill(stack["worker"].child(), signal.SIGKILL)
    time.sleep(1)
    stack.proxy.refusing = None
    assert_as_calm(stack, stack.succeeded(job), spec)
    unharmed(stack, job)
    assert computed(stack, key) == 1, "it was computed again"
    assert stack.sound()


@pytest.fixture
def embedded(tmp_path: Path, sqlite_template: Path) -> Iterator[Processes]:
    """A service without servers, all of whose state is on one disk that can be filled."""
    with mounted(tmp_path / "disk", "400m") as disk:
        state = disk / "state"
        state.mkdir()
        shutil.copy(sqlite_template, state / "gauntlet.db")
        with Processes(tmp_path / "service", {"STATE_DIR": str(state), "CHECKPOINT_SECONDS": "3"}) as service:
            service.ensure(*ROLES)
            yield service


def test_disk_full(embedded: Processes) -> None:
    """The database, the artifacts, the spool and the messages have no room: the job waits, a new one is refused."""
    spec, other = specs.white_box(iterations=300), specs.training(3)
    state = Path(embedded.environment["STATE_DIR"])
    job = embedded.post(spec)
    embedded.running_at(embedded.stage(job)["key"], done=1)

    def refuses() -> bool:
        fill(state.parent)  # again: the worker's unfinished checkpoint gives back what it took
        return answer(embedded, "POST", "/jobs", json=other).status_code == 503

    wait_until("a new job is refused", refuses, every=0)
    ballast = fill(state.parent)
    assert refused(embedded, "POST", "/jobs", json=other)
    assert embedded.client.job(job["id"])["state"] == "running"  # reading goes on
    time.sleep(OUTAGE + float(embedded.environment["LEASE_SECONDS"]))
    ballast.unlink()
    job = embedded.succeeded(job, 120)
    assert_as_calm(embedded, job, spec)
    unharmed(embedded, job)
    assert_as_calm(embedded, embedded.succeeded(embedded.post(other)), other)
