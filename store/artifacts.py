"""The artifact store: bytes addressed by their sha256, written once, verified on every read.

An `ArtifactStore` is a folder or, in store/s3.py, a bucket. Both keep an artifact under aa/bb/<sha256>, and the name of
the database they belong to under .owner.
"""

import fcntl
import hashlib
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from core.errors import ArtifactCorrupt, SpecError, StoreAway
from store.database import Database
from store.files import PARTIAL, write_atomically
from store.ownership import Owner

BLOCK = 4096
PART = 1 << 20
"""Bytes of an artifact that are in memory at a time where it is streamed."""
LOCK = ".lock"
"""The file in a folder of artifacts that whoever puts or removes one locks."""
LOCK_TRIES = 20
LOCK_PAUSE_SECONDS = 0.05
"""Between two tries at a lock that is held; after the last, who removes does without it."""
MARK = ".owner"
"""Where the name of the database stands that a store belongs to."""
SCHEMES = ["file:///folder", "s3://bucket/prefix"]


@dataclass(frozen=True)
class Stored:
    """Something that lies in the store: an artifact, or what a writer that died has left."""

    name: str
    place: str
    size: int


def is_artifact(place: str) -> bool:
    """Return whether what lies there is called as an artifact is: what is not may be somebody else's."""
    name = place.rpartition("/")[2]
    return re.fullmatch("[0-9a-f]{64}", name) is not None and place == place_of(name)


def place_of(sha256: str) -> str:
    """Return where an artifact lies below the store's root."""
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


