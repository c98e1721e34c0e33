"""APIs on migrated databases, with datasets that only seem to be installed: planning looks at file names alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from core.datasets import DATASETS
from store.settings import Settings
from tests.api.house import House


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATA_DIR with an empty file of every name that a dataset asks for."""
    folder = tmp_path_factory.mktemp("data")
    for cls in DATASETS.values():
        dataset = cls()
        for name in dataset.missing(folder):
            path = dataset.folder(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


@contextmanager
def opened(url: str, state: Path, data: Path) -> Iterator[House]:
    settings = Settings(
        _env_file=None, state_dir=state, data_dir=data, database_url=url, redis_url="", artifact_url="", device="cpu",
        cpu_threads=2, data_download=False,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        yield House(client, client.app.state.service)


@pytest.fixture
def house(database_url: str, tmp_path: Path, data_dir: Path) -> Iterator[House]:
    """An API on an empty database of either sort: the test runs on both."""
    with opened(database_url, tmp_path / "state", data_dir) as found:
        yield found


@pytest.fixture
def small_house(sqlite_url: str, tmp_path: Path, data_dir: Path) -> Iterator[House]:
    """An API on an empty SQLite database, for what no database has a say in."""
    with opened(sqlite_url, tmp_path / "state", data_dir) as found:
        yield found
