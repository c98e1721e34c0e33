"""Artifacts appear whole or not at all, and are never handed out altered."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import obstore
import pytest

from core.errors import ArtifactCorrupt, SpecError, StoreAway
from store import s3
from store.artifacts import MARK, PART, ArtifactStore, FolderStore, open_store, place_of
from store.database import Database
from store.garbage import collect
from store.ownership import Owner
from store.s3 import BucketStore
from tests import factories
from tests.disk import fill
from tests.s3 import KEYS, Proxy, S3Server, opened

SIZES = [b"", b"weights", os.urandom(2 * PART + 1)]
PAUSED = """
import os, signal
from pathlib import Path
from store.artifacts import FolderStore
sync = os.fsync
def pause(descriptor):
    os.fsync = sync
    os.kill(os.getpid(), signal.SIGSTOP)
os.fsync = pause
FolderStore(Path({folder!r})).put(b"from a writer that is paused")
"""
DAMAGES = {
    "truncate": lambda data: data[:-1],
    "extend": lambda data: data + b"!",
    "flip": lambda data: b"W" + data[1:],
    "empty": lambda _: b"",
    "remove": lambda _: None,
}


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    store = open_store((tmp_path / "with space").as_uri())
    assert isinstance(store, FolderStore)
    return store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    """An empty store of either sort: what holds of one holds of the other."""
    return request.getfixturevalue(f"{request.param}_store")


def places(store: ArtifactStore) -> list[str]:
    """Return where things lie, whatever they are."""
    return sorted(found.place for found in store.unused(set(), time.time() + 3600))


def tamper(store: ArtifactStore, sha256: str, data: bytes | None) -> None:
    """Replace what is stored behind the store's back."""
    if isinstance(store, BucketStore):
        obstore.delete(store._bucket, place_of(sha256))
        if data is not None:
            obstore.put(store._bucket, place_of(sha256), data)
    else:
        assert isinstance(store, FolderStore)
        store.path(sha256).unlink()
        if data is not None:
            store.path(sha256).write_bytes(data)