class ArtifactStore(ABC):
    """Artifacts by their sha256. Safe for many processes; an artifact appears whole or not at all.

    What cannot be done because the store is unreachable, refuses, is full or another database's raises `StoreAway`.
    """

    def __init__(self, name: str, owner: Owner | None):
        self._name = name
        self._owner = owner
        self._is_ours = owner is None

    def put(self, data: bytes, what: str = "artifact") -> str:
        """Return the sha256 under which `data` is now stored, synced to disk and read back.

        `what` it is is for the name of a crash point.

        Raises:
            ArtifactCorrupt: it does not read back as it was written.
        """
        if not self._is_ours:
            self.require_ours()
            self._is_ours = True
        sha256 = hashlib.sha256(data).hexdigest()
        if not self._renewed(sha256, data):
            self._write(place_of(sha256), data, what)
            if self._read(place_of(sha256)) != data:
                raise ArtifactCorrupt(f"artifact {sha256} does not read back as it was written")
        return sha256

    def get(self, sha256: str) -> bytes:
        """Return the artifact's bytes.

        Raises:
            ArtifactCorrupt: they are missing or are not those that were stored.
            StoreAway: the store cannot be read, or is not shown to be ours, as a disk that is not mounted.
        """
        data = self._read(place_of(sha256))
        if data is None:
            self.require_ours()
            raise ArtifactCorrupt(f"artifact {sha256} is missing from the store", sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactCorrupt(f"artifact {sha256} has been altered in the store", sha256)
        return data

    def check(self) -> None:
        """Return where bytes can be stored now; StoreAway says why they cannot."""
        self.put(b"")

    def stream(self, sha256: str) -> tuple[int, Iterator[bytes]]:
        """Return the artifact's size and its bytes, part by part; it is read twice, so that none leaves unverified.

        Raises:
            ArtifactCorrupt, StoreAway: as `get`.
        """
        digest, size = hashlib.sha256(), 0
        try:
            for part in self._parts(sha256):
                digest.update(part)
                size += len(part)
        except FileNotFoundError:
            self.require_ours()
            raise ArtifactCorrupt(f"artifact {sha256} is missing from the store", sha256) from None
        if digest.hexdigest() != sha256:
            raise ArtifactCorrupt(f"artifact {sha256} has been altered in the store", sha256)
        return size, self._parts(sha256)

    def require_ours(self) -> None:
        """Return where the store bears our database's name, after writing it into one without a name that must be ours.

        Raises:
            StoreAway: it is another database's, or not known to be ours: a wrong folder, bucket or prefix.
        """
        if self._owner is None:
            return
        mine, found, why = self._owner.name(), self._mark(), ""
        if found is None:
            why = self._strange(self._owner.referred())
            if not why:
                self._write(MARK, mine.encode(), "owner")
                found = self._mark()
        if found != mine:
            raise StoreAway(
                f"the artifact store {self._name} {why or f'belongs to another database, {found}'}: correct "
                f"ARTIFACT_URL; or, if it is the right one nevertheless, write {mine} into {self._name}/{MARK}"
            )

    def _mark(self) -> str | None:
        data = self._read(MARK)
        return None if data is None else data.decode(errors="replace").strip()

    def _strange(self, referred: Sequence[str]) -> str:
        """Return why a store without a name cannot be taken for that of a database which refers to these artifacts."""
        if referred:
            known = any(self._has(place_of(sha256)) for sha256 in referred)
            return "" if known else "has nothing that the database refers to (is its disk mounted?)"
        used = any(found.size for found in self.unused(set(), math.inf))  # `GET /readyz` puts an empty one
        return "has artifacts of which the database knows nothing" if used else ""

    @abstractmethod
    def unused(self, kept: set[str], older_than: float) -> Iterator[Stored]:
        """Yield what we put that is not `kept` and was last put before that moment (seconds since 1970).

        What a process has put and not yet recorded is young. Leftovers of a writer that died are among the old.
        What has another name or place than an artifact is not ours.
        """

    @abstractmethod
    def remove(self, place: str, older_than: float) -> bool:
        """Return whether what lies there was deleted: not where it is gone, or has been put again since that moment."""

    @abstractmethod
    def _renewed(self, sha256: str, data: bytes) -> bool:
        """Return whether the artifact was there, these bytes, and is now as young as if it had just been written."""

    @abstractmethod
    def _write(self, place: str, data: bytes, what: str) -> None:
        """Store bytes whole or not at all."""

    @abstractmethod
    def _read(self, place: str) -> bytes | None:
        """Return what lies there, None where there is nothing."""

    @abstractmethod
    def _has(self, place: str) -> bool:
        """Return whether anything lies there."""

    @abstractmethod
    def _parts(self, sha256: str) -> Iterator[bytes]:
        """Yield an artifact as it is stored, part by part; FileNotFoundError where there is nothing."""


class FolderStore(ArtifactStore):
    """Artifacts as files in a folder."""

    def __init__(self, folder: Path, owner: Owner | None = None):
        super().__init__(str(folder), owner)
        self._folder = folder

    def check(self) -> None:
        """Return where a block can be written; nothing of it stays. An artifact that is there already needs no room."""
        self.require_ours()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder) as file:
                file.write(bytes(BLOCK))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._away(error)

    def path(self, sha256: str) -> Path:
        """Return where the artifact stands, or would stand."""
        return self._folder / place_of(sha256)

    def unused(self, kept: set[str], older_than: float) -> Iterator[Stored]:
        """Yield the files that are not `kept` and were last put before that moment."""
        try:
            for path in self._folder.glob("??/??/*"):
                place = str(path.relative_to(self._folder))
                if path.name in kept or not (is_artifact(place) or path.name.startswith(PARTIAL)):
                    continue
                with suppress(FileNotFoundError):  # an unfinished file that has just got its name
                    found = path.stat()
                    if found.st_mtime < older_than:
                        yield Stored(path.name, place, found.st_size)
        except OSError as error:
            self._away(error)

    def remove(self, place: str, older_than: float) -> bool:
        """Return whether the file was deleted, while nobody could put it again.

        Where somebody puts for as long as about a second it stays, for `gauntlet gc`: who puts may be paused for ever.
        """
        path = self._folder / place
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            try:
                if alone and path.stat().st_mtime < older_than:
                    path.unlink()
                    return True
            except FileNotFoundError:
                pass
            except OSError as error:
                self._away(error)
        return False

    @contextmanager
    def _locked(self, how: int) -> Generator[bool]:
        """Keep those who put apart from those who remove: what is old when it is looked at may be young a moment later.

        Those who put do not keep each other waiting. Yields whether the lock was had, which only LOCK_NB leaves open.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / LOCK).open("ab")
        except OSError as error:
            self._away(error)
        with lock:
            yield self._had(lock, how)

    def _had(self, lock: IO[bytes], how: int) -> bool:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(lock, how)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)
            except OSError as error:
                self._away(error)
            else:
                return True
        return False

    def put(self, data: bytes, what: str = "artifact") -> str:
        """Return the sha256 under which `data` is now stored, as no removal has seen it."""
        with self._locked(fcntl.LOCK_SH):
            self.require_ours()  # each time: a disk can be unmounted, and leaves a folder in its place
            return super().put(data, what)

    def _renewed(self, sha256: str, data: bytes) -> bool:
        if self._read(place_of(sha256)) != data:
            return False
        try:
            os.utime(self.path(sha256))
        except OSError as error:
            self._away(error)
        return True

    def _write(self, place: str, data: bytes, what: str) -> None:
        path = self._folder / place
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, what=what)
        except OSError as error:
            self._away(error)

    def _read(self, place: str) -> bytes | None:
        try:
            return (self._folder / place).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._away(error)

    def _parts(self, sha256: str) -> Iterator[bytes]:
        try:
            with self.path(sha256).open("rb") as file:
                while part := file.read(PART):
                    yield part
        except FileNotFoundError:
            raise
        except OSError as error:
            self._away(error)

    def _has(self, place: str) -> bool:
        try:
            (self._folder / place).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            self._away(error)
        return True

    def _away(self, error: OSError) -> NoReturn:
        raise StoreAway(f"the artifact store {self._folder} cannot be used: {error.strerror or error}") from error


def open_store(url: str, s3: Mapping[str, str] | None = None, database: Database | None = None) -> ArtifactStore:
    """Return the store that ARTIFACT_URL names; `s3` are the settings of a bucket.

    It is `database`'s or refuses; without one nobody asks whose it is, and what it lacks counts as lost.

    Raises:
        SpecError: the URL's scheme is not one we store to, it names no bucket or no absolute folder, or more than that.
    """
    parts = place_named(url)
    if parts is None:
        raise SpecError(
            f"ARTIFACT_URL {url!r}: only {' and '.join(SCHEMES)} are supported", ("ARTIFACT_URL",), SCHEMES
        )  # fmt: skip
    owner = database and Owner(database)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)), owner)
    from store.s3 import BucketStore

    return BucketStore(parts.netloc, unquote(parts.path).strip("/"), s3 or {}, owner)


def place_named(url: str) -> SplitResult | None:
    """Return the parts of an artifact URL; None where it names no absolute folder and no bucket, or more than that."""
    parts = urlsplit(url)
    folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    bucket = parts.scheme == "s3" and bool(parts.netloc)
    return parts if (folder or bucket) and not parts.query and not parts.fragment else None
