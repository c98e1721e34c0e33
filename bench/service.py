"""`python -m bench service`: what the service itself costs, with real processes on a real PostgreSQL and a real Redis.

Each row is measured from outside, or from what SQL recorded: n, median, p95, p99, beside the aim of the design. The
databases' fsync is off, as in the tests; one loopback, one machine for load and service, so a busy machine says little.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import select

from bench import load, pairs, rows
from bench.pairs import Bare
from core.compute import keep_freed_memory
from core.execution import Execution
from core.stages.train import Train
from store import migrate, stages
from store.artifacts import FolderStore
from store.database import Database
from store.models import Attempt, Event, Result, Stage
from tests.processes import Processes, wait_until
from tests.servers import PostgresServer, RedisServer
from worker.devices import device_class, device_name

MOST_SEEDS = 100
"""What the API takes in one job."""
DEFAULTS = {
    "HEARTBEAT_SECONDS": "10", "LEASE_SECONDS": "60", "KEEPER_SECONDS": "1", "CHECKPOINT_SECONDS": "60",
    "CPU_THREADS": "1",
}  # fmt: skip
RATE, CONNECTIONS = 50, 500
CLAIMERS = 8


def figure(name: str, unit: str, values: Sequence[float], aim: str = "", met: bool | None = None) -> dict[str, Any]:
    """Return a row: n, median, p95 and p99 of the values, in that unit; `met` where the aim was reached."""
    return {
        "name": name, "unit": unit, "n": len(values), "median": statistics.median(values),
        "p95": percentile(values, 95), "p99": percentile(values, 99), "aim": aim, "met": met,
    }  # fmt: skip


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def training(number: int, many: int = 1) -> dict[str, Any]:
    """Return a job of trainings, one iteration each, that nobody has asked for."""
    return {
        "kind": "train", "dataset": "mnist-mini", "device": "cpu", "training": {"iterations": 1, "batch_size": 2},
        "defenses": [{"kind": "natural", "label_smoothing": i / 1000} for i in range(math.ceil(many / MOST_SEEDS))],
        "seeds": list(range(number, number + min(many, MOST_SEEDS))),
    }  # fmt: skip


def suite(number: int) -> dict[str, Any]:
    """Return a job of 2,000 stages: 200 models, clean and under four attacks."""
    return {
        "dataset": "mnist-mini", "training": {"iterations": 1, "batch_size": 2}, "limit": 10, "substitutes": [],
        "defenses": [{"kind": "fgsm_adv", "eps": f"{10 * number + i + 1}/1000"} for i in range(10)],
        "seeds": list(range(20)), "device": "cpu",
        "attacks": [{"kind": "none"}, {"kind": "fgsm"}, *({"kind": "ifgsm", "steps": k} for k in (10, 20, 30))],
    }  # fmt: skip


def work_itself(spec: dict[str, Any], repeats: int, folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of one training stage, called in this process, and those of putting its artifacts on disk."""
    stage, context, computing, storing = Train.model_validate(spec), Bare(), [], []
    for number in range(repeats + 3):
        store = FolderStore(folder / str(number))  # where these artifacts have not been yet
        began = time.perf_counter()
        outcome = stage.run(context)
        done = time.perf_counter()
        for _, data in outcome.artifacts.values():
            store.put(data)
        if number >= 3:
            computing.append(done - began)
            storing.append(time.perf_counter() - done)
    shutil.rmtree(folder)  # not sooner: new files in memory that has just been given back cost half
    return computing, storing


def queue_rows(service: Processes, database: Database, lone: int, many: int) -> list[dict[str, Any]]:
    """Return how soon an idle, warm worker starts a stage, and what the queue adds to each of many."""
    service.succeeded(service.post(training(0, 5)))
    waits: list[tuple[float, float]] = []
    for number in range(lone):
        job = service.succeeded(service.post(training(1_000 + number)))
        waits.append(_wait(database, job["id"]))
        wait_until("an idle worker", lambda: any(worker["stage"] is None for worker in service.workers()))
    job = service.succeeded(service.post(training(100_000, many)), 600)
    with database.read() as session:
        keys = [stage["key"] for stage in job["stages"]]
        begun = sorted(
            session.scalars(
                select(Attempt.started_at).join(Stage, Stage.id == Attempt.stage_id).where(Stage.key.in_(keys))
            )
        )
        spec = session.scalars(select(Stage.spec).where(Stage.key == keys[0])).one()
    computing, storing = work_itself(spec, 50, Path(service.environment["STATE_DIR"]) / "aside")
    work = statistics.median(computing) + statistics.median(storing)
    cycles = [after - before for before, after in pairwise(begun)]
    claimed, done = [claimed for claimed, _ in waits], [done for _, done in waits]
    added = [1000 * (cycle - work) for cycle in cycles]
    return [
        figure("ready to claimed, warm idle worker", "s", claimed),
        figure(
            "ready to the end of a one-iteration training", "s", done, "start <= 0.3 s", percentile(done, 50) <= 0.3
        ),
        figure("one-iteration training, one after the other, by a worker", "ms", [1000 * cycle for cycle in cycles]),
        figure("the training without the service", "ms", [1000 * one for one in computing]),
        figure("its artifacts (13 MB) onto disk without the service", "ms", [1000 * one for one in storing]),
        figure("queue's share of a stage", "ms", added, "p50 <= 20 ms", statistics.median(added) <= 20),
    ]


