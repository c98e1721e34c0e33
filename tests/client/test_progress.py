"""A job's progress as text."""

from typing import Any

import pytest

from client import progress


def stage(state: str, title: str = "train e2sad S", **more: Any) -> dict[str, Any]:
    return {"state": state, "title": title, "progress": None, "waits_for": None, **more}


def job(state: str, *stages: dict[str, Any], **by_state: int) -> dict[str, Any]:
    progress = {"fraction": 0.125, "by_state": by_state, "stages": sum(by_state.values())}
    return {"state": state, "progress": progress, "stages": list(stages)}


def test_progress_says_what_runs():
    running = stage("running", progress={"done": 30, "total": 300})
    line = progress.line(job("running", running, stage("blocked"), running=1, succeeded=2, blocked=5))
    assert line == "running    12.5 %  2/8 stages  train e2sad S (30/300)"


COST = {"used_seconds": 3.25, "reused_seconds": 0.0, "remaining_seconds": 7260.0, "rate": 1e10,
        "rate_measured": False, "flop": 2e13}  # fmt: skip
JOB = {
    "id": 7, "kind": "evaluate", "name": "n", "suite": None, "spec": {}, "created_at": 0.0, "started_at": None,
    "finished_at": None, "cost": COST, "cautions": ["beware"],
}  # fmt: skip


@pytest.mark.parametrize(("spec", "suite", "head"), [
    ({}, None, "job 7: evaluate, n"), ({"dataset": "mnist"}, "s", "job 7: evaluate on mnist, s, n"),
    ({"dataset": "mnist"}, "n", "job 7: evaluate on mnist, n"),
])  # fmt: skip
def test_a_whole_job(spec: dict[str, Any], suite: str | None, head: str):
    stages = [
        stage("running", key="a" * 64, reason=None, progress={"done": 1, "total": 3}),
        stage("failed", key="b" * 64, reason="the loss\nis NaN"),
        stage("ready", key="c" * 64, reason=None, waits_for="for a worker"),
    ]
    found = {**job("running", *stages, running=1, failed=1, ready=1), **JOB, "spec": spec, "suite": suite}
    lines = list(progress.whole(found))
    assert (lines[0], lines[1]) == (head, "running    12.5 %  0/3 stages")
    assert lines[2].endswith(", started --, ended --")
    assert lines[3:] == [
        "device time 3.2 s, about 2 h 1 min to go",
        "aaaaaaaaaaaa  running    train e2sad S (1/3)",
        "bbbbbbbbbbbb  failed     train e2sad S: the loss is NaN",
        "cccccccccccc  ready      train e2sad S: for a worker",
        "caution: beware",
    ]
    assert [line for line in progress.whole(found, "failed") if "train" in line] == [lines[5]]
    shared = {**found, "cost": {**COST, "reused_seconds": 3}}
    device = "device time 3.2 s, 3.0 s of it in stages that other jobs had run, about 2 h 1 min to go"
    assert list(progress.whole(shared))[3] == device
    assert "to go" not in "".join(progress.whole({**found, "state": "cancelled"}))


def test_a_plan_of_a_job_that_evaluates_nothing():
    stages = [{"kind": "train"}]
    plan = {"kind": "train", "dataset": "mnist", "device": "cpu", "images": 0, "stages": stages, "done": 0, "new": 1,
            "cost": COST, "waits_for": None, "cautions": []}  # fmt: skip
    assert progress.plan(plan).splitlines() == [
        "train on mnist, cpu: 1 stages (1 train)", "0 have succeeded before, 1 have to run",
        "about 2 h 1 min of device time at 1e+10 floating-point operations per second (assumed, none has been "
        "measured); 2e+13 in all", "nothing was stored",
    ]  # fmt: skip
    waiting = {**plan, "waits_for": "no live worker serves the queue gpu"}
    assert progress.plan(waiting).splitlines()[-2:] == ["no live worker serves the queue gpu", "nothing was stored"]


def test_progress_says_what_it_waits_for():
    waiting = stage("ready", waits_for="no live worker serves the queue cpu")
    line = progress.line(job("queued", waiting, ready=1))
    assert line == "queued     12.5 %  0/1 stages  no live worker serves the queue cpu"


def test_progress_of_a_running_stage_without_numbers_is_its_title():
    assert progress.line(job("running", stage("running"), running=1)).endswith("0/1 stages  train e2sad S")
