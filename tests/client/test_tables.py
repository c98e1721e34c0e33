"""Matrices and progress as text."""

from typing import Any

from client import tables


def cell(accuracy: float | None, low: float = 0.5, high: float = 0.7, **more: Any) -> dict[str, Any]:
    interval = None if accuracy is None else [low, high]
    return {"accuracy": accuracy, "interval": interval, "whitebox": False, "reason": None, **more}


MATRIX: dict[str, Any] = {
    "matrix": "blackbox",
    "scope": {"dataset": "mnist-mini", "device": "cpu", "images": 300},
    "rows": [{"label": "Natural H"}, {"label": "IFGSM-10 H"}],
    "columns": [{"label": "Natural H"}, {"label": "e2SAD S"}],
    "cells": [
        [cell(0.6, whitebox=True), cell(1.0, 0.98, 1.0)],
        [cell(0.0, 0.0, 0.02), cell(None, reason="seed 0: not finished (ready)")],
    ],
}


def test_a_table_is_aligned_and_marks_what_is_white_box():
    assert tables.table(MATRIX) == "\n".join(
        [
            "               Natural H       e2SAD S",
            "--------------------------------------",
            "Natural H    60.0 ±10.0*  100.0 ± 1.0 ",
            "IFGSM-10 H    0.0 ± 1.0             --",
        ]
    )


def test_a_white_box_table_needs_no_mark():
    whitebox = {**MATRIX, "matrix": "whitebox", "cells": [[cell(0.6, whitebox=True)] * 2] * 2}
    assert "*" not in tables.table(whitebox)


def test_a_caption_says_what_the_numbers_are():
    assert tables.caption(MATRIX) == (
        "blackbox matrix, substitutes by targets: accuracy in % ± half-width of the 95 % interval; mnist-mini, "
        "first 300 test images, cpu"
    )
    assert tables.caption({**MATRIX, "scope": None, "reason": "no evaluations yet"}) == "no evaluations yet"


def test_reasons_name_the_cell():
    assert tables.reasons(MATRIX) == ["IFGSM-10 H / e2SAD S: seed 0: not finished (ready)"]


def stage(state: str, title: str = "train e2sad S", **more: Any) -> dict[str, Any]:
    return {"state": state, "title": title, "progress": None, "waits_for": None, **more}


def job(state: str, *stages: dict[str, Any], **by_state: int) -> dict[str, Any]:
    progress = {"fraction": 0.125, "by_state": by_state, "stages": sum(by_state.values())}
    return {"state": state, "progress": progress, "stages": list(stages)}


def test_progress_says_what_runs():
    running = stage("running", progress={"done": 30, "total": 300})
    line = tables.progress_line(job("running", running, stage("blocked"), running=1, succeeded=2, blocked=5))
    assert line == "running    12.5 %  2/8 stages  train e2sad S (30/300)"


def test_progress_says_what_it_waits_for():
    waiting = stage("ready", waits_for="no live worker serves the queue cpu")
    line = tables.progress_line(job("queued", waiting, ready=1))
    assert line == "queued     12.5 %  0/1 stages  no live worker serves the queue cpu"


def test_progress_of_a_running_stage_without_numbers_is_its_title():
    assert tables.progress_line(job("running", stage("running"), running=1)).endswith("0/1 stages  train e2sad S")
