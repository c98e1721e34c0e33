"""The keeper's lease: one acts, and a dead one is not waited for longer than a few of its ticks."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from store import keeping, workers
from store.database import db_now
from store.models import Stage
from store.settings import Settings
from tests import factories, servers
from tests.processes import wait_until
from worker import health
from worker.keeper import HOLD_TICKS, REPAIR_EVERY, Keeper


def test_a_dead_keeper_is_waited_for_three_ticks(database_url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, database_url=database_url, state_dir=tmp_path, keeper_seconds=20.0)
    dead, next_one = Keeper(settings), Keeper(settings)
    with factories.opened(database_url) as database:
        dead.tick()
        with database.read() as session:
            left = workers.lease_age(session, workers.KEEPER)
        assert left is not None
        assert 0 < left <= HOLD_TICKS * settings.keeper_seconds
        factories.pass_time(database, HOLD_TICKS * settings.keeper_seconds - 10.0)
        next_one.tick()
        assert next_one._ticks == 0, "it did not wait"
        factories.pass_time(database, 10.0)
        next_one.tick()
        assert next_one._ticks == 1
    for keeper in (dead, next_one):
        keeper.stop()
        keeper.run()


def test_a_broker_that_is_away_is_a_duty_that_cannot_be_done(sqlite_url: str, tmp_path: Path) -> None:
    away = f"redis://127.0.0.1:{servers.free_port()}/0"
    one = Keeper(Settings(_env_file=None, database_url=sqlite_url, state_dir=tmp_path, redis_url=away))
    one.tick()
    wait_until("the broker has been tried", lambda: one._ringer._trouble)
    for _ in range(REPAIR_EVERY):
        one.tick()
    with factories.opened(sqlite_url) as database, database.write() as session:
        session.execute(text("DELETE FROM leases"))
    one.tick()
    with factories.opened(sqlite_url) as database, database.read() as session:
        assert workers.lease_age(session, workers.KEEPER) is not None
        assert workers.lease_age(session, workers.KEPT) is None


@pytest.mark.parametrize("broken", ["orphans", "repair", "unheard", None])
def test_a_duty_that_cannot_be_done_keeps_no_other_from_being_done(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    """Nor from being tried again; how long that goes on is measured."""
    keeper = Keeper(Settings(_env_file=None, database_url=database_url, state_dir=tmp_path))
    tried: list[str] = []

    def watched(name: str) -> Any:
        duty = getattr(keeping, name)

        def do(*arguments: Any) -> Any:
            tried.append(name)
            if name == broken:
                raise OperationalError(name, None, Exception("statement timeout"))
            return duty(*arguments)

        return do

    for name in ("orphans", "repair", "unheard"):
        monkeypatch.setattr(keeping, name, watched(name))
    for _ in range(REPAIR_EVERY + 1):
        keeper.tick()
    assert tried.count("orphans") == tried.count("unheard") == REPAIR_EVERY + 1
    assert tried.count("repair") == 2, "a repair that fails is not tried at every tick instead"
    with factories.opened(database_url) as database, database.read() as session:
        complete = workers.lease_age(session, workers.KEPT)
    assert (complete is None) == (broken is not None)
    keeper.stop()
    keeper.run()


def test_an_orphan_that_cannot_be_taken_back_keeps_no_other_from_it(sqlite_url: str, tmp_path: Path) -> None:
    keeper = Keeper(Settings(_env_file=None, database_url=sqlite_url, state_dir=tmp_path))
    with factories.opened(sqlite_url) as database:
        factories.post(database, factories.trainings([0, 1, 2]))
        held = [factories.claim(database) for _ in range(3)]
        for claim in held:
            factories.expire(database, claim)
        with database.write() as session:
            session.execute(
                text(
                    f"CREATE TRIGGER poison BEFORE UPDATE ON stages WHEN OLD.id = {held[1].stage_id} "
                    "BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
                )
            )
        keeper.tick()
        assert [factories.stage(database, claim.stage_id).state for claim in held] == ["ready", "running", "ready"]
        with database.write() as session:
            assert workers.lease_age(session, workers.KEPT) is None
            session.execute(text("DROP TRIGGER poison"))
        keeper.tick()
        assert factories.stage(database, held[1].stage_id).state == "ready"
        with database.read() as session:
            assert workers.lease_age(session, workers.KEPT) is not None
    keeper.stop()
    keeper.run()


def test_a_lease_of_a_clock_that_was_set_back_ends_in_time(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, database_url=sqlite_url, state_dir=tmp_path)
    keeper = Keeper(settings)
    with factories.opened(sqlite_url) as database:
        factories.post(database, factories.trainings())
        held = factories.claim(database, lease=1e6)
        keeper.tick()
        with database.read() as session:
            left = session.scalar(select(Stage.lease_expires - db_now()).where(Stage.id == held.stage_id))
    assert left is not None
    assert 0 < left <= settings.lease_seconds
    keeper.stop()
    keeper.run()


def test_it_is_healthy_that_does_all_its_duties(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Settings(_env_file=None, database_url=database_url, state_dir=tmp_path)
    monkeypatch.setattr(health, "settings", lambda: chosen)
    late = text("UPDATE leases SET expires = expires - 2 * :seconds WHERE name = :name")
    keeper = Keeper(chosen)
    assert not health.healthy("keeper")
    keeper.tick()
    assert health.healthy("keeper")
    with factories.opened(database_url) as database, database.write() as session:
        session.execute(late, {"seconds": workers.KEPT_SECONDS, "name": workers.KEPT})
    assert not health.healthy("keeper")
    keeper.tick()
    assert health.healthy("keeper")
    keeper.stop()
    keeper.run()
    assert not health.healthy("keeper")
