"""The spool, and publishing while the artifact store or the database is away; on real disks, buckets and databases."""

import errno
import fcntl
import math
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from core.errors import Interrupted, StoreAway
from core.stages import Outcome
from store import stages
from store.artifacts import LOCK, ArtifactStore, FolderStore
from store.broker import Ringer, celery_app
from store.database import Database
from store.garbage import collect
from store.models import Result, Stage
from store.settings import Settings
from store.stages import Claim, StaleFence
from tests import factories, s3
from tests.disk import fill
from tests.processes import wait_until
from worker import patience, spool
from worker.publisher import Publisher
from worker.runner import StageRunner
from worker.spool import Finding, Spool
from worker.watch import Watch

OUTCOME = Outcome(
    {"iterations": 1, "last_losses": {"loss": math.nan}},
    {"weights": ("application/x-safetensors", b"w" * 1000), "curve": ("application/json", b"[]"), "none": ("x", b"")},
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with factories.opened(database_url) as database:
        yield database


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.2)


def claimed(database: Database) -> Claim:
    factories.post(database, factories.trainings())
    return factories.claim(database)


def found(claim: Claim) -> Finding:
    return Finding(claim.key, claim.fence, OUTCOME, {"test": True})


def watch_of(claim: Claim) -> Watch:
    return Watch(claim, time.monotonic(), 60, lambda *_: None)


def lines(watch: Watch) -> str:
    return "\n".join(line for _, line in watch.take_lines())


def state(database: Database, claim: Claim) -> tuple[str, int]:
    stage = factories.stage(database, claim.stage_id)
    return stage.state, stage.failures + stage.losses


class Publishing:
    """`publish` in a thread of its own, as it goes on while something is away."""

    def __init__(self, publisher: Publisher, claim: Claim):
        self.watch = watch_of(claim)
        self.raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(publisher, claim), daemon=True)
        self._thread.start()

    def _run(self, publisher: Publisher, claim: Claim) -> None:
        try:
            publisher.publish(claim, self.watch, found(claim))
        except BaseException as error:
            self.raised = error

    def end(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


class TestSpool:
    """Files, and nothing but files."""

    def test_round_trip(self, tmp_path: Path):
        kept, finding = Spool(tmp_path / "spool"), Finding("k" * 64, 7, OUTCOME, {"torch": "2"})
        assert (kept.waiting(), kept.find("k" * 64), kept.fence("k" * 64)) == ([], None, None)
        kept.keep(finding)
        again = Spool(tmp_path / "spool")  # another process's
        assert (again.waiting(), again.fence("k" * 64)) == (["k" * 64], 7)
        back = again.find("k" * 64)
        assert back is not None
        assert (back.fence, back.environment, back.outcome.artifacts) == (7, {"torch": "2"}, OUTCOME.artifacts)
        assert back.outcome.payload == {"iterations": 1, "last_losses": {"loss": "NaN"}}  # as SQL would have it
        again.drop("k" * 64)
        again.drop("k" * 64)
        assert kept.waiting() == []

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-1], lambda b: b + b"!", lambda b: b.replace(b"ww", b"wW"), lambda _: b""]
    )
    def test_a_torn_file_is_none(self, tmp_path: Path, damage: Callable[[bytes], bytes]):
        kept = Spool(tmp_path)
        kept.keep(Finding("key", 1, OUTCOME, {}))
        (tmp_path / "key").write_bytes(damage((tmp_path / "key").read_bytes()))
        assert kept.find("key") is None
        assert kept.waiting() == []

    def test_one_that_cannot_be_read_now_stays(self, tmp_path: Path):
        """It may be the only copy, and the process may have too many files open."""
        kept = Spool(tmp_path)
        kept.keep(Finding("key", 1, OUTCOME, {}))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            assert kept.find("key") is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert kept.find("key") is not None

    def test_no_finding_goes_for_its_age_but_what_a_dead_writer_left_does(self, tmp_path: Path):
        """The clock may have stood at 1970 when it was written."""
        kept = Spool(tmp_path)
        kept.keep(Finding("old", 1, OUTCOME, {}))
        for name in (".new-dead-writer", ".new-writer"):
            (tmp_path / name).touch()
        os.utime(tmp_path / "old", (0, 0))
        os.utime(tmp_path / ".new-dead-writer", (time.time() - spool.KEPT_SECONDS - 10,) * 2)
        assert kept.waiting() == ["old"]
        assert {path.name for path in tmp_path.iterdir()} == {"old", ".new-writer"}

    def test_a_full_disk_leaves_nothing(self, small_disk: Path):
        kept = Spool(small_disk / "spool")
        kept.keep(Finding("before", 1, OUTCOME, {}))
        ballast = fill(small_disk)
        with pytest.raises(OSError, match="No space left"):
            kept.keep(Finding("k", 1, Outcome({}, {"weights": ("x", os.urandom(100_000))}), {}))
        assert kept.waiting() == ["before"]
        ballast.unlink()


