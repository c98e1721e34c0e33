"""One database, two kinds of transaction: `read()` and `write()`.

SQLite writers begin IMMEDIATE, because a deferred transaction that turns into a writer fails at once and ignores
busy_timeout. Lease arithmetic uses `db_now()`, the database's clock, never a process's.
"""

import json
import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from psycopg import InternalError
from psycopg import OperationalError as PsycopgOperationalError
from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Float,
    Table,
    bindparam,
    column,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

T = TypeVar("T")
AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised where the database does not answer, or takes no writes: nobody's fault, and it passes."""
CHUNK = 400
"""Rows per statement: below SQLite's and PostgreSQL's limits on bound parameters."""
_HALVES = re.compile("[\ud800-\udfff]")
_CUT_OFF_SECONDS = 10
"""A connection is given up when nothing has come back on it for so long: well within a lease."""
_KEEPALIVE = {
    "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 1000 * _CUT_OFF_SECONDS,
}  # fmt: skip
_UNWRITABLE = ("25006", "25P03")
"""SQLSTATEs of a database that is read-only, a standby maybe, and of a connection ended for its idleness."""
_POSTGRES_OPTIONS = (
    "-c statement_timeout=15000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=30000 "
    "-c jit=off -c random_page_cost=1.1"  # short queries, on disks that do not turn
)


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock at this statement, seconds since 1970."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgres_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def to_json(value: Any) -> str:
    """Return JSON text in which NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"."""
    with suppress(ValueError):
        found = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if "\\u0000" not in found and not _HALVES.search(found):
            return found
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def chunks(rows: Sequence[T]) -> list[Sequence[T]]:
    """Return the rows in parts, one for each statement."""
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def storable(text: str) -> str:
    """Return `text` without what PostgreSQL cannot store: NUL characters, and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {storable(str(key)): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def dialect_of(session: Session) -> str:
    """Return which database the session is on: postgresql or sqlite."""
    return session.get_bind().dialect.name


def insert_in(dialect: str, table: Any) -> Any:
    """Return INSERT in the words of a database, which alone know what to do on a conflict."""
    return (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)


def insert_for(session: Session, table: Any) -> Any:
    """Return INSERT in the words of the session's database."""
    return insert_in(dialect_of(session), table)


def insert_new(session: Session, table: Table, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Insert those of the rows, all of the same columns, that are not there yet, with `more` in each of them."""
    for chunk in chunks(rows):
        if dialect_of(session) == "postgresql":  # one JSON array: hundreds of rows of parameters take it twice the time
            session.execute(_insert_given(table, tuple(chunk[0]), more).on_conflict_do_nothing(), {"given": chunk})
        else:
            session.execute(insert_for(session, table).values(**more).on_conflict_do_nothing(), chunk)


def _insert_given(table: Table, names: Sequence[str], more: Mapping[str, Any]) -> postgresql.Insert:
    """Return INSERT of the rows in its parameter `given`, a JSON array of objects."""
    rows = func.json_to_recordset(bindparam("given", type_=JSON()))
    given = rows.table_valued(*(column(name, table.c[name].type) for name in names)).render_derived(with_types=True)
    values = select(*(given.c[name] for name in names), *more.values())
    return postgresql.insert(table).from_select([*names, *more], values)


def unhurried(session: Session) -> None:
    """Let the session's transaction take its time, statements and pauses: for work that reads or writes everything."""
    if dialect_of(session) == "postgresql":
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            session.execute(text(f"SET LOCAL {name} = 0"))


class Database:
    """Sessions on one database. Make one per process, after any fork."""

    def __init__(self, url: str, patience_seconds: float = 30.0):
        """`patience_seconds` is how long a writer of SQLite waits for the others."""
        self.url = make_url(url)
        self._patience_seconds = patience_seconds
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = self._sqlite() if self.is_sqlite else self._postgres()
        self._writer = self.engine.execution_options(gauntlet_write=True)

    def _sqlite(self) -> Engine:
        if self.url.database and not self.url.database.startswith("file:"):  # a URI names its file itself
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self.url, json_serializer=to_json, pool_size=20, max_overflow=40)
        event.listen(engine, "connect", partial(_sqlite_connect, round(1000 * self._patience_seconds)))
        event.listen(engine, "begin", _sqlite_begin)
        return engine

    def _postgres(self) -> Engine:
        engine = create_engine(
            self.url, json_serializer=to_json, pool_pre_ping=True, pool_size=10, max_overflow=20, pool_timeout=5,
            isolation_level="READ COMMITTED",
            connect_args={"options": _POSTGRES_OPTIONS, "connect_timeout": 5, **_KEEPALIVE},
        )  # fmt: skip
        event.listen(engine, "handle_error", _postgres_error)
        return engine

    @contextmanager
    def read(self) -> Generator[Session]:
        """Yield a session whose reads see one snapshot on SQLite and committed rows on PostgreSQL."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Generator[Session]:
        """Yield a session that commits at the end of the block, or rolls back where the block raises."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _postgres_error(context: ExceptionContext) -> None:
    """Raise as OperationalError what passes, and nothing else.

    psycopg calls some states of the server internal, and a statement operational that it cannot send as it is.
    """
    original = context.original_exception
    if isinstance(original, InternalError) and original.sqlstate in _UNWRITABLE:
        raise OperationalError(context.statement, None, original) from original
    lives = context.connection is not None and not context.is_disconnect
    if isinstance(original, PsycopgOperationalError) and original.sqlstate is None and lives:
        raise ProgrammingError(context.statement, None, original) from original


def _sqlite_connect(busy_timeout: int, connection: Any, _: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={busy_timeout}", "journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("gauntlet_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
