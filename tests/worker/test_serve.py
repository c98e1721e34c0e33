"""The local service as `make serve` and `make demo` start it: ports, folders, restarts, and nothing left behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.api import ENDED, Client
from core.datasets import DATASETS
from store.settings import Settings
from tests import servers
from tests.outside import entry_point
from tests.processes import QUICK, Process, alive, descendants, wait_until
from tests.worker import specs
from worker import serve
from worker.process import DRAIN_SECONDS, SAVE_SECONDS
from worker.serve import ServeError

pytestmark = pytest.mark.xdist_group("worker-serve")
ROOT = Path(__file__).parents[2]


class Serve(Process):
    """`python -m worker.serve` with its STATE_DIR in a folder; PORT only where it is given."""

    def __init__(self, folder: Path, *arguments: str, **environment: str):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
        defaults = {**QUICK, "PATH": path, "PYTHONPATH": str(ROOT), "STATE_DIR": str(folder / "state")}
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "worker.serve", *arguments]
        super().__init__("serve", command, folder, {**defaults, **environment})
        self.family: list[int] = []

    def ready(self) -> Client:
        """Return a client once the service says where it is and a worker lives."""

        def said() -> re.Match[str] | None:
            assert self.running, self.log
            return re.search(r"service ready at (http://\S+), ", self.log)

        client = Client(wait_until("the service is ready", said)[1])
        wait_until("a live worker", lambda: client.get("/workers"))
        self.family = descendants(self.pid)
        return client

    def roles(self) -> dict[str, int]:
        """Return role -> process id of the service's living parts."""
        roles = {"uvicorn": "api", "worker.keeper": "keeper", "worker": "worker", "worker.child": "child"}
        words: dict[int, list[str]] = {}
        for pid in descendants(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words[pid] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return {roles.get(said[2], said[2]): pid for pid, said in words.items() if len(said) > 2}


def gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def finished(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    wait_until("the job ends", lambda: client.job(job["id"])["state"] in ENDED, 60, every=0.2)
    return client.job(job["id"])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def default_port_taken() -> Iterator[None]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", Settings.model_fields["port"].default))
            server.listen()
        except OSError:
            pass  # by somebody else, which is as good
        yield


def test_a_service_and_its_processes(tmp_path: Path, default_port_taken: None) -> None:
    """Another port than the taken one; dead parts come back; a second service is refused; SIGTERM leaves nothing."""
    service = Serve(tmp_path)
    try:
        client = service.ready()
        assert re.search(r"port 8000 is taken; using 80\d\d", service.log)
        wait_until("it says how clients find it", lambda: f"export GAUNTLET_URL={client.url}\n" in service.log)
        state = tmp_path / "state"
        second = Serve(tmp_path / "second", STATE_DIR=str(state))
        assert second.wait() == 1
        assert f"{state} is in use by a service (process {service.pid}); stop it or set STATE_DIR" in second.log

        before = service.roles()
        assert set(before) == {"api", "keeper", "worker", "child"}
        for role in ("api", "keeper", "worker"):
            os.kill(before[role], signal.SIGKILL)
        wait_until("all are back", lambda: set(service.roles()) == set(before) and client.ready())
        after = service.roles()
        assert not set(before.values()) & set(after.values())
        for role in ("api", "keeper", "worker"):
            assert f"the {role} ended with status -9; starting it again" in service.log
        assert finished(client, client.post_job(specs.training(1)))["state"] == "succeeded"
        assert {"gauntlet.db", "artifacts", "broker", "logs", "serve.lock"} <= {path.name for path in state.iterdir()}

        family = descendants(service.pid)
        assert service.terminate() == 0
        assert gone(family)
    finally:
        service.end()


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    """Its parts end with it. The next goes on from what is there, also after everything was killed at once.

    The last two are what `make demo` is: they finish the job, print both matrices and exit 0, the second computing
    nothing.
    """
    port = str(servers.free_port())
    long = {"name": "Long", "defense": {"kind": "natural"}, "training": {"iterations": 150}}
    spec = {**specs.benchmark(), "defenses": [long, {"kind": "e2sad"}], "substitutes": ["Long"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    first = Serve(tmp_path, PORT=port)
    try:
        client = first.ready()
        stages = client.post_job(spec)["stages"]
        key = next(stage["key"] for stage in stages if stage["title"].startswith("train Long"))
        wait_until("it trains", lambda: client.get(f"/stages/{key}")["progress"])
        first.kill()
        wait_until("its parts end", lambda: gone(first.family), 60)
    finally:
        first.end()
    second = Serve(tmp_path, PORT=port)
    try:
        client = second.ready()
        wait_until("it goes on", lambda: client.get(f"/stages/{key}")["state"] != "ready")
        for pid in [second.pid, *second.family]:
            os.kill(pid, signal.SIGKILL)
        second.wait()
    finally:
        second.end()
    for _ in range(2):
        demo = Serve(tmp_path, "--suite", "job.yaml", "--stop", PORT=port)
        try:
            assert demo.wait(120) == 0, demo.log
        finally:
            demo.end()
        assert "whitebox matrix, attacks by targets" in demo.log
        assert "blackbox matrix, substitutes by targets" in demo.log
        assert re.search(r"succeeded 100.0 %  13/13 stages", demo.log)
    assert "running" not in demo.log


def test_settings(tmp_path: Path) -> None:
    """HOST, PORT, STATE_DIR, DATA_DIR, DATABASE_URL, REDIS_URL and ARTIFACT_URL, some from a `.env`."""
    port = servers.free_port()
    mnist = DATASETS["mnist"]()
    for name in mnist.checksums:  # to be installed is to have files of that name; nobody opens them here
        file = mnist.folder(tmp_path / "data") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / ".env").write_text(f"PORT={port}\nLEASE_SECONDS=7\nDATA_DIR=data\n")
    with servers.PostgresServer() as postgres, servers.RedisServer() as redis:
        url = postgres.create_database("gauntlet").replace("postgresql+psycopg", "postgresql")
        artifacts = tmp_path / "elsewhere"
        service = Serve(
            tmp_path, HOST="127.0.0.2", DATABASE_URL=url, REDIS_URL=redis.url, ARTIFACT_URL=artifacts.as_uri(),
            LEASE_SECONDS="", KEEPER_SECONDS="",
        )  # fmt: skip
        try:
            client = service.ready()
            assert client.url == f"http://127.0.0.2:{port}"
            job = finished(client, client.post_job(specs.training(1)))
            assert job["state"] == "succeeded"
            weights = client.get(f"/stages/{job['stages'][0]['key']}")["artifacts"]["weights"]
            assert (artifacts / weights[:2] / weights[2:4] / weights).is_file()
            state = {path.name for path in (tmp_path / "state").iterdir()}
            assert state == {"logs", "serve.lock"}
            assert client.get("/catalog")["datasets"]["mnist"]["installed"]
            environment = Path(f"/proc/{service.roles()['child']}/environ").read_text()
            assert "KEEPER_SECONDS=0.5" in environment  # the local service's own default
            assert "LEASE_SECONDS=15" not in environment  # `.env` decides
            service.send(signal.SIGINT)
            assert service.wait() == 0
            assert service.log.endswith("\nstopped; started again with the same CPU_THREADS, it goes on where it was\n")
            assert gone(service.family)
        finally:
            service.end()


def test_nothing_is_published_of_a_job_that_was_refused(tmp_path: Path) -> None:
    """What is missing is said once, by the refusal."""
    results = str(tmp_path / "results")
    service = Serve(tmp_path, "--suite", "e2sad-mnist", "--stop", "--results", results, PORT=str(servers.free_port()))
    try:
        assert service.wait(120) == 1
    finally:
        service.end()
    assert "the dataset mnist is not installed" in service.log
    assert "gauntlet paper" not in service.log


def test_port_taken(tmp_path: Path, taken: int) -> None:
    """One that was asked for is not replaced."""
    service = Serve(tmp_path, PORT=str(taken))
    assert service.wait() == 1
    assert f"gauntlet: port {taken} on 127.0.0.1 cannot be used: Address already in use" in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("PORT", "70000", "gauntlet: PORT: Input should be less than or equal to 65535\n"),
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "gauntlet: the database cannot be used: "),
        ("HOST", "203.0.113.1", "port 8000 on 203.0.113.1 cannot be used: Cannot assign requested address"),
    ],
)
def test_unusable_settings(tmp_path: Path, setting: str, value: str, message: str) -> None:
    service = Serve(tmp_path, **{setting: value})
    assert service.wait() == 1
    assert message in service.log
    assert "Traceback" not in service.log


