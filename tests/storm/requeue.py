"""`python -m tests.storm requeue`: how long orphans wait when many die at once.

Real claims in PostgreSQL, held and renewed by real processes that are all killed in one moment; real keepers take the
stages back. Once with the keepers left alone, once with the acting keeper killed in the same moment.
"""

import argparse
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from store import migrate, stages, workers
from store.database import Database
from store.invariants import violations
from store.models import Attempt, Lease, Stage, StageState
from store.settings import settings
from store.stages import Claim
from tests import factories
from tests.processes import Process, Processes, wait_until
from tests.servers import PostgresServer

PER_HOLDER = 20
"""Claims of one process."""


@dataclass(frozen=True)
class Pace:
    """How often things happen."""

    lease: float
    heartbeat: float
    keeper: float

    def environment(self) -> dict[str, str]:
        """Return the settings."""
        return {
            "LEASE_SECONDS": str(self.lease),
            "HEARTBEAT_SECONDS": str(self.heartbeat),
            "KEEPER_SECONDS": str(self.keeper),
        }


EPILOG = "--out FILE: write the report there too, as often as there is news"
TEST = Pace(lease=2.0, heartbeat=0.4, keeper=0.25)
DEFAULT = Pace(lease=60.0, heartbeat=10.0, keeper=1.0)


def hold(name: str, number: int) -> None:
    """Hold `number` stages, renewed at every heartbeat as a worker renews its one, until killed."""
    chosen = settings()
    database = Database(chosen.sql_url)
    held: list[Claim] = []
    while True:
        with database.write() as session:
            held = [
                claim for claim in held if stages.renew(session, *_fence(claim), chosen.lease_seconds, None) is False
            ]
            while len(held) < number and (new := stages.claim(session, ["cpu"], name, chosen.lease_seconds)):
                held.append(new)
        time.sleep(chosen.heartbeat_seconds)


def _fence(claim: Claim) -> tuple[int, int]:
    return claim.stage_id, claim.fence


def measure(pace: Pace, orphans: int, folder: Path, *, keeper_dies: bool) -> dict[str, Any]:
    """Return how long `orphans` stages waited whose holders were killed together."""
    with PostgresServer() as postgres:
        url = postgres.create_database("requeue")
        migrate.upgrade(url)
        with Processes(folder, {"DATABASE_URL": url, **pace.environment()}) as service:
            database = Database(url)
            for first in range(0, orphans, PER_HOLDER):
                factories.post(database, factories.trainings(range(first, min(first + PER_HOLDER, orphans))))
            service.start("keeper", "keeper2")
            holders = _holders(service, orphans)
            wait_until("every stage is held", lambda: _held(database) == orphans, 120)
            time.sleep(2 * pace.heartbeat)
            victims = [*holders, *([_acting(service, database)] if keeper_dies else [])]
            killed = time.time()
            for victim in victims:
                os.kill(victim.pid, signal.SIGKILL)
            wait_until("all are ready again", lambda: not _held(database), 2 * pace.lease + 60, every=0.2)
            with database.read() as session:
                since = select(Attempt.ended_at).where(Attempt.outcome == "lost", Attempt.ended_at > killed)
                delays = [at - killed for at in session.scalars(since) if at is not None]
                wrong = violations(session)
            database.close()
    return {
        "lease_seconds": pace.lease, "heartbeat_seconds": pace.heartbeat, "keeper_seconds": pace.keeper,
        "keeper_killed": keeper_dies, "orphans": len(delays), "violations": wrong, **percentiles(delays),
    }  # fmt: skip


def _holders(service: Processes, orphans: int) -> list[Process]:
    """Start the processes that hold the claims."""
    script = "import sys; from tests.storm.requeue import hold; hold(sys.argv[1], int(sys.argv[2]))"
    return [
        Process(
            f"holder{first}",
            [sys.executable, "-c", script, f"holder{first}", str(min(PER_HOLDER, orphans - first))],
            service.folder,
            service.environment,
        )
        for first in range(0, orphans, PER_HOLDER)
    ]


def _acting(service: Processes, database: Database) -> Process:
    """Return the keeper that holds the lease; the log of each begins with its name."""
    with database.read() as session:
        owner = session.scalar(select(Lease.owner).where(Lease.name == workers.KEEPER))
    names = ("keeper", "keeper2")
    found = [service[name] for name in names if f"keeper {str(owner)[:8]}" in service[name].log]
    assert len(found) == 1, "no keeper says that it holds the lease"
    return found[0]


def _held(database: Database) -> int:
    """Return how many stages run."""
    with database.read() as session:
        return session.scalar(select(func.count()).where(Stage.state == StageState.RUNNING)) or 0


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, the tail and the largest."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    named = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(seconds)}
    return {name: round(value, 3) for name, value in named.items()}


def sound(run: dict[str, Any]) -> bool:
    """Return whether the 99th percentile is within a second of the lease, and nothing broke."""
    return run["p99"] <= run["lease_seconds"] + 1.0 and not run["violations"]


def main(arguments: list[str], folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the report and whether every run was sound."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm requeue", description=__doc__, epilog=EPILOG)
    parser.add_argument("--orphans", type=int, default=120)
    parser.add_argument("--default-settings", action="store_true", help="also with a lease of 60 s")
    options = parser.parse_args(arguments)
    paces = [TEST, DEFAULT] if options.default_settings else [TEST]
    runs = [
        measure(pace, options.orphans, folder / f"{pace.lease}-{keeper_dies}", keeper_dies=keeper_dies)
        for pace in paces
        for keeper_dies in (False, True)
    ]
    return {"runs": runs}, all(sound(run) for run in runs)
