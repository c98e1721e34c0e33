"""Dockerfile.gpu lints, builds its layers in the right order, and takes every file that the services need."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docker import compose

PROJECT = tomllib.loads((compose.ROOT / "pyproject.toml").read_text())


def test_hadolint() -> None:
    command = [compose.BIN / "hadolint", "--failure-threshold", "style", compose.ROOT / "Dockerfile.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_base_is_the_python_we_support() -> None:
    (base,) = (rest for word, rest in compose.instructions() if word == "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", base)
    assert version
    assert PROJECT["project"]["requires-python"] == f">={version[1]}"


def test_not_root() -> None:
    users = [rest for word, rest in compose.instructions() if word == "USER"]
    assert users[-1].split(":")[0].isdigit()  # a number, so that an orchestrator can check it
    assert users[-1].split(":")[0] != "0"


def test_the_user_can_read_a_checkout_of_any_umask() -> None:
    """COPY keeps the modes of the files, and none comes after."""
    last = max(number for number, (word, _) in enumerate(compose.instructions()) if word == "COPY")
    assert any("chmod -R a+rX /app" in rest for word, rest in compose.instructions()[last:] if word == "RUN")


def test_health_is_the_compose_file_s() -> None:
    assert not any(word == "HEALTHCHECK" for word, _ in compose.instructions())


def test_sources_come_after_the_dependencies() -> None:
    """A changed source file leaves the gigabytes of the dependencies' layer alone."""
    steps = compose.instructions()
    installs = next(number for number, (_, rest) in enumerate(steps) if "--requirement" in rest)
    early = {name for word, rest in steps[:installs] if word == "COPY" for name in rest.split()[:-1]}
    assert early == {"pyproject.toml", "constraints.txt"}
    assert "--constraint constraints.txt" in steps[installs][1]


def test_the_dependencies_are_the_project_s(tmp_path: Path) -> None:
    """The line of Python in the Dockerfile, run on our pyproject.toml, writes what pip shall install."""
    script = next(found[1] for _, rest in compose.instructions() if (found := re.search(r'python -c "([^"]+)"', rest)))
    shutil.copy(compose.ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == PROJECT["project"]["dependencies"]


def test_every_package_is_copied() -> None:
    copied = {name for word, rest in compose.instructions() if word == "COPY" for name in rest.split()[:-1]}
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied
    assert {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= copied


def sources() -> list[str]:
    return [name for word, rest in compose.instructions() if word == "COPY" for name in rest.split()[:-1]]


@pytest.mark.parametrize("source", sources())
def test_what_is_copied_is_there_and_let_in(source: str) -> None:
    assert any(path.is_relative_to(source) for path in compose.build_context()), f"{source} is missing or kept out"


def test_nothing_else_is_sent_to_the_build() -> None:
    context = compose.build_context()
    assert all(any(path.is_relative_to(source) for source in sources()) for path in context)
    assert not any("__pycache__" in path.parts or path.suffix == ".pyc" for path in context)


def test_data_of_the_packages_is_copied(tmp_path: Path) -> None:
    compose.copy_image(tmp_path)
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            expected = {path.relative_to(compose.ROOT) for path in (compose.ROOT / package).glob(pattern)}
            assert expected == {path.relative_to(tmp_path) for path in (tmp_path / package).glob(pattern)}