def test_an_api_that_cannot_start(tmp_path: Path) -> None:
    """A package whose kind is broken: the reason is said, and the start is given up."""
    entry_point(tmp_path, "gauntlet.defenses", "broken = broken:Broken")
    (tmp_path / "broken.py").write_text("raise RuntimeError('this package is broken')\n")
    service = Serve(tmp_path, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert service.wait() == 1
    assert "the api ended with status 1; starting it again. " in service.log
    assert re.search(
        r"gauntlet: the API cannot start: .*this package is broken.* \(all it said is in .*api.log\)", service.log
    )


def test_an_api_that_cannot_open_its_service(tmp_path: Path) -> None:
    """What uvicorn says after the reason is not the reason."""
    (tmp_path / "state").mkdir(parents=True)
    (tmp_path / "state" / "broker").touch()
    service = Serve(tmp_path)
    assert service.wait() == 1
    assert re.search(r"gauntlet: the API cannot start: \w+Error: .*/state/broker", service.log)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[serve.LocalService]:
    """One that has started nothing yet."""
    with serve.listen("127.0.0.1", servers.free_port(), fixed=False) as listener:
        service = serve.LocalService(Settings(state_dir=tmp_path), listener)
        yield service
        service.stop()


def test_a_part_that_cannot_be_started_now_is_tried_again(
    service: serve.LocalService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A machine may have no memory, files or processes to spare; the others go on meanwhile."""
    with subprocess.Popen([sys.executable, "-c", ""]) as work:
        work.wait()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    service._spawn("keeper")
    service._processes["keeper"].wait()
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    assert service.tend(work) == 0
    assert "the keeper cannot be started now: [Errno 2] No such file or directory" in capfd.readouterr().err
    assert service._restart_dead() == []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert service._restart_dead() == ["keeper"]


ENDS_LATE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep({}), sys.exit()))
print(flush=True)
time.sleep(60)
"""


def test_a_worker_may_drain_for_longer_than_the_others(
    service: serve.LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve.STOP_SECONDS["worker"] > DRAIN_SECONDS + SAVE_SECONDS
    monkeypatch.setattr(serve, "STOP_SECONDS", {"api": 0.5, "worker": 30.0})
    for name, seconds in (("api", 60), ("worker", 2)):
        late = subprocess.Popen(
            [sys.executable, "-c", ENDS_LATE.format(seconds)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert late.stdout is not None
        late.stdout.read(1)
        service._processes[name] = late
    service.stop()
    assert {name: process.returncode for name, process in service._processes.items()} == {"api": -9, "worker": 0}


def test_an_answer_that_is_cut_short_is_none(service: serve.LocalService) -> None:
    def answer() -> None:
        connection, _ = service._listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")

    api = threading.Thread(target=answer, daemon=True)
    api.start()
    assert service._answer("/workers") is None
    api.join()


def test_listen(taken: int) -> None:
    with serve.listen("127.0.0.1", taken, fixed=False) as above:
        assert above.getsockname()[1] > taken
    with pytest.raises(ServeError, match=f"port {taken} on 127.0.0.1 cannot be used"):
        serve.listen("127.0.0.1", taken, fixed=True)
    free = servers.free_port()
    with serve.listen("127.0.0.1", free, fixed=True) as mine, serve.listen("127.0.0.1", free, fixed=False) as next_one:
        assert mine.getsockname()[1] == free
        assert next_one.getsockname()[1] > free
    with pytest.raises(ServeError):
        serve.listen("not a host", free, fixed=True)


def test_only_one(tmp_path: Path) -> None:
    lock = serve.only_one(tmp_path / "state")
    with pytest.raises(ServeError, match=rf"is in use by a service \(process {os.getpid()}\)"):
        serve.only_one(tmp_path / "state")
    lock.close()
    with serve.only_one(tmp_path / "state"):
        pass
