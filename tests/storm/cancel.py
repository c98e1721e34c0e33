"""`python -m tests.storm cancel`: how long a cancelled job keeps its worker, at the default heartbeat of 10 s.

Long trainings and long attacks run on real workers; each is cancelled at a random moment of a heartbeat. Measured from
the request to the end of the attempt by the database's clock, and to the moment the worker says that it is free.
"""

import argparse
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import select

from client.api import Client
from store import migrate
from store.database import Database
from store.invariants import violations
from store.models import Attempt, Stage, Worker
from tests.processes import Processes, wait_until
from tests.servers import PostgresServer, RedisServer
from tests.storm.requeue import EPILOG, percentiles

PROMISED_SECONDS = 15.0
LONGEST_SECONDS = 120.0
SMALL: dict[str, Any] = {"dataset": "mnist-mini", "seeds": [0], "limit": 200, "defenses": [{"kind": "natural"}]}
MODEL = {**SMALL, "kind": "benchmark", "training": {"iterations": 1, "batch_size": 4}, "substitutes": []}


def training(number: int) -> dict[str, Any]:
    """Return a training that would take hours, of a seed that no other has."""
    schedule = {"iterations": 10_000_000, "batch_size": 64}
    small = {name: value for name, value in SMALL.items() if name != "limit"}
    return {**small, "kind": "train", "seeds": [1000 + number], "training": schedule}


def attack(number: int) -> dict[str, Any]:
    """Return an attack that would take hours, with a radius that no other has, on a model of one iteration."""
    pgd = {"kind": "pgd", "eps": 0.3 + number / 10_000, "steps": 10_000, "step_size": 0.01, "restarts": 100}
    return {**MODEL, "attacks": [pgd]}


class Cancelled:
    """Cancels jobs one after the other and notes how long each took."""

    def __init__(self, client: Client, database: Database, heartbeat: float, seed: int):
        self._client = client
        self._database = database
        self._heartbeat = heartbeat
        self._dice = random.Random(seed)

    def one(self, spec: dict[str, Any]) -> tuple[float, float]:
        """Return the seconds from the request to the end of the attempt, and until the worker is free."""
        job = self._client.post_job(spec)
        kind = "train" if spec["kind"] == "train" else "craft"
        key = next(stage["key"] for stage in job["stages"] if stage["kind"] == kind)
        wait_until(f"{kind} {key[:8]} runs", lambda: self._attempt(key), LONGEST_SECONDS)
        time.sleep(self._dice.uniform(0.5, self._heartbeat + 1))
        asked = time.time()
        self._client.cancel(job["id"])
        wait_until("it is free", lambda: self._is_free(key), LONGEST_SECONDS, every=0.02)
        free = time.time()
        ended = self._attempt(key)
        assert ended is not None and ended[1] is not None
        return ended[1] - asked, free - asked

    def _attempt(self, key: str) -> tuple[int, float | None] | None:
        with self._database.read() as session:
            row = session.execute(
                select(Stage.id, Attempt.ended_at)
                .join(Attempt, Attempt.stage_id == Stage.id)
                .where(Stage.key == key)
                .order_by(Attempt.fence.desc())
            ).first()
        return None if row is None else (row[0], row[1])

    def _is_free(self, key: str) -> bool:
        found = self._attempt(key)
        with self._database.read() as session:
            busy = session.scalar(select(Worker.pid).join(Stage, Stage.id == Worker.stage_id).where(Stage.key == key))
        return found is not None and found[1] is not None and busy is None


def measure(cancels: int, workers: int, heartbeat: float, seed: int, folder: Path) -> dict[str, Any]:
    """Return how long `cancels` trainings and as many attacks took to stop."""
    names = [f"worker{number}" for number in range(1, workers + 1)]
    with PostgresServer() as postgres, RedisServer() as redis:
        url = postgres.create_database("cancel")
        migrate.upgrade(url)
        pace = {"HEARTBEAT_SECONDS": str(heartbeat), "LEASE_SECONDS": str(6 * heartbeat), "CHECKPOINT_SECONDS": "60"}
        environment = {"DATABASE_URL": url, "REDIS_URL": redis.url, **pace}
        with Processes(folder, environment) as service:
            database = Database(url)
            service.start("api", "keeper", *names)
            wait_until("the API answers", service.client.ready, 60)
            wait_until("the workers", lambda: len(service.workers()) == workers, 120)
            service.succeeded(service.post({**MODEL, "attacks": [{"kind": "none"}]}))
            by_kind = {
                kind: _many(service, database, heartbeat, seed, workers, [spec(number) for number in range(cancels)])
                for kind, spec in (("training", training), ("attack", attack))
            }
            with database.read() as session:
                wrong = violations(session)
            database.close()
    return {"heartbeat_seconds": heartbeat, "workers": workers, "cores": os.cpu_count(), "violations": wrong,
            "cancels": 2 * cancels, **by_kind}  # fmt: skip


def _many(
    service: Processes, database: Database, heartbeat: float, seed: int, workers: int, specs: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the percentiles of cancelling each job, as many at a time as there are workers."""
    cancelled = Cancelled(service.client, database, heartbeat, seed)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(cancelled.one, specs))
    return {
        "cancels": len(found),
        "attempt_ended_seconds": percentiles([ended for ended, _ in found]),
        "worker_free_seconds": percentiles([free for _, free in found]),
    }


def sound(run: dict[str, Any]) -> bool:
    """Return whether the 99th percentile keeps the promise, and nothing broke."""
    tails = [run[kind]["worker_free_seconds"]["p99"] for kind in ("training", "attack")]
    return max(tails) <= PROMISED_SECONDS and not run["violations"]


def main(arguments: list[str], folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the report and whether it was sound."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm cancel", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cancels", type=int, default=50, help="of trainings, and as many of attacks")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--heartbeat", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    run = measure(options.cancels, options.workers, options.heartbeat, options.seed, folder)
    return run, sound(run)
