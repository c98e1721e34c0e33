"""Settings, read from the environment and from a `.env` file in the working directory."""

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from store.artifacts import SCHEMES, place_named

QUEUES = ("gpu", "cpu")
"""What a stage may need, and a worker may serve."""
DATABASES = ("postgresql+psycopg", "postgresql", "postgres", "sqlite")
BROKERS = ("redis://", "rediss://", "redis+socket://")
ALIVE_HEARTBEATS = 3.5


class Settings(BaseSettings):
    """Every setting of the service; the environment variable is the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True, env_ignore_empty=True,
        allow_inf_nan=False, hide_input_in_errors=True,  # URLs hold passwords
    )  # fmt: skip

    host: str = "127.0.0.1"
    """Address the API listens on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port the API listens on. Left unset, `make serve` and `make demo` take the next free one."""
    allowed_hosts: str = ""
    """Host names with a dot that requests may name, comma separated; *.example.org is those below it, * any."""
    state_dir: Path = Path("var")
    """Folder of the embedded database, the artifacts and the broker folders."""
    data_dir: Path = Path("data")
    """Folder of the datasets, in torchvision's layout."""
    data_download: bool = False
    """Whether workers may download a missing dataset. If not, a job that needs one is refused at POST."""
    database_url: str = ""
    """SQLAlchemy URL, e.g. postgresql+psycopg://user:password@host/name. Empty: SQLite in STATE_DIR."""
    redis_url: str = ""
    """Redis that carries Celery's messages. Empty: folders in STATE_DIR, no server needed."""
    artifact_url: str = ""
    """Where artifacts are stored: file:///folder or s3://bucket/prefix. Empty: a folder in STATE_DIR."""
    aws_endpoint_url: str = ""
    """Address of the S3 service, e.g. http://minio:9000. Empty: Amazon's."""
    aws_region: str = ""
    """Region of the bucket. Empty: AWS_DEFAULT_REGION, else us-east-1."""
    aws_access_key_id: str = ""
    """Access key of the bucket. Empty: the machine's role."""
    aws_secret_access_key: str = Field(default="", repr=False)
    """Secret of that key."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device class of jobs that name none; auto is cuda where a live worker has one, else cpu."""
    cpu_threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, le=1024)
    """Threads of a CPU stage; part of its key. Unset: the cores at hand."""
    worker_queues: str = ""
    """Queues a worker serves, comma separated. Empty: gpu,cpu where CUDA is found, else cpu."""
    worker_gpus: str = ""
    """GPUs a worker uses, comma separated, by index or UUID; each has processes of its own. Empty: all it sees."""
    worker_slots: int = Field(default=1, ge=1, le=64)
    """Stages a worker runs at once on each device, each in a process of its own; they share its memory."""
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    """How often a worker renews its lease and reports."""
    lease_seconds: float = Field(default=60.0, gt=0)
    """How long a lease lasts without renewal; an orphaned stage runs again after that."""
    look_seconds: float = Field(default=10.0, gt=0)
    """How often an idle worker looks for work that no message tells of; Redis may be away."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """How often a training writes a checkpoint."""
    keeper_seconds: float = Field(default=1.0, gt=0)
    """How often the keeper looks for expired leases and unheard messages."""
    max_failures: int = Field(default=3, ge=1)
    """Attempts that may end in an unexpected error before a stage is failed."""
    max_losses: int = Field(default=5, ge=1)
    """Attempts that may be lost (killed worker, expired lease) before a stage is failed."""

    @field_validator("state_dir", "data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _of_a_known_database(cls, url: str) -> str:
        with suppress(ArgumentError, ValueError):
            named = make_url(url or "sqlite://")
            cut = named.get_backend_name() != "sqlite" and "@" in f"{named.host}{named.database}"  # off the password
            if named.drivername in DATABASES and not cut:
                return url
        raise ValueError(
            "must be like postgresql+psycopg://user:password@host/name or sqlite:////folder/file; "
            "an @ in the password is written %40"
        )

    @field_validator("redis_url")
    @classmethod
    def _of_a_known_broker(cls, url: str) -> str:
        with suppress(ValueError):
            if not url or (url.startswith(BROKERS) and urlsplit(url).port != 0):
                return url
        raise ValueError("must be like redis://:password@host:6379/0, rediss://host or redis+socket:///folder/file")

    @field_validator("artifact_url")
    @classmethod
    def _of_a_known_store(cls, url: str) -> str:
        if url and not place_named(url):
            raise ValueError(f"only {' and '.join(SCHEMES)} are supported")
        return url

    @field_validator("worker_queues")
    @classmethod
    def _of_known_queues(cls, given: str) -> str:
        unknown = [name for name in names(given) if name not in QUEUES]
        if unknown:
            raise ValueError(f"there is no queue {unknown[0]!r}, only {' and '.join(QUEUES)}")
        return given

    @model_validator(mode="after")
    def _leases_outlive_heartbeats(self) -> "Settings":
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                f"LEASE_SECONDS ({self.lease_seconds}) must be at least twice HEARTBEAT_SECONDS "
                f"({self.heartbeat_seconds}): a lease has to outlive a late renewal"
            )
        return self

    @property
    def sql_url(self) -> str:
        """The database URL, with the embedded default filled in."""
        if not self.database_url:
            return f"sqlite:///{self.state_dir / 'gauntlet.db'}"
        scheme, separator, rest = self.database_url.partition("://")
        return "postgresql+psycopg" + separator + rest if scheme in ("postgres", "postgresql") else self.database_url

    @property
    def host_names(self) -> tuple[str, ...]:
        """The names of ALLOWED_HOSTS."""
        return tuple(names(self.allowed_hosts.lower()))

    @property
    def alive_seconds(self) -> float:
        """How long a worker that reports no more counts as alive."""
        return ALIVE_HEARTBEATS * self.heartbeat_seconds

    @property
    def queues(self) -> list[str]:
        """The queues of WORKER_QUEUES; none where the device decides."""
        return names(self.worker_queues)

    @property
    def artifacts(self) -> str:
        """The artifact URL, with the embedded default filled in."""
        return self.artifact_url or (self.state_dir / "artifacts").as_uri()

    @property
    def s3(self) -> dict[str, str]:
        """The settings of the bucket that are given here; the environment has those that are not."""
        given = {
            "endpoint": self.aws_endpoint_url,
            "region": self.aws_region,
            "access_key_id": self.aws_access_key_id,
            "secret_access_key": self.aws_secret_access_key,
        }
        return {name: value for name, value in given.items() if value}


def names(given: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in given.split(",") if name.strip()]


@cache
def settings() -> Settings:
    """Return the process's settings, read once; where they are wrong the process ends, and says what is."""
    try:
        return Settings()
    except ValidationError as error:
        said = "; ".join(_fault(tuple(found["loc"]), found["msg"]) for found in error.errors())
        sys.exit(f"gauntlet: {said}")


def _fault(where: tuple[int | str, ...], message: str) -> str:
    return ": ".join([*(str(name).upper() for name in where), message.removeprefix("Value error, ")])
