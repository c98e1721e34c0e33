"""A job's progress as text."""

from typing import Any

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


def test_progress_says_what_it_waits_for():
    waiting = stage("ready", waits_for="no live worker serves the queue cpu")
    line = progress.line(job("queued", waiting, ready=1))
    assert line == "queued     12.5 %  0/1 stages  no live worker serves the queue cpu"


def test_progress_of_a_running_stage_without_numbers_is_its_title():
    assert progress.line(job("running", stage("running"), running=1)).endswith("0/1 stages  train e2sad S")