def _wait(database: Database, job_id: int) -> tuple[float, float]:
    """Return the seconds from ready to claimed and from ready to done of a job of one stage; ready when posted."""
    with database.read() as session:
        at = dict(session.execute(select(Event.kind, Event.at).where(Event.job_id == job_id)).all())
        done = session.scalars(
            select(Result.created_at)
            .join(Stage, Stage.id == Result.stage_id)
            .where(Stage.key == select(Event.data["key"].as_string()).where(
                Event.job_id == job_id, Event.kind == "stage.running").scalar_subquery())
        ).one()  # fmt: skip
    return at["stage.running"] - at["job.queued"], done - at["job.queued"]


def expansion_rows(service: Processes, repeats: int) -> list[dict[str, Any]]:
    """Return how long a suite of 2,000 new stages takes to be expanded, stored and answered."""
    seconds: list[float] = []
    with httpx.Client(base_url=service.client.url, timeout=120, trust_env=False) as http:
        for number in range(repeats):
            began = time.perf_counter()
            answer = http.post("/jobs", json=suite(number))
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
            assert len(answer.json()["stages"]) == 2_000
    return [figure("2,000-stage suite, posted to answered", "s", seconds, "<= 1 s", percentile(seconds, 95) <= 1)]


def post_rows(service: Processes, seconds: float) -> list[dict[str, Any]]:
    """Return the latency of POST /jobs at a rate that is offered whatever comes back."""
    body = lambda number: json.dumps(training(10_000_000 + number)).encode()  # noqa: E731
    answers = asyncio.run(load.offered(service.port, "/jobs", body, RATE, seconds, CONNECTIONS))
    latencies = [1000 * answer.seconds for answer in answers]
    broken = sum(answer.status == 0 or answer.status >= 500 for answer in answers)
    name = f"POST /jobs, {RATE}/s offered over {CONNECTIONS} connections"
    return [
        figure(name, "ms", latencies, "p95 <= 150 ms", percentile(latencies, 95) <= 150),
        figure("answers of 5xx, or none", "", [broken], "0", broken == 0),
        figure("answers of 201", "", [sum(answer.status == 201 for answer in answers)]),
    ]


def matrix_rows(service: Processes, evaluations: int, repeats: int) -> list[dict[str, Any]]:
    """Return the latency of the black-box matrix over everything there is, made anew and unchanged."""
    made: list[float] = []
    unchanged: list[float] = []
    with httpx.Client(base_url=service.client.url, timeout=120, trust_env=False) as http:
        http.get("/results/blackbox-matrix").raise_for_status()
        for _ in range(repeats):
            answer, seconds = _timed(lambda: http.get("/results/blackbox-matrix"))
            made.append(1000 * seconds)
        found = answer.raise_for_status().json()
        counted = sum(cell["n_seeds"] for cells in found["cells"] for cell in cells)
        assert counted == evaluations, f"{counted} evaluations are in the table, {evaluations} in SQL"
        for _ in range(5 * repeats):
            again, seconds = _timed(
                lambda: http.get("/results/blackbox-matrix", headers={"If-None-Match": answer.headers["etag"]})
            )
            assert again.status_code == 304
            unchanged.append(1000 * seconds)
    name = f"black-box matrix over {evaluations:,} evaluations"
    return [
        figure(name, "ms", made, "p95 <= 300 ms", percentile(made, 95) <= 300),
        figure(f"{name}, unchanged (304)", "ms", unchanged),
    ]


