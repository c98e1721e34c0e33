"""What both databases must do alike: JSON, clocks, writers, roll-back."""

import math
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from store import stages
from store.database import Database, db_now, insert_new, to_json
from store.models import STAGES, Result, Stage, StageParent
from store.settings import Settings
from tests import factories

ODD = {
    "nan": math.nan,
    "inf": [math.inf, -math.inf],
    "deep": {"a": ({"b": math.nan},)},
    "plain": [1, 2.5, 1e-300, True, None, "NaN", "ä\u2028"],
}
STORED = {
    "nan": "NaN",
    "inf": ["Infinity", "-Infinity"],
    "deep": {"a": [{"b": "NaN"}]},
    "plain": [1, 2.5, 1e-300, True, None, "NaN", "ä\u2028"],
}


def test_nan_and_infinity_survive_the_round_trip(database: Database):
    factories.post(database, factories.trainings())
    held = factories.claim(database)
    with database.write() as session:
        stages.renew(session, held.stage_id, held.fence, 60.0, {"done": 1, "total": 2, "loss": math.nan})
        stages.succeed(session, held.stage_id, held.fence, ODD, {"x": math.inf}, [])
    with database.read() as session:
        found = session.get_one(Result, held.stage_id)
        assert (found.payload, found.environment) == (STORED, {"x": "Infinity"})
        assert session.get_one(Stage, held.stage_id).progress == {"done": 1, "total": 2, "loss": "NaN"}


def test_json_text_has_no_nan():
    assert to_json(ODD["deep"]) == '{"a": [{"b": "NaN"}]}'
    assert to_json({"a\x00": "b\x00", "c": "\ud800"}) == '{"a\ufffd": "b\ufffd", "c": "?"}'


@pytest.mark.parametrize("number", [0.1, 1e-8, 3e-5, 123456.789, 1e22, 2**53 + 1, 0.30000000000000004])
def test_numbers_of_specs_come_back_exactly(database: Database, number: float):
    """A stage's key is the hash of its spec: a digit lost in the database would make it another stage."""
    factories.post(database, factories.trainings())
    held = factories.claim(database)
    factories.succeed(database, held)
    with database.write() as session:
        session.execute(update(Stage).values(spec={"number": number}))
    with database.read() as session:
        assert session.scalar(select(Stage.spec)) == {"number": number}


def test_rows_that_are_new_are_inserted_as_they_are(unchecked: Database):
    odd = [("null", None, 0.30000000000000004), ("{'\"}", 0, 1e22), ("\\u2028 ä\u2028", 2**31, 5e-324), ("", 1, 0.1)]
    rows = [
        {
            "key": f"{number:064x}", "kind": "train", "title": title, "spec": {"flop": flop, "title": title, "a": None},
            "recipe": None, "seed": seed, "dataset": "mnist", "queue": "cpu", "state": "blocked", "priority": -1,
            "flop": flop,
        }
        for number, (title, seed, flop) in enumerate(odd)
    ]  # fmt: skip
    with unchecked.write() as session:
        insert_new(session, STAGES, rows[:2], created_at=db_now())
        insert_new(session, STAGES, [{**rows[1], "title": "another"}, *rows[2:]], created_at=db_now())
        insert_new(session, STAGES, [], created_at=db_now())
    with unchecked.read() as session:
        found = session.scalars(select(Stage).order_by(Stage.key)).all()
    assert [{name: getattr(stage, name) for name in rows[0]} for stage in found] == rows
    assert all(stage.created_at > 1e9 for stage in found)
    assert {(stage.fence, stage.cancel_requested, stage.error) for stage in found} == {(0, False, None)}


def test_the_database_clock_ticks_in_seconds_since_1970(database: Database):
    with database.read() as session:
        first = session.scalar(select(db_now())) or 0.0
        time.sleep(0.05)
        second = session.scalar(select(db_now())) or 0.0
    assert abs(first - time.time()) < 5
    assert 0.03 < second - first < 5


def test_a_block_that_raises_changes_nothing(database: Database):
    before = factories.everything(database)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        factories.submit(session)
        raise ZeroDivisionError
    assert factories.everything(database) == before


def test_foreign_keys_are_enforced(database: Database):
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(StageParent(stage_id=10**9, parent_id=10**9 + 1))


def test_writers_wait_for_each_other(database: Database):
    """A SQLite transaction that reads and then writes would else fail at once."""
    factories.post(database, factories.trainings())
    start = threading.Barrier(4)

    def add_one(_: Any) -> None:
        start.wait(10)
        for _ in range(10):
            with database.write() as session:
                found = session.scalars(select(Stage).with_for_update()).one()
                found.priority += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one, range(4)))
    with database.read() as session:
        assert session.scalar(select(Stage.priority)) == 40


def test_sqlite_is_set_up_for_many_processes(sqlite_url: str):
    with factories.opened(sqlite_url) as database, database.read() as session:
        found = {
            name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "foreign_keys", "synchronous")
        }
        assert found == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2}
        assert session.scalar(text("PRAGMA busy_timeout")) >= 10_000


def test_postgresql_holds_no_transaction_for_ever(postgres: Database):
    with postgres.read() as session:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        assert all(session.scalar(text(f"SHOW {name}")) not in ("0", None) for name in names)
        assert session.scalar(text("SHOW transaction_isolation")) == "read committed"


def test_a_network_that_is_cut_off_is_noticed_within_a_lease(postgres: Database):
    """What the kernel was told about the connection: probes when it is idle, and a limit on what is unanswered."""
    with postgres.read() as session:
        raw: Any = session.connection().connection.dbapi_connection
        with socket.socket(fileno=os.dup(raw.fileno())) as line:
            unanswered = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
            idle, every, count = (
                line.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    chosen = Settings.model_fields
    patience = chosen["lease_seconds"].default - chosen["heartbeat_seconds"].default
    assert 0 < unanswered < patience
    assert 0 < idle + every * count < patience


def test_a_database_that_takes_no_writes_is_away(postgres: Database):
    """It passes, as a failover does: not the program's fault, though psycopg calls it an internal error."""
    with pytest.raises(OperationalError, match="read-only"), postgres.write() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        factories.submit(session)


def test_a_writer_of_sqlite_waits_as_long_as_it_is_told(sqlite_url: str):
    impatient = Database(sqlite_url, 0.05)
    with factories.opened(sqlite_url) as holder, holder.write() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="locked"):
            factories.post(impatient)
    impatient.close()


def test_a_uri_makes_no_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Database(f"sqlite:///file:{tmp_path}/there.db?mode=ro&uri=true").close()
    assert list(tmp_path.iterdir()) == []
