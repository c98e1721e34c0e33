"""The main process and its children: replaced when they die, rung and waited for without a race, at last given up."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from store import migrate
from store.settings import Settings
from tests.docker import compose
from tests.processes import Processes, wait_until
from tests.worker import specs
from worker import __main__ as main
from worker import app
from worker.app import Child, Children
from worker.child import EXIT_BROKEN, Line

ANSWERS = "import socket; line = socket.socket(fileno=0)\nwhile line.recv(1): line.sendall(b'!')"
DIES_AT_A_BELL = "import socket; socket.socket(fileno=0).recv(1)"
FIRST_NEVER_ANSWERS = """
import os, socket
line = socket.socket(fileno=0)
while line.recv(1):
    if os.environ["CUDA_VISIBLE_DEVICES"] != "0":
        line.sendall(b"!")
"""

ANSWERS_WHERE_IT_MAY = """
import os, pathlib
if not pathlib.Path({folder!r}, os.environ["CUDA_VISIBLE_DEVICES"]).exists():
    exit(76)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    monkeypatch.setattr(app, "PAUSES", (0.05,) * 20)
    started: list[Child] = []

    def start(*command: str, give_up: Callable[[], None] = lambda: None) -> Child:
        child = Child(command, give_up=give_up)
        started.append(child)
        child.start()
        return child

    yield start
    for child in started:
        child.stop()


def line_of(child: Child) -> object:
    return wait_until("its line", lambda: child._line)


def test_a_bell_is_answered_on_the_line_it_was_rung_on(start: Callable[..., Child]) -> None:
    """Also when the child died meanwhile, and its successor, which heard no bell, has a line of its own."""
    child = start(sys.executable, "-c", DIES_AT_A_BELL)
    first = line_of(child)
    rung = child.ring()
    assert rung is first
    wait_until("its successor", lambda: child._line is not first)
    rung.settimeout(5)
    assert rung.recv(1) == b""


def test_a_child_that_cannot_be_started_is_tried_again(start: Callable[..., Child], tmp_path: Path) -> None:
    """As for want of memory: the keeper of the child does not end with the error."""
    program = tmp_path / "program"
    child = start(str(program))
    assert child.ring() is None
    program.write_text(f"#!{sys.executable}\n{ANSWERS}")
    program.chmod(0o755)
    line_of(child)
    rung = child.ring()
    assert rung is not None
    rung.settimeout(10)
    assert rung.recv(1) == b"!"


@pytest.mark.parametrize("command", [("/does/not/exist",), (sys.executable, "-c", "exit(3)")])
def test_it_is_given_up_in_the_end(
    start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
):
    monkeypatch.setattr(app, "PAUSES", (0.0, 0.01))
    given_up = threading.Event()
    start(*command, give_up=given_up.set)
    assert given_up.wait(20)


def test_one_of_several_is_tried_again_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its GPU may come back, and then another may go: the process ends only when none is left."""
    monkeypatch.setattr(app, "PAUSES", (0.0, 0.01))
    monkeypatch.setattr(app, "STEADY_SECONDS", 3.0)
    monkeypatch.setattr(app, "RETRY_SECONDS", 0.2)
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    crew = Children([sys.executable, "-c", ANSWERS_WHERE_IT_MAY.format(folder=str(tmp_path)) + ANSWERS])
    (tmp_path / "1").touch()
    crew.start(["0", "1"], 1)
    first, second = crew._children
    try:
        wait_until("it is given up", lambda: first.given_up)
        assert "the child on GPU 0 ended with status 76, as did those before it; another try in 0.2 s if" in caplog.text
        (tmp_path / "0").touch()
        wait_until("it is there again", lambda: not first.given_up)
        (tmp_path / "1").unlink()
        second._line.shutdown(socket.SHUT_WR)
        wait_until("the other is given up", lambda: second.given_up)
        assert not told.is_set()
        (tmp_path / "0").unlink()
        first._line.shutdown(socket.SHUT_WR)
        assert told.wait(20)
        assert not crew.stop()
    finally:
        crew.stop()
        signal.signal(signal.SIGTERM, before)


def test_a_worker_without_children_exits(tmp_path: Path, sqlite_url: str) -> None:
    """With a status of its own, so that whoever started it sees that it is broken."""
    run = "import worker.app as app; app.PAUSES = (0.0,); app.children._command = ['/does/not/exist']\n"
    run += "from worker.__main__ import main; main()"
    environment = {
        **os.environ,
        "STATE_DIR": str(tmp_path),
        "DATABASE_URL": sqlite_url,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ended = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert ended.returncode == main.EXIT_NO_CHILD


TORCH_WITHOUT_A_GPU = """
import warnings
class cuda:
    def is_available():
        warnings.warn("The NVIDIA driver on your system is too old (found version 12040).")
        return False
