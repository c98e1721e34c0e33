"""Workers that cannot run what they claim, beside one that can: the stages are not failed, and everyone says why."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import FAULTY_DEVICE, Processes, wait_until
from tests.worker import specs
from tests.worker.calm import assert_as_calm

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.xdist_group("worker-embedded"), pytest.mark.timeout(400)]


@pytest.fixture
def service(tmp_path: Path, sqlite_template: Path) -> Iterator[Processes]:
    """A service without a worker."""
    database = shutil.copy(sqlite_template, tmp_path / "gauntlet.db")
    with Processes(tmp_path / "service", {"DATABASE_URL": f"sqlite:///{database}"}) as service:
        service.start("api", "keeper")
        wait_until("the API answers", service.client.ready)
        yield service


@pytest.fixture
def other_code(tmp_path: Path) -> Path:
    """A copy of the code, to be changed."""
    copy = tmp_path / "copy"
    for package in ("core", "store", "worker", "migrations"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def spoil(code: Path, how: str) -> str:
    """Change the code so that it cannot run what the service plans; return what a worker of it then says."""
    if how == "no files":
        (code / "core" / "datasets" / "mnist_mini.npz").unlink()
        return "MNIST (mini) needs mnist_mini.npz, which is not in "
    if how == "older":
        file = code / "core" / "defenses" / "natural.py"
        text = file.read_text()
        file.write_text(text.replace('    kind: Literal["natural"]', '    version = 99\n    kind: Literal["natural"]'))
        assert file.read_text() != text
        return "this stage was planned by another version of the code"
    (code / "core" / "defenses" / "natural.py").unlink()
    return "this stage was planned by another version of the code"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no files", "older", "much older"])
def test_beside_a_healthy_worker(service: Processes, other_code: Path, how: str) -> None:
    """It gives back what it claims while the other is busy, and says so, as does the stage; then the other does it."""
    service.start("worker")
    busy = service.post(specs.endless_training())
    service.running_at(service.stage(busy)["key"], done=0, seconds=120)
    says = spoil(other_code, how)
    bad = service.start("worker2", PYTHONPATH=str(other_code))
    spec = specs.white_box(2)
    job = service.post(spec)
    key = service.stage(job)["key"]

    def refused() -> bool:
        return [attempt["outcome"] for attempt in service.client.get(f"/stages/{key}")["attempts"]] == ["refused"]

    wait_until("it is refused", refused, 120)
    stage = service.client.get(f"/stages/{key}")
    assert (stage["state"], stage["failures"], stage["losses"]) == ("ready", 0, 0)
    assert f"left it to the others: {says}" in stage["waits_for"]
    leaves = {worker["pid"]: worker["leaves"] for worker in service.workers()}
    assert [why.startswith(says) for why in leaves.pop(bad.child())] == [True]
    assert list(leaves.values()) == [[]]
    service.client.cancel(busy["id"])
    assert_as_calm(service, service.succeeded(job, 120), spec)
    assert {stage["state"] for stage in service.client.job(job["id"])["stages"]} == {"succeeded"}
    assert sum(service.client.get(f"/stages/{stage['key']}")["failures"] for stage in job["stages"]) == 0


def test_alone(service: Processes, other_code: Path) -> None:
    """Where there is no other, a stage whose dataset is not there fails at once, and says what is missing."""
    says = spoil(other_code, "no files")
    service.start("worker", PYTHONPATH=str(other_code))
    wait_until("it is there", service.workers, 120)
    job = service.finished(service.post(specs.training(1)))
    stage = service.stage(job)
    assert (job["state"], stage["error"]["cause"]) == ("failed", "DatasetMissing")
    assert stage["error"]["message"].startswith(says)
    assert len(stage["attempts"]) == 1


@pytest.mark.slow
def test_alone_with_other_code(service: Processes, other_code: Path) -> None:
    """It waits for a worker of the right code, which may be on its way, and says so."""
    spoil(other_code, "older")
    service.start("worker", PYTHONPATH=str(other_code))
    spec = specs.training(1)
    job = service.post(spec)
    key = service.stage(job)["key"]
    why = re.compile(r"tries again in \d+ s after: this stage was planned by another version of the code")
    wait_until("it says why it waits", lambda: why.match(service.client.get(f"/stages/{key}")["waits_for"] or ""), 120)
    service.stop("worker")
    service.start("worker2")
    assert_as_calm(service, service.succeeded(job, 120), spec)


def test_a_broken_device(service: Processes, tmp_path: Path) -> None:
    """It costs the stage at hand a loss and the process its life; its successor does the rest. No stage is failed."""
    breaks = tmp_path / "breaks"
    breaks.touch()
    worker = service.start("worker", PYTHONPATH=FAULTY_DEVICE, DEVICE_BREAKS=str(breaks))
    spec = specs.white_box(2)
    job = service.succeeded(service.post(spec))
    assert_as_calm(service, job, spec)
    stages = [service.client.get(f"/stages/{stage['key']}") for stage in job["stages"]]
    assert (sum(stage["losses"] for stage in stages), sum(stage["failures"] for stage in stages)) == (1, 0)
    (lost,) = [attempt for stage in stages for attempt in stage["attempts"] if attempt["outcome"] == "lost"]
    assert "broke: CUDA error: an illegal memory access was encountered (loss 1 of 5)" in lost["error"]["message"]
    assert "the child ended with status 76; starting another" in worker.log
