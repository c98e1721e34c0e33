"""The bench on a machine that has torch and little else; and the statistics of its pairs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.pairs import median_interval, row
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


class TestInterval:
    """The order statistics of the sign test: tables give ranks 1 and 6 of 6, 2 and 9 of 10, 4 and 12 of 15."""

    @pytest.mark.parametrize(("n", "ranks"), [(5, None), (6, (1, 6)), (10, (2, 9)), (15, (4, 12)), (25, (8, 18))])
    def test_ranks(self, n: int, ranks: tuple[int, int] | None):
        assert median_interval([float(value) for value in range(n, 0, -1)]) == ranks

    def test_the_row(self):
        found = row([(2.0 + seed / 100, 2.0) for seed in range(6)])
        assert (found["median"], found["interval"], found["met"]) == (1.0125, (1.0, 1.025), True)
        assert not row([(2.1, 2.0)] * 6)["met"]
