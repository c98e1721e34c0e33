"""A database that does not answer for a moment, when a stage reads what it needs and when it ends, is waited for."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from core.errors import SpecError
from store import stages
from store.artifacts import open_store
from store.broker import Ringer, celery_app
from store.database import Database
from store.settings import Settings
from store.stages import Claim
from tests import factories
from worker.runner import StageContext, StageRunner
from worker.watch import Watch

AWAY_SECONDS = 0.6


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    with factories.opened(sqlite_url) as database:
        yield database


@pytest.fixture
def runner(sqlite_url: str, database: Database, tmp_path: Path) -> StageRunner:
    chosen = Settings(database_url=sqlite_url, state_dir=tmp_path)
    return StageRunner(chosen, database, open_store(chosen.artifacts), Ringer(celery_app(chosen)))


@contextmanager
def away(database: Database, table: str) -> Iterator[None]:
    """Take a table away, which SQLite calls an operational error, and bring it back meanwhile."""

    def rename(old: str, new: str) -> None:
        with database.write() as session:
            session.execute(text("PRAGMA legacy_alter_table=ON"))
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename(table, "hidden")
    back = threading.Timer(AWAY_SECONDS, rename, ("hidden", table))
    back.start()
    yield
    back.join()


def a_watch(claim: Claim) -> Watch:
    return Watch(claim, time.monotonic(), 60, lambda *_: None)


READS: dict[str, Callable[[StageContext, str], object]] = {
    "parent": lambda context, parent: context.parent(parent).spec.identity() == parent,
    "checkpoints": lambda context, _: list(context.checkpoints()) == [],
}


@pytest.mark.parametrize("read", READS)
def test_reading(database: Database, runner: StageRunner, read: str) -> None:
    factories.post(database)
    train = factories.claim(database)
    factories.succeed(database, train)
    first = factories.claim(database)
    with database.write() as session:
        stages.release(session, first.stage_id, first.fence)
    claim = factories.claim(database)  # a second attempt, which may have checkpoints
    watch = a_watch(claim)
    with away(database, "stages" if read == "parent" else "checkpoints"):
        assert READS[read](StageContext(runner, claim, watch), train.key)
    said = [line for _, line in watch.take_lines()]
    assert said[0].startswith("waits, what it needs cannot be read: ")
    assert said[-1].startswith("goes on after ")


@pytest.mark.parametrize(
    ("told", "state"), [(None, "failed"), ("drain", "ready"), ("cancel", "ready")], ids=["fails", "drains", "stops"]
)
def test_ending(
    database: Database, runner: StageRunner, monkeypatch: pytest.MonkeyPatch, told: str | None, state: str
) -> None:
    """How an attempt ended is recorded late, not lost: no loss is counted."""
    factories.post(database)
    claim = factories.claim(database)
    watch = a_watch(claim)

    def ends(_: Claim, seen: Watch) -> None:
        if told:
            seen.stop(told)
        seen.check()
        raise SpecError("impossible")

    monkeypatch.setattr(runner, "_compute", ends)
    with away(database, "stages"):
        runner.run(claim, watch)
    row = factories.stage(database, claim.stage_id)
    assert (row.state, row.losses) == (state, 0)
    with database.read() as session:
        said = [line.line for line in stages.log_of(session, claim.stage_id, 0, 10)]
    assert said
