"""Doctor, garbage collection, backup and restore, on real databases and real folders."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import obstore
import pytest
from sqlalchemy import delete, func, select, text, update

from core.errors import ArtifactCorrupt
from store import admin, invariants, migrate, stages
from store import backup as backup_module
from store import database as database_module
from store.admin import doctor, repair
from store.artifacts import ArtifactStore, FolderStore, open_store, place_of
from store.backup import LEFT_OUT, BackupError, backup, restore
from store.database import Database
from store.garbage import collect, discard, referenced
from store.invariants import RULES, Rule
from store.models import Artifact, Base, Result, Stage
from store.ownership import Owner
from store.s3 import BucketStore
from store.settings import Settings
from tests import factories
from tests.factories import claim, finish, opened, post, stored, succeed, trainings, transfer, try_claim

DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "artifacts")


def filled(database: Database, store: ArtifactStore) -> None:
    """Finish one job with its artifacts stored, and leave another in the middle of a training with a checkpoint."""
    post(database, transfer())
    for done in finish(database):
        store.put(done.key.encode())
    post(database, transfer(seeds=[1]))
    running = claim(database)
    checkpoint = stored("checkpoint", b"half way")
    store.put(b"half way")
    with database.write() as session:
        stages.add_checkpoint(session, running.stage_id, running.fence, checkpoint)


def rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
            if table.name not in LEFT_OUT
        }


def test_a_sound_service_has_no_complaints_and_a_broken_one_has(database_url: str, store: FolderStore) -> None:
    with opened(database_url) as database:
        filled(database, store)
        assert doctor(database, store) == []
        with database.write() as session:
            session.execute(
                delete(Result).where(Result.stage_id == select(func.min(Result.stage_id)).scalar_subquery())
            )
        path = next(path for path in Path(store.path("0" * 64)).parents[2].glob("??/??/*"))
        path.write_bytes(b"something else")
        wrong = "\n".join(doctor(database, store))
        assert "result" in wrong
        assert f"artifact {path.name} has been altered" in wrong


def test_what_nothing_refers_to_goes_and_nothing_else(database_url: str, store: FolderStore) -> None:
    with opened(database_url) as database:
        filled(database, store)
        old, young = store.put(b"nobody wants me"), store.put(b"somebody is about to record me")
        with database.write() as session:
            session.execute(
                Artifact.__table__.insert(),  # pyright: ignore[reportAttributeAccessIssue]
                {"sha256": old, "size": 15, "media_type": "x", "created_at": 0.0},
            )
        for path in Path(store.path(old)).parents[2].glob("??/??/*"):
            if path.name != young:
                os.utime(path, (time.time() - 2 * DAY,) * 2)
        assert collect(database, store, 24.0, dry_run=True) == (1, 15)
        assert store.get(old) == b"nobody wants me"
        assert collect(database, store, 24.0, dry_run=False) == (1, 15)
        with pytest.raises(ArtifactCorrupt):
            store.get(old)
        assert store.get(young) == b"somebody is about to record me"
        with database.read() as session:
            assert session.get(Artifact, old) is None
        assert doctor(database, store) == []
        assert collect(database, store, 24.0, dry_run=False) == (0, 0)


def test_a_bucket_is_looked_after_as_a_folder_is(sqlite_url: str, bucket_store: BucketStore, tmp_path: Path) -> None:
    """Its own clock says what is young. Restoring a backup mends what has been lost or altered."""
    file = tmp_path / "all.tar"
    with opened(sqlite_url) as database:
        filled(database, bucket_store)
        unwanted = bucket_store.put(b"nobody wants me")
        assert collect(database, bucket_store, 24.0, dry_run=False) == (0, 0)
        assert collect(database, bucket_store, -1.0, dry_run=True) == (1, 15)
        assert collect(database, bucket_store, -1.0, dry_run=False) == (1, 15)
        with pytest.raises(ArtifactCorrupt):
            bucket_store.get(unwanted)
        assert doctor(database, bucket_store) == []
        backup(database, bucket_store, file)
        with database.read() as session:
            kept = sorted(referenced(session))
        obstore.delete(bucket_store._bucket, place_of(kept[0]))
        obstore.put(bucket_store._bucket, place_of(kept[1]), b"something else")
        assert doctor(database, bucket_store) == [
            f"artifact {kept[0]} is missing from the store", f"artifact {kept[1]} has been altered in the store",
        ]  # fmt: skip
    copy_url = f"sqlite:///{tmp_path / 'copy.db'}"
    migrate.upgrade(copy_url)
    with opened(copy_url) as copy:
        restore(copy, bucket_store, file)
        assert doctor(copy, bucket_store) == []


def test_putting_an_old_artifact_again_makes_it_young(sqlite_url: str, store: FolderStore) -> None:
    with opened(sqlite_url) as database:
        sha256 = store.put(b"twice")
        os.utime(store.path(sha256), (0, 0))
        store.put(b"twice")
        assert collect(database, store, 24.0, dry_run=False) == (0, 0)


def test_backup_and_restore_are_a_round_trip(database_url: str, store: FolderStore, tmp_path: Path) -> None:
    file = tmp_path / "all.tar"
    with opened(database_url) as database:
        filled(database, store)
        counts = backup(database, store, file)
        before = rows(database)
    assert counts["jobs"] == 2
    copy_url = f"sqlite:///{tmp_path / 'copy.db'}"
    migrate.upgrade(copy_url)
    other = open_store((tmp_path / "other").as_uri())
    with opened(copy_url) as copy:
        assert restore(copy, other, file)["jobs"] == 2
        assert rows(copy) == before
        assert doctor(copy, other) == []


def test_a_restored_postgresql_goes_on_counting(
    sqlite_url: str, postgres_url: str, store: FolderStore, tmp_path: Path
) -> None:
    file = tmp_path / "all.tar"
    with opened(sqlite_url) as database:
        filled(database, store)
        backup(database, store, file)
        before = rows(database)
    with opened(postgres_url) as copy:
        restore(copy, store, file)
        assert rows(copy) == before
        assert post(copy, transfer(seeds=[2])) == 3
        with copy.write() as session:
            session.execute(update(Stage).where(Stage.state == "running").values(lease_expires=0.0))
        assert len(factories.reap(copy)) == 1
        finish(copy)
        assert doctor(copy, store, artifacts=False) == []


def test_what_is_wrong_with_a_backup_is_said(sqlite_url: str, store: FolderStore, tmp_path: Path) -> None:
    file = tmp_path / "all.tar"
    with opened(sqlite_url) as database:
        filled(database, store)
        backup(database, store, file)
        with pytest.raises(BackupError, match="exists"):
            backup(database, store, file)
        with pytest.raises(BackupError, match="not empty"):
            restore(database, store, file)
        (tmp_path / "junk").write_bytes(b"junk")
        with pytest.raises(BackupError, match="is no backup"):
            restore(database, store, tmp_path / "junk")


def test_a_backup_may_take_longer_than_any_statement_or_pause(
    postgres_url: str, store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying artifacts takes as long as it takes, while the transaction that says which waits."""
    short = "-c statement_timeout=400 -c idle_in_transaction_session_timeout=200"
    file = tmp_path / "all.tar"
    with opened(postgres_url) as database:
        filled(database, store)
    monkeypatch.setattr(database_module, "_POSTGRES_OPTIONS", short)
    monkeypatch.setattr(backup_module, "_add_artifact", slowed(backup_module._add_artifact))
    monkeypatch.setattr(backup_module, "_put", slowed(backup_module._put))
    with opened(postgres_url) as database:
        backup(database, store, file)
        before = rows(database)
        factories.empty(database)
        restore(database, store, file)
        assert rows(database) == before