def _timed(work: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - began


def memory_row(service: Processes, after: str) -> dict[str, Any]:
    """Return the resident memory of the API process."""
    mib = psutil.Process(service["api"].pid).memory_info().rss / 2**20
    return figure(f"API's resident memory after {after}", "MiB", [mib], "<= 120 MiB", mib <= 120)


def claim_rows(url: str, ready: int, claims: int, rest: float) -> list[dict[str, Any]]:
    """Return the latency of a claim by each of 8 processes, over that many ready stages."""
    with multiprocessing.get_context("spawn").Pool(CLAIMERS) as pool:
        found = pool.starmap(_claims, [(url, f"claimer {number}", claims, rest) for number in range(CLAIMERS)], 1)
    seconds = [1000 * one for process in found for one in process]
    pace = f"each resting {1000 * rest:.0f} ms" if rest else "without rest"
    name = f"claim, {CLAIMERS} claimers {pace}, {ready:,} ready stages"
    return [figure(name, "ms", seconds, "p95 <= 20 ms", percentile(seconds, 95) <= 20)]


def _claims(url: str, worker: str, claims: int, rest: float) -> list[float]:
    database = Database(url)
    seconds: list[float] = []
    for number in range(claims + 5):
        time.sleep(rest)
        began = time.perf_counter()
        with database.write() as session:
            assert stages.claim(session, ["gpu", "cpu"], worker, 600) is not None
        if number >= 5:
            seconds.append(time.perf_counter() - began)
    database.close()
    return seconds


def measured(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows, each service in a database of its own."""
    with PostgresServer() as postgres, RedisServer() as redis:
        postgres.execute("ALTER SYSTEM SET shared_buffers = '512MB'")  # as in docker-compose.yml
        postgres.restart()

        def service(name: str) -> Processes:
            url = postgres.create_database(name)
            migrate.upgrade(url)
            return Processes(folder / name, {**DEFAULTS, "DATABASE_URL": url, "REDIS_URL": redis.url})

        with service("pairs") as running:
            running.ensure("api", "keeper", "worker")
            database = Database(running.environment["DATABASE_URL"])
            yield pairs.row(pairs.ratios(running, database, options.pairs, options.iterations))
            database.close()
        if options.only_pairs:
            return
        redis.flush()
        with service("work") as running:
            running.ensure("api", "keeper", "worker")
            database = Database(running.environment["DATABASE_URL"])
            yield from queue_rows(running, database, options.lone, options.many)
            running.stop("worker")
            yield from expansion_rows(running, options.suites)
            yield from post_rows(running, options.seconds)
            yield memory_row(running, "the load")
            database.close()
        redis.flush()
        with service("results") as running:
            database = Database(running.environment["DATABASE_URL"])
            seeds = max(1, options.evaluations // 1_000)
            evaluations = rows.fill_evaluations(database, 40, 25, seeds)
            database.close()
            running.start("api")
            wait_until("the API answers", running.client.ready)
            yield from matrix_rows(running, evaluations, options.matrices)
            yield memory_row(running, "the matrices")
        with service("ready") as running:
            database = Database(running.environment["DATABASE_URL"])
            rows.fill_ready(database, options.ready, 200)
            running.start("keeper")
            for rest in (0.05, 0.0):
                yield from claim_rows(running.environment["DATABASE_URL"], options.ready, options.claims, rest)
            database.close()


def main(argv: Sequence[str]) -> None:
    """Measure, print a table, and write docs/results/service-<device>.json."""
    options = _options(argv)
    keep_freed_memory()  # as a worker's child does
    before = os.getloadavg()[0]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gauntlet-bench-") as folder:
        began = psutil.cpu_times()
        for row in measured(options, Path(folder)):
            now = psutil.cpu_times()
            found.append({**row, "stolen": stolen(began, now)})
            began = now
            print(line(row), flush=True)
    report = {
        "command": " ".join(["python -m bench service", *argv]),
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": before,
        "execution": Execution(threads=1).model_dump(),
        "versions": {"python": platform.python_version(), "platform": platform.platform()},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"service-{device_class()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


def stolen(before: Any, after: Any) -> float | None:
    """Return the share of the processors' time that the host of a virtual machine gave to others.

    None where it cannot be known, and for a row that was measured together with the one before it.
    """
    passed = sum(after) - sum(before)
    return (after.steal - before.steal) / passed if hasattr(after, "steal") and passed > 1 else None


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    numbers = " ".join(f"{row[name]:10.3f}" for name in ("median", "p95", "p99"))
    verdict = {True: "met", False: "NOT met", None: ""}[row["met"]]
    interval = " to ".join(f"{end:.3f}" for end in row.get("interval") or ())
    said = f"{row['aim']:16} {verdict}" + (f", 95 % interval of the median: {interval}" if interval else "")
    return f"{row['name']:60} n={row['n']:<6} {numbers} {row['unit']:4} {said}"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench service", description=__doc__)
    for name, default, says in (
        ("lone", 30, "jobs of one stage, one after the other"), ("many", 300, "stages behind the queue's share"),
        ("pairs", 11, "trainings by a worker and in core, in turn"), ("iterations", 90, "iterations of each of those"),
        ("suites", 7, "suites of 2,000 stages"), ("evaluations", 1_000_000, "evaluations behind the matrix"),
        ("matrices", 30, "matrices"), ("ready", 100_000, "ready stages"), ("claims", 200, "claims per claimer"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} (default: {default})")
    parser.add_argument("--only-pairs", action="store_true", help="only the trainings by a worker and in core")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long jobs are offered (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the report")
    return parser.parse_args(argv)
