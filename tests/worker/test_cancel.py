"""A cancelled job frees its worker within seconds, in whatever it was; what another job wants goes on."""

import time
from typing import Any

import pytest

from tests.processes import wait_until
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from tests.worker.conftest import EMBEDDED, SERVERS, Service

FREED_SECONDS = 5.0
"""The promise is 15 s, at a heartbeat of 10; here it is half a second."""


def cancel(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job as it ended, after a cancellation that freed its worker in time."""
    began = time.monotonic()
    service.client.cancel(job["id"])
    job = service.finished(job, FREED_SECONDS)
    wait_until("the worker is free", lambda: all(worker["stage"] is None for worker in service.workers()), 5)
    assert time.monotonic() - began < FREED_SECONDS
    return job


def states(service: Service, job: dict[str, Any]) -> set[str]:
    return {stage["state"] for stage in service.client.job(job["id"])["stages"]}


def test_long_training(service: Service) -> None:
    job = service.post(specs.endless_training())
    service.running_at(service.stage(job)["key"])
    assert cancel(service, job)["state"] == "cancelled"
    service.succeeded(service.post(specs.training(1)), 15)
    assert states(service, job) == {"cancelled"}
    stage = service.stage(job)
    assert [attempt["outcome"] for attempt in stage["attempts"]] == ["cancelled"]
    assert (stage["losses"], stage["failures"], stage["result"]) == (0, 0, None)


@pytest.mark.parametrize("service", [EMBEDDED], indirect=True)
def test_long_attack(service: Service) -> None:
    """Between two steps of one batch: an attack says nothing about its progress before the batch is done."""
    job = service.post(specs.endless_attack())
    key = service.stage(job, "craft")["key"]
    service.running_at(key, done=-1)
    time.sleep(0.5)
    assert cancel(service, job)["state"] == "cancelled"
    service.succeeded(service.post(specs.training(1)), 15)
    ended = {stage["kind"]: stage["state"] for stage in service.client.job(job["id"])["stages"]}
    assert ended == {"train": "succeeded", "craft": "cancelled", "evaluate": "cancelled"}


@pytest.mark.parametrize("service", [SERVERS], indirect=True)
def test_shared_stage(service: Service) -> None:
    """It goes on undisturbed for the other job."""
    spec = specs.training(100)
    job, other = service.post(spec), service.post(spec)
    service.running_at(service.stage(job)["key"], done=-1)
    assert service.client.cancel(job["id"])["state"] == "cancelled"
    assert_as_calm(service, service.succeeded(other), spec)
    assert len(service.stage(other)["attempts"]) == 1
    assert service.client.job(job["id"])["state"] == "cancelled"


@pytest.mark.parametrize("service", [EMBEDDED], indirect=True)
def test_wanted_again_while_it_stops(service: Service) -> None:
    """A new job lifts the cancellation that is under way."""
    spec = specs.training(100)
    job = service.post(spec)
    service.running_at(service.stage(job)["key"], done=-1)
    service.client.cancel(job["id"])
    again = service.post(spec)
    assert_as_calm(service, service.succeeded(again), spec)
    assert service.finished(job)["state"] == "cancelled"
