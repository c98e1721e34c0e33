"""Health, readiness, the catalog, the OpenAPI document, stages and artifacts; and what the process never loads."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from fastapi import Response
from sqlalchemy import event, text

from api.main import THREADS
from api.routes import costs, events, figures, jobs, results
from api.routes import stages as routes
from core.attacks import ATTACKS
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.figures import FIGURES
from core.networks import NETWORKS
from core.stages import STAGES
from store import migrate, stages, workers
from store.database import Database
from tests import factories
from tests.api.conftest import document, opened, opened_with, settings_for
from tests.api.house import LITTLE, House

KINDS = {"attacks": ATTACKS, "defenses": DEFENSES, "networks": NETWORKS, "stages": STAGES, "figures": FIGURES}


def execute(url: str, statement: str) -> None:
    database = Database(url)
    with database.write() as session:
        session.execute(text(statement))
    database.close()


class TestHealth:
    """/healthz, /readyz, and starting."""

    def test_alive_and_ready(self, house: House):
        assert house.get("/healthz") == {"status": "ok", "checks": {}}
        ready = house.get("/readyz")
        assert (ready["status"], ready["checks"]["database"], ready["checks"]["artifacts"]) == ("ok", "ok", "ok")
        assert ready["checks"]["keeper"].startswith("no keeper is running")

    def test_not_ready_at_a_foreign_revision(self, house: House, database_url: str):
        execute(database_url, "UPDATE alembic_version SET version_num = 'from_afar'")
        answer = house.client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "the database is at revision from_afar" in answer.json()["checks"]["database"]
        assert house.client.get("/healthz").status_code == 200

    def test_not_ready_without_an_artifact_store(self, small_house: House):
        folder = small_house.service.settings.state_dir / "artifacts"
        folder.parent.mkdir(exist_ok=True)
        for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else []:
            path.unlink() if path.is_file() else path.rmdir()
        if folder.exists():
            folder.rmdir()
        folder.write_text("a file where the folder should be")
        answer = small_house.client.get("/readyz")
        assert answer.status_code == 503
        assert "does not take bytes" in answer.json()["checks"]["artifacts"]

    def test_a_database_that_is_away(self, postgres_server: Any, postgres_url: str, tmp_path: Path, data_dir: Path):
        with opened(postgres_url, tmp_path, data_dir) as house:
            house.post(LITTLE)
            postgres_server.drop_database(postgres_url.rpartition("/")[2])
            ready = house.client.get("/readyz")
            assert ready.status_code == 503
            assert "does not answer" in ready.json()["checks"]["database"]
            for answer in (house.client.get("/jobs"), house.client.post("/jobs", json=LITTLE)):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert answer.json()["error"]["code"] == "unavailable"

    @pytest.mark.parametrize("revision", [None, "from_afar"])
    def test_it_refuses_to_start_on_another_schema(
        self, database_url: str, tmp_path: Path, data_dir: Path, revision: str | None
    ):
        execute(database_url, f"UPDATE alembic_version SET version_num = '{revision}'" if revision
                else "DELETE FROM alembic_version")  # fmt: skip
        with (
            pytest.raises(
                RuntimeError,
                match=f"{f'is at revision {revision}' if revision else 'has no revision'}, this code needs revision "
                f"{migrate.head()}: run `alembic",
            ),
            opened(database_url, tmp_path, data_dir),
        ):
            pass


@pytest.mark.parametrize(
    "route", [jobs.list_jobs, jobs.get_job, events.history, routes.get_log, routes.list_models, figures.list_figures,
              figures.list_surfaces, costs.curves, results.whitebox_matrix]
)  # fmt: skip
def test_large_answers_are_written_in_the_thread_that_made_them(route: Callable[..., Any]):
    """What a route returns as anything else FastAPI writes in its event loop, where /healthz waits for it."""
    assert get_type_hints(route)["return"] is Response
    assert not inspect.iscoroutinefunction(route)


def test_busy_workers_and_named_models_cost_one_query_however_many(small_house: House):
    small_house.post({**LITTLE, "seeds": [0, 1, 2]})
    database = small_house.service.database
    rows = factories.stages_by_title(database).values()
    trains = [row for row in rows if row.kind == "train"][:3]
    asked: list[str] = []

    def cost(path: str, **params: Any) -> int:
        asked.clear()
        small_house.get(path, **params)
        return len(asked)

    event.listen(database.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    costs = {cost("/results/curves", model=[row.key for row in trains[:number]]) for number in (1, 2, 3)}
    assert len(costs) == 1
    costs.clear()
    for pid, row in enumerate(trains):
        with database.write() as session:
            known = {"device": "cpu", "device_name": "", "queues": ["cpu"], "versions": {}}
            workers.register(session, {"incarnation": str(pid), "host": "h", "pid": pid, **known})
            workers.report(session, str(pid), row.id, draining=False)
        costs.add(cost("/workers"))
    assert {worker["stage"] for worker in small_house.get("/workers")} == {row.key for row in trains}
    assert len(costs) == 1


class TestDoors:
    """Who may ask, by which names, and in which ways."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # curl -d
            ({"Origin": "http://testserver"}, 200),
            ({"Origin": "http://TESTSERVER", "Sec-Fetch-Site": "same-origin"}, 200),
            ({"Origin": "https://front.example", "Sec-Fetch-Site": "same-origin"}, 200),  # a proxy that renames
            ({"Sec-Fetch-Site": "none"}, 200),
            ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
            ({"Origin": "http://testserver:81"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, 403),
            ({"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ],
    )
    def test_a_foreign_page_changes_nothing(self, small_house: House, headers: dict[str, str], status: int):
        answer = small_house.client.post("/jobs?dry_run=1", content=json.dumps(LITTLE), headers=headers)
        assert answer.status_code == status, answer.text
        if status == 403:
            assert answer.json()["error"]["code"] == "forbidden"
            assert small_house.client.post("/jobs/1/cancel", headers=headers).status_code == 403

    def test_a_foreign_page_may_look(self, small_house: House):
        asked = {"Origin": "https://notebook.example", "Sec-Fetch-Site": "cross-site"}
        assert small_house.client.get("/jobs", headers=asked).status_code == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("api:8000", 200), ("a.localhost", 200),
         ("evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("localhost.evil.example.", 403),
         ("[::1", 403), ("gauntlet.example.org", 200), ("GPU1.lab.example:8000", 200), ("lab.example", 403)],
    )  # fmt: skip
    def test_the_names_it_goes_by(self, sqlite_url: str, tmp_path: Path, data_dir: Path, host: str, status: int):
        chosen = settings_for(sqlite_url, tmp_path, data_dir)
        with opened_with(chosen.model_copy(update={"allowed_hosts": "Gauntlet.example.org, *.lab.example"})) as house:
            answer = house.client.get("/healthz", headers={"Host": host})
        assert answer.status_code == status
        if status == 403:
            assert "ALLOWED_HOSTS" in answer.json()["error"]["message"]

    def test_any_name_where_that_is_said(self, sqlite_url: str, tmp_path: Path, data_dir: Path):
        chosen = settings_for(sqlite_url, tmp_path, data_dir)
        with opened_with(chosen.model_copy(update={"allowed_hosts": "*"})) as house:
            assert house.client.get("/jobs", headers={"Host": "any.example"}).status_code == 200

    @pytest.mark.parametrize("path", ["/healthz", "/jobs", "/jobs/1", "/results/whitebox-matrix", "/openapi.json"])
    def test_head_is_get_without_the_body(self, small_house: House, path: str):
        small_house.post(LITTLE)
        head, got = small_house.client.head(path), small_house.client.get(path)
        assert (head.status_code, head.content, got.status_code) == (200, b"", 200)
        assert dict(head.headers) == dict(got.headers)

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [("DELETE", "/jobs", "GET, HEAD, POST"), ("GET", "/jobs/1/cancel", "POST"), ("HEAD", "/jobs/1/cancel", "POST"),
         ("PUT", "/jobs/1", "GET, HEAD"), ("PATCH", "/openapi.json", "GET, HEAD"), ("OPTIONS", "/", "GET, HEAD")],
    )  # fmt: skip
    def test_a_method_that_is_not_there_says_which_are(self, small_house: House, method: str, path: str, allow: str):
        answer = small_house.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)

    def test_the_root_leads_to_the_docs(self, small_house: House):
        answer = small_house.client.get("/", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
        assert small_house.client.get("/").status_code == 200

    def test_alive_while_every_thread_is_busy(self, small_house: House):
        app: Any = small_house.client.app
        busy, go_on = threading.Barrier(THREADS + 1), threading.Event()

        @app.get("/hang")
        def hang() -> None:
            busy.wait()
            go_on.wait()

        app.openapi_schema = {**document(), "paths": {**document()["paths"], "/hang": {"get": {}}}}
        with ThreadPoolExecutor(THREADS + 1) as pool:
            hanging = [pool.submit(small_house.client.get, "/hang") for _ in range(THREADS)]
            busy.wait(60)
            try:
                assert pool.submit(small_house.client.get, "/healthz").result(60).status_code == 200
            finally:
                go_on.set()
            assert {one.result().status_code for one in hanging} == {200}


class TestCatalog:
    """/catalog and OpenAPI say everything that can be asked for."""

    def test_every_kind_with_fields_units_bounds_and_defaults(self, small_house: House):
        catalog = small_house.get("/catalog")
        for group, kinds in KINDS.items():
            assert set(catalog[group]) == set(kinds)
            for name, cls in kinds.items():
                assert catalog[group][name]["version"] == cls.version
                assert set(catalog[group][name]["schema"]["properties"]) == set(cls.model_fields)
        eps = catalog["attacks"]["ifgsm"]["schema"]["properties"]["eps"]
        assert (eps["default"], "pixel units" in eps["description"]) == ("0.3", True)
        steps = catalog["attacks"]["ifgsm"]["schema"]["properties"]["steps"]
        assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 10_000, 10)

    def test_every_dataset_and_whether_it_is_here(self, sqlite_url: str, tmp_path: Path):
        with opened(sqlite_url, tmp_path / "state", tmp_path / "empty") as house:
            datasets = house.get("/catalog")["datasets"]
        assert set(datasets) == set(DATASETS)
        assert [name for name, found in datasets.items() if found["installed"]] == [
            "mnist-mini", "synth-digits", "synth-digits-mini"]  # fmt: skip
        assert "run `gauntlet data mnist`" in datasets["mnist"]["remedy"]
        assert datasets["svhn"]["defaults"]["e2sad"]["dissimilarity_weight"] == 0.3
        assert datasets["mnist"]["eps"] == "0.3"
        assert len(datasets["mnist"]["panel"]) == 6

    def test_openapi_has_every_kind_and_every_reference_resolves(self, small_house: House):
        found = small_house.get("/openapi.json")
        schemas = found["components"]["schemas"]
        for kinds in (ATTACKS, DEFENSES, NETWORKS):
            for name, cls in kinds.items():
                properties = schemas[cls.__name__]["properties"]
                assert properties["kind"]["const"] == name
                assert set(properties) == set(cls.model_fields)
        for job in ("BenchmarkJob", "TrainJob", "EvaluateJob", "SuiteRequest", "ErrorReply"):
            assert job in schemas
        references = set(_references(found))
        assert references
        assert {name.removeprefix("#/components/schemas/") for name in references} <= set(schemas)
        body = found["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": "#/components/schemas/JobRequest"}

    def test_every_address_says_what_it_does(self):
        for path, operations in document()["paths"].items():
            for method, operation in operations.items():
                assert operation.get("description"), f"{method} {path}"
                for parameter in operation.get("parameters", []):
                    if parameter["name"] not in ("accept", "if-none-match", "idempotency-key", "key", "job_id"):
                        assert parameter.get("description") or parameter["schema"].get("description"), parameter


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [reference for inner in value.values() for reference in _references(inner)]
    return [reference for inner in value for reference in _references(inner)] if isinstance(value, list) else []