def slowed(step: Any) -> Any:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return step(*arguments)

    return slow


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_backup_of_an_older_revision_is_migrated(
    sqlite_template: Path, database_url: str, store: FolderStore, tmp_path: Path, revision: str
) -> None:
    file, old_url = tmp_path / "old.tar", f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'old.db')}"
    with opened(old_url) as old:
        filled(old, store)
    migrate.downgrade(old_url, revision)
    with opened(old_url) as old:
        backup(old, store, file)
    migrate.upgrade(old_url)
    with opened(old_url) as old:
        before = rows(old)
    other = FolderStore(tmp_path / "other")
    with opened(database_url) as database:
        assert restore(database, other, file)["jobs"] == 2
        assert migrate.revision_of(database) == migrate.head()
        assert rows(database) == before
        assert doctor(database, other) == []
        with pytest.raises(BackupError, match="not empty"):
            restore(database, other, file)
        assert migrate.revision_of(database) == migrate.head()


def test_a_backup_of_a_later_version_is_refused(sqlite_url: str, store: FolderStore, tmp_path: Path) -> None:
    file = tmp_path / "all.tar"
    with opened(sqlite_url) as database:
        backup(database, store, file)
        told = f'"revision": "{migrate.head()}"'.encode()
        file.write_bytes(file.read_bytes().replace(told, b'"revision": "9999"'))
        with pytest.raises(BackupError, match="of revision 9999, which this version does not know"):
            restore(database, store, file)


