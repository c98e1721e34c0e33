"""Processes that die in the middle of a file, an upload, a migration: whole or not at all, and whole the next time."""

import hashlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect

from store import migrate
from store.artifacts import FolderStore, place_of
from store.files import PARTIAL
from tests import factories, s3, servers

ROOT = Path(__file__).parents[2]
DATA = b"a checkpoint" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
PUT = f"""
from store.artifacts import open_store
from store.settings import settings
open_store(settings().artifacts, settings().s3).put({DATA!r}, "checkpoint")
"""


def dies(command: list[str], point: str, **environment: str) -> None:
    """Run a command that kills itself at `point`."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "CRASHPOINT": point, **environment}
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=known, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    ("point", "named"), [("mid-checkpoint", False), ("after-fsync", False), ("after-rename", True)]
)
def test_file(tmp_path: Path, point: str, named: bool):
    """Before it has its name, a file has a temporary one; with it, it is whole."""
    dies(["-c", PUT], point, ARTIFACT_URL=tmp_path.as_uri())
    (left,) = tmp_path.glob("??/??/*")
    assert left.read_bytes() == DATA
    assert left.name == SHA256 if named else left.name.startswith(PARTIAL)
    store = FolderStore(tmp_path)
    assert store.put(DATA) == SHA256
    assert store.get(SHA256) == DATA


@pytest.mark.parametrize(("point", "there"), [("mid-checkpoint", False), ("after-rename", True)])
def test_object(s3_server: s3.S3Server, point: str, there: bool):
    bucket = f"s3://{s3_server.create_bucket(f'crash-{uuid.uuid4().hex[:8]}')}/artifacts"
    dies(["-c", PUT], point, **s3.KEYS, ARTIFACT_URL=bucket, AWS_ENDPOINT_URL=s3_server.url)
    store = s3.opened(s3_server.url, bucket)
    assert [stored.place for stored in store.unused(set(), 1e12)] == ([place_of(SHA256)] if there else [])
    assert store.put(DATA) == SHA256
    assert store.get(SHA256) == DATA


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: servers.Databases = request.getfixturevalue("postgres_server")
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    yield server.create_database(name)
    server.drop_database(name)


def migrator_dies(url: str) -> None:
    dies(["-m", "alembic", "upgrade", "head"], "in-migration", DATABASE_URL=url)


def test_first_migration(empty_url: str):
    """After a revision's tables, before the commit: there is none of them, on SQLite too; the next one makes all."""
    migrator_dies(empty_url)
    with factories.opened(empty_url) as database:
        assert inspect(database.engine).get_table_names() == []
    migrate.upgrade(empty_url)
    with factories.opened(empty_url) as database:
        assert migrate.revision_of(database) == migrate.head()
        factories.post(database, factories.transfer())
        factories.finish(database)


def test_later_migration(empty_url: str):
    """Of a database with rows: it is the old one, with all of them, and the next one brings it to the new."""
    migrate.upgrade(empty_url)
    with factories.opened(empty_url) as database:
        factories.post(database, factories.transfer())
        factories.finish(database)
        everything = factories.everything(database)
    migrate.downgrade(empty_url, "0001")
    migrator_dies(empty_url)
    with factories.opened(empty_url) as database:
        assert migrate.revision_of(database) == "0001"
        columns = {column["name"] for column in inspect(database.engine).get_columns("evaluations")}
    assert "cell" not in columns
    migrate.upgrade(empty_url)
    with factories.opened(empty_url) as database:
        assert migrate.revision_of(database) == migrate.head()
        assert factories.everything(database) == everything
