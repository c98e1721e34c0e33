"""Processes that kill themselves at the worst moments; their successors end with the undisturbed run's results."""

import os
import signal

import pytest

from store.crashpoints import crashpoint
from tests.processes import LEASE, wait_until
from tests.worker import specs
from tests.worker.calm import assert_as_calm
from tests.worker.conftest import EMBEDDED, SERVERS, Service

LOST, PUBLISHED = ["lost", "succeeded"], ["succeeded"]


@pytest.mark.parametrize(
    ("service", "point", "expected"),
    [
        pytest.param(*stack.values, point, expected, marks=stack.marks)
        for stack, point, expected in (
            (SERVERS, "before-claim", PUBLISHED),
            (EMBEDDED, "after-claim", LOST),
            (SERVERS, "mid-checkpoint", LOST),
            (EMBEDDED, "after-fsync", LOST),
            (SERVERS, "after-rename", LOST),
            (EMBEDDED, "after-artifacts", LOST),
            (SERVERS, "before-result", LOST),
            (SERVERS, "after-result", PUBLISHED),
        )
    ],
    indirect=["service"],
)
def test_worker(service: Service, point: str, expected: list[str]) -> None:
    """The child dies once, at its first training; the worker replaces it."""
    spec = specs.white_box(iterations=40)
    victim = service["worker"].child()
    service.crash_file.write_text(point)
    job = service.succeeded(service.post(spec))
    assert not service.crash_file.exists()
    assert service["worker"].child() != victim
    assert_as_calm(service, job, spec)
    train = service.stage(job, "train")
    assert [attempt["outcome"] for attempt in train["attempts"]] == expected
    assert (train["losses"], train["failures"]) == (len(expected) - 1, 0)


@pytest.mark.parametrize("service", [SERVERS], indirect=True)
def test_keeper_in_reaper(service: Service) -> None:
    """It dies between taking an orphan back and the commit: its successor takes the orphan back, once."""
    spec = specs.training(40)
    job = service.post(spec)
    key = service.stage(job)["key"]
    service.running_at(key, done=-1)
    service["keeper"].kill()
    os.kill(service["worker"].child(), signal.SIGKILL)
    wait_until("the lease has ended", lambda: _lease_has_ended(service, key), 2 * LEASE)
    service.crash_file.write_text("in-reaper")
    assert service.start("keeper").wait() == -signal.SIGKILL
    assert service.client.get(f"/stages/{key}")["losses"] == 0
    service.start("keeper")
    assert_as_calm(service, service.succeeded(job), spec)
    assert service.client.get(f"/stages/{key}")["losses"] == 1


def _lease_has_ended(service: Service, key: str) -> bool:
    from sqlalchemy import select

    from store.database import db_now
    from store.models import Stage

    with service.database.read() as session:
        return bool(session.scalar(select(Stage.lease_expires < db_now()).where(Stage.key == key)))


@pytest.mark.parametrize("service", [EMBEDDED], indirect=True)
def test_keeper_in_dispatch(service: Service) -> None:
    """It dies after noting that it rings and before it does: its successor rings again."""
    service["keeper"].kill()
    service["worker"].send(signal.SIGSTOP)  # the main process only, which has no business with SQL
    spec = specs.training(1)
    job = service.post(spec)
    wait_until("the API's bell", lambda: service.bells() > 0)
    service.flush()
    service.crash_file.write_text("in-dispatch")
    assert service.start("keeper").wait() == -signal.SIGKILL
    assert service.bells() == 0
    service["worker"].send(signal.SIGCONT)
    service.start("keeper")
    assert_as_calm(service, service.succeeded(job, 20), spec)


def test_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By name it kills the first process to come along only; other names nobody; a file is used up."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
    folder = tmp_path_factory.mktemp("crashpoints")
    crashpoint("here")
    monkeypatch.setenv("CRASHPOINT", "here")
    monkeypatch.setenv("CRASHPOINT_ONCE", str(folder / "once"))
    crashpoint("there")
    assert killed == []
    crashpoint("here")
    crashpoint("here")
    assert killed == [signal.SIGKILL]
    monkeypatch.setenv("CRASHPOINT", f"@{folder / 'name'}")
    crashpoint("here")
    (folder / "name").write_text("here")
    crashpoint("there")
    crashpoint("here")
    crashpoint("here")
    assert killed == [signal.SIGKILL] * 2