@pytest.mark.parametrize("data", SIZES, ids=len)
def test_what_was_put_comes_back(store: ArtifactStore, data: bytes):
    sha256 = store.put(data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.get(sha256) == data
    size, parts = store.stream(sha256)
    assert (size, b"".join(parts)) == (len(data), data)
    assert places(store) == [place_of(sha256)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_handed_out_and_is_mended_by_the_next_put(store: ArtifactStore, damage: str):
    data = b"weights of a network"
    sha256 = store.put(data)
    tamper(store, sha256, DAMAGES[damage](data))
    for read in (store.get, store.stream):
        with pytest.raises(ArtifactCorrupt, match="missing" if damage == "remove" else "altered"):
            read(sha256)
    assert store.put(data) == sha256
    assert store.get(sha256) == data


def test_an_unknown_artifact_is_missing(store: ArtifactStore):
    store.put(b"another")
    with pytest.raises(ArtifactCorrupt, match="missing"):
        store.get("0" * 64)


def test_concurrent_puts_of_the_same_and_of_other_bytes(store: ArtifactStore):
    contents = [bytes([number % 5]) * 200_000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(store.put, contents))
    assert [store.get(name) for name in names] == contents
    assert len(places(store)) == 5, "temporary files were left"


def test_what_is_kept_or_young_is_not_offered_for_removal(store: ArtifactStore):
    kept, other = store.put(b"kept"), store.put(b"other")
    later = time.time() + 3600
    assert [found.name for found in store.unused({kept}, later)] == [other]
    assert list(store.unused(set(), time.time() - 3600)) == []
    (found,) = store.unused({kept}, later)
    assert found.size == 5
    assert store.remove(found.place, 2e10)
    assert not store.remove(found.place, 2e10)
    assert places(store) == [place_of(kept)]


def test_what_others_have_put_there_is_not_offered_for_removal(store: ArtifactStore):
    sha256 = store.put(b"ours")
    for place in ("backups/before.tar", "ab/cd/notes.txt", f"{sha256}", f"other/prefix/{place_of(sha256)}"):
        place_beside(store, place)
    assert places(store) == [place_of(sha256)]


def place_beside(store: ArtifactStore, place: str, data: bytes = b"precious") -> None:
    """Put something into the store's folder or bucket by hand."""
    if isinstance(store, BucketStore):
        obstore.put(store._bucket, place, data)
        return
    assert isinstance(store, FolderStore)
    path = store.path("0" * 64).parents[2] / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_store_that_does_not_keep_what_was_written_is_noticed(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    write = store._write

    def lose_a_byte(place: str, data: bytes, what: str) -> None:
        write(place, data, what)
        tamper(store, place.rpartition("/")[2], data[:-1])

    monkeypatch.setattr(store, "_write", lose_a_byte)
    with pytest.raises(ArtifactCorrupt, match="read back"):
        store.put(b"weights")


@contextmanager
def paused_in_put(folder: Path) -> Iterator[None]:
    """Have another process paused in the middle of a put, and let it go on in the end."""
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", PAUSED.format(folder=str(folder))], cwd=root) as writer:
        try:
            assert os.WIFSTOPPED(os.waitpid(writer.pid, os.WUNTRACED)[1])
            yield
        finally:
            writer.send_signal(signal.SIGCONT)
        assert writer.wait(30) == 0


class TestFolder:
    """What only files can be looked at for."""

    def test_a_writer_that_is_paused_keeps_nobody_waiting(self, folder_store: FolderStore):
        old = folder_store.put(b"superseded")
        with ThreadPoolExecutor(1) as pool, paused_in_put(folder_store._folder):
            assert not pool.submit(folder_store.remove, place_of(old), 2e10).result(20)
            assert folder_store.get(folder_store.put(b"another's")) == b"another's"
        assert folder_store.get(hashlib.sha256(b"from a writer that is paused").hexdigest())
        assert folder_store.remove(place_of(old), 2e10)

    def test_a_folder_that_gives_no_lock(self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch):
        """As one on a network may, of a sudden."""
        old = folder_store.put(b"superseded")

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        for ask in (lambda: folder_store.put(b"weights"), lambda: folder_store.remove(place_of(old), 2e10)):
            with pytest.raises(StoreAway, match="cannot be used: No locks available"):
                ask()

    def test_what_cannot_be_looked_at_is_not_missing(self, folder_store: FolderStore):
        path = folder_store.path(folder_store.put(b"weights"))
        path.unlink()
        path.symlink_to(path)
        place = str(path.relative_to(folder_store._folder))
        for ask in (
            lambda: folder_store._has(place), lambda: folder_store.remove(place, 2e10), lambda: places(folder_store)
        ):  # fmt: skip
            with pytest.raises(StoreAway, match="cannot be used: Too many levels of symbolic links"):
                ask()
        path.unlink()
        assert not folder_store._has(place)

    def test_putting_twice_writes_once(self, folder_store: FolderStore):
        path = folder_store.path(folder_store.put(b"same"))
        first = path.stat().st_ino
        folder_store.put(b"same")
        assert path.stat().st_ino == first

    def test_a_write_that_fails_leaves_nothing(self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch):
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreAway, match="No space"):
            folder_store.put(b"weights")
        assert places(folder_store) == []
        with pytest.raises(ArtifactCorrupt):
            folder_store.get(hashlib.sha256(b"weights").hexdigest())

    def test_a_full_disk(self, small_disk: Path):
        store = FolderStore(small_disk / "artifacts")
        kept = store.put(b"before it was full")
        ballast = fill(small_disk)
        with pytest.raises(StoreAway, match="cannot be used: No space left on device"):
            store.put(os.urandom(100_000))
        assert places(store) == [place_of(kept)]
        assert store.get(kept) == b"before it was full"
        ballast.unlink()
        assert store.get(store.put(b"after")) == b"after"

    def test_a_reader_never_sees_half_a_file(self, folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch):
        """The name appears only after the bytes are on disk."""
        seen: list[bool] = []
        sync = os.fsync
        data = b"x" * 100_000
        path = folder_store.path(hashlib.sha256(data).hexdigest())

        def look(descriptor: int) -> None:
            seen.append(path.exists())
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", look)
        folder_store.put(data)
        assert seen == [False, True], "first the file, under another name; then the folder"


class TestBucket:
    """What only a server can do to us."""

    @pytest.fixture
    def proxy(self, s3_server: S3Server) -> Iterator[Proxy]:
        with Proxy(s3_server) as proxy:
            yield proxy

    def test_a_server_that_refuses_or_is_silent(
        self, s3_server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ):
        """No answer is no verdict on an artifact: it is neither missing nor altered."""
        monkeypatch.setattr(s3, "SILENCE_SECONDS", 0.2)
        monkeypatch.setattr(s3, "RETRY_SECONDS", 0.3)
        store = opened(proxy.url, f"s3://{s3_server.create_bucket()}/refusals")
        sha256 = store.put(b"weights")
        for status in (500, 503, 403, Proxy.HANG):
            proxy.refusing = status
            for ask in (lambda: store.get(sha256), lambda: store.put(b"others"), lambda: places(store)):
                with pytest.raises(StoreAway, match="the artifact store s3://gauntlet/refusals cannot be used"):
                    ask()
        proxy.refusing = None
        assert store.get(sha256) == b"weights"

    def test_nobody_listens(self):
        store = opened("http://127.0.0.1:1", "s3://gauntlet")
        with pytest.raises(StoreAway, match="s3://gauntlet cannot be used"):
            store.put(b"weights")

    def test_no_such_bucket(self, s3_server: S3Server):
        """It is not taken for a missing artifact, which would fail the stage that reads it."""
        store = opened(s3_server.url, "s3://nobody-made-this")
        for ask in (lambda: store.get("0" * 64), lambda: store.put(b"weights")):
            with pytest.raises(StoreAway, match="no such bucket"):
                ask()

    def test_a_large_artifact_goes_up_in_parts(self, bucket_store: BucketStore):
        data = os.urandom(12_000_000)
        assert bucket_store.get(bucket_store.put(data)) == data

    def test_the_environment_has_what_the_settings_leave_out(
        self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ):
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        store = BucketStore(s3_server.create_bucket(), "", {"endpoint": s3_server.url})
        assert store.get(store.put(b"weights")) == b"weights"

    def test_an_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch):
        """docker-compose.yml passes on what nobody has set; an address that is empty would end the process."""
        for name in ("AWS_ENDPOINT_URL", *KEYS):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # nothing reaches Amazon
        store = BucketStore("gauntlet", "", {"access_key_id": "anybody", "secret_access_key": "secret"})
        with pytest.raises(StoreAway, match=r"https://s3\.us-east-1\.amazonaws\.com/gauntlet/"):
            store.get("0" * 64)


@pytest.mark.parametrize(
    "url",
    ["s3:///folder", "gs://bucket/folder", "/plain/path", "http://host/x", "", "file://data/artifacts",
     "file:artifacts", "file:///folder?x=1", "file:///folder#1", "s3://bucket/prefix?x=1"],
)  # fmt: skip
def test_other_places_are_refused(url: str):
    with pytest.raises(SpecError, match=r"ARTIFACT_URL .* only file:///folder and s3://bucket/prefix") as refused:
        open_store(url)
    assert refused.value.path == ("ARTIFACT_URL",)


class TestOwner:
    """A store belongs to one database: for any other it is away, and so is a place that is not known to be ours."""

    LOST = "0" * 64

    @pytest.fixture
    def databases(self, sqlite_template: Path, tmp_path: Path) -> Iterator[list[Database]]:
        paths = [shutil.copy(sqlite_template, tmp_path / name) for name in ("one.db", "other.db")]
        with factories.opened(f"sqlite:///{paths[0]}") as one, factories.opened(f"sqlite:///{paths[1]}") as other:
            yield [one, other]

    def of(self, store: ArtifactStore, database: Database) -> ArtifactStore:
        """Return another process's store in the same place, with its database."""
        owner = Owner(database)
        if isinstance(store, FolderStore):
            return FolderStore(store._folder, owner)
        assert isinstance(store, BucketStore)
        found = copy(store)
        found._owner, found._is_ours = owner, False
        return found

    def results(self, database: Database) -> list[bytes]:
        """Return the bytes to which the rows of a finished job refer."""
        factories.post(database)
        return [done.key.encode() for done in factories.finish(database)]

    def refused(self, store: ArtifactStore, why: str) -> str:
        """Return the remedy, after a refusal to put, to collect and to say that something is lost."""
        said = ""
        for ask in (lambda: store.put(b"x"), lambda: store.get(self.LOST), store.require_ours, store.check):
            with pytest.raises(StoreAway, match=why) as refusal:
                ask()
            said = str(refusal.value)
        return said

    def test_whoever_comes_first_has_it(self, store: ArtifactStore, databases: list[Database]):
        mine, others = (self.of(store, database) for database in databases)
        sha256 = mine.put(b"mine")
        with pytest.raises(ArtifactCorrupt, match="missing"):
            self.of(store, databases[0]).get(self.LOST)
        said = self.refused(others, "belongs to another database")
        with pytest.raises(StoreAway, match="another database"):
            collect(databases[1], others, -1.0, dry_run=False)
        assert others.get(sha256) == b"mine"
        name = Owner(databases[1]).name()
        assert f"write {name} into " in said
        place_beside(store, MARK, f"{name}\n".encode())
        assert others.get(others.put(b"theirs")) == b"theirs"
        assert collect(databases[1], others, -1.0, dry_run=False) == (2, 10)

    def test_a_store_of_before_is_of_the_database_that_knows_it(self, store: ArtifactStore, databases: list[Database]):
        first, *_, last = self.results(databases[0])
        store.put(first)
        store.put(b"")
        self.refused(self.of(store, databases[1]), "artifacts of which the database knows nothing")
        with pytest.raises(ArtifactCorrupt, match="missing"):
            self.of(store, databases[0]).get(hashlib.sha256(last).hexdigest())
        self.refused(self.of(store, databases[1]), "belongs to another database")

    def test_an_empty_place_has_lost_nothing(self, store: ArtifactStore, databases: list[Database]):
        """As a disk that is not mounted, or a prefix that is mistyped: results are not withdrawn for that."""
        self.results(databases[0])
        self.refused(self.of(store, databases[0]), "nothing that the database refers to .is its disk mounted")
        assert places(store) == []

    def test_a_disk_that_is_unmounted_takes_nothing(self, folder_store: FolderStore, databases: list[Database]):
        """It leaves an empty folder, in which results would lie hidden once it is mounted again."""
        store = self.of(folder_store, databases[0])
        for data in self.results(databases[0])[:1]:
            place_beside(store, MARK, Owner(databases[0]).name().encode())
            store.put(data)
        shutil.move(folder_store._folder, folder_store._folder.with_name("disk"))
        folder_store._folder.mkdir()
        self.refused(store, "is its disk mounted")
        assert places(folder_store) == []

    def test_a_server_that_finds_nothing_has_lost_nothing(self, s3_server: S3Server, databases: list[Database]):
        """A proxy answers 404 for whatever it does not know."""
        with Proxy(s3_server) as proxy:
            store = self.of(opened(proxy.url, f"s3://{s3_server.create_bucket()}/found"), databases[0])
            data = self.results(databases[0])[0]
            sha256 = hashlib.sha256(data).hexdigest()
            opened(s3_server.url, "s3://gauntlet/found").put(data)
            assert store.get(sha256) == data
            proxy.refusing = 404
            with pytest.raises(StoreAway, match="is its disk mounted"):
                store.get(sha256)
            proxy.refusing = None
            assert store.get(sha256) == data

    def test_a_database_has_one_name(self, database_url: str):
        with factories.opened(database_url) as database, ThreadPoolExecutor(4) as pool:
            names = set(pool.map(lambda _: Owner(database).name(), range(8)))
        assert len(names) == 1

    def test_a_database_that_does_not_answer(self, tmp_path: Path):
        without_tables = factories.opened(f"sqlite:///{tmp_path / 'empty.db'}")
        with without_tables as database, pytest.raises(StoreAway, match="the database does not say whose the artifact"):
            FolderStore(tmp_path, Owner(database)).put(b"x")
