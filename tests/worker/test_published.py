"""`make paper`: a service of its own runs a suite and writes every count with versions and commit."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import servers
from tests.worker.test_serve import ROOT, Serve

pytestmark = pytest.mark.xdist_group("worker-serve")
SUITE = "e2sad-mnist-tiny"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_paper(tmp_path: Path) -> None:
    """The suite of 45 cells of Table 1 and 54 of Table 2, for real; some minutes on a busy machine."""
    folder = tmp_path / "results"
    service = Serve(
        tmp_path, "--suite", SUITE, "--results", str(folder), "--stop", PORT=str(servers.free_port())
    )  # fmt: skip
    try:
        assert service.wait(580) == 0, service.log
    finally:
        service.end()
    found = json.loads((folder / f"{SUITE}-cpu.json").read_text())
    assert (found["suite"], found["device"], found["job"]["state"]) == (SUITE, "cpu", "succeeded")
    (origin,) = found["origins"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert {"torch", "python", "gauntlet"} <= set(origin)
    if commit.returncode == 0:
        assert str(origin["commit"]).startswith(commit.stdout.strip()[:12])
    cells = [ours for table in found["tables"].values() for row in table["cells"] for cell in row
             for ours in cell["measured"]]  # fmt: skip
    assert {ours["n"] for ours in cells} == {20}
    assert all(ours["reason"] is None for ours in cells)
    page = (folder / f"{SUITE}-cpu.md").read_text()
    assert "### Table 1 of the paper" in page
    assert "Not the paper's protocol: iterations: 2 instead of 30000 (all models)" in page


def test_a_job_that_is_no_suite_fails_to_publish(tmp_path: Path) -> None:
    """The exit status says so, though the job itself succeeded."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"kind": "train", "dataset": "mnist-mini",
        "defense": {"kind": "natural"}, "training": {"iterations": 1, "batch_size": 2}}))  # fmt: skip
    service = Serve(tmp_path, "--suite", "job.yaml", "--results", "out", "--stop", PORT=str(servers.free_port()))
    try:
        assert service.wait(120) != 0
    finally:
        service.end()
    assert "there is no suite 'job.yaml'" in service.log
    assert not (tmp_path / "out").exists()
