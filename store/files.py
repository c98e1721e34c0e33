"""Files that appear whole or not at all, and are on disk when they do."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from store.crashpoints import crashpoint

PARTIAL = ".new-"
"""What the names of unfinished files begin with; a writer that was killed leaves one behind."""


def write_atomically(path: Path, *parts: bytes, what: str = "file") -> None:
    """Write `parts`, one after the other, synced to disk before the name appears. The folder must exist.

    `what` they are is for the name of a crash point.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            crashpoint(f"mid-{what}")
            os.fsync(file.fileno())
        crashpoint("after-fsync")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    crashpoint("after-rename")
    sync_folder(path.parent)


def sweep(folder: Path, seconds: float) -> None:
    """Remove unfinished files that are older than so many seconds; what cannot be removed now is in nobody's way."""
    for path in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
