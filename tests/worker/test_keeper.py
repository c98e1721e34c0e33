"""The keeper's lease: one acts, and a dead one is not waited for longer than a few of its ticks."""

from pathlib import Path

from store import workers
from store.settings import Settings
from tests import factories
from worker.keeper import HOLD_TICKS, LEASE, Keeper


def test_a_dead_keeper_is_waited_for_three_ticks(database_url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, database_url=database_url, state_dir=tmp_path, keeper_seconds=20.0)
    dead, next_one = Keeper(settings), Keeper(settings)
    with factories.opened(database_url) as database:
        dead.tick()
        with database.read() as session:
            left = workers.lease_age(session, LEASE)
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
