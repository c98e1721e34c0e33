"""Every kind of figure through API, SQL, Celery and worker, on both stacks, against core called directly."""

import hashlib
import json

import httpx

from core.suites import expand_suite
from tests.worker.calm import assert_as_calm, calm
from tests.worker.conftest import Service


def test_the_tiny_suite(service: Service) -> None:
    job = service.succeeded(service.post({"suite": "figures-tiny"}), 240)
    spec = expand_suite({"suite": "figures-tiny"})
    assert_as_calm(service, job, spec)
    _artifacts_are_served_as_what_they_are(service, job["id"])
    _surfaces_are_cores_values(service, job["id"])


def _artifacts_are_served_as_what_they_are(service: Service, job: int) -> None:
    types = {"values": "application/json", "png": "image/png", "svg": "image/svg+xml", "page": "text/html"}
    for figure in service.client.get("/results/figures", job=job, limit=100):
        for name, link in figure["links"].items():
            answer = httpx.get(service.client.url + link)
            assert answer.headers["content-type"].startswith(types[name])
            assert hashlib.sha256(answer.content).hexdigest() == link.rpartition("/")[2]


def _surfaces_are_cores_values(service: Service, job: int) -> None:
    outcomes = calm(expand_suite({"suite": "figures-tiny"})).outcomes
    surfaces = service.client.get("/results/surfaces", job=job)
    assert sorted(found["figure"]["kind"] for found in surfaces) == ["path", "surfaces", "surfaces"]
    for found in surfaces:
        assert found["values"] == json.loads(outcomes[found["key"]].artifacts["values"][1])
