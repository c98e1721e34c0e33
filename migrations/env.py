"""How Alembic reaches the database: one migrator at a time, and no cascades while SQLite tables are rebuilt."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, text

from store.crashpoints import crashpoint
from store.database import Database
from store.models import Base
from store.settings import settings

MIGRATION_LOCK = 4242001
"""Any constant: the PostgreSQL advisory lock that keeps two migrators apart."""


def _url() -> str:
    return context.config.get_main_option("sqlalchemy.url") or settings().sql_url


def _applied(*_: Any, **__: Any) -> None:
    """Stand between a revision's last statement and the commit."""
    crashpoint("in-migration")


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        transaction_per_migration=False,
        on_version_apply=_applied,
    )
    with context.begin_transaction():
        context.run_migrations()


def run() -> None:
    """Migrate the configured database."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    database = Database(_url())
    try:
        with database.engine.connect() as connection:
            if database.is_sqlite:
                _migrate_sqlite(connection)
            else:
                connection.execute(text("SET statement_timeout = 0"))  # an index over a million rows takes its time
                connection.execute(text("SET lock_timeout = 0"))  # as long as the migrator before
                connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
                _migrate(connection)
                connection.commit()
                connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
    finally:
        database.close()


def _migrate_sqlite(connection: Connection) -> None:
    """Rebuilding a table with foreign keys on would cascade into its children, so they are off, and checked after."""
    raw = connection.connection.driver_connection
    assert raw is not None  # noqa: S101
    raw.execute("PRAGMA foreign_keys=OFF")
    connection = connection.execution_options(gauntlet_write=True)
    with connection.begin():
        _migrate(connection)
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise RuntimeError(f"the migration would leave dangling references: {broken[:5]}")
    raw.execute("PRAGMA foreign_keys=ON")


run()
