"""`python -m worker.serve`: the whole service on one machine, without any server to install.

Starts migration, API, keeper and worker as processes of their own, restarts those that die, posts a suite, and stays
up or stops. STATE_DIR belongs to one such service at a time. On Linux everything ends with this process, however that
ends.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from sqlalchemy.exc import DBAPIError

from store import migrate
from store.settings import Settings, settings

START_SECONDS = 60.0
WORKER_SECONDS = 10.0
"""How long a start waits for the worker: what is posted before it lives says that nobody serves the queue."""
TRIES = 2
"""Times that the API may end before it was ever ready."""
WORDS = 4000
"""Bytes of a log in which its last line is looked for."""
CLOSING = "Application startup failed. Exiting."
"""What uvicorn says last, after the reason."""
STOP_SECONDS = {"api": 30.0, "keeper": 30.0, "worker": 120.0}
"""How long each may take to end; the worker drains, as with `stop_grace_period` in docker-compose.yml."""
RESTART_SECONDS = 1.0
CLIENTS_URL = "http://127.0.0.1:8000"
"""Where `gauntlet` looks for a service that nobody names."""
EMBEDDED = {"HEARTBEAT_SECONDS": "2", "LEASE_SECONDS": "15", "KEEPER_SECONDS": "0.5", "CHECKPOINT_SECONDS": "15"}
"""On one machine orphans are noticed sooner than the defaults, which are made for a network."""
PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


class ServeError(Exception):
    """The service cannot start; the message says what to do."""


def listen(host: str, wanted: int, fixed: bool) -> socket.socket:
    """Return a socket that listens on `wanted`, or on the next free port above it.

    The API inherits it: no other service can come between, and requests wait while a dead API is started again.

    Raises:
        ServeError: the port was asked for and is taken, none is free, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(wanted, min(wanted + 100, 65536)):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            if fixed or error.errno != errno.EADDRINUSE:
                reason = f"port {port} on {host} cannot be used: {error.strerror}; set PORT or HOST"
                raise ServeError(reason) from error
            continue
        return listener
    raise ServeError(f"no free port between {wanted} and {wanted + 99}; set PORT")