class TestStages:
    """/stages, logs, /artifacts, /models."""

    def test_a_stage_with_everything_known_of_it(self, house: House):
        job = house.post(LITTLE)
        craft = next(stage for stage in job["stages"] if stage["kind"] == "craft")
        house.work(60)
        found = house.get(f"/stages/{craft['key']}")
        assert (found["kind"], found["state"], found["queue"], found["fence"]) == ("craft", "succeeded", "cpu", 1)
        assert found["spec"]["attack"]["kind"] in ("fgsm", "ifgsm")
        assert found["parents"] == [found["spec"]["substitute"]]
        assert [attempt["outcome"] for attempt in found["attempts"]] == ["succeeded"]
        assert set(found["artifacts"]) == {"examples"}
        assert house.get(f"/stages/{craft['key']}/log") == []

    def test_log_lines_are_read_on_from_their_number(self, house: House):
        house.post(LITTLE)
        claim = factories.claim(house.service.database)
        address = f"/stages/{claim.key}/log"
        with house.service.database.write() as session:
            stages.write_log(session, claim.stage_id, claim.fence, [(float(i), f"line {i}") for i in range(5)])
        first = house.get(address, limit=2)
        rest = house.get(address, after=first[-1]["number"])
        assert [line["line"] for line in [*first, *rest]] == [f"line {i}" for i in range(5)]

    def test_an_artifact_is_its_bytes_or_is_not_given(self, small_house: House):
        data = b"weights"
        small_house.post({"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}})
        database = small_house.service.database
        claim = factories.claim(database)
        sha256 = small_house.service.store.put(data)
        with database.write() as session:
            kept = factories.StoredArtifact("weights", sha256, len(data), "application/x-safetensors")
            factories.stages.succeed(session, claim.stage_id, claim.fence, {}, {}, [kept])
        answer = small_house.client.get(f"/artifacts/{sha256}")
        assert (answer.content, answer.headers["content-type"]) == (data, "application/x-safetensors")
        assert hashlib.sha256(answer.content).hexdigest() == sha256 == answer.headers["etag"].strip('"')
        assert answer.headers["content-length"] == str(len(data))
        small_house.service.store.path(sha256).write_bytes(b"weights!")
        for known in (answer.headers["etag"], "*"):  # answered without a look into the store
            same = small_house.client.get(f"/artifacts/{sha256}", headers={"If-None-Match": known})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", answer.headers["etag"])
        broken = small_house.client.get(f"/artifacts/{sha256}")
        assert broken.status_code == 404
        assert "altered in the store" in broken.json()["error"]["message"]

    def test_models_are_listed_with_their_clean_accuracy(self, house: House):
        house.post({**LITTLE, "defense": {"kind": "e2sad", "eps1": "24/255"}})
        house.work(60)
        models = {model["label"]: model for model in house.get("/models")["models"]}
        assert set(models) == {"e2sad eps1=24/255 S", "fgsm_adv H"}
        e2sad = models["e2sad eps1=24/255 S"]
        assert (e2sad["clean_accuracy"], e2sad["n"], e2sad["seed"], e2sad["dataset"]) == (0.6, 100, 0, "mnist-mini")
        assert e2sad["defense"]["eps1"] == "24/255"
        assert house.get("/models", dataset="mnist") == {"models": [], "cursor": None}
        seen, page = [], house.get("/models", limit=1)
        while page["cursor"]:
            seen += [model["label"] for model in page["models"]]
            page = house.get("/models", limit=1, cursor=page["cursor"])
        assert [*seen, page["models"][0]["label"]] == list(models)


PROGRAM = """
import json, sys
from api.main import create_app
loaded = "torch" in sys.modules
from starlette.testclient import TestClient
from store.settings import Settings
from tests import factories
job = {"dataset": "mnist-mini", "defense": {"kind": "e2sad"}, "limit": 9, "seeds": [0, 1], "substitute_seeds": [0, 1]}
chosen = Settings(_env_file=None, state_dir=sys.argv[1], database_url=sys.argv[2], redis_url="", device="auto")
with TestClient(create_app(chosen)) as client:
    figures = {"suite": "figures-tiny"}
    status = [client.post("/jobs?dry_run=1", json=job).status_code, client.post("/jobs", json=job).status_code,
              client.post("/jobs", json=figures).status_code]
    client.app.state.service.store.require_ours()
    factories.finish(client.app.state.service.database)
    for path in ("/jobs/1", "/jobs", "/catalog", "/suites", "/models", "/workers", "/readyz", "/openapi.json",
                 "/results/whitebox-matrix", "/results/blackbox-matrix?format=latex", "/results/figures",
                 "/results/surfaces", "/results/robustness", "/results/paper/1", "/jobs/1/events"):
        status.append(client.get(path).status_code)
print(json.dumps({"loaded": loaded, "status": status,
                  "modules": [name for name in ("torch", "torchvision", "numpy", "scipy", "matplotlib")
                              if name in sys.modules]}))
"""


def test_the_process_never_loads_torch(sqlite_url: str, tmp_path: Path):
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), sqlite_url], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert said == {"loaded": False, "status": [200, 201, 201, *[200] * 15], "modules": []}
