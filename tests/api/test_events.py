"""The events of a job over a real uvicorn: replay without loss, an end with the job, a clean end on shutdown."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from store import jobs
from store.database import Database
from tests.servers import die_with_parent, free_port

JOB = {"kind": "train", "defense": {"kind": "natural"}, "dataset": "mnist-mini", "training": {"iterations": 1}}


@pytest.fixture
def api(sqlite_url: str, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    environment = {**os.environ, "DATABASE_URL": sqlite_url, "STATE_DIR": str(tmp_path / "state")}
    command = [sys.executable, "-m", "uvicorn", "api.main:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent())
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/healthz", trust_env=False)
            break
        except httpx.TransportError:
            time.sleep(0.05)
    yield url, process
    process.kill()
    process.wait()


def collect(url: str, job_id: int, headers: dict[str, str] | None = None) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    seq, kind = 0, ""
    with httpx.stream(
        "GET", f"{url}/jobs/{job_id}/events", headers=headers or {}, timeout=30, trust_env=False
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line.startswith("id:"):
                seq = int(line[3:])
            elif line.startswith("data:"):
                kind = json.loads(line[5:])["kind"]
            elif line == "" and kind:
                found.append((seq, kind))
                kind = ""
    return found


def test_a_stream_replays_goes_on_and_ends_with_the_job(
    api: tuple[str, subprocess.Popen[bytes]], sqlite_url: str
) -> None:
    url, _ = api
    job_id = httpx.post(f"{url}/jobs", json=JOB, trust_env=False).json()["id"]
    later = threading.Timer(1.0, lambda: httpx.post(f"{url}/jobs/{job_id}/cancel", trust_env=False))
    later.start()
    events = collect(url, job_id)
    assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
    assert events[0][1] == "job.queued"
    assert events[-1][1] == "job.cancelled"
    assert collect(url, job_id, {"Last-Event-ID": "1"}) == events[1:]
    with Database(sqlite_url).read() as session:
        assert jobs.by_id(session, job_id).last_event == len(events)  # pyright: ignore[reportOptionalMemberAccess]
    listed = httpx.get(f"{url}/jobs/{job_id}/history", trust_env=False).json()
    assert [(event["seq"], event["kind"]) for event in listed] == events
    last = {"Last-Event-ID": str(events[-1][0])}  # as a browser sends it when the stream has ended
    over = httpx.get(f"{url}/jobs/{job_id}/events", headers=last, trust_env=False)
    assert (over.status_code, over.content) == (204, b"")


def test_a_stream_outlives_a_database_that_is_away(api: tuple[str, subprocess.Popen[bytes]], sqlite_url: str) -> None:
    """What answers "no such table" is away as much as what does not answer."""
    url, _ = api
    job_id = httpx.post(f"{url}/jobs", json=JOB, trust_env=False).json()["id"]
    found: list[list[tuple[int, str]]] = []
    listener = threading.Thread(target=lambda: found.append(collect(url, job_id)))
    listener.start()
    time.sleep(1)
    database = Database(sqlite_url)
    for old, new in (("events", "away"), ("away", "events")):
        with database.write() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
        time.sleep(1.5)
        refused = httpx.get(f"{url}/jobs/{job_id}/history", trust_env=False).status_code
        assert refused == (503 if new == "away" else 200)
    httpx.post(f"{url}/jobs/{job_id}/cancel", trust_env=False)
    listener.join(30)
    assert [kind for _, kind in found[0]][-1] == "job.cancelled"
    assert [seq for seq, _ in found[0]] == list(range(1, len(found[0]) + 1))


def test_what_is_wrong_is_said_before_the_stream_begins(api: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, _ = api
    assert httpx.get(f"{url}/jobs/77/events", trust_env=False).status_code == 404
    assert httpx.head(f"{url}/jobs/77/events", trust_env=False).status_code == 404
    job_id = httpx.post(f"{url}/jobs", json=JOB, trust_env=False).json()["id"]
    bad = httpx.get(f"{url}/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}, trust_env=False)
    assert bad.status_code == 422
    assert "Last-Event-ID" in bad.json()["error"]["message"]
    with httpx.Client(base_url=url, trust_env=False) as client:  # on one connection
        head = client.head(f"/jobs/{job_id}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert client.get("/healthz").status_code == 200


def test_an_open_stream_does_not_hold_up_shutdown(api: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = api
    job_id = httpx.post(f"{url}/jobs", json=JOB, trust_env=False).json()["id"]
    ended = threading.Event()

    def listen() -> None:
        collect(url, job_id)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert ended.wait(30), "the stream was cut instead of ended"
