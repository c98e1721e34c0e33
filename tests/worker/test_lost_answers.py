"""Real API, keeper and workers that lose answers to their transactions: the tables of the undisturbed run, once."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from client.api import ApiRefused
from store import migrate
from store.database import Database
from store.invariants import violations
from store.models import Attempt, Job, StageLog
from tests.answers import ON_PATH
from tests.processes import Processes, wait_until
from tests.servers import PostgresServer, RedisServer
from tests.worker import specs
from tests.worker.calm import assert_as_calm

LOSSES = ("every=5", "share=0.3 seed=1")
"""Regularly, in step with what keeper and workers repeat; and at random, several in a row."""
ROLES = ("api", "keeper", "worker", "worker2")
pytestmark = pytest.mark.slow


class Forgetful(Processes):
    """Processes that lose answers, and a user who asks again."""

    database: Database

    def ask(self, request: Any) -> Any:
        """Return the answer to a request that is repeated while the service says 503."""

        def answered() -> Any:
            try:
                return request()
            except ApiRefused as refusal:
                if refusal.status != 503:
                    raise
                return None

        return wait_until("an answer", answered)

    def post_once(self, spec: dict[str, Any], key: str) -> dict[str, Any]:
        return self.ask(lambda: self.client.post_job(spec, key=key))


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    if request.param == "embedded":
        (tmp_path / "state").mkdir()
        yield {"DATABASE_URL": f"sqlite:///{tmp_path / 'state' / 'gauntlet.db'}"}
        return
    with PostgresServer() as postgres, RedisServer() as redis:
        yield {"DATABASE_URL": postgres.create_database("gauntlet"), "REDIS_URL": redis.url}


@pytest.fixture
def service(request: pytest.FixtureRequest, urls: dict[str, str], tmp_path: Path) -> Iterator[Forgetful]:
    migrate.upgrade(urls["DATABASE_URL"])
    more = {"LOST_ANSWERS": request.param, "PYTHONPATH": ON_PATH, "LEASE_SECONDS": "20"}
    with Forgetful(tmp_path, {**urls, **more}) as stack:
        stack.database = Database(urls["DATABASE_URL"])
        stack.ensure(*ROLES)
        yield stack
        stack.database.close()


@pytest.mark.parametrize(("urls", "service"), [("embedded", LOSSES[1]), ("servers", LOSSES[0])], indirect=True)
def test_every_stage_is_done_once(service: Forgetful) -> None:
    """No lease runs out: it is 20 s long, and every process asks again for what it was not told."""
    spec = specs.white_box(iterations=40)
    job = service.succeeded(service.post_once(spec, "once"))
    assert_as_calm(service, job, spec)
    assert service.post_once(spec, "once")["id"] == job["id"]
    stopped = service.post_once(specs.endless_training(), "endless")
    service.running_at(service.stage(stopped)["key"])
    service.ask(lambda: service.client.cancel(stopped["id"]))
    assert service.finished(stopped, 15)["state"] == "cancelled"
    benchmark = specs.benchmark()
    assert_as_calm(service, service.succeeded(service.post_once(benchmark, "benchmark")), benchmark)
    with service.database.read() as session:
        assert violations(session) == []
        assert session.scalar(select(func.count()).select_from(Job)) == 3
        ended = Counter(session.scalars(select(Attempt.outcome)))
        lines = session.execute(select(StageLog.stage_id, StageLog.at, StageLog.line)).all()
    assert set(ended) == {"succeeded", "cancelled"}, ended
    assert ended["cancelled"] == 1
    assert len(lines) == len(set(lines)), "a line of a log was written twice"
    assert "connection was lost" in service["worker"].log + service["worker2"].log, "nothing was lost"


@pytest.mark.parametrize(("urls", "service"), [("servers", LOSSES[1])], indirect=True)
def test_an_orphan_is_taken_back(service: Forgetful) -> None:
    """Though the keeper may not hear that it has taken it back: the bell is rung later."""
    spec = specs.training(120)
    service["worker2"].end()
    service["worker"].end()
    service.start("worker", LEASE_SECONDS="3")
    wait_until("a live worker", service.workers)
    job = service.post_once(spec, "orphan")
    service.running_at(service.stage(job)["key"])
    service["worker"].end()
    time.sleep(0.2)
    service.start("worker")
    assert_as_calm(service, service.succeeded(job, 60), spec)
    assert [attempt["outcome"] for attempt in service.stage(job)["attempts"]] == ["lost", "succeeded"]
