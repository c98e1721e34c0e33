"""Servers and fresh databases for the tests; each server starts when its first test asks, once per test process."""

import os
import shutil
import signal
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import servers
from tests.disk import mounted
from tests.s3 import S3Server

# what a machine may have set, and the tests may not depend on: whoever starts a shell's background job ignores SIGINT,
# a proxy is not asked for servers of this machine, foolbox wants git, and threads outnumber the cores of a container
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, len(os.sched_getaffinity(0)))))

# the cores may be shared; CI looks at the same examples every time, everybody else at new ones
settings.register_profile(
    "gauntlet", deadline=None, suppress_health_check=list(HealthCheck), derandomize="CI" in os.environ
)
settings.load_profile("gauntlet")

BY_THE_CLOCK = ("worker", "storm", "docker", "api/test_events.py", "client/test_cli.py")
"""Tests of real processes whose leases last some seconds. A machine that stalls for longer breaks what they suppose,
so each has a second try, which is reported, and which must succeed."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if not config.option.usepdb and any(item.path.is_relative_to(folder / name) for name in BY_THE_CLOCK):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.PostgresServer | servers.NamedPostgres]:
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.RedisServer | servers.NamedRedis]:
    with servers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, which a test can fill."""
    with mounted(tmp_path / "disk", "16m") as folder:
        yield folder


@pytest.fixture
def redis_url(redis_server: servers.RedisServer | servers.NamedRedis) -> str:
    """An empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: servers.PostgresServer | servers.NamedPostgres) -> Iterator[str]:
    """A migrated database, migrated once, that each test's database is a copy of."""
    from store import migrate

    name = f"gauntlet_template_{uuid.uuid4().hex[:12]}"
    migrate.upgrade(postgres_server.create_database(name))
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def postgres_url(
    postgres_server: servers.PostgresServer | servers.NamedPostgres, postgres_template: str
) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    yield postgres_server.create_database(name, template=postgres_template)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from store import migrate

    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the one file is all of it
    connection.close()
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'gauntlet.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of either sort: the test runs on both."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
