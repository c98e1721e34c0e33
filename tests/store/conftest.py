"""One database of either sort for all tests of the store, emptied before each: compiled statements are kept."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.database import Database
from store.invariants import violations
from store.s3 import BucketStore
from tests import factories, s3, servers


@pytest.fixture(scope="session")
def shared_postgres(
    postgres_server: servers.PostgresServer | servers.NamedPostgres, postgres_template: str
) -> Iterator[Database]:
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    with factories.opened(postgres_server.create_database(name, template=postgres_template)) as opened:
        yield opened
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def shared_sqlite(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("store") / "gauntlet.db"
    with factories.opened(f"sqlite:///{shutil.copy(sqlite_template, path)}") as opened:
        yield opened


@pytest.fixture
def unchecked_postgres(shared_postgres: Database) -> Database:
    """An empty PostgreSQL database for a test that breaks its invariants on purpose."""
    factories.empty(shared_postgres)
    return shared_postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def unchecked(request: pytest.FixtureRequest) -> Database:
    """An empty database of either sort for a test that breaks its invariants on purpose."""
    found = request.getfixturevalue("shared_sqlite" if request.param == "sqlite" else "shared_postgres")
    factories.empty(found)
    return found


def sound_after(database: Database) -> Iterator[Database]:
    yield database
    with database.read() as session:
        assert violations(session) == []


@pytest.fixture
def database(unchecked: Database) -> Iterator[Database]:
    """An empty database of either sort, whose invariants must hold when the test is over."""
    yield from sound_after(unchecked)


@pytest.fixture
def postgres(unchecked_postgres: Database) -> Iterator[Database]:
    """An empty PostgreSQL database, whose invariants must hold when the test is over."""
    yield from sound_after(unchecked_postgres)


@pytest.fixture
def bucket_store(s3_server: s3.S3Server) -> BucketStore:
    """A store in a bucket of its own."""
    bucket = s3_server.create_bucket(f"test-{uuid.uuid4().hex}")
    return s3.opened(s3_server.url, f"s3://{bucket}/with%20space/below")
