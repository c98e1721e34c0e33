"""A real API process on a free port of this machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from store.artifacts import open_store
from store.database import Database

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """Where the API listens, and its database."""

    port: int
    database: Database

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def served(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'gauntlet.db')}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"STATE_DIR": str(folder), "DATABASE_URL": url, "REDIS_URL": "", "DEVICE": "cpu", "CPU_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "api.main:app", "--host", "127.0.0.1", "--port", str(port),
         "--log-level", "warning"],
        cwd=ROOT, env={**os.environ, **names, "DATA_DIR": str(folder / "data")},
    )  # fmt: skip
    database = Database(url)
    try:
        _wait(f"http://127.0.0.1:{port}/healthz", process)
        open_store((folder / "artifacts").as_uri(), database=database).require_ours()  # before made-up results
        yield Served(port, database)
    finally:
        database.close()
        process.terminate()
        process.wait(10)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the API did not answer at {url}")
