"""The artifact store: bytes addressed by their sha256, written once, verified on every read."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import ArtifactCorrupt, SpecError


class ArtifactStore:
    """Artifacts in a folder: aa/bb.../<sha256>. Safe for many processes; a file appears whole or not at all."""

    def __init__(self, folder: Path):
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Return where the artifact stands, or would stand."""
        return self._folder / sha256[:2] / sha256[2:4] / sha256

    def put(self, data: bytes) -> str:
        """Return the sha256 under which `data` is now stored, synced to disk and read back."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if self._sound(path, sha256):
            os.utime(path)  # as good as new: garbage collection spares what was put lately
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, data)
            if not self._sound(path, sha256):
                raise ArtifactCorrupt(f"artifact {sha256} does not read back as it was written")
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the artifact's bytes.

        Raises:
            ArtifactCorrupt: they are missing or are not those that were stored.
        """
        try:
            data = self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise ArtifactCorrupt(f"artifact {sha256} is missing from the store") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactCorrupt(f"artifact {sha256} has been altered on disk")
        return data

    def unused(self, kept: set[str], older_than: float) -> Iterator[Path]:
        """Yield the files that are not `kept` and were last put before that moment (seconds since 1970).

        What a process has put and not yet recorded is young. Leftovers of a writer that died are among the old.
        """
        for path in self._folder.glob("??/??/*"):
            if path.name not in kept and path.stat().st_mtime < older_than:
                yield path

    def _sound(self, path: Path, sha256: str) -> bool:
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_store(url: str) -> ArtifactStore:
    """Return the store that ARTIFACT_URL names.

    Raises:
        SpecError: the URL's scheme is not one we store to.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise SpecError(f"ARTIFACT_URL {url!r}: only file:///folder is supported", ("ARTIFACT_URL",), ["file:///..."])
    return ArtifactStore(Path(unquote(parts.path)))
