"""Two running services, one on SQLite and folders, one on PostgreSQL and Redis; tests kill parts of them."""

import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.api import ENDED
from store.database import Database
from tests import servers
from tests.processes import Processes, descendants, wait_until

EMBEDDED = pytest.param("embedded", marks=pytest.mark.xdist_group("worker-embedded"))
SERVERS = pytest.param("servers", marks=pytest.mark.xdist_group("worker-servers"))
ROLES = ("api", "keeper", "worker")


class Service(Processes):
    """Processes on a database and a broker that the test can look into and break."""

    def __init__(self, folder: Path, environment: dict[str, str], database_url: str, flush: Callable[[], None]):
        super().__init__(folder, environment)
        self.crash_file = folder / "crashpoint"
        self.environment["CRASHPOINT"] = f"@{self.crash_file}"
        self.database = Database(database_url)
        self.flush = flush
        self.redis: servers.RedisServer | None = None

    def at_work(self, child: int) -> str | None:
        """Return the key of the stage that a worker's child is known to run, None where it is idle."""
        return next((worker["stage"] for worker in self.workers() if worker["pid"] == child), "not alive")

    def bells(self) -> int:
        """Return the number of messages that wait; on folders only."""
        return len(list((Path(self.environment["STATE_DIR"]) / "broker" / "messages").glob("*.msg")))

    def restore(self) -> None:
        """Start what a test has killed, and stop the work it has left."""
        self.crash_file.unlink(missing_ok=True)
        for process in (process for name in ROLES if (process := self.get(name)) and process.running):
            for pid in (process.pid, *descendants(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.ensure(*ROLES)
        for job in self.client.jobs():
            if job["state"] not in ENDED:
                self.client.cancel(job["id"])
        wait_until("an idle worker", lambda: any(worker["stage"] is None for worker in self.workers()))


@pytest.fixture(scope="package")
def embedded_stack(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("embedded")
    state = folder / "state"
    state.mkdir()
    database = shutil.copy(sqlite_template, state / "gauntlet.db")

    def flush() -> None:
        for message in (state / "broker" / "messages").glob("*"):
            message.unlink(missing_ok=True)

    with Service(folder, {}, f"sqlite:///{database}", flush) as stack:
        yield stack


@pytest.fixture(scope="package")
def servers_stack(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: servers.PostgresServer | servers.NamedPostgres,
    postgres_template: str,
) -> Iterator[Service]:
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    url = postgres_server.create_database(name, template=postgres_template)
    with servers.RedisServer() as redis:
        environment = {"DATABASE_URL": url, "REDIS_URL": redis.url}
        with Service(tmp_path_factory.mktemp("servers"), environment, url, redis.flush) as stack:
            stack.redis = redis
            yield stack
            stack.database.close()
    postgres_server.drop_database(name)


@pytest.fixture(params=[EMBEDDED, SERVERS])
def service(request: pytest.FixtureRequest) -> Service:
    """A whole service with an idle worker, on each stack in turn."""
    stack: Service = request.getfixturevalue(f"{request.param}_stack")
    stack.restore()
    return stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the processes' logs under a failure."""
    report: Any = yield
    arguments: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed:
        for value in arguments.values():
            if isinstance(value, Processes):
                report.sections.append(("logs of the service", value.logs()))
    return report
