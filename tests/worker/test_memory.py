"""A device with too little memory for a batch: the stage goes on in smaller parts, and its result says so."""

from collections.abc import Iterator

import pytest

from tests.processes import FAULTY_DEVICE
from tests.worker import specs
from tests.worker.calm import Calm
from tests.worker.conftest import Service


@pytest.fixture
def little_memory(service: Service) -> Iterator[Service]:
    """The service with one worker, whose networks take three examples at once."""
    service.stop("worker")
    service.start("worker2", PYTHONPATH=FAULTY_DEVICE, MEMORY_EXAMPLES="3")
    yield service
    service.stop("worker2")


def test_a_stage_goes_on_in_smaller_parts(little_memory: Service):
    service = little_memory
    spec = specs.white_box(iterations=2)
    job = service.succeeded(service.post(spec))
    assert {stage["key"] for stage in job["stages"]} == set(Calm(spec).plan.stages), "memory is no part of a key"
    for kind, size in (("train", 2), ("craft", 3), ("evaluate", 3)):
        stage = service.stage(job, kind)
        assert stage["environment"]["micro_batch"] == size
        assert [attempt["outcome"] for attempt in stage["attempts"]] == ["succeeded"]
        assert any("out of memory with" in line for line in service.log_of(stage["key"]))


def test_a_stage_that_never_fits_fails_and_says_what_it_needed(service: Service):
    service.stop("worker")
    service.start("worker2", PYTHONPATH=FAULTY_DEVICE, MEMORY_EXAMPLES="0")
    job = service.finished(service.post(specs.training(2)), 120)
    stage = service.stage(job)
    assert (job["state"], stage["state"]) == ("failed", "failed")
    assert stage["error"]["cause"] == "OutOfMemory"
    assert "Tried to allocate 1 examples" in stage["error"]["message"]
    assert len(stage["attempts"]) == 1  # an example does not get smaller
    service.stop("worker2")
