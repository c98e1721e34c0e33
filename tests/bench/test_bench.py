"""The bench on a machine that has torch and little else; the clock, and the statistics of its pairs."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.clock import Timing, interleaved, ratio
from bench.pairs import median_interval, row
from bench.service import percentile
from core.execution import Execution

ROOT = Path(__file__).parents[2]
ABSENT = (
    "foolbox", "art", "matplotlib", "scipy", "PIL", "torchvision", "sqlalchemy", "psycopg", "fastapi", "celery",
    "redis", "httpx", "psutil", "hypothesis", "pydantic_settings",
)  # fmt: skip
BARE = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT!r})); "
    "sys.argv[0] = 'bench'; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
"""Runs a module where those others cannot be imported."""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


def test_rivals_that_are_not_installed_are_left_out_and_named(tmp_path: Path):
    little = ("--rounds", "1", "--budget", "0.01", "--images", "4", "--seeds", "0", "--out", str(tmp_path))
    ran = bare("bench", "--device", "cpu", "--only", "craft IFGSM-30", *little)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "bench-cpu.json").read_text())
    assert report["left_out"] == ["foolbox: not installed", "ART: not installed", "the plot: not installed"]
    (found,) = report["rows"]
    assert (found["precision"], set(found["times_faster_than"])) == ("float32", {"plain"})
    assert Execution.model_validate(report["execution"]).device == "cpu"
    assert "left out: foolbox: not installed" in ran.stdout


def test_the_layout_of_the_plan_is_measured_against_the_other(tmp_path: Path):
    little = ("--rounds", "1", "--budget", "0.01", "--seeds", "0", "--out", str(tmp_path))
    assert bare("bench", "--device", "cpu", "--only", "layout", *little).returncode == 0
    (found,) = json.loads((tmp_path / "bench-cpu.json").read_text())["rows"]
    assert (found["name"], list(found["times_faster_than"])) == ("layout channels_last, float32", ["contiguous"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_here_is_refused(tmp_path: Path):
    ran = bare("bench", "--device", "cuda", "--out", str(tmp_path))
    assert ran.returncode == 1
    assert "bench: device: torch finds no CUDA device here" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_suite_needs_no_more_either(tmp_path: Path):
    ran = bare("core.run", "--suite", "e2sad-mnist-tiny", "--out", str(tmp_path / "x.zip"), "--budget-seconds", "0")
    assert ran.returncode == 75, ran.stderr


class TestClock:
    """What every row rests on, by hand."""

    def test_candidates_take_turns_after_a_round_outside_the_clock(self):
        done: list[str] = []

        def wait() -> None:
            done.append("-")
            time.sleep(0.01)

        found = interleaved({name: partial(done.append, name) for name in "ab"}, 2, wait)
        assert "".join(done) == "a-b-" * 3
        assert [(len(timing.seconds), min(timing.seconds) >= 0.01) for timing in found.values()] == [(2, True)] * 2

    def test_the_ratio_is_that_of_the_same_round(self):
        assert ratio(Timing((8.0, 3.0, 10.0)), Timing((2.0, 1.0, 5.0))) == 3

    @pytest.mark.parametrize(("percent", "expected"), [(0, 1), (5, 1), (50, 10), (95, 19), (96, 20), (100, 20)])
    def test_a_percentile_is_a_value_that_so_many_do_not_exceed(self, percent: float, expected: int):
        assert percentile(range(20, 0, -1), percent) == expected


class TestInterval:
    """The order statistics of the sign test: tables give ranks 1 and 6 of 6, 2 and 9 of 10, 4 and 12 of 15."""

    @pytest.mark.parametrize(("n", "ranks"), [(5, None), (6, (1, 6)), (10, (2, 9)), (15, (4, 12)), (25, (8, 18))])
    def test_ranks(self, n: int, ranks: tuple[int, int] | None):
        assert median_interval([float(value) for value in range(n, 0, -1)]) == ranks

    def test_the_row(self):
        found = row([(2.0 + seed / 100, 2.0) for seed in range(6)])
        assert (found["median"], found["interval"], found["met"]) == (1.0125, (1.0, 1.025), True)
        assert not row([(2.1, 2.0)] * 6)["met"]
