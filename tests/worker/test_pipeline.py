"""A small benchmark through API, SQL, Celery and worker, on both stacks, against core called directly."""

import json
from pathlib import Path
from typing import Any

import httpx

from tests.worker import specs
from tests.worker.calm import assert_as_calm, calm
from tests.worker.conftest import Service


def counts(matrix: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return evaluation key -> (n_correct, n) over a matrix's cells."""
    return {
        seed["evaluation"]: (seed["n_correct"], seed["n"])
        for cells in matrix["cells"]
        for cell in cells
        for seed in cell["seeds"]
    }


def test_benchmark(service: Service) -> None:
    spec = specs.benchmark()
    job = service.succeeded(service.post(spec))
    assert_as_calm(service, job, spec)
    _matrices_say_what_core_says(service, job, spec)
    _log_and_curve_are_kept(service, job)
    _posted_again_nothing_is_computed(service, job, spec)
    _its_model_can_be_attacked_again(service, job)


def _matrices_say_what_core_says(service: Service, job: dict[str, Any], spec: dict[str, Any]) -> None:
    expected = {key: (o.payload["n_correct"], o.payload["n"]) for key, o in calm(spec).outcomes.items()
                if "n_correct" in o.payload}  # fmt: skip
    whitebox = counts(service.client.matrix("whitebox", job=job["id"]))
    blackbox = counts(service.client.matrix("blackbox", job=job["id"]))
    assert len(whitebox) == 6
    assert len(blackbox) == 2
    assert whitebox | blackbox == expected


def _log_and_curve_are_kept(service: Service, job: dict[str, Any]) -> None:
    stage = service.stage(job, "train")
    lines = service.log_of(stage["key"])
    assert lines[0].endswith("attempt under fence 1")
    assert lines[-1].startswith("done in ")
    curve = json.loads(httpx.get(f"{service.client.url}/artifacts/{stage['artifacts']['curve']}").content)
    assert [point["iteration"] for point in curve] == [1, 8]


def _posted_again_nothing_is_computed(service: Service, job: dict[str, Any], spec: dict[str, Any]) -> None:
    again = service.post(spec)
    assert again["state"] == "succeeded"
    assert again["id"] != job["id"]
    assert all(stage["reused"] for stage in again["stages"])
    assert all(len(service.client.get(f"/stages/{stage['key']}")["attempts"]) == 1 for stage in again["stages"])


def _its_model_can_be_attacked_again(service: Service, job: dict[str, Any]) -> None:
    key = service.stage(job, "train")["key"]
    spec = {"kind": "evaluate", "targets": [{"key": key}], "attacks": [specs.FGSM], "limit": 10}
    attacked = service.succeeded(service.post(spec))
    assert_as_calm(service, attacked, spec)


def test_hopeless_training(service: Service) -> None:
    """It fails at once with its cause and traceback; what needed it is cancelled with a reason."""
    hopeless = {"iterations": 40, "batch_size": 16, "optimiser": "sgd", "lr": 10, "weight_decay": 1}
    alone = {"defenses": [{"kind": "natural"}], "substitutes": [], "transfer": None}
    spec = {**specs.benchmark(), "training": hopeless, **alone}
    job = service.finished(service.post(spec))
    assert job["state"] == "failed"
    train = service.stage(job, "train")
    assert (train["state"], train["failures"], train["losses"], len(train["attempts"])) == ("failed", 1, 0, 1)
    assert train["error"]["cause"] == "Diverged"
    assert "a learning rate below 10.0 may help" in train["error"]["message"]
    assert "core/training.py" in train["error"]["traceback"]
    dependants = [stage for stage in job["stages"] if stage["kind"] != "train"]
    assert len(dependants) == 5
    for stage in dependants:
        assert stage["state"] == "cancelled"
        assert "it needs a stage that failed: train natural H" in stage["reason"]
    whitebox = service.client.matrix("whitebox", job=job["id"])
    assert all(cell["accuracy"] is None and cell["reason"] for cells in whitebox["cells"] for cell in cells)


def test_broker_process_stays_light(service: Service) -> None:
    """The process that talks to the broker has neither torch nor numpy; its child has."""

    def libraries(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")

    main, child = libraries(service["worker"].pid), libraries(service["worker"].child())
    assert "libtorch" in child
    assert not [name for name in ("libtorch", "numpy", "libcuda") if name in main]
