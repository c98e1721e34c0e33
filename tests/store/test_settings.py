"""Settings come from the environment, then from `.env`, then from their defaults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from store.settings import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting in the environment, and a working directory without `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_need_no_server(clean: Path):
    chosen = Settings()
    assert (chosen.host, chosen.port) == ("127.0.0.1", 8000)
    assert chosen.sql_url == f"sqlite:///{clean / 'var' / 'gauntlet.db'}"
    assert chosen.artifacts == (clean / "var" / "artifacts").as_uri()
    assert chosen.redis_url == ""
    assert (chosen.heartbeat_seconds, chosen.lease_seconds) == (10, 60)


def test_a_lease_outlasts_a_lost_heartbeat(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HEARTBEAT_SECONDS", "31")
    with pytest.raises(ValidationError, match="LEASE_SECONDS"):
        Settings()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u:p@h/n", "postgresql+psycopg://u:p@h/n"),
        ("postgres://u:p@h/n?sslmode=require", "postgresql+psycopg://u:p@h/n?sslmode=require"),
        ("postgresql+psycopg://u:p%40@h:5432/n", "postgresql+psycopg://u:p%40@h:5432/n"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_database_urls(monkeypatch: pytest.MonkeyPatch, given: str, expected: str):
    monkeypatch.setenv("DATABASE_URL", given)
    assert Settings().sql_url == expected


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, clean: Path):
    (clean / ".env").write_text("PORT=9001\nHOST=0.0.0.0\nLEASE_SECONDS=50\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "9002")
    chosen = Settings()
    assert (chosen.host, chosen.port, chosen.lease_seconds) == ("0.0.0.0", 9002, 50)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch):
    for name in ("PORT", "DATABASE_URL", "REDIS_URL", "ARTIFACT_URL", "STATE_DIR"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings.model_construct(**Settings().model_dump())
    assert Settings().port == 8000


def test_folders_are_absolute_and_home_is_known(monkeypatch: pytest.MonkeyPatch, clean: Path):
    monkeypatch.setenv("STATE_DIR", "state")
    monkeypatch.setenv("DATA_DIR", "~/data")
    monkeypatch.setenv("HOME", str(clean / "home"))
    assert Settings().state_dir == clean / "state"
    assert Settings().data_dir == clean / "home" / "data"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "x"),
        ("LEASE_SECONDS", "0"),
        ("MAX_LOSSES", "0"),
        ("DEVICE", "tpu"),
        ("CPU_THREADS", "-1"),
        ("WORKER_QUEUES", "gpu,gppu"),
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "mysql://user@host/name"),
        ("DATABASE_URL", "postgresql+nothing://host/name"),
        ("DATABASE_URL", "postgresql:host"),
        ("REDIS_URL", "redis:6379/0"),
        ("REDIS_URL", "amqp://host"),
        ("REDIS_URL", "redis://host:port/0"),
        ("ARTIFACT_URL", "file://data/artifacts"),
        ("ARTIFACT_URL", "/data/artifacts"),
        ("LOOK_SECONDS", "inf"),
        ("CHECKPOINT_SECONDS", "nan"),
    ],
)
def test_nonsense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_is_documented():
    assert all(field.description for field in Settings.model_fields.values())


def test_a_lease_outlives_its_heartbeats():
    with pytest.raises(ValidationError, match=r"LEASE_SECONDS .5.0. must be at least twice HEARTBEAT_SECONDS"):
        Settings(heartbeat_seconds=3, lease_seconds=5)


@pytest.mark.parametrize("url", ["redis://h", "redis://:p@h:6379/1", "rediss://h/0", "redis+socket:///tmp/redis.sock"])
def test_brokers(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("REDIS_URL", url)
    assert Settings().redis_url == url


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:s@cret@h/n", "postgresql://u:s@cret:cret@h:1/n", "postgres://u:s@cret/cret@h/n", "u:cret@h/n"],
)
def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, url: str):
    """What follows an @ in it would be taken for the host, the port or the name."""
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ValidationError, match="an @ in the password is written %40") as refused:
        Settings()
    assert "cret" not in str(refused.value)


ENTRIES = {
    "api": ["uvicorn", "api.main:app"],
    "keeper": ["worker.keeper"],
    "worker": ["worker"],
    "child": ["worker.child"],
    "health": ["worker.health", "keeper"],
    "serve": ["worker.serve"],
    "alembic": ["alembic", "current"],
    "gauntlet": ["client.cli", "doctor"],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_process_says_in_a_line_which_setting_is_wrong(clean: Path, entry: str):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "DEVICE": "tpu", "LOOK_SECONDS": "inf", "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-m", *ENTRIES[entry]],
        cwd=root, env=environment, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    said = "DEVICE: Input should be 'auto', 'cpu' or 'cuda'; LOOK_SECONDS: Input should be a finite number"
    assert ended.stderr == f"gauntlet: {said}\n"


def test_a_rule_over_two_settings_names_both(clean: Path):
    environment = {**os.environ, "LEASE_SECONDS": "5", "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-m", "worker.serve"], env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr[:47]) == (1, "gauntlet: LEASE_SECONDS (5.0) must be at least ")
