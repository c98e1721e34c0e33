"""The service's real processes for the tests: started as a user starts them, killed as a machine kills them.

    with Processes(folder, {"DATABASE_URL": url}) as service:
        service.start("api", "keeper", "worker")
        job = service.finished(service.client.post_job(spec))
        service["worker"].kill()                  # SIGKILL, the pool's child drains by itself
        service.start("worker")

Only what a `Processes` started is ever signalled, by process id. Every process dies with the thread that started it,
so start them from the main thread. Each keeps its log in the folder; the ends of all logs are added to an error.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from client.api import ENDED, ApiRefused, Client
from tests import servers

QUICK = {
    "HEARTBEAT_SECONDS": "0.5",
    "LEASE_SECONDS": "3",
    "KEEPER_SECONDS": "0.3",
    "CHECKPOINT_SECONDS": "0.25",
    "LOOK_SECONDS": "120",
    "CPU_THREADS": "1",
}
"""Orphans are noticed within seconds; idle workers go by their bells."""
LEASE = float(QUICK["LEASE_SECONDS"])
STOP_SECONDS = 20.0
LOG_LINES = 40
T = TypeVar("T")


def wait_until(what: str, ask: Callable[[], T], seconds: float = 60.0, every: float = 0.05) -> T:
    """Return the first truthy answer.

    Raises:
        AssertionError: there was none in time; it says what was waited for, and the last answer.
    """
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; last answer: {answer!r}"
        time.sleep(every)
    return answer


def alive(pid: int) -> bool:
    """Return whether a process of that id runs; one that has ended and waits for its parent does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def children(pid: int) -> list[int]:
    """Return the ids of a process's own children, whichever of its threads started them."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


class Process:
    """A command as a process of its own, in its own session, with its log."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str]):
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=servers.die_with_parent(),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def log(self) -> str:
        """What it has written since it was started."""
        with self.log_file.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def child(self) -> int:
        """Return the id of its one child: of a worker, the process that computes."""
        return wait_until(f"a child of {self.name}", lambda: [*children(self.pid), 0][0])

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Return its exit status."""
        return self._popen.wait(seconds)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """Return its exit status after asking it to end."""
        self.send(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """End it with SIGKILL, as a machine would; its children are told nothing."""
        self._popen.kill()
        self._popen.wait()

    def end(self) -> None:
        """End it and everything it started, whatever state they are in."""
        family = [self.pid, *descendants(self.pid)] if self.running else []
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()


FAULTY_DEVICE = os.pathsep.join([str(Path(__file__).with_name("faulty_device")), str(Path(__file__).parents[1])])
"""PYTHONPATH of a worker whose device obeys MEMORY_EXAMPLES and DEVICE_BREAKS."""


class Processes:
    """API, keeper and workers of one service, on one database, one broker and one STATE_DIR."""

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = servers.free_port()
        self.environment = {
            **QUICK,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "STATE_DIR": str(folder / "state"),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            **environment,
        }
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.own: dict[str, dict[str, str]] = {}
        """Name of a process -> what only its environment has, however often it is started."""
        self._now: dict[str, Process] = {}
        self._every: list[Process] = []

    def command(self, role: str) -> list[str]:
        """Return the command line of a role, as `docker-compose.yml` and `python -m worker.serve` have it."""
        commands = {
            "api": ["uvicorn", "api.main:app", "--host", "127.0.0.1", "--port", str(self.port),
                    "--log-level", "warning", "--timeout-graceful-shutdown", "5"],
            "keeper": ["worker.keeper"],
            "worker": ["worker"],
        }  # fmt: skip
        return [sys.executable, "-m", *commands[role]]

    def start(self, *names: str, **more: str) -> Process:
        """Start processes, with `more` in their environment, and return the last; `worker2` is another worker."""
        for name in names:
            command = self.command(name.rstrip("0123456789"))
            self._now[name] = Process(
                name, command, self.folder, {**self.environment, **self.own.get(name, {}), **more}
            )
            self._every.append(self._now[name])
        return self._now[names[-1]]

    def ensure(self, *names: str) -> None:
        """Start those that do not run, and return when the API answers and a worker's child is there."""
        self.start_missing(*names)
        wait_until("the API answers", self.client.ready)
        wait_until("a live worker", self.workers)

    def start_missing(self, *names: str) -> None:
        """Start those that do not run."""
        for name in names:
            if name not in self._now or not self._now[name].running:
                self.start(name)

    def __getitem__(self, name: str) -> Process:
        return self._now[name]

    def get(self, name: str) -> Process | None:
        """Return the newest process of that name, if there ever was one."""
        return self._now.get(name)

    def post(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return a new job."""
        return self.client.post_job(spec)

    def workers(self) -> list[dict[str, Any]]:
        """Return the live workers as the API lists them."""
        return [worker for worker in self.client.get("/workers") if worker["alive"]]

    def finished(self, job: dict[str, Any], seconds: float = 60.0) -> dict[str, Any]:
        """Return the job once it has ended; a service that is away for a moment is waited for."""
        deadline = time.monotonic() + seconds
        while job["state"] not in ENDED:
            assert time.monotonic() < deadline, f"job {job['id']} has not ended: {_brief(job)}"
            time.sleep(0.1)
            with contextlib.suppress(httpx.TransportError, ApiRefused):
                job = self.client.job(job["id"])
        return job

    def succeeded(self, job: dict[str, Any], seconds: float = 60.0) -> dict[str, Any]:
        """Return the job once it has succeeded."""
        job = self.finished(job, seconds)
        assert job["state"] == "succeeded", _brief(job)
        return job

    def stage(self, job: dict[str, Any], kind: str = "train", number: int = 0) -> dict[str, Any]:
        """Return one of a job's stages in full: the first of a kind, or the one of that number."""
        keys = [stage["key"] for stage in job["stages"] if stage["kind"] == kind]
        return self.client.get(f"/stages/{keys[number]}")

    def log_of(self, key: str) -> list[str]:
        """Return the lines of a stage's log."""
        return [line["line"] for line in self.client.get(f"/stages/{key}/log")]

    def running_at(self, key: str, done: int = 1, seconds: float = 60.0) -> dict[str, Any]:
        """Return the stage once it runs and has done so many units of work."""

        def reached() -> dict[str, Any] | None:
            stage = self.client.get(f"/stages/{key}")
            assert stage["state"] in ("blocked", "ready", "running"), stage
            progress = stage["progress"] or {"done": -1}
            return stage if stage["state"] == "running" and progress["done"] >= done else None

        return wait_until(f"{key} runs", reached, seconds)

    def stop(self, name: str) -> int:
        """Return the exit status of a process after asking it to end."""
        return self._now[name].terminate()

    def pids(self) -> list[int]:
        """Return the ids of everything that has been started here, with what it has started."""
        return [pid for process in self._every for pid in (process.pid, *descendants(process.pid))]

    def logs(self) -> str:
        """Return the end of every log."""
        return "\n".join(
            line
            for file in sorted(self.folder.glob("**/*.log"))
            for line in (f"----- {file}", *file.read_text(errors="replace").splitlines()[-LOG_LINES:])
        )

    def close(self) -> None:
        """End everything."""
        for process in self._every:
            process.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            error.add_note(self.logs())
        self.close()


def _brief(job: dict[str, Any]) -> str:
    stages = [f"{stage['title']}: {stage['state']}, {stage['waits_for'] or stage['reason']}" for stage in job["stages"]]
    return "\n".join([f"job {job['id']} is {job['state']}", *stages])
