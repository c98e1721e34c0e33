"""`python -m worker.keeper`: takes back expired leases, rings unheard bells, mends roll-ups.

A loop, not a job. Any number may run; a lease row lets one act.
"""

import argparse
import logging
import signal
import time
import uuid
from collections.abc import Callable
from functools import partial

from store import keeping, logs, workers
from store.broker import Ringer, celery_app
from store.crashpoints import crashpoint
from store.database import Database
from store.settings import Settings, settings
from store.stages import Bell
from worker.patience import await_schema

log = logging.getLogger(__name__)

HOLD_TICKS = 3
"""Ticks that a dead keeper keeps the others waiting. Two that act at once do no harm: every row is locked."""
RESEND_SECONDS = 3.0
REPAIR_EVERY = 5


class Keeper:
    """The loop that keeps every stage moving."""

    def __init__(self, chosen: Settings):
        self._settings = chosen
        self._owner = uuid.uuid4().hex
        self._database = Database(chosen.sql_url)
        self._ringer = Ringer(celery_app(chosen))
        self._stopping = False
        self._ticks = 0
        self._failing: set[str] = set()
        """Duties that could not be done when they were last tried."""
        self._repaired = 0
        """Id of the last blocked stage looked at."""

    def run(self) -> None:
        """Tick until stopped; a database that is away is waited for."""
        log.info("keeper %s looks every %s s", self._owner[:8], self._settings.keeper_seconds)
        while not self._stopping:
            try:
                self.tick()
            except Exception as error:
                log.warning("keeper: %s", error)
            time.sleep(self._settings.keeper_seconds)
        self._let_go()
        self._ringer.close()

    def stop(self, *_: object) -> None:
        """Ask the loop to end. Safe inside a signal handler, as setting an event is not: its lock may be held."""
        self._stopping = True

    def _let_go(self) -> None:
        """Let the next keeper act at once."""
        try:
            with self._database.write() as session:
                workers.hold(session, workers.KEEPER, self._owner, 0)
        except Exception as error:
            log.warning("keeper: %s", error)

    def tick(self) -> None:
        """Act once, if this keeper holds the lease. A duty that cannot be done keeps no other from being done."""
        with self._database.write() as session:
            if not workers.hold(session, workers.KEEPER, self._owner, HOLD_TICKS * self._settings.keeper_seconds):
                return
        self._ticks += 1
        rare = [self._repair, self._forget, self._reach_the_broker] if self._ticks % REPAIR_EVERY == 1 else []
        bells: list[Bell] = []
        for duty in (self._reap, *rare, self._hear):
            name = duty.__name__.strip("_").replace("_", " ")
            self._failing.discard(name)
            bells += self._do(name, duty)
        crashpoint("in-dispatch")
        self._ringer.ring(bells)
        if not self._failing:
            with self._database.write() as session:
                workers.hold(session, workers.KEPT, self._owner, 0)

    def _do(self, name: str, duty: Callable[[], list[Bell]], to: str = "") -> list[Bell]:
        """Return the bells of a duty, or of a part of it, none where it could not be done."""
        try:
            return duty()
        except Exception as error:
            log.warning("keeper could not %s%s: %s", name, to, error)
            self._failing.add(name)
            return []

    def _reap(self) -> list[Bell]:
        """Take back each orphan in a transaction of its own: one that cannot be keeps no other from it."""
        with self._database.write() as session:
            keeping.shorten(session, self._settings.lease_seconds)
            orphans = keeping.orphans(session)
        return [
            bell
            for stage_id in orphans
            for bell in self._do("reap", partial(self._take_back, stage_id), f" stage {stage_id}")
        ]

    def _take_back(self, stage_id: int) -> list[Bell]:
        with self._database.write() as session:
            bells = keeping.reap(session, stage_id, self._settings.max_losses)
            crashpoint("in-reaper")
        return bells

    def _repair(self) -> list[Bell]:
        with self._database.write() as session:
            among = keeping.next_blocked(session, self._repaired) or keeping.next_blocked(session, 0)
            self._repaired = among.stop - 1 if among else 0  # a part that cannot be mended is not all there is
            mended, count = keeping.repair(session, among)
        if count:
            log.error("mended %d stranded stages or jobs; this points to a bug", count)
        return mended

    def _forget(self) -> list[Bell]:
        with self._database.write() as session:
            workers.forget_old(session)
        return []

    def _reach_the_broker(self) -> list[Bell]:
        if trouble := self._ringer.trouble():
            raise trouble
        return []

    def _hear(self) -> list[Bell]:
        """Return bells to ring again, noted or not: one too many does no harm."""
        bells: list[Bell] = []
        try:
            with self._database.write() as session:
                bells = keeping.unheard(session, self._settings.alive_seconds, RESEND_SECONDS)
        except Exception as error:
            if not bells:
                raise
            log.warning("keeper rings what it could not note: %s", error)
        return bells


def main() -> None:
    """Run the keeper until SIGTERM or SIGINT."""
    argparse.ArgumentParser(prog="python -m worker.keeper", description=__doc__).parse_args()
    logs.to_stderr()
    await_schema(settings().sql_url)
    keeper = Keeper(settings())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.stop)
    keeper.run()


if __name__ == "__main__":
    main()
