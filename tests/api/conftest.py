"""APIs on migrated databases, with datasets that only seem to be installed: planning looks at file names alone."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

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


def settings_for(url: str, state: Path, data: Path) -> Settings:
    return Settings(
        _env_file=None, state_dir=state, data_dir=data, database_url=url, redis_url="", artifact_url="", device="cpu",
        cpu_threads=2, data_download=False,
    )  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document; it is the same for every settings and takes longer than most tests."""
    return create_app().openapi()


@contextmanager
def opened(url: str, state: Path, data: Path) -> Iterator[House]:
    with opened_with(settings_for(url, state, data)) as house:
        yield house


@contextmanager
def opened_with(chosen: Settings) -> Iterator[House]:
    app = create_app(chosen)
    app.openapi_schema = document()
    with TestClient(app) as client:
        service = client.app.state.service
        service.store.require_ours()  # before made-up results refer to what nobody has put
        yield House(client, service)


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


@pytest.fixture(scope="class")
def lasting_house(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[House]:
    """An API on a SQLite database that the tests of one class share, for those that only look."""
    folder = tmp_path_factory.mktemp("lasting")
    with opened(f"sqlite:///{shutil.copy(sqlite_template, folder / 'gauntlet.db')}", folder, data_dir) as found:
        yield found


@pytest.fixture(scope="module")
def fuzz_house(
    postgres_server: Any, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> Iterator[House]:
    """An API on a PostgreSQL database, the pickier of the two, that a module's many random requests share."""
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    url = postgres_server.create_database(name, template=postgres_template)
    with opened(url, tmp_path_factory.mktemp("fuzz"), data_dir) as found:
        yield found
    postgres_server.drop_database(name)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def strict_house(
    request: pytest.FixtureRequest, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, data_dir: Path
) -> Iterator[House]:
    """An API on a database of either sort that a whole module of refusals shares: none of them may leave a trace."""
    if request.param == "postgresql":
        yield request.getfixturevalue("fuzz_house")
        return
    folder = tmp_path_factory.mktemp("strict")
    with opened(f"sqlite:///{shutil.copy(sqlite_template, folder / 'gauntlet.db')}", folder, data_dir) as found:
        yield found
