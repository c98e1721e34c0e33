"""Back up and restore the whole service: every row and every artifact, in one file that fits either database."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.orm import Session

from core.errors import GauntletError
from store import migrate
from store.artifacts import ArtifactStore
from store.database import Database, to_json
from store.models import Base, Checkpoint, StageArtifact

LEFT_OUT = ("workers", "leases")
"""Rows about processes, which a restored service has others of."""
CHUNK = 200
FORMAT = 1


class BackupError(GauntletError):
    """A backup cannot be written, or a file cannot be restored; the message says why."""


def _tables() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if table.name not in LEFT_OUT]


def backup(database: Database, store: ArtifactStore, path: Path) -> dict[str, int]:
    """Return table -> rows (and `artifact bytes`) written to the tar file `path`, as of one moment.

    Raises:
        BackupError: the file exists, or an artifact that a row refers to is missing or altered.
    """
    if path.exists():
        raise BackupError(f"{path} exists; name another file")
    partial = path.with_name(path.name + ".partial")
    counts: dict[str, int] = {}
    with database.read() as session, tarfile.open(partial, "w") as tar:
        if not database.is_sqlite:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        head = {"format": FORMAT, "revision": migrate.revision_of(database)}
        _add(tar, "backup.json", json.dumps(head).encode())
        for table in _tables():
            rows = [dict(row) for row in session.execute(select(table)).mappings()]
            counts[table.name] = len(rows)
            _add(tar, f"tables/{table.name}.jsonl", "".join(to_json(row) + "\n" for row in rows).encode())
        counts["artifact bytes"] = sum(_add_artifact(tar, store, sha256) for sha256 in referenced(session))
    partial.replace(path)
    return counts


def restore(database: Database, store: ArtifactStore, path: Path) -> dict[str, int]:
    """Return table -> rows read from `path` into a migrated database that is empty.

    Raises:
        BackupError: the database is not empty or at another revision, or the file is no backup.
    """
    counts: dict[str, int] = {}
    try:
        tar = tarfile.open(path)  # noqa: SIM115 - closed by the with below
    except (OSError, tarfile.TarError) as error:
        raise BackupError(f"{path} is no backup: {error}") from error
    with tar, database.write() as session:
        _check(tar, database, session)
        for member in tar:
            if member.name.startswith("artifacts/"):
                store.put(_bytes(tar, member.name))
        for table in _tables():
            rows = [json.loads(line) for line in _bytes(tar, f"tables/{table.name}.jsonl").splitlines()]
            for start in range(0, len(rows), CHUNK):
                session.execute(insert(table), rows[start : start + CHUNK])
            counts[table.name] = len(rows)
        if not database.is_sqlite:
            _advance_sequences(session)
    return counts


def _check(tar: tarfile.TarFile, database: Database, session: Session) -> None:
    head = json.loads(_bytes(tar, "backup.json"))
    revision = migrate.revision_of(database)
    if head.get("format") != FORMAT or head.get("revision") != revision:
        raise BackupError(
            f"the backup is of revision {head.get('revision')}, the database at {revision}: migrate first"
        )
    for table in _tables():
        if session.scalar(select(func.count()).select_from(table)):
            raise BackupError(f"the database is not empty ({table.name} has rows); restore into a new one")


def _advance_sequences(session: Session) -> None:
    """Set every sequence behind the ids that were inserted by hand."""
    for table in _tables():
        if "id" in table.columns:
            name = table.name  # ours, from the metadata
            session.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), "  # noqa: S608
                    f"(SELECT coalesce(max(id), 0) + 1 FROM {name}), false)"
                )
            )


def referenced(session: Session) -> set[str]:
    """Return the sha256 of every artifact that a row refers to."""
    columns = (StageArtifact.sha256, Checkpoint.sha256)
    return {sha256 for column in columns for sha256 in session.scalars(select(column).distinct())}


def _add_artifact(tar: tarfile.TarFile, store: ArtifactStore, sha256: str) -> int:
    data = store.get(sha256)
    _add(tar, f"artifacts/{sha256}", data)
    return len(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise BackupError(f"the backup lacks {name}")
    data: Any = file.read()
    return data
