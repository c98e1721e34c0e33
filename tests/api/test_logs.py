"""What the API logs: lines as the workers', without what machines ask for every few seconds."""

import os
import re
import sys
from pathlib import Path

import pytest

from client.api import Client
from tests.processes import Process, wait_until
from tests.servers import free_port

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) [\w.]+: .+")


@pytest.mark.parametrize("options", [[], ["--no-access-log"]])
def test_lines_of_the_api(sqlite_url: str, tmp_path: Path, options: list[str]) -> None:
    port, root = free_port(), Path(__file__).parents[2]
    environment = {**os.environ, "DATABASE_URL": sqlite_url, "STATE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "uvicorn", "api.main:app", "--port", str(port), *options]
    api = Process("api", command, tmp_path, environment)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        wait_until("the API answers", client.ready)
        for path in ("/healthz", "/readyz?x", "/jobs"):
            client.get(path)
        api.terminate()
        lines = api.log.splitlines()
        assert all(LINE.fullmatch(line) for line in lines)
        asked = [line for line in lines if "uvicorn.access" in line]
        assert ["/jobs" in line for line in asked] == ([] if options else [True])
    finally:
        api.end()
