"""A worker whose network goes silent stops by its own clock; another takes over, and what it sent comes too late."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from store.database import Database
from store.invariants import violations
from store.models import Attempt, Result
from store.models import Stage as StageRow
from tests import servers
from tests.processes import LEASE, Process, Processes, alive, wait_until
from tests.proxy import Network
from tests.servers import RedisServer
from tests.worker import specs
from tests.worker.calm import assert_as_calm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker-servers")]
STOPPED = "its lease could not be renewed"


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def service(
    tmp_path: Path, postgres_url: str, postgres_server: servers.PostgresServer | servers.NamedPostgres
) -> Iterator[Processes]:
    with RedisServer() as redis:
        environment = {"DATABASE_URL": postgres_url, "REDIS_URL": redis.url}
        with Processes(tmp_path, environment) as stack:
            yield stack


def start_behind(network: Network, service: Processes, **more: str) -> Process:
    """Return a worker that reaches PostgreSQL and Redis through the network only."""
    ports = {
        name: re.sub(r":(\d+)/", lambda found: f":{network.to(int(found[1]))}/", service.environment[name])
        for name in ("DATABASE_URL", "REDIS_URL")
    }
    return service.start("worker", **ports, **more)


def fences(database: Database, key: str) -> dict[int, str | None]:
    with database.read() as session:
        rows = select(Attempt.fence, Attempt.outcome).join(StageRow, StageRow.id == Attempt.stage_id)
        return {row.fence: row.outcome for row in session.execute(rows.where(StageRow.key == key))}


@pytest.mark.parametrize("checkpoint_seconds", ["1000", "0.25"])
def test_cut_off_and_let_back(service: Processes, network: Network, postgres_url: str, checkpoint_seconds: str) -> None:
    """Its process survives that, unless the work itself was in the middle of asking SQL something."""
    database = Database(postgres_url)
    service.start("api", "keeper")
    wait_until("the API answers", service.client.ready)
    first = start_behind(network, service, CHECKPOINT_SECONDS=checkpoint_seconds)
    wait_until("a live worker", service.workers)
    spec = specs.training(600)  # on a quick machine, too, it computes until its lease ends
    job = service.post(spec)
    key = service.stage(job)["key"]
    service.running_at(key, done=5)
    child = first.child()

    network.cut()
    began = time.monotonic()
    wait_until("it stops", lambda: STOPPED in first.log, LEASE, every=0.02)
    assert time.monotonic() - began < LEASE, "it went on after its lease had ended"
    service.start("worker2")
    assert_as_calm(service, service.succeeded(job), spec)
    written = everything_about(database, key)
    assert sorted(fences(database, key).values(), key=str) == ["lost", "succeeded"]
    assert network.held_back > 0, "it sent nothing that could come too late"

    network.restore()
    service["worker2"].end()
    again = specs.training(10)
    assert_as_calm(service, service.succeeded(service.post(again), 40), again)
    assert first.running
    assert alive(child) or checkpoint_seconds != "1000", "the child was replaced"
    assert everything_about(database, key) == written
    with database.read() as session:
        assert violations(session) == []
    database.close()


def test_cut_off_while_idle(service: Processes, network: Network) -> None:
    """Longer than Redis and SQL are waited for; then it takes work again."""
    service.start("api", "keeper")
    wait_until("the API answers", service.client.ready)
    first = start_behind(network, service)
    wait_until("a live worker", service.workers)
    network.cut()
    job = service.post(specs.training(10))
    time.sleep(8)
    assert service.client.job(job["id"])["state"] == "queued"
    network.restore()
    service.succeeded(job, 40)
    assert first.running


def everything_about(database: Database, key: str) -> list[Any]:
    """Return what may not change any more: the stage's result, its fence and its attempts."""
    with database.read() as session:
        row = session.execute(select(StageRow).where(StageRow.key == key)).scalar_one()
        result = session.get_one(Result, row.id)
        return [row.fence, row.state, row.progress, result.fence, result.payload, fences(database, key)]
