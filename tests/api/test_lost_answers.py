"""The API where answers of the database are lost after the commit: who asks again gets what was asked for, once.

The tests of test_jobs.py, imported here, run again with every second answer lost, under a client that repeats what was
answered with 503, a POST of a job under one Idempotency-Key.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.routes import jobs as routes
from store import idempotency, jobs
from store.database import Database
from store.invariants import violations
from tests.answers import Plan, losing_write
from tests.api.conftest import opened
from tests.api.house import LITTLE, House
from tests.api.test_jobs import TestCancel, TestListing, TestOtherKinds, TestSuites, TestWaiting, at_once

__all__ = ["TestCancel", "TestListing", "TestOtherKinds", "TestSuites", "TestWaiting"]


class Patient:
    """A client that repeats what was answered with 503, or is in progress."""

    def __init__(self, client: Any):
        self._client = client
        self.repeated = 0

    def post(self, path: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
        headers = {"Idempotency-Key": uuid.uuid4().hex, **(headers or {})}
        for _ in range(50):
            answer = self._client.post(path, headers=headers, **more)
            if answer.status_code != 503 and "Retry-After" not in answer.headers:
                return answer
            assert int(answer.headers["Retry-After"]) > 0
            assert "Idempotency-Key" in answer.json()["error"]["message"]
            self.repeated += 1
            time.sleep(0.02)
        raise AssertionError(f"never answered: {answer.text}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@contextmanager
def forgetful(url: str, state: Path, data: Path, text: str = "every=2") -> Iterator[House]:
    """Yield a house whose API loses answers; whoever plays the worker hears all of them."""
    with opened(url, state, data) as house:
        service = replace(house.service, database=Database(url))
        lossy: Any = type("Lossy", (Database,), {"write": losing_write(Plan.of(text))})
        house.service.database = lossy(url)
        client: Any = Patient(house.client)
        yield House(client, service)
        with service.database.read() as session:
            assert violations(session) == []
        service.database.close()


@pytest.fixture
def house(database_url: str, tmp_path: Path, data_dir: Path) -> Iterator[House]:
    with forgetful(database_url, tmp_path / "state", data_dir) as found:
        yield found


@pytest.fixture
def small_house(sqlite_url: str, tmp_path: Path, data_dir: Path) -> Iterator[House]:
    with forgetful(sqlite_url, tmp_path / "state", data_dir) as found:
        yield found


def post(house: House, key: str = "k", **more: Any) -> Any:
    return house.client.post("/jobs", json={**LITTLE, **more}, headers={"Idempotency-Key": key})


class TestOneJob:
    """However often it has to be asked for."""

    def test_asked_for_again_it_is_the_one_that_was_made(self, database_url: str, tmp_path: Path, data_dir: Path):
        with forgetful(database_url, tmp_path, data_dir, "every=1") as house:
            answer = post(house)
            assert (answer.status_code, answer.headers["Idempotency-Replayed"]) == (201, "true")
            assert house.client.repeated == 2, "once after the job, once after its answer was noted"
            assert post(house, name="other").status_code == 422
            assert (house.rows()["jobs"], house.rows()["idempotency_keys"]) == (1, 1)

    def test_by_many_at_once(self, house: House):
        answers = at_once(8, lambda: post(house))
        assert [answer.status_code for answer in answers] == [201] * 8
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert house.rows()["jobs"] == 1

    def test_a_retry_is_one_job(self, database_url: str, tmp_path: Path, data_dir: Path):
        with forgetful(database_url, tmp_path, data_dir, "every=1") as house:
            job = post(house).json()
            with house.service.database.write() as session:
                jobs.cancel(session, job["id"])
            again = house.client.post(f"/jobs/{job['id']}/retry")
            assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
            assert again.json()["id"] != job["id"]
            assert house.rows()["jobs"] == 2

    def test_a_key_belongs_to_one_request(self, house: House):
        """A retry under the key of a post, and the other way round, are refused."""
        jobs_made = [post(house, key).json() for key in "ab"]
        for job in jobs_made:
            house.client.post(f"/jobs/{job['id']}/cancel")
        refused = [
            house.client.post(f"/jobs/{jobs_made[0]['id']}/retry", headers={"Idempotency-Key": "a"}),
            house.client.post(f"/jobs/{jobs_made[0]['id']}/retry", headers={"Idempotency-Key": "c"}),
            house.client.post(f"/jobs/{jobs_made[1]['id']}/retry", headers={"Idempotency-Key": "c"}),
        ]
        assert [answer.status_code for answer in refused] == [422, 201, 422]

    def test_events_have_no_gap(self, house: House):
        job = post(house).json()
        house.client.post(f"/jobs/{job['id']}/cancel")
        told = house.client.get(f"/jobs/{job['id']}/events").text
        assert [json.loads(line[4:]) for line in told.splitlines() if line.startswith("id: ")] == [1, 2, 3]

    def test_a_key_noted_after_the_commit_would_be_noticed(
        self, sqlite_template: Path, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """A deliberate bug: the job is stored, the answer lost, and nobody remembers the key."""
        url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'gauntlet.db')}"
        make_job = routes.make_job

        def in_two_transactions(
            service: Any, suite: Any, job: Any, key: tuple[str, str] | None = None, execution: Any = None
        ) -> int:
            job_id = make_job(service, suite, job, execution=execution)
            with service.database.write() as session:
                idempotency.tie(session, *(key or ("", "")), job_id)
            return job_id

        monkeypatch.setattr(routes, "make_job", in_two_transactions)
        with forgetful(url, tmp_path / "state", data_dir) as house:
            for number in range(4):
                post(house, f"key {number}")
            assert house.rows()["jobs"] > 4
