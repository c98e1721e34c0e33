"""Bring a database to a revision of the schema, or ask whether it is there.

Asking needs no Alembic, which takes a process 9 MiB: every revision is the number its file's name begins with.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text

from store.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_ROOT = Path(__file__).resolve().parent.parent
_VERSION = text("SELECT version_num FROM alembic_version")


class WrongSchema(RuntimeError):
    """The database is at another revision than this code needs, which could misread its rows."""


def _config(url: str) -> "Config":
    from alembic.config import Config

    config = Config(_ROOT / "alembic.ini")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate the database up; two migrators at once take turns."""
    from alembic import command

    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate the database down to `revision` ("base" is empty)."""
    from alembic import command

    command.downgrade(_config(url), revision)


def revisions() -> list[str]:
    """Return the revisions this code knows, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (_ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))


def head() -> str:
    """Return the newest revision this code knows."""
    return revisions()[-1]


def revision_of(database: Database) -> str | None:
    """Return the revision the database is at; None where it is empty."""
    with database.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.scalar(_VERSION)


def require(database: Database) -> None:
    """Return where the schema is this code's.

    Raises:
        WrongSchema: it is another; the message says what to run.
    """
    found, expected = revision_of(database), head()
    if found != expected:
        at = "has no revision" if found is None else f"is at revision {found}"
        raise WrongSchema(
            f"the database {at}, this code needs revision {expected}: run `alembic upgrade head` "
            "(in docker compose: `docker compose run --rm migrate`)"
        )
