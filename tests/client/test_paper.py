"""`gauntlet paper` against a real API process: printed, in every form, and written to a folder."""

import json
from pathlib import Path

import pytest

from client import cli
from tests import factories
from tests.client.conftest import Served

SUITE = "e2sad-mnist-tiny"


@pytest.fixture(scope="module")
def tiny(served: Served) -> Served:
    from core.suites import expand_suite

    factories.post(served.database, expand_suite({"suite": SUITE}), suite=SUITE, execution=factories.EXECUTION)
    factories.finish(served.database, lambda claim: 15 if claim.kind == "evaluate" else 0)
    return served


def paper(served: Served, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["--url", served.url, "paper", *arguments])
    found = capsys.readouterr()
    return status, found.out, found.err


def test_a_table_for_a_terminal(tiny: Served, capsys: pytest.CaptureFixture[str]):
    status, out, _ = paper(tiny, capsys, "1", "--suite", SUITE)
    assert status == 0
    assert "loss: label" in out
    assert "loss: training" in out
    assert "99.4 /  75.0" in out
    assert "not the paper's protocol: iterations: 2 instead of 30000 (all models)" in out


def test_missing_cells_say_what_runs_them(tiny: Served, capsys: pytest.CaptureFixture[str]):
    _, out, _ = paper(tiny, capsys, "2")
    assert "/    --" in out
    assert "missing cells: `gauntlet submit --suite e2sad-mnist --wait`" in out


@pytest.mark.parametrize(("form", "said"), [("csv", "published"), ("markdown", "| --- |"), ("latex", r"\toprule")])
def test_other_forms(tiny: Served, capsys: pytest.CaptureFixture[str], form: str, said: str):
    assert said in paper(tiny, capsys, "1", "--suite", SUITE, "--format", form)[1]


def test_a_suite_on_other_images_is_refused_with_those_that_fit(tiny: Served, capsys: pytest.CaptureFixture[str]):
    status, _, error = paper(tiny, capsys, "3", "--suite", SUITE)
    assert status == 1
    assert "is on other images" in error


def test_the_folder_of_results(tiny: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert paper(tiny, capsys, "--suite", SUITE, "--write", str(tmp_path))[0] == 0
    found = json.loads((tmp_path / f"{SUITE}-cpu.json").read_text())
    assert (found["suite"], found["device"], list(found["tables"])) == (SUITE, "cpu", ["1", "2"])
    assert found["command"] == f"make paper SUITE={SUITE}"
    seed = found["tables"]["1"]["cells"][0][0]["measured"][0]["seeds"][0]
    assert (seed["n"], seed["n_correct"], seed["seed"]) == (20, 15, 0)
    assert found["job"]["state"] == "succeeded"
    page = (tmp_path / f"{SUITE}-cpu.md").read_text()
    assert "### Table 1 of the paper" in page
    assert "### Table 2 of the paper" in page
    assert "### whitebox matrix" in page


@pytest.mark.parametrize("arguments", [(), ("--write", "x")])
def test_what_is_missing_is_asked_for(tiny: Served, arguments: tuple[str, ...]):
    with pytest.raises(SystemExit, match="gauntlet paper: "):
        cli.main(["--url", tiny.url, "paper", *arguments])
