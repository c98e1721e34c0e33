"""Back up and restore the whole service: every row and every artifact, in one file that fits either database.

Rows are written and read as the schema of their time has them: a backup of an older revision is restored into a
database taken down to that revision, which is then migrated as the service's own database was.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence, Set
from itertools import islice
from pathlib import Path
from typing import IO

from sqlalchemy import JSON, MetaData, Table, insert, literal, select, text
from sqlalchemy.orm import Session

from core.errors import ArtifactCorrupt, GauntletError
from store import migrate
from store.artifacts import ArtifactStore
from store.database import Database, to_json, unhurried
from store.files import sync_folder
from store.garbage import needed, referenced

LEFT_OUT = ("workers", "leases", "alembic_version")
"""Rows about processes, which a restored service has others of, and about the database itself."""
CHUNK = 200
FORMAT = 1


class BackupError(GauntletError):
    """A backup cannot be written, or a file cannot be restored; the message says why."""


def _tables(session: Session) -> list[Table]:
    """Return the tables as the database has them at its revision, parents before children."""
    found = MetaData()
    found.reflect(session.connection(), only=lambda name, _: name not in LEFT_OUT)
    for column in (column for table in found.sorted_tables for column in table.columns):
        if isinstance(column.type, JSON):
            column.type.none_as_null = True
    return found.sorted_tables


def backup(database: Database, store: ArtifactStore, path: Path) -> dict[str, int]:
    """Return table -> rows (and `artifact bytes`) written to the tar file `path`, as of one moment.

    Raises:
        BackupError: the file exists, or an artifact that a row refers to is missing or altered.
    """
    if path.exists():
        raise BackupError(f"{path} exists; name another file")
    partial = path.with_name(path.name + ".partial")
    try:
        counts = _write(database, store, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return counts


def _write(database: Database, store: ArtifactStore, path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    with database.read() as session, path.open("wb") as file:
        unhurried(session)
        if not database.is_sqlite:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        with tarfile.open(fileobj=file, mode="w") as tar:
            head = {"format": FORMAT, "revision": migrate.revision_of(database)}
            _add(tar, "backup.json", json.dumps(head).encode())
            # artifacts first: of the rows, those of checkpoints that were superseded meanwhile have to stay behind
            sizes = {sha256: _add_artifact(tar, database, store, sha256) for sha256 in sorted(referenced(session))}
            gone = {sha256 for sha256, size in sizes.items() if size is None}
            for table in _tables(session):
                counts[table.name] = _add_table(tar, session, table, gone)
            counts["artifact bytes"] = sum(size or 0 for size in sizes.values())
        file.flush()
        os.fsync(file.fileno())
    return counts


def _add_table(tar: tarfile.TarFile, session: Session, table: Table, gone: Set[str]) -> int:
    """Return the number of rows added, which pass through a file: a table may be larger than memory."""
    number = 0
    with tempfile.TemporaryFile() as lines:
        for row in session.execute(select(table).execution_options(yield_per=CHUNK)).mappings():
            if row.get("sha256") in gone:
                continue
            lines.write(to_json(dict(row)).encode() + b"\n")
            number += 1
        entry = tarfile.TarInfo(f"tables/{table.name}.jsonl")
        entry.size = lines.tell()
        lines.seek(0)
        tar.addfile(entry, lines)
    return number


def restore(database: Database, store: ArtifactStore, path: Path) -> dict[str, int]:
    """Return table -> rows read from `path` into a migrated database that is empty.

    Raises:
        BackupError: the database is not empty, or the file is no backup, damaged, or of a later version.
    """
    try:
        with tarfile.open(path) as tar:
            return _restored(database, store, tar)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise BackupError(f"{path} is no backup, or is damaged: {error}") from error


def _restored(database: Database, store: ArtifactStore, tar: tarfile.TarFile) -> dict[str, int]:
    wanted, newest = _revision(tar), migrate.head()
    if migrate.revision_of(database) != newest:
        raise BackupError(f"the database is not at revision {newest}: run `alembic upgrade head` first")
    with database.read() as session:
        _require_empty(session, _tables(session))
    store.require_ours()  # now: on SQLite nobody can be asked while this one writes
    if wanted == newest:
        return _insert(database, store, tar)
    url = database.url.render_as_string(hide_password=False)
    migrate.downgrade(url, wanted)
    try:
        return _insert(database, store, tar)
    finally:
        migrate.upgrade(url)


def _insert(database: Database, store: ArtifactStore, tar: tarfile.TarFile) -> dict[str, int]:
    with database.write() as session:
        unhurried(session)
        tables = _tables(session)
        _require_empty(session, tables)
        brought: set[str] = set()
        for member in tar:
            if member.name.startswith("artifacts/"):
                sha256 = member.name.removeprefix("artifacts/")
                _put(store, sha256, _open(tar, member).read())
                brought.add(sha256)
        counts = {table.name: _insert_table(tar, session, table) for table in tables}
        lacking = referenced(session) - brought
        if lacking:
            raise BackupError(f"the backup is cut short: it lacks {len(lacking)} artifacts to which its rows refer")
        if not database.is_sqlite:
            _advance_sequences(session, tables)
    return counts


def _put(store: ArtifactStore, sha256: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BackupError(f"the backup is damaged: what it has as artifact {sha256} is something else")
    store.put(data)


def _insert_table(tar: tarfile.TarFile, session: Session, table: Table) -> int:
    lines = _open(tar, f"tables/{table.name}.jsonl")
    number = 0
    while rows := [json.loads(line) for line in islice(lines, CHUNK)]:
        session.execute(insert(table), rows)
        number += len(rows)
    return number


def _revision(tar: tarfile.TarFile) -> str:
    head = json.loads(_open(tar, "backup.json").read())
    if head.get("format") != FORMAT or head.get("revision") not in migrate.revisions():
        raise BackupError(
            f"the backup is of revision {head.get('revision')}, which this version does not know: restore it with the "
            "version that wrote it, or a later one"
        )
    return str(head["revision"])


def _require_empty(session: Session, tables: Sequence[Table]) -> None:
    for table in tables:
        if session.execute(select(literal(1)).select_from(table).limit(1)).first():
            raise BackupError(f"the database is not empty ({table.name} has rows); restore into a new one")


def _advance_sequences(session: Session, tables: Sequence[Table]) -> None:
    """Set every sequence behind the ids that were inserted by hand."""
    for table in tables:
        if "id" in table.columns:
            name = table.name  # ours, from a migration
            session.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), "  # noqa: S608
                    f"(SELECT coalesce(max(id), 0) + 1 FROM {name}), false)"
                )
            )


def _add_artifact(tar: tarfile.TarFile, database: Database, store: ArtifactStore, sha256: str) -> int | None:
    """Return the size of the artifact added, None where it is gone because nothing refers to it any more."""
    try:
        data = store.get(sha256)
    except ArtifactCorrupt:
        if needed(database, sha256):
            raise
        return None
    _add(tar, f"artifacts/{sha256}", data)
    return len(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _open(tar: tarfile.TarFile, name: str | tarfile.TarInfo) -> IO[bytes]:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise BackupError(f"the backup lacks {name}")
    return file
