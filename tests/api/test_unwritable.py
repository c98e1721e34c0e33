"""While the database cannot be written, every writing request is told when to come again; what can be read is answered.

Nothing of what is refused is done, and everything works again afterwards.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from api import service
from store import migrate
from store.artifacts import LOCK, MARK
from tests import s3, servers
from tests.api.conftest import opened, opened_with, settings_for
from tests.api.house import LITTLE, House
from tests.disk import fill, mounted

Outage = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BUSY_SECONDS", 0.1)


def assert_come_again(answer: Any) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json()["error"]["code"] == "unavailable"


def prepared(house: House) -> tuple[int, int]:
    """Return a live job and a cancelled one."""
    live, dead = house.post(LITTLE)["id"], house.post({**LITTLE, "seeds": [5]})["id"]
    assert house.client.post(f"/jobs/{dead}/cancel").status_code == 202
    return live, dead


def refuses_writes(house: House, live: int, dead: int) -> None:
    """Check every request there is that writes."""
    post = house.client.post
    fresh = {**LITTLE, "seeds": [9]}
    refused = post("/jobs", json=fresh)
    assert_come_again(refused)
    assert "127.0.0.1" not in refused.text, "where the database is, is nobody's business"
    assert_come_again(post("/jobs", json=fresh, headers={"Idempotency-Key": "again"}))
    assert_come_again(post(f"/jobs/{live}/cancel"))
    assert_come_again(post(f"/jobs/{dead}/retry"))


def answers_reads(house: House, live: int) -> None:
    assert house.get(f"/jobs/{live}")["state"] == "queued"
    assert len(house.get("/jobs")["jobs"]) == 2
    assert house.plan(LITTLE)
    house.get("/results/whitebox-matrix")


def goes_through(house: House, outage: Outage, *, reads: bool) -> None:
    """Check one outage from before to after."""
    live, dead = prepared(house)
    before = house.rows()
    with outage():
        refuses_writes(house, live, dead)
        if reads:
            answers_reads(house, live)
        else:
            assert_come_again(house.client.get("/jobs"))
        assert house.client.get("/healthz").status_code == 200
    assert house.rows() == before
    fresh = {**LITTLE, "seeds": [9]}
    first = house.post(fresh, Idempotency_Key="again")
    assert house.post(fresh, Idempotency_Key="again")["id"] == first["id"]
    assert house.rows()["jobs"] == 3
    assert house.client.post(f"/jobs/{live}/cancel").status_code == 202


def test_sqlite_locked(small_house: House) -> None:
    """By somebody who does not let go."""

    @contextmanager
    def locked() -> Iterator[None]:
        other = sqlite3.connect(str(small_house.service.database.url.database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()
        other.close()

    goes_through(small_house, locked, reads=True)


def test_sqlite_full(sqlite_template: Path, tmp_path: Path, data_dir: Path) -> None:
    with mounted(tmp_path / "disk", "16m") as disk:

        @contextmanager
        def full() -> Iterator[None]:
            ballast = fill(disk)
            yield
            ballast.unlink()

        file = shutil.copy(sqlite_template, disk / "gauntlet.db")
        with opened(f"sqlite:///{file}", tmp_path / "state", data_dir) as house:
            goes_through(house, full, reads=True)


def test_sqlite_readonly(sqlite_url: str, tmp_path: Path, data_dir: Path) -> None:
    with opened(sqlite_url, tmp_path / "state", data_dir) as house:
        live, dead = prepared(house)
        path = house.service.database.url.database
        with opened(f"sqlite:///file:{path}?mode=ro&uri=true", tmp_path / "state", data_dir) as readonly:
            refuses_writes(readonly, live, dead)
            answers_reads(readonly, live)


def test_postgresql_readonly(
    postgres_server: servers.PostgresServer, postgres_url: str, tmp_path: Path, data_dir: Path
) -> None:
    """As one that is a standby now."""
    name = sql.Identifier(postgres_url.rpartition("/")[2])

    def turn(on: str, database: Any) -> None:
        command = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        postgres_server.execute(command.format(name, sql.SQL(on)))
        database.engine.dispose()

    with opened(postgres_url, tmp_path, data_dir) as house:

        @contextmanager
        def readonly() -> Iterator[None]:
            turn("on", house.service.database)
            yield
            turn("off", house.service.database)

        goes_through(house, readonly, reads=True)


def test_postgresql_down(tmp_path: Path, data_dir: Path) -> None:
    with servers.PostgresServer() as postgres:

        @contextmanager
        def down() -> Iterator[None]:
            postgres.kill()
            yield
            postgres.start()

        url = postgres.create_database("gauntlet")
        migrate.upgrade(url)
        with opened(url, tmp_path, data_dir) as house:
            goes_through(house, down, reads=False)


def test_a_full_disk_of_artifacts_is_not_ready(sqlite_url: str, tmp_path: Path, data_dir: Path) -> None:
    with mounted(tmp_path / "disk", "1m") as disk:
        chosen = settings_for(sqlite_url, tmp_path, data_dir).model_copy(update={"artifact_url": disk.as_uri()})
        with opened_with(chosen) as house:
            house.service.store.put(b"")
            assert house.client.get("/readyz").status_code == 200
            ballast = fill(disk)
            ready = house.client.get("/readyz")
            assert (ready.status_code, "No space left" in ready.json()["checks"]["artifacts"]) == (503, True)
            ballast.unlink()
            assert house.client.get("/readyz").status_code == 200
            assert not [path for path in disk.iterdir() if path.is_file() and path.name not in (LOCK, MARK)]


def test_a_bucket_that_is_away(
    s3_server: s3.S3Server, sqlite_url: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that cannot be read now is not said to be missing, and readiness says what is wrong."""
    for name, value in s3.KEYS.items():
        monkeypatch.setenv(name, value)
    with s3.Proxy(s3_server) as proxy:
        chosen = settings_for(sqlite_url, tmp_path, data_dir).model_copy(
            update={"artifact_url": f"s3://{s3_server.create_bucket()}/api", "aws_endpoint_url": proxy.url}
        )
        with opened_with(chosen) as house:
            house.post({"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}})
            house.work()
            stage = house.get(f"/stages/{house.get('/jobs/1')['stages'][0]['key']}")
            house.service.store.put(stage["key"].encode())
            address = f"/artifacts/{stage['artifacts']['weights']}"
            assert house.client.get(address).content == stage["key"].encode()
            proxy.refusing = 503
            assert_come_again(house.client.get(address))
            ready = house.client.get("/readyz")
            assert (ready.status_code, "cannot be used" in ready.json()["checks"]["artifacts"]) == (503, True)
            proxy.refusing = None
            assert house.client.get(address).status_code == 200
            assert house.client.get("/readyz").status_code == 200
