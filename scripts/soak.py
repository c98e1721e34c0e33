"""`python -m scripts.soak --hours 24`: a service under a slow, steady trickle; does memory drift, do descriptors leak?

Real API, keeper and worker, on PostgreSQL and Redis (or, with --embedded, on SQLite and folders). Small jobs, each new,
some cancelled; matrices, lists and metrics read. Every process is sampled; the drift is that of a line through its
memory after a warm-up, over the time from there to the end, as a share of its mean. The report is rewritten as the soak
goes on, so one that is interrupted says what it saw.
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from client.api import ApiRefused
from core.provenance import commit
from store import migrate
from tests.processes import Processes
from tests.servers import PostgresServer, RedisServer

DEFAULTS = {"HEARTBEAT_SECONDS": "10", "LEASE_SECONDS": "60", "KEEPER_SECONDS": "1", "CHECKPOINT_SECONDS": "60"}
"""The service's own, which the tests' quick ones replace."""
MAX_DRIFT = 5.0
"""Per cent."""
CANCELLED = 5
"""Every so many jobs, one is a long training that is cancelled."""


@dataclass
class Trace:
    """What was seen of one process."""

    pid: int
    seconds: list[float] = field(default_factory=list[float])
    rss: list[int] = field(default_factory=list[int])
    descriptors: list[int] = field(default_factory=list[int])

    def summary(self, warm_up: float) -> dict[str, Any] | None:
        """Return drift and descriptors after the warm-up; None where there is too little to say."""
        begin = next((i for i, at in enumerate(self.seconds) if at >= warm_up), len(self.seconds))
        seconds, rss, open_files = self.seconds[begin:], self.rss[begin:], self.descriptors[begin:]
        if len(rss) < 10:
            return None
        slope, _ = statistics.linear_regression(seconds, rss)
        half = len(open_files) // 2
        return {
            "pid": self.pid,
            "samples": len(rss),
            "rss_mib": {name: round(value / 2**20, 2) for name, value in (
                ("first", rss[0]), ("mean", statistics.fmean(rss)), ("max", max(rss)), ("last", rss[-1]))},
            "drift_percent": round(100 * slope * (seconds[-1] - seconds[0]) / statistics.fmean(rss), 3),
            "drift_mib_per_hour": round(slope * 3600 / 2**20, 3),
            "descriptors": {"min": min(open_files), "max": max(open_files),
                            "median_of_first_half": statistics.median(open_files[:half]),
                            "median_of_second_half": statistics.median(open_files[half:])},
        }  # fmt: skip


class Soak:
    """A service, its load, and what was seen of its processes."""

    def __init__(self, service: Processes, warm_up: float):
        self._service = service
        self._warm_up = warm_up
        self._began = time.monotonic()
        self._traces: dict[str, list[Trace]] = {}
        self._tag = ""
        self._running: list[int] = []
        self.did = {"jobs": 0, "cancelled": 0, "reads": 0, "unchanged": 0, "refused": 0}

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def sample(self) -> None:
        """Note memory and descriptors of every process."""
        for name, pid in self._pids():
            traces = self._traces.setdefault(name, [])
            if not traces or traces[-1].pid != pid:
                traces.append(Trace(pid))
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                rss, descriptors = process.memory_info().rss, process.num_fds()
                traces[-1].seconds.append(self.elapsed)
                traces[-1].rss.append(rss)
                traces[-1].descriptors.append(descriptors)

    def _pids(self) -> Iterator[tuple[str, int]]:
        for name in ("api", "keeper", "worker"):
            process = self._service[name]
            if process.running:
                yield name, process.pid
        if self._service["worker"].running:
            yield "worker child", self._service["worker"].child()

    def work(self) -> None:
        """Post one job, cancel the long one before it, and read what a user would read."""
        number = self.did["jobs"]
        with contextlib.suppress(httpx.TransportError, ApiRefused):
            for job_id in self._running:
                self._service.client.cancel(job_id)
                self.did["cancelled"] += 1
            self._running = []
        try:
            job = self._service.post(spec(number, endless=number % CANCELLED == CANCELLED - 1))
            if number % CANCELLED == CANCELLED - 1:
                self._running.append(job["id"])
            self.did["jobs"] += 1
            self._read(job["id"])
        except (httpx.TransportError, ApiRefused) as error:
            self.did["refused"] += 1
            print(f"{self.elapsed:8.0f} s: {error}", flush=True)

    def _read(self, job_id: int) -> None:
        with httpx.Client(base_url=self._service.client.url, timeout=30, trust_env=False) as http:
            for path in (f"/jobs/{job_id}", "/jobs?limit=20", "/workers", "/metrics", "/results/blackbox-matrix"):
                http.get(path)
                self.did["reads"] += 1
            answer = http.get("/results/whitebox-matrix", headers={"If-None-Match": self._tag})
            self.did["unchanged"] += answer.status_code == httpx.codes.NOT_MODIFIED.value
            self._tag = answer.headers.get("etag", "")

    def report(self) -> dict[str, Any]:
        """Return what the soak has shown so far."""
        processes = {name: traces[-1].summary(self._warm_up) for name, traces in self._traces.items()}
        seen = [found for found in processes.values() if found is not None]
        restarts = sum(len(traces) - 1 for traces in self._traces.values())
        drift = max((abs(found["drift_percent"]) for found in seen), default=None)
        constant = [
            found["descriptors"]["median_of_first_half"] == found["descriptors"]["median_of_second_half"]
            for found in seen
        ]
        whole = bool(seen) and len(seen) == len(processes) and restarts == 0
        return {
            "hours": round(self.elapsed / 3600, 3),
            "warm_up_seconds": self._warm_up,
            **self.did,
            "restarts": restarts,
            "largest_drift_percent": drift,
            "descriptors_constant": whole and all(constant),
            "passed": whole and drift is not None and drift < MAX_DRIFT and all(constant),
            "processes": processes,
        }

    def samples(self) -> dict[str, Any]:
        """Return every sample, for a plot: seconds, MiB, descriptors."""
        return {
            name: [
                [round(at), round(rss / 2**20, 2), descriptors]
                for trace in traces
                for at, rss, descriptors in zip(trace.seconds, trace.rss, trace.descriptors, strict=True)
            ]
            for name, traces in self._traces.items()
        }


def spec(number: int, *, endless: bool) -> dict[str, Any]:
    """Return a small job that no other is equal to."""
    if endless:
        schedule = {"iterations": 10_000_000, "batch_size": 4}
        return {"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": schedule,
                "seeds": [number]}  # fmt: skip
    return {
        "dataset": "mnist-mini", "training": {"iterations": 5, "batch_size": 4}, "seeds": [number], "limit": 20,
        "defenses": [{"kind": "natural"}], "attacks": [{"kind": "none"}, {"kind": "ifgsm", "steps": 2}],
        "substitutes": [{"kind": "fgsm_adv"}], "transfer": [{"kind": "fgsm"}],
    }  # fmt: skip


@contextlib.contextmanager
def started(folder: Path, *, embedded: bool) -> Iterator[Processes]:
    """Yield a running service on servers of its own, or on SQLite and folders."""
    environment = {**DEFAULTS, "CPU_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        if embedded:
            url = f"sqlite:///{folder / 'state' / 'gauntlet.db'}"
        else:
            url = stack.enter_context(PostgresServer()).create_database("soak")
            environment |= {"DATABASE_URL": url, "REDIS_URL": stack.enter_context(RedisServer()).url}
        migrate.upgrade(url)
        service = stack.enter_context(Processes(folder, environment))
        service.ensure("api", "keeper", "worker")
        yield service


def main() -> int:
    """Return 0 where no memory drifts and no descriptor leaks."""
    options = _options()
    total = 3600 * options.hours
    warm_up = min(1800.0, total / 4)
    with tempfile.TemporaryDirectory(prefix="gauntlet-soak-") as folder:
        with started(Path(folder), embedded=options.embedded) as service:
            soak = Soak(service, warm_up)
            next_job = next_sample = next_report = 0.0
            while soak.elapsed < total:
                if soak.elapsed >= next_sample:
                    soak.sample()
                    next_sample += options.sample
                if soak.elapsed >= next_job:
                    soak.work()
                    next_job = max(next_job + options.every, soak.elapsed)
                if soak.elapsed >= next_report:
                    _write(options, soak, finished=False)
                    next_report += 20 * options.sample
                time.sleep(0.5)
        report = _write(options, soak, finished=True)
    print(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=1))
    return 0 if report["passed"] else 1


def _write(options: argparse.Namespace, soak: Soak, *, finished: bool) -> dict[str, Any]:
    report = {
        "command": f"python -m scripts.soak --hours {options.hours:g} --every {options.every:g}"
        + (" --embedded" if options.embedded else ""),
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "servers": "SQLite and folders" if options.embedded else "PostgreSQL and Redis",
        "finished": finished,
        **soak.report(),
        "samples": soak.samples(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report) + "\n")
    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="how long")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two jobs")
    parser.add_argument("--sample", type=float, default=30.0, help="seconds between two samples")
    parser.add_argument("--embedded", action="store_true", help="SQLite and folders instead of PostgreSQL and Redis")
    parser.add_argument("--out", type=Path, default=Path("docs/results/soak.json"), help="file of the report")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