def test_a_backup_that_was_cut_short_is_refused_whole(sqlite_url: str, store: FolderStore, tmp_path: Path) -> None:
    """Wherever it ends: between two artifacts, which a tar file does not notice, or within anything."""
    file = tmp_path / "all.tar"
    with opened(sqlite_url) as database:
        filled(database, store)
        backup(database, store, file)
        factories.empty(database)
        data = file.read_bytes()
        with tarfile.open(file) as tar:
            *_, one, last = tar.getmembers()
            inside = tar.getmember("tables/stages.jsonl").offset_data + 100
        for end in (last.offset, last.offset + 512, one.offset + 256, inside, 512, 100, 0):
            file.write_bytes(data[:end])
            with pytest.raises(BackupError, match=r"cut short|damaged|lacks"):
                restore(database, FolderStore(tmp_path / "other"), file)
            assert not any(factories.everything(database).values())
        file.write_bytes(data.replace(b'"priority"', b'"priority'))
        with pytest.raises(BackupError, match="damaged"):
            restore(database, FolderStore(tmp_path / "other"), file)


def test_a_damaged_backup_is_refused_whole(sqlite_url: str, store: FolderStore, tmp_path: Path) -> None:
    file, other = tmp_path / "all.tar", tmp_path / "other"
    with opened(sqlite_url) as database:
        filled(database, store)
        backup(database, store, file)
        data = file.read_bytes()
        assert data.count(b"half way") == 1
        file.write_bytes(data.replace(b"half way", b"half-way"))
        factories.empty(database)
        with pytest.raises(BackupError, match="damaged: what it has as artifact"):
            restore(database, FolderStore(other), file)
        assert not any(factories.everything(database).values())


def test_a_backup_that_cannot_be_finished_leaves_no_file(sqlite_url: str, store: FolderStore, tmp_path: Path) -> None:
    with opened(sqlite_url) as database:
        filled(database, store)
        next(Path(store.path("0" * 64)).parents[2].glob("??/??/*")).unlink()
        with pytest.raises(ArtifactCorrupt):
            backup(database, store, tmp_path / "all.tar")
    assert list(tmp_path.glob("*.tar*")) == []


class Overtaken(FolderStore):
    """A store in which a worker supersedes its checkpoints, and deletes them, before anything is read."""

    work: Callable[[], None]

    def get(self, sha256: str) -> bytes:
        work, self.work = self.work, lambda: None
        work()
        return super().get(sha256)


@pytest.fixture
def overtaken(database_url: str, tmp_path: Path) -> Iterator[tuple[Database, Overtaken]]:
    with opened(database_url) as database:
        store = Overtaken(tmp_path / "artifacts")
        filled(database, store)
        with database.read() as session:
            stage_id, fence = session.execute(select(Stage.id, Stage.fence).where(Stage.state == "running")).one()

        def two_checkpoints_more() -> None:
            for data in (b"two thirds", b"three quarters"):
                store.put(data)
                with database.write() as session:
                    spent = stages.add_checkpoint(session, stage_id, fence, stored("checkpoint", data))
                discard(database, store, spent)
            assert not Path(store.path(stored("checkpoint", b"half way").sha256)).exists()

        store.work = two_checkpoints_more
        yield database, store


def test_a_backup_beside_a_training_leaves_out_the_checkpoints_that_had_their_day(
    overtaken: tuple[Database, Overtaken], tmp_path: Path
) -> None:
    database, store = overtaken
    counts = backup(database, store, tmp_path / "all.tar")
    assert counts["checkpoints"] == 0
    copy_url = f"sqlite:///{tmp_path / 'copy.db'}"
    migrate.upgrade(copy_url)
    other = open_store((tmp_path / "other").as_uri())
    with opened(copy_url) as copy:
        restore(copy, other, tmp_path / "all.tar")
        assert doctor(copy, other) == []


@pytest.mark.parametrize("look", [doctor, repair])
def test_a_checkpoint_that_had_its_day_meanwhile_is_no_damage(
    overtaken: tuple[Database, Overtaken], look: Callable[..., list[str]]
) -> None:
    assert look(*overtaken) == []


