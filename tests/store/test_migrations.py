"""Migrations run up and down on both databases, lose no rows, and end at what the models say."""

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, inspect, text

from store import database as database_module
from store import migrate
from store.models import Base
from tests import factories, servers

ROOT = Path(__file__).parents[2]
TABLES = {*Base.metadata.tables, "alembic_version"}


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


def tables(url: str) -> set[str]:
    with factories.opened(url) as database:
        return set(inspect(database.engine).get_table_names())


def differences(url: str, metadata: MetaData = Base.metadata) -> list[object]:
    with factories.opened(url) as database, database.engine.connect() as connection:

        def told(thing: object, name: str | None, *_: object) -> bool:
            return not (database.is_sqlite and name == "ix_stages_ready")  # SQLite does not tell an index's direction

        options = {"compare_type": True, "compare_server_default": True, "include_object": told}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def rows(url: str) -> dict[str, int]:
    with factories.opened(url) as database:
        return {name: len(found) for name, found in factories.everything(database).items()}


def fill(url: str) -> None:
    with factories.opened(url) as database:
        factories.post(database, factories.transfer())
        factories.finish(database)
        factories.post(database, factories.trainings([7]))
        factories.claim(database)


def test_up_down_up(empty_url: str):
    migrate.upgrade(empty_url)
    assert tables(empty_url) == TABLES
    with factories.opened(empty_url) as database:
        assert migrate.revision_of(database) == migrate.head()
    migrate.downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    with factories.opened(empty_url) as database:
        assert migrate.revision_of(database) is None
    migrate.upgrade(empty_url)
    assert tables(empty_url) == TABLES
    assert differences(empty_url) == []


def test_models_equal_the_migrated_schema(database_url: str):
    assert differences(database_url) == []


def test_the_ready_index_is_the_models_on_sqlite_too(sqlite_url: str, tmp_path: Path):
    kept = text("SELECT sql FROM sqlite_master WHERE name = 'ix_stages_ready'")
    with factories.opened(sqlite_url) as migrated, factories.opened(f"sqlite:///{tmp_path / 'made.db'}") as made:
        Base.metadata.create_all(made.engine)
        found = [one.engine.connect().execute(kept).scalar_one() for one in (migrated, made)]
    assert found[0] == found[1]
    assert "priority DESC" in found[0]


def test_a_model_that_was_not_migrated_would_be_noticed(database_url: str):
    changed = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        table.to_metadata(changed)
    changed.tables["jobs"].append_column(Column("forgotten", Integer))
    changed.remove(changed.tables["leases"])
    assert len(differences(database_url, changed)) == 2


def test_rows_survive_every_migration_but_the_first(database_url: str):
    fill(database_url)
    before = rows(database_url)
    script = ScriptDirectory.from_config(Config(ROOT / "alembic.ini"))
    first = script.get_bases()[0]
    migrate.downgrade(database_url, first)
    migrate.upgrade(database_url)
    assert rows(database_url) == before


def test_a_rebuilt_table_keeps_its_children(database_url: str, tmp_path: Path):
    """SQLite changes a table by copying it; with foreign keys on, dropping the old one would empty its children."""
    fill(database_url)
    before = rows(database_url)
    (tmp_path / "next_one.py").write_text(
        textwrap.dedent(f"""
        import sqlalchemy as sa
        from alembic import op

        revision, down_revision, branch_labels, depends_on = "next", "{migrate.head()}", None, None

        def upgrade():
            with op.batch_alter_table("stages", recreate="auto") as batch:
                batch.alter_column("title", existing_type=sa.String(300), type_=sa.String(400))

        def downgrade():
            with op.batch_alter_table("stages", recreate="auto") as batch:
                batch.alter_column("title", existing_type=sa.String(400), type_=sa.String(300))
        """)
    )
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    config.set_main_option("version_locations", os.pathsep.join([str(ROOT / "migrations" / "versions"), str(tmp_path)]))
    command.upgrade(config, "next")
    assert len(differences(database_url)) == 1, "the title is longer than the models say"
    assert rows(database_url) == before
    command.downgrade(config, migrate.head())
    assert differences(database_url) == []
    assert rows(database_url) == before
    with factories.opened(database_url) as database:
        factories.succeed(database, held(database_url))
        assert factories.finish(database) == []


def held(url: str) -> factories.Claim:
    with factories.opened(url) as database:
        (row,) = [one for one in factories.stages_by_title(database).values() if one.state == "running"]
        return factories.Claim(row.id, row.fence, row.key, row.kind, row.title, row.spec)


def test_concurrent_migrators_take_turns(empty_url: str):
    command_line = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head"]
    environment = {**os.environ, "DATABASE_URL": empty_url}
    migrators = [
        subprocess.Popen(command_line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for migrator in migrators:
        _, said = migrator.communicate(timeout=60)
        assert migrator.returncode == 0, said
    assert tables(empty_url) == TABLES
    with factories.opened(empty_url) as database, database.read() as session:
        assert session.scalars(text("SELECT version_num FROM alembic_version")).all() == [migrate.head()]


def test_a_migrator_waits_for_another_however_long_it_takes(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than any lock is waited for otherwise."""
    monkeypatch.setattr(database_module, "_POSTGRES_OPTIONS", "-c lock_timeout=200")
    with factories.opened(postgres_url) as database, database.engine.connect() as first, ThreadPoolExecutor(1) as pool:
        first.execute(text("SELECT pg_advisory_lock(4242001)"))
        second = pool.submit(migrate.upgrade, postgres_url)
        with pytest.raises(TimeoutError):
            second.result(1.5)
        first.execute(text("SELECT pg_advisory_unlock(4242001)"))
        second.result(30)


def test_a_password_may_hold_any_character():
    url = "postgresql+psycopg://user:p%25%40ss@127.0.0.1:1/none"
    assert migrate._config(url).get_main_option("sqlalchemy.url") == url