class LocalService:
    """API, keeper and worker as child processes, watched and restarted."""

    def __init__(self, chosen: Settings, listener: socket.socket):
        self._host = chosen.host
        self._listener = listener
        self._port: int = listener.getsockname()[1]
        self._logs = chosen.state_dir / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        unset = {name: value for name, value in EMBEDDED.items() if name.lower() not in chosen.model_fields_set}
        self._environment = {**os.environ, **unset, "PORT": str(self._port)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._files: dict[str, IO[bytes]] = {}

    @property
    def url(self) -> str:
        """Where the API listens, as seen from this machine."""
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def _commands(self) -> dict[str, list[str]]:
        python = sys.executable
        return {
            "api": [python, "-m", "uvicorn", "api.main:app", "--fd", str(self._listener.fileno()),
                    "--log-level", "warning", "--timeout-graceful-shutdown", "5"],
            "keeper": [python, "-m", "worker.keeper"],
            "worker": [python, "-m", "worker"],
        }  # fmt: skip

    def start(self) -> None:
        """Start everything and return when the API is ready, and as a rule the worker.

        Raises:
            ServeError: it is not ready in time, or has ended twice before it was.
        """
        for name in self._commands():
            self._spawn(name)
        deadline, ended = time.monotonic() + START_SECONDS, 0
        while not self._ready():
            ended += "api" in self._restart_dead()
            if ended == TRIES:
                raise ServeError(f"the API cannot start: {self._last_words('api')}")
            if time.monotonic() > deadline:
                raise ServeError(f"the API is not ready after {START_SECONDS:.0f} s; see {self._logs / 'api.log'}")
            time.sleep(0.1)
        deadline = time.monotonic() + WORKER_SECONDS
        while time.monotonic() < deadline and not self._has_worker():
            self._restart_dead()
            time.sleep(0.1)

    def _spawn(self, name: str) -> None:
        log = self._files.get(name) or (self._logs / f"{name}.log").open("ab")
        self._files[name] = log
        self._processes[name] = subprocess.Popen(
            self._commands()[name], env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, pass_fds=[self._listener.fileno()] if name == "api" else [],
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call
        )  # fmt: skip

    def tend(self, work: subprocess.Popen[bytes] | None = None) -> int:
        """Return the exit status of `work` when it has ended; until then, or for ever, restart what dies.

        From the main thread only: Linux tells a process to end when the *thread* that started it ends.
        """
        while True:
            self._restart_dead()
            if work is None:
                time.sleep(RESTART_SECONDS)
                continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                return work.wait(RESTART_SECONDS)

    def _restart_dead(self) -> list[str]:
        """Return the names of the processes that had ended and are started again; the others are tried again later."""
        ended = {name: process.poll() for name, process in self._processes.items()}
        dead = {name: status for name, status in ended.items() if status is not None}
        return [name for name, status in dead.items() if self._restarted(name, status)]

    def _restarted(self, name: str, status: int) -> bool:
        try:
            said = f"the {name} ended with status {status}; starting it again. {self._last_words(name)}"
            print(said, file=sys.stderr, flush=True)
            self._spawn(name)
        except OSError as error:  # as where the machine is out of memory, processes or files, which may pass
            print(f"the {name} cannot be started now: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def _last_words(self, name: str) -> str:
        """Return the last line with a reason that a process has written, and where the others are."""
        path = self._logs / f"{name}.log"
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - WORDS))
            lines = log.read().decode(errors="replace").split("\n")
        said = (line.strip() for line in reversed(lines) if line.strip() and not line.endswith(CLOSING))
        last = next(said, "it said nothing")
        return f"{last} (all it said is in {path})"

    def _ready(self) -> bool:
        return self._answer("/readyz") is not None

    def _has_worker(self) -> bool:
        return any(worker["alive"] for worker in self._answer("/workers") or [])

    def _answer(self, path: str) -> Any:
        """Return the JSON that the API answers at `path` with, None where it does not."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=2) as answer:  # noqa: S310 - our own URL
                return json.load(answer)
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            return None

    def newest_number(self) -> int:
        """Return the newest job's number, 0 where there is none."""
        found = self._answer("/jobs?limit=1")
        return found["jobs"][0]["id"] if found and found["jobs"] else 0

    def stop(self) -> None:
        """Ask every process to end, and end those that do not."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        began = time.monotonic()
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, began + STOP_SECONDS[name] - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for file in self._files.values():
            file.close()


def only_one(state_dir: Path) -> IO[str]:
    """Return the lock on `state_dir`; it lasts as long as the file is open, whatever ends this process.

    Raises:
        ServeError: another local service holds it.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = (state_dir / "serve.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise ServeError(f"{state_dir} is in use by a service (process {holder}); stop it or set STATE_DIR") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _end_with_parent() -> None:
    """Have this process told to end when the one that starts it is gone; on Linux only."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def submit(service: LocalService, suite: str, dataset: str) -> int:
    """Return the exit status of the `gauntlet submit` command for a suite or a file, as any user would run it."""
    what = [suite] if suite.endswith((".yaml", ".yml", ".json")) else ["--suite", suite]
    what += ["--dataset", dataset] if dataset else []
    command = [sys.executable, "-m", "client.cli", "--url", service.url, "submit", *what, "--wait", "--matrices"]
    with subprocess.Popen(command, preexec_fn=_end_with_parent) as work:  # noqa: PLW1509 - one system call
        try:
            return service.tend(work)
        finally:
            work.terminate()


def publish(service: LocalService, suite: str, dataset: str, folder: str) -> int:
    """Return the exit status of the `gauntlet paper` command that writes the suite's results to `folder`."""
    which = ["--suite", suite, *(["--dataset", dataset] if dataset else [])]
    command = [sys.executable, "-m", "client.cli", "--url", service.url, "paper", *which, "--write", folder]
    with subprocess.Popen(command, preexec_fn=_end_with_parent) as work:  # noqa: PLW1509 - one system call
        return service.tend(work)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _serve(chosen: Settings, options: argparse.Namespace) -> int:
    """Return 0, or the suite's exit status; in the end nothing that was started is left.

    Raises:
        ServeError, DBAPIError: the service could not start.
    """
    fixed = "port" in chosen.model_fields_set
    with only_one(chosen.state_dir), listen(chosen.host, chosen.port, fixed) as listener:
        port: int = listener.getsockname()[1]
        if port != chosen.port:
            print(f"port {chosen.port} is taken; using {port}", flush=True)
        migrate.upgrade(chosen.sql_url)
        service = LocalService(chosen, listener)
        try:
            service.start()
            print(f"service ready at {service.url}, state in {chosen.state_dir}", flush=True)
            before = service.newest_number()
            status = submit(service, options.suite, options.dataset) if options.suite else 0
            if options.results and service.newest_number() != before:
                status = publish(service, options.suite, options.dataset, options.results) or status
            if not options.stop:
                print(f"\nGauntlet is at {service.url} (docs at {service.url}/docs); Ctrl-C stops it.", flush=True)
                if service.url != CLIENTS_URL:
                    print(f"In another terminal first: export GAUNTLET_URL={service.url}", flush=True)
                service.tend()
            return status
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave the stopping half done
            service.stop()


def main() -> int:
    """Return 0 after a clean stop, 1 where the service could not start or the suite failed."""
    parser = argparse.ArgumentParser(prog="python -m worker.serve", description=__doc__)
    parser.add_argument("--suite", default="", help="post this suite, or the job in this YAML file, and show matrices")
    parser.add_argument("--dataset", default="", help="instead of the suite's own, of images of the same form")
    parser.add_argument("--results", default="", metavar="FOLDER", help="write the suite's counts and tables there")
    parser.add_argument("--stop", action="store_true", help="stop when the suite has ended")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(settings(), options)
    except KeyboardInterrupt:
        print("\nstopped; started again with the same CPU_THREADS, it goes on where it was", flush=True)
        return 0
    except DBAPIError as error:
        print(f"gauntlet: the database cannot be used: {error.orig}", file=sys.stderr)
    except ServeError as error:
        print(f"gauntlet: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