def test_what_is_put_again_while_it_is_collected_stays(
    database_url: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker comes to the same bytes between the list and the deletion; size and number are of what went."""
    with opened(database_url) as database:
        post(database, transfer())
        held = claim(database)
        again, gone = store.put(held.key.encode()), store.put(b"nobody wants me")
        for sha256 in (again, gone):
            os.utime(store.path(sha256), (0, 0))
        with database.write() as session:
            stages._record_artifacts(session, [stored("weights", held.key)])
        unused = FolderStore.unused

        def listed_before_it_is_put_again(*arguments: Any) -> Any:
            found = list(unused(*arguments))
            assert {one.name for one in found} == {again, gone}
            store.put(held.key.encode())
            return found

        monkeypatch.setattr(FolderStore, "unused", listed_before_it_is_put_again)
        assert collect(database, store, 24.0, dry_run=False) == (1, len(b"nobody wants me"))
        succeed(database, held)
        assert doctor(database, store) == []


def test_a_checkpoint_goes_unless_something_else_refers_to_it(database_url: str, store: FolderStore) -> None:
    with opened(database_url) as database:
        post(database, trainings([0, 1]))
        one, other = claim(database), claim(database)
        for held in (one, other):
            with database.write() as session:
                stages.add_checkpoint(session, held.stage_id, held.fence, stored("checkpoint", one.key))
        kept, gone = store.put(one.key.encode()), store.put(b"gone")
        succeed(database, one)
        discard(database, store, [kept, gone])
        assert store.get(kept) == one.key.encode(), "a result and a checkpoint are these bytes"
        with pytest.raises(ArtifactCorrupt):
            store.get(gone)
        succeed(database, other)
        store.put(other.key.encode())
        discard(database, store, [kept])
        assert doctor(database, store) == []


def test_checkpoints_of_what_did_not_succeed_last_as_long_as_the_grace(database_url: str, store: FolderStore) -> None:
    """A job that revives the stage goes on from them until then."""
    with opened(database_url) as database:
        post(database, trainings([0, 1]))
        failed, running = claim(database), claim(database)
        for held in (failed, running):
            with database.write() as session:
                checkpoint = stored("checkpoint", held.key)
                stages.add_checkpoint(session, held.stage_id, held.fence, checkpoint)
            store.put(held.key.encode())
            os.utime(store.path(checkpoint.sha256), (0, 0))
        factories.fail(database, failed)
        assert collect(database, store, 1.0, dry_run=False) == (0, 0)
        with database.write() as session:
            session.execute(update(Stage).where(Stage.id == failed.stage_id).values(finished_at=time.time() - 7200))
        for dry_run in (True, False):
            assert collect(database, store, 1.0, dry_run=dry_run) == (1, len(failed.key))
        with database.read() as session:
            assert stages.checkpoints(session, failed.stage_id) == []
            assert len(stages.checkpoints(session, running.stage_id)) == 1
        assert doctor(database, store) == []


def test_a_collection_lets_others_write(sqlite_url: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some artifacts at a time: on SQLite a transaction over all of them would keep every worker out."""
    monkeypatch.setattr(database_module, "CHUNK", 1)
    remove = FolderStore.remove
    left: list[int] = []
    with opened(sqlite_url) as database:
        for number in range(3):
            os.utime(store.path(store.put(bytes([number]))), (0, 0))
            with database.write() as session:
                stages._record_artifacts(session, [stored("old", bytes([number]))])

        def counted(*arguments: Any) -> bool:
            with database.write() as session:
                left.append(session.scalar(select(func.count()).select_from(Artifact)) or 0)
            return remove(*arguments)

        monkeypatch.setattr(FolderStore, "remove", counted)
        assert collect(database, store, 24.0, dry_run=False) == (3, 3)
    assert left == [2, 1, 0]


def test_a_writer_and_a_collector_at_once(database_url: str, store: FolderStore) -> None:
    """Whatever is recorded is there, however often the same bytes are put, recorded, forgotten and collected."""
    stop = threading.Event()
    with opened(database_url) as database:

        def collects() -> None:
            while not stop.is_set():
                collect(database, store, 0.0, dry_run=False)

        post(database, trainings(list(range(12))))
        with ThreadPoolExecutor(2) as pool:
            collecting = [pool.submit(collects) for _ in range(2)]
            try:
                while (held := try_claim(database)) is not None:
                    sha256 = put_young(store, held.key.encode())
                    succeed(database, held)
                    assert store.get(sha256) == held.key.encode()
                    for _ in range(5):
                        store.put(b"nobody records me")
            finally:
                stop.set()
            for one in collecting:
                one.result(30)
        assert doctor(database, store) == []


def put_young(store: FolderStore, data: bytes) -> str:
    """Return the sha256 under which data is stored, younger than a collector without grace thinks."""
    young = time.time() + 5
    while True:
        sha256 = store.put(data)
        with store._locked(fcntl.LOCK_SH), suppress(FileNotFoundError):  # no collector is at work now
            os.utime(store.path(sha256), (young, young))
            return sha256


def test_a_rule_that_cannot_be_checked_hides_no_other(
    database_url: str, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor an artifact; and a rule takes as long as it takes."""
    broken = Rule("stage {} is beyond us", text("SELECT no_such_column FROM stages"))
    slow = Rule("slow {}", text("SELECT pg_sleep(0.5) WHERE false"))
    monkeypatch.setattr(database_module, "_POSTGRES_OPTIONS", "-c statement_timeout=300")
    with opened(database_url) as database:
        filled(database, store)
        rules = (broken, *RULES) if database.is_sqlite else (broken, slow, *RULES)
        monkeypatch.setattr(invariants, "RULES", rules)
        with database.write() as session:
            session.execute(delete(Result))
        first, *others = doctor(database, store)
    assert first.startswith("could not be checked: stage ? is beyond us: ")
    assert others
    assert all("without a result" in sentence for sentence in others)


def test_a_store_that_is_away_is_asked_once(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    get = FolderStore.get
    monkeypatch.setattr(FolderStore, "get", lambda *given: (asked.append(given), get(*given))[1])
    with opened(sqlite_url) as database:
        store = FolderStore(tmp_path / "artifacts", Owner(database))
        store.require_ours()
        filled(database, store)
        store._folder.rename(tmp_path / "elsewhere")
        (said,) = doctor(database, store)
    assert len(asked) == 1
    assert re.match(r"\d+ artifacts could not be checked: the artifact store .* has nothing that", said)


def test_an_artifact_that_cannot_be_read_hides_no_other(sqlite_url: str, store: FolderStore) -> None:
    with opened(sqlite_url) as database:
        filled(database, store)
        one, other = sorted(Path(store.path("0" * 64)).parents[2].glob("??/??/*"), key=lambda path: path.name)[:2]
        one.unlink()
        one.mkdir()
        other.write_bytes(b"something else")
        unreadable, altered = doctor(database, store)
    assert unreadable.startswith(f"artifact {one.name} could not be checked: ")
    assert altered == f"artifact {other.name} has been altered in the store"


@pytest.mark.parametrize(
    ("command", "setting", "said"),
    [
        ("backup nowhere/b.tar", "PORT=8000", "No such file or directory: 'nowhere/b.tar.partial'"),
        ("export nowhere/x.zip --job 1", "PORT=8000", "No such file or directory: 'nowhere/x.zip.partial'"),
        ("restore nowhere.tar", "PORT=8000", "there is no file nowhere.tar"),
        ("import nowhere.zip", "PORT=8000", "there is no file nowhere.zip"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, setting: str, said: str,
) -> None:  # fmt: skip
    with opened(sqlite_url) as database:
        post(database, trainings())
        finish(database)
    monkeypatch.chdir(tmp_path)
    for name, value in (("STATE_DIR", "state"), ("DATABASE_URL", sqlite_url), setting.split("=", 1)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(admin, "settings", Settings)
    assert admin.main(command.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.startswith(f"gauntlet {command.split(maxsplit=1)[0]}: ")


def test_the_commands_answer_and_exit(sqlite_url: str, tmp_path: Path) -> None:
    environment = {**os.environ, "DATABASE_URL": sqlite_url, "STATE_DIR": str(tmp_path / "state")}

    def gauntlet(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "client.cli", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "every invariant holds" in gauntlet("doctor").stdout
    assert "0 artifacts" in gauntlet("gc", "--dry-run").stdout
    assert gauntlet("backup", str(tmp_path / "b.tar")).returncode == 0
    again = gauntlet("backup", str(tmp_path / "b.tar"))
    assert (again.returncode, "exists" in again.stderr) == (1, True)
    migrate.downgrade(sqlite_url, "base")
    behind = gauntlet("doctor")
    assert (behind.returncode, "alembic upgrade head" in behind.stderr) == (1, True)


@pytest.mark.parametrize(
    "command", ["doctor", "gc", "backup b.tar", "restore b.tar", "export x.zip --job 1", "import x.zip"]
)
def test_where_no_service_is_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(admin, "settings", lambda: Settings(state_dir=tmp_path / "var"))
    assert admin.main(command.split()) == 1
    error = capsys.readouterr().err
    assert f"there is no database at {tmp_path / 'var' / 'gauntlet.db'}; set STATE_DIR or DATABASE_URL" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "0.5"])
def test_a_collection_spares_what_a_worker_may_be_about_to_record(capsys: pytest.CaptureFixture[str], hours: str):
    with pytest.raises(SystemExit):
        admin.main(["gc", f"--grace-hours={hours}"])
    assert f"argument --grace-hours: {hours}: give at least 1" in capsys.readouterr().err