class TestCheckpoints:
    """Bytes that a training needs no more are not left for the next collection."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> FolderStore:
        return FolderStore(tmp_path / "artifacts")

    @pytest.fixture
    def runner(self, database: Database, store: FolderStore, tmp_path: Path) -> StageRunner:
        chosen = Settings(state_dir=tmp_path)
        return StageRunner(chosen, database, store, Ringer(celery_app(chosen)))

    def lying(self, store: FolderStore) -> set[bytes]:
        return {store.get(found.name) for found in store.unused(set(), math.inf)}

    def test_the_newest_two_lie_in_the_store_and_none_after_success(
        self, database: Database, store: FolderStore, runner: StageRunner
    ):
        claim = claimed(database)
        for number in b"1234":
            runner.keep_checkpoint(claim, bytes([number]))
        assert self.lying(store) == {b"3", b"4"}
        runner.keep_checkpoint(claim, b"4")
        runner.keep_checkpoint(claim, b"5")
        assert self.lying(store) == {b"4", b"5"}, "the same bytes are a checkpoint still"
        runner._publisher.publish(claim, watch_of(claim), found(claim))
        assert self.lying(store) == {data for _, data in OUTCOME.artifacts.values()}

    def test_bytes_that_cannot_be_deleted_stop_nothing(
        self, database: Database, store: FolderStore, runner: StageRunner, monkeypatch: pytest.MonkeyPatch
    ):
        def refuse(*_: object) -> bool:
            raise StoreAway("the disk is read-only")

        monkeypatch.setattr(store, "remove", refuse)
        claim = claimed(database)
        for number in b"123":
            runner.keep_checkpoint(claim, bytes([number]))
        assert self.lying(store) == {b"1", b"2", b"3"}
        runner._publisher.publish(claim, watch_of(claim), found(claim))
        assert state(database, claim) == ("succeeded", 0)

    def test_what_a_paused_writer_keeps_from_deletion_is_for_the_next_collection(
        self, database: Database, store: FolderStore, runner: StageRunner, tmp_path: Path
    ):
        claim = claimed(database)
        for number in b"12":
            runner.keep_checkpoint(claim, bytes([number]))
        with ThreadPoolExecutor(1) as pool, (tmp_path / "artifacts" / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            pool.submit(runner.keep_checkpoint, claim, b"3").result(30)
        assert self.lying(store) == {b"1", b"2", b"3"}
        assert collect(database, store, -1.0, dry_run=False) == (1, 1)
        assert self.lying(store) == {b"2", b"3"}

    def test_work_whose_result_is_recorded_is_not_stopped_for_what_is_left_to_delete(
        self, database: Database, store: FolderStore, runner: StageRunner, monkeypatch: pytest.MonkeyPatch
    ):
        """A heartbeat that finds the stage no longer running would else end the process."""
        claim = claimed(database)
        runner.keep_checkpoint(claim, b"1")
        seen, told = watch_of(claim), []

        def slow(*_: object) -> bool:
            told.append((seen.stop("lost"), seen.overdue(0, 0)))
            return True

        monkeypatch.setattr(store, "remove", slow)
        runner._publisher.publish(claim, seen, found(claim))
        assert told == [(False, False)]


class TestAnotherProcess:
    """What a process that died has left in the spool."""

    @pytest.fixture
    def publisher(self, database: Database, tmp_path: Path) -> Publisher:
        return Publisher(database, FolderStore(tmp_path / "artifacts"), Spool(tmp_path / "spool"))

    @pytest.fixture
    def left(self, database: Database, tmp_path: Path) -> Claim:
        claim = claimed(database)
        Spool(tmp_path / "spool").keep(found(claim))
        return claim

    def test_under_its_fence(self, database: Database, publisher: Publisher, left: Claim, tmp_path: Path):
        publisher.flush()
        assert state(database, left) == ("succeeded", 0)
        with database.read() as session:
            result = session.get_one(Result, left.stage_id)
            assert (result.fence, result.environment) == (left.fence, {"test": True})
            assert result.payload == {"iterations": 1, "last_losses": {"loss": "NaN"}}
            assert set((stages.result_of(session, left.stage_id) or ({}, {}))[1]) == set(OUTCOME.artifacts)
        assert Spool(tmp_path / "spool").waiting() == []

    def test_never_under_a_fence_that_is_stale(
        self, database: Database, publisher: Publisher, left: Claim, tmp_path: Path
    ):
        """Not after the reaper, not beside the next holder; but the next holder here publishes it as its own."""
        factories.expire(database, left)
        factories.reap(database)
        before = factories.everything(database)
        publisher.flush()
        assert factories.everything(database) == before
        with pytest.raises(StaleFence):
            publisher.publish(left, watch_of(left), found(left))
        assert factories.everything(database) == before
        with database.write() as session:
            session.execute(text("UPDATE stages SET not_before = 1e12, queue = 'gpu'"))  # neither is in the way
        with database.write() as session:
            again = stages.claim_one_of(session, Spool(tmp_path / "spool").waiting(), "another", 60)
        assert again is not None
        assert again.fence > left.fence
        publisher.flush()
        assert state(database, left) == ("running", 1)
        publisher.publish(again, watch_of(again), found(left))
        with database.read() as session:
            assert session.get_one(Result, left.stage_id).fence == again.fence
            assert session.get_one(Stage, left.stage_id).state == "succeeded"
        assert Spool(tmp_path / "spool").waiting() == []

    def test_somebody_else_was_faster(self, database: Database, publisher: Publisher, left: Claim, tmp_path: Path):
        factories.expire(database, left)
        factories.reap(database)
        factories.pass_time(database, 60)
        factories.succeed(database, factories.claim(database))
        before = factories.everything(database)
        publisher.flush()
        assert factories.everything(database) == before
        assert Spool(tmp_path / "spool").waiting() == []

    def test_what_cannot_be_published_is_in_nobodys_way(
        self, database: Database, publisher: Publisher, left: Claim, tmp_path: Path
    ):
        """A worker that met it at every look for work would else never work again."""
        kept = Spool(tmp_path / "spool")
        kept.keep(Finding(left.key, left.fence, Outcome({}, {"n" * 80: ("m" * 200, b"")}), {}))
        with database.write() as session:
            session.execute(text("UPDATE stages SET kind = 'evaluate'"))  # which has to have an n
        publisher.flush()
        assert state(database, left) == ("running", 0)
        assert kept.waiting() == []
        with database.write() as session:
            session.execute(text("UPDATE stages SET kind = 'train'"))

    def test_a_stage_that_nobody_knows_is_left(self, database: Database, publisher: Publisher, tmp_path: Path):
        """A database may be restored to before it: whoever asks again finds the result here."""
        Spool(tmp_path / "spool").keep(Finding("f" * 64, 3, OUTCOME, {}))
        publisher.flush()
        with database.write() as session:
            assert stages.claim_one_of(session, Spool(tmp_path / "spool").waiting(), "w", 60) is None
        assert Spool(tmp_path / "spool").waiting() == ["f" * 64]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestStoreAway:
    """The finding waits in memory and in the spool, and is published when there is room or an answer again."""

    def published_after(
        self, database: Database, store: ArtifactStore, kept: Spool, says: str, mend: Callable[[], object]
    ) -> None:
        claim = claimed(database)
        publishing = Publishing(Publisher(database, store, kept), claim)
        said = wait_until("it says why it waits", lambda: lines(publishing.watch))
        assert "its result is found but cannot be stored" in said
        assert says in said
        assert state(database, claim) == ("running", 0)
        time.sleep(0.5)
        mend()
        publishing.end()
        assert publishing.raised is None
        assert state(database, claim) == ("succeeded", 0)
        assert kept.waiting() == []

    def test_disk_full(self, database: Database, small_disk: Path, tmp_path: Path):
        ballast = fill(small_disk)
        store = FolderStore(small_disk / "artifacts")
        self.published_after(database, store, Spool(tmp_path / "spool"), "No space left on device", ballast.unlink)

    def test_no_locks(self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """As a folder on a network may have none for a while."""

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
        store = FolderStore(tmp_path / "artifacts")
        self.published_after(database, store, Spool(tmp_path / "spool"), "No locks available", monkeypatch.undo)

    def test_one_full_disk_for_everything(self, database: Database, small_disk: Path):
        """The spool has no room either: the finding waits in memory."""
        ballast = fill(small_disk)
        kept = Spool(small_disk / "spool")
        self.published_after(database, FolderStore(small_disk / "artifacts"), kept, "No space left", ballast.unlink)

    @pytest.mark.parametrize("status", [500, 503])
    def test_bucket_refuses(self, database: Database, s3_server: s3.S3Server, tmp_path: Path, status: int):
        with s3.Proxy(s3_server) as proxy:
            store = s3.opened(proxy.url, f"s3://{s3_server.create_bucket()}")
            proxy.refusing = status

            def mend() -> None:
                assert Spool(tmp_path / "spool").waiting(), "nothing was written to the spool"
                proxy.refusing = None

            self.published_after(database, store, Spool(tmp_path / "spool"), str(status), mend)
            assert proxy.refused > 0

    @pytest.mark.parametrize("order", ["lost", "drain", "cancel"])
    def test_told_to_stop(self, database: Database, tmp_path: Path, order: str):
        """The wait ends at once; what was found stays in the spool."""
        (tmp_path / "artifacts").write_text("a file where the folder should be")
        claim, kept = claimed(database), Spool(tmp_path / "spool")
        publishing = Publishing(Publisher(database, FolderStore(tmp_path / "artifacts"), kept), claim)
        wait_until("it is in the spool", kept.waiting)
        publishing.watch.stop(order)
        publishing.end()
        assert isinstance(publishing.raised, Interrupted)
        assert kept.waiting() == [claim.key]

    def test_ended_while_it_hangs(self, database: Database, s3_server: s3.S3Server, tmp_path: Path):
        """A process that ends itself because its store hangs saves what it has first."""
        with s3.Proxy(s3_server) as proxy:
            proxy.refusing = s3.Proxy.HANG
            kept = Spool(tmp_path / "spool")
            claim = claimed(database)
            publisher = Publisher(database, s3.opened(proxy.url, f"s3://{s3_server.create_bucket()}"), kept)
            publisher.save()
            assert kept.waiting() == []
            publishing = Publishing(publisher, claim)
            wait_until("it hangs", lambda: proxy.refused)
            publisher.save()
            assert kept.waiting() == [claim.key]
            proxy.refusing = None
            publishing.end()
            assert kept.waiting() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_database_that_takes_no_writes(database: Database, database_url: str, tmp_path: Path):
    """Locked by somebody else for longer than a writer waits."""
    claim, kept = claimed(database), Spool(tmp_path / "spool")
    impatient = Database(database_url, 0.1)
    lock = sqlite3.connect(str(database.url.database), isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    publishing = Publishing(Publisher(impatient, FolderStore(tmp_path / "artifacts"), kept), claim)
    wait_until("it is in the spool", kept.waiting)
    assert "cannot be recorded" in wait_until("it says so", lambda: lines(publishing.watch))
    lock.rollback()
    publishing.end()
    assert state(database, claim) == ("succeeded", 0)
    assert kept.waiting() == []
    lock.close()
    impatient.close()