"""


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver that is too old for this torch."""
    (tmp_path / "torch.py").write_text(TORCH_WITHOUT_A_GPU)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(main, "DRIVERS", (tmp_path,))


def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, old_driver: None
):
    assert main._gpus(Settings()) == []
    (said,) = caplog.messages
    assert said.endswith(
        "torch can use no GPU, so the CPU computes: The NVIDIA driver on your system is too old (found version 12040)."
    )
    monkeypatch.setattr(main, "DRIVERS", ())
    assert main._gpus(Settings()) == []
    assert caplog.messages == [said]


def test_where_gpus_are_to_be_served_nothing_says_that_the_cpu_computes(
    caplog: pytest.LogCaptureFixture, old_driver: None
):
    with pytest.raises(SystemExit, match=r"no GPU here: The NVIDIA driver .* is too old .* 580 or newer .*-f docker-"):
        main._gpus(Settings(worker_queues="gpu,cpu"))
    assert caplog.messages == []


def test_a_worker_that_shall_serve_gpus_and_finds_none_exits(tmp_path: Path, sqlite_url: str) -> None:
    environment = {
        **os.environ, "STATE_DIR": str(tmp_path), "DATABASE_URL": sqlite_url, "WORKER_QUEUES": "gpu,cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "worker"], env=environment, timeout=60, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "WORKER_QUEUES names gpu, and torch can use no GPU here" in ended.stderr


@pytest.mark.parametrize(("commit", "warns"), [("", True), ("5e1f", False)])
def test_a_worker_that_does_not_know_its_commit_says_so(
    tmp_path: Path, sqlite_url: str, commit: str, warns: bool
) -> None:
    """In an image there is no checkout."""
    compose.copy_image(tmp_path / "app")
    environment = {
        **os.environ, "STATE_DIR": str(tmp_path), "DATABASE_URL": sqlite_url, "WORKER_QUEUES": "gpu",
        "CUDA_VISIBLE_DEVICES": "", "GAUNTLET_COMMIT": commit, "PYTHONPATH": "",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        cwd=tmp_path / "app", env=environment, timeout=60, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "WORKER_QUEUES names gpu" in ended.stderr
    assert ("results will not say which commit computed them" in ended.stderr) is warns


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device")
def test_a_child_whose_gpu_is_gone_does_not_compute_on_the_cpu(tmp_path: Path, sqlite_url: str) -> None:
    environment = {
        **os.environ, "STATE_DIR": str(tmp_path), "DATABASE_URL": sqlite_url, "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "worker.child"],
        env=environment, timeout=60, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode == EXIT_BROKEN
    assert "torch finds no CUDA device, and this process was given 3" in ended.stderr


TORCH_WITH_TWO_GPUS = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
"""


@pytest.mark.parametrize(("visible", "used"), [(None, ["0", "1"]), ("3,GPU-5", ["3", "GPU-5"])])
def test_every_gpu_that_torch_can_use_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible, used):
    (tmp_path / "torch.py").write_text(TORCH_WITH_TWO_GPUS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(main, "DRIVERS", (tmp_path,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert main._gpus(Settings()) == used


def test_a_torch_that_cannot_be_asked_is_no_machine_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "torch.py").write_text("cuda = None")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setattr(main, "DRIVERS", (tmp_path,))
    with pytest.raises(SystemExit, match="cannot be asked for its GPUs: AttributeError"):
        main.count_gpus()


@pytest.mark.parametrize(("devices", "seen"), [(["1", "GPU-5"], ["1", "GPU-5"]), ([], [""])])
def test_a_child_sees_its_own_device_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: list[str], seen: list[str]
):
    """A worker of the CPU's queue takes no memory of a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    tell = "import os, pathlib, socket; own = os.environ['CUDA_VISIBLE_DEVICES']\n"
    tell += f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).write_text(own); socket.socket(fileno=0).recv(1)"
    crew = Children([sys.executable, "-c", tell])
    crew.start(devices, 2)
    try:
        wait_until("it", lambda: sorted(file.read_text() for file in tmp_path.iterdir()) == sorted(2 * seen))
    finally:
        crew.stop()


def test_returns_when_one_is_idle() -> None:
    """Work is what a bell waits for, as long as every child has some; it does not wait for the others."""
    crew = Children([sys.executable, "-c", FIRST_NEVER_ANSWERS])
    crew.start(["0", "1"], 1)
    try:
        for child in crew._children:
            line_of(child)
        rings = [threading.Thread(target=crew.work, daemon=True) for _ in range(3)]
        for ring in rings:
            ring.start()
            ring.join(20)
            assert not ring.is_alive()
    finally:
        crew.stop()


@pytest.mark.parametrize("role", ["worker", "worker.keeper"])
def test_help_starts_nothing(tmp_path: Path, role: str) -> None:
    command, environment = [sys.executable, "-m", role, "--help"], {**os.environ, "STATE_DIR": str(tmp_path / "state")}
    ended = subprocess.run(command, env=environment, timeout=60, check=False, capture_output=True, text=True)
    assert (ended.returncode, f"usage: python -m {role} [-h]" in ended.stdout) == (0, True)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("role", ["worker", "worker.keeper"])
def test_it_refuses_to_start_on_another_schema(tmp_path: Path, sqlite_url: str, role: str) -> None:
    migrate.downgrade(sqlite_url, "0002")
    environment = {**os.environ, "STATE_DIR": str(tmp_path), "DATABASE_URL": sqlite_url,
                   "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    command = [sys.executable, "-m", role]
    ended = subprocess.run(command, env=environment, timeout=60, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    said = f"gauntlet: the database is at revision 0002, this code needs revision {migrate.head()}: run"
    assert ended.stderr.startswith(said)


class Looker:
    """In place of the process that computes: counts how often it looks for work."""

    looks = 0

    def work(self) -> None:
        self.looks += 1

    def drain(self) -> None:
        """There is nothing to drain."""


def test_it_looks_by_itself_and_answers_bells_only() -> None:
    """A broker that is away rings nobody; an answer to no bell would be taken for that to the next."""
    looker: Any = Looker()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = threading.Thread(target=Line(looker, theirs, 0.02).serve, daemon=True)
        child.start()
        wait_until("it looks", lambda: looker.looks > 3)
        ours.settimeout(5)
        ours.sendall(b"!")
        assert ours.recv(64) == b"!"
        ours.shutdown(socket.SHUT_WR)
        child.join(5)
        assert not child.is_alive()
        assert select.select([ours], [], [], 0)[0] == []


@pytest.mark.slow
@pytest.mark.xdist_group("worker-embedded")
def test_two_slots(tmp_path: Path, sqlite_template: Path) -> None:
    """Two stages at a time; where one's process is killed, the other goes on, and the first is taken up again."""
    database = shutil.copy(sqlite_template, tmp_path / "gauntlet.db")
    with Processes(tmp_path, {"WORKER_SLOTS": "2", "DATABASE_URL": f"sqlite:///{database}"}) as service:
        service.ensure("api", "keeper", "worker")
        wait_until("both", lambda: len(service.workers()) == 2, 120)
        jobs = [service.post(specs.endless_training()) for _ in range(2)]
        keys = [service.stage(job)["key"] for job in jobs]
        for key in keys:
            service.running_at(key, done=0, seconds=120)
        at_work = {worker["stage"]: worker["pid"] for worker in service.workers()}
        os.kill(at_work[keys[0]], signal.SIGKILL)
        wait_until("it is taken up again", lambda: len(service.client.get(f"/stages/{keys[0]}")["attempts"]) == 2, 120)
        service.running_at(keys[0], done=0, seconds=120)
        other = service.client.get(f"/stages/{keys[1]}")
        assert (other["state"], len(other["attempts"])) == ("running", 1)
        for job in jobs:
            service.client.cancel(job["id"])
            assert service.finished(job)["state"] == "cancelled"
        assert service["worker"].terminate(120) == 0
