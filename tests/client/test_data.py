"""`gauntlet data` puts a dataset where the service looks for it: DATA_DIR, from the environment or from .env."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = {name: value for name, value in os.environ.items() if name != "DATA_DIR"}


def gauntlet_data(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in `folder`; nothing it is asked for needs a network."""
    return subprocess.run(
        [sys.executable, "-m", "client.cli", "data", *arguments], cwd=folder, capture_output=True, text=True,
        check=False, env={**WITHOUT, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("by", ["environment", ".env", "option"])
def test_it_goes_to_data_dir(tmp_path: Path, by: str):
    wanted = tmp_path / "wanted"
    environment = {"environment": {"DATA_DIR": str(wanted)}, "option": {"DATA_DIR": str(tmp_path / "other")}}.get(
        by, {}
    )
    if by == ".env":
        (tmp_path / ".env").write_text(f"DATA_DIR={wanted}\n", encoding="utf-8")
    option = ["--data-dir", str(wanted)] if by == "option" else []
    done = gauntlet_data(tmp_path, "synth-digits-mini", *option, **environment)
    assert (done.returncode, done.stdout) == (0, f"synth-digits-mini is in {wanted}\n")
    assert list((wanted / "synth-digits").iterdir())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["wanted"]


def test_a_shipped_one_is_where_it_is(tmp_path: Path):
    assert gauntlet_data(tmp_path, "mnist-mini").stdout == f"mnist-mini is in {ROOT / 'core' / 'datasets'}\n"


def test_a_name_nobody_knows_and_a_folder_that_is_none(tmp_path: Path):
    unknown = gauntlet_data(tmp_path, "imagenet")
    assert (unknown.returncode, "'cifar10', 'cifar10-jpeg'" in unknown.stderr) == (2, True)
    (tmp_path / "file").touch()
    done = gauntlet_data(tmp_path, "synth-digits-mini", DATA_DIR=str(tmp_path / "file"))
    assert (done.returncode, done.stderr.startswith("gauntlet data: ")) == (1, True), done.stderr
