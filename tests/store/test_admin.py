"""Doctor, garbage collection, backup and restore, on real databases and real folders."""

import os
import subprocess
import sys
import time
from pathlib import Path

import obstore
import pytest
from sqlalchemy import delete, func, select, update

from core.errors import ArtifactCorrupt
from store import migrate, stages
from store.admin import collect, doctor
from store.artifacts import ArtifactStore, FolderStore, open_store, place_of
from store.backup import LEFT_OUT, BackupError, backup, referenced, restore
from store.database import Database
from store.models import Artifact, Base, Result, Stage
from store.s3 import BucketStore
from tests.factories import claim, finish, opened, post, stored, transfer

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
        with copy.write() as session:
            assert len(stages.reap(session, 5)) == 1
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
    assert (behind.returncode, "alembic upgrade head" in behind.stdout) == (1, True)
