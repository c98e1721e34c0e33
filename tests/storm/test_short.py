"""Short forms of `make storm` and its companions; how fast things go is for the long forms to say."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.answers import ROOT
from tests.processes import wait_until
from tests.storm import cancel, requeue, storm

pytestmark = pytest.mark.xdist_group("storm")
SHORT = storm.Patience(seconds=45)
LOADED_SECONDS = 20.0
"""Beyond the lease, for a machine that does much else; docs/storm.md promises one second on an idle one."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_storm(tmp_path: Path) -> None:
    """As many faults as 45 seconds hold: nothing is lost, doubled, stale or different; without fences something is."""
    told: list[dict[str, Any]] = []
    report, kept = storm.storm_and_control(SHORT, tmp_path, told.append)
    assert report["faults"] > 5
    assert report["jobs"] == {"succeeded": report["posted"]}
    assert [report[name] for name in ("lost", "duplicate", "stale", "different_from_calm")] == [0, 0, 0, 0]
    assert report["violations"] == []
    assert report["control"]["stale"], "without fences no result was recorded under a wrong one: no power"
    assert set(report["control"]) == set(report) - {"control"}
    assert kept
    assert told[-1]["unfinished"] is False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_storm_reports(tmp_path: Path) -> None:
    """What there was is counted and written, not thrown away."""
    out = tmp_path / "storm.json"
    command = [sys.executable, "-m", "tests.storm", "--seconds", "300", "--control-seconds", "0", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until("first news", out.exists, 240)
        process.send_signal(signal.SIGINT)
        process.wait(300)
    finally:
        process.kill()
    report = json.loads(out.read_text())
    assert (report["interrupted"], report["unfinished"], report["control"]) == (True, False, None)
    assert (report["lost"], report["duplicate"], report["stale"], report["violations"]) == (0, 0, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize("keeper_dies", [False, True])
def test_requeue(tmp_path: Path, keeper_dies: bool) -> None:
    """More than a hundred orphans at once, each taken back once, after its lease."""
    run = requeue.measure(requeue.TEST, 110, tmp_path, keeper_dies=keeper_dies)
    assert run["orphans"] == 110
    assert run["violations"] == []
    assert run["max"] >= run["p99"] >= run["p50"] > requeue.TEST.lease - 3 * requeue.TEST.heartbeat
    assert run["p99"] <= min(requeue.TEST.lease + LOADED_SECONDS, 75)


@pytest.mark.slow
def test_cancel(tmp_path: Path) -> None:
    """A training and an attack, each cancelled in its middle, thrice."""
    run = cancel.measure(3, 2, 1.0, 0, tmp_path)
    assert run["violations"] == []
    assert run["cancels"] == 6
    assert {len(run[kind]["worker_free_seconds"]) for kind in ("training", "attack")} == {4}
    assert all(run[kind]["worker_free_seconds"]["max"] <= 15 for kind in ("training", "attack"))
