"""`python -m tests.storm`: a storm of faults over real stages, then the count: lost, duplicate, stale.

Two APIs, two keepers and four workers on one PostgreSQL and one Redis. Jobs are posted all the time; processes are
killed and stopped past their leases, messages lost, both servers restarted and crashed. When the storm is over every
job must succeed, the invariants must hold, and every number must be that of the undisturbed run, which this process
computes by calling core. With --control the workers' writes leave the fence out: then something must be wrong.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from client.api import ApiRefused
from store import migrate
from store.database import Database
from store.invariants import violations
from store.models import Attempt, Evaluation, Job, Result, Stage
from tests.processes import Processes, wait_until
from tests.servers import PostgresServer, RedisServer
from tests.storm.faults import Room
from tests.worker.calm import calm

LEASE_SECONDS = 2.0
WORKERS = ("worker", "worker2", "worker3", "worker4")
BACKLOG = 30
"""Stages that wait, at least, while the storm blows."""
CALM_DOWN_SECONDS = 300.0
ENVIRONMENT = {
    "HEARTBEAT_SECONDS": "0.4", "LEASE_SECONDS": str(LEASE_SECONDS), "KEEPER_SECONDS": "0.25",
    "CHECKPOINT_SECONDS": "0.3", "MAX_LOSSES": "1000", "MAX_FAILURES": "1000", "CPU_THREADS": "1",
}  # fmt: skip


def spec(seed: int) -> dict[str, Any]:
    """Return a small real job: two models, a transfer; every third trains long enough to be killed in the middle."""
    schedule = {"iterations": 150 if seed % 2 == 0 else 6, "batch_size": 4}
    return {
        "dataset": "mnist-mini", "training": schedule, "seeds": [seed], "limit": 10,
        "defenses": [{"kind": "natural"}], "attacks": [{"kind": "none"}, {"kind": "ifgsm", "steps": 2}],
        "substitutes": [{"kind": "fgsm_adv"}], "transfer": [{"kind": "fgsm"}],
    }  # fmt: skip


def storm(seconds: float, faults: int, seed: int, *, fenced: bool, folder: Path) -> dict[str, Any]:
    """Return what a storm of `faults` faults, `seconds` long at most, left behind."""
    dice = random.Random(seed)
    with PostgresServer() as postgres, RedisServer() as redis:
        url = postgres.create_database("storm")
        migrate.upgrade(url)
        environment = {**ENVIRONMENT, "DATABASE_URL": url, "REDIS_URL": redis.url}
        if not fenced:
            root = Path(__file__).parents[2]
            environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).with_name("unfenced")), str(root)])
        with Processes(folder / "a", environment) as service, Processes(folder / "b", environment) as other:
            other.environment["STATE_DIR"] = service.environment["STATE_DIR"]
            service.start("api", "keeper", "keeper2", *WORKERS)
            other.start("api")
            wait_until("both APIs answer", lambda: service.client.ready() and other.client.ready(), 60)
            database = Database(url)
            room = Room(service, other, postgres, redis, database, dice, WORKERS)
            began = time.monotonic()
            posted = _blow(room, seconds, faults)
            blown = time.monotonic() - began
            room.calm_down()
            _wait_for_the_end(room)
            report = _count(room, posted)
            database.close()
            return {"fenced": fenced, "seed": seed, "faults": sum(room.counts.values()), "by_fault": room.counts,
                    "storm_seconds": round(blown, 1), **report}  # fmt: skip


def _blow(room: Room, seconds: float, faults: int) -> list[int]:
    """Return the seeds of the jobs posted while the faults came."""
    posted: list[int] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until and sum(room.counts.values()) < faults:
        _keep_busy(room, posted)
        room.strike()
        time.sleep(room.dice.uniform(0.2, 1.5))
        room.recover()
    return posted


def _keep_busy(room: Room, posted: list[int]) -> None:
    """Post the next job, under an Idempotency-Key, where little is left to do. Whoever answers, it is one job."""
    try:
        with room.database.read() as session:
            waiting = session.scalar(select(func.count()).where(Stage.state.in_(["ready", "blocked", "running"])))
    except Exception:
        return
    if (waiting or 0) >= BACKLOG:
        return
    seed = len(posted)
    for _ in range(100):
        api = room.dice.choice((room.service, room.other_api)).client
        try:
            api.post_job(spec(seed), key=f"storm-{seed}")
        except (httpx.HTTPError, ApiRefused):
            time.sleep(0.1)
            room.recover()
        else:
            posted.append(seed)
            return
    raise AssertionError(f"job {seed} could not be posted")


def _wait_for_the_end(room: Room) -> None:
    """Return when no job is live, or when that has taken too long: what is left then counts as lost."""
    deadline = time.monotonic() + CALM_DOWN_SECONDS
    while time.monotonic() < deadline:
        room.recover()
        with room.database.read() as session:
            live = session.scalar(select(func.count()).where(Job.finished_at.is_(None)))
        if not live:
            return
        time.sleep(0.5)


def _count(room: Room, posted: list[int]) -> dict[str, Any]:
    with room.database.read() as session:
        jobs = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        number = session.scalar(select(func.count()).select_from(Stage)) or 0
        succeeded = select(Attempt.stage_id, func.max(Attempt.fence), func.count()).where(
            Attempt.outcome == "succeeded"
        )
        wins = {row[0]: (row[1], row[2]) for row in session.execute(succeeded.group_by(Attempt.stage_id))}
        results = dict(session.execute(select(Result.stage_id, Result.fence)).all())
        outcomes = dict(session.execute(select(Attempt.outcome, func.count()).group_by(Attempt.outcome)).all())
        wrong = violations(session)
        counts = select(Stage.key, Evaluation.n, Evaluation.n_correct).join(Stage, Stage.id == Evaluation.stage_id)
        found = {row.key: (row.n, row.n_correct) for row in session.execute(counts)}
        again = _requeues(room, session)
    different = _differences(posted, found)
    return {
        "jobs": jobs,
        "posted": len(posted),
        "stages": number,
        "attempts": {str(outcome): count for outcome, count in outcomes.items()},
        "lost": number - len(results) + sum(count for state, count in jobs.items() if state != "succeeded"),
        "duplicate": sum(count - 1 for _, count in wins.values()) + abs(sum(jobs.values()) - len(posted)),
        "stale": sum(wins.get(stage, (None, 0))[0] != fence for stage, fence in results.items()),
        "violations": wrong[:20],
        "different_from_calm": different,
        "requeue_seconds": again,
    }


def _requeues(room: Room, session: Any) -> dict[str, float]:
    """Return how long after the SIGKILL of its process an orphaned stage was ready again: count and percentiles."""
    ended = {
        (row.stage_id, row.fence): row.ended_at
        for row in session.execute(
            select(Attempt.stage_id, Attempt.fence, Attempt.ended_at).where(Attempt.outcome == "lost")
        )
    }
    delays = sorted(ended[held] - at for held, at in room.killed_at.items() if held in ended)
    if len(delays) < 2:
        return {"orphans": len(delays)}
    cuts = statistics.quantiles(delays, n=100, method="inclusive")
    return {"orphans": len(delays), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": delays[-1]}


def _differences(posted: list[int], found: dict[str, tuple[int, int]]) -> int:
    """Return how many evaluations differ from the undisturbed run, which is computed here and now."""
    different = 0
    for seed in posted:
        for key, outcome in calm(spec(seed)).outcomes.items():
            if "n_correct" in outcome.payload:
                different += found.get(key) != (outcome.payload["n"], outcome.payload["n_correct"])
    return different


def sound(report: dict[str, Any]) -> bool:
    """Return whether nothing was lost, doubled, stale, in violation or different."""
    return not any(report[name] for name in ("lost", "duplicate", "stale", "violations", "different_from_calm"))


def main() -> int:
    """Return 0 where the storm left nothing behind and the control did."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="length at most")
    parser.add_argument("--faults", type=int, default=1_000_000, help="faults at most")
    parser.add_argument("--control-seconds", type=float, default=60.0, help="length of the control, 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the report here")
    options = parser.parse_args()
    report: dict[str, Any] = {"command": f"python -m tests.storm {' '.join(sys.argv[1:])}", "commit": _commit()}
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        report |= storm(options.seconds, options.faults, options.seed, fenced=True, folder=Path(folder) / "storm")
        print(json.dumps(report, indent=1), flush=True)
        if options.control_seconds:
            control = storm(options.control_seconds, 10**6, options.seed, fenced=False, folder=Path(folder) / "control")
            report["control"] = control
            print(json.dumps(control, indent=1), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    powerless = options.control_seconds and sound(report["control"])
    if powerless:
        print("the control without fences found nothing wrong: this storm has no power", file=sys.stderr)
    return 0 if sound(report) and not powerless else 1


def _commit() -> str:
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
