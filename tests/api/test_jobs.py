"""Jobs over HTTP: what is made, what is shared, what is listed, what can be stopped."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from api.routes import jobs as routes
from core.canonical import digest
from core.suites import suites
from store import idempotency, stages, workers
from store.database import Database, db_now
from store.models import IdempotencyKey, Job, Stage
from tests import factories
from tests.api.conftest import document
from tests.api.house import E2SAD, LITTLE, House

NATURAL = {"kind": "natural"}


class TestBare:
    """A defense spec is enough."""

    def test_its_plan_is_the_whole_benchmark_and_says_what_it_costs(self, small_house: House):
        plan = small_house.plan(E2SAD)
        assert (plan["kind"], plan["dataset"], plan["device"], plan["images"]) == ("benchmark", "mnist", "cpu", 10_000)
        assert plan["pairing"] == "independent"
        assert [stage["title"] for stage in plan["stages"]] == [
            "train e2sad S, seed 0",
            "train natural H, seed 1000000",
            "train fgsm_adv H, seed 1000000",
            "train ifgsm_adv H, seed 1000000",
            "evaluate e2sad S, seed 0, clean",
            "craft FGSM eps=0.3 on e2sad S, seed 0",
            "craft FGSM eps=0.4 on e2sad S, seed 0",
            "craft IFGSM eps=0.3 k=10 on e2sad S, seed 0",
            "craft IFGSM eps=0.3 k=30 on e2sad S, seed 0",
            "craft PGD eps=0.3 k=40 on e2sad S, seed 0",
            "evaluate natural H, seed 1000000, clean",
            "craft IFGSM eps=0.3 k=30 on natural H, seed 1000000",
            "evaluate fgsm_adv H, seed 1000000, clean",
            "craft IFGSM eps=0.3 k=30 on fgsm_adv H, seed 1000000",
            "evaluate ifgsm_adv H, seed 1000000, clean",
            "craft IFGSM eps=0.3 k=30 on ifgsm_adv H, seed 1000000",
            "evaluate e2sad S, seed 0, FGSM eps=0.3",
            "evaluate e2sad S, seed 0, FGSM eps=0.4",
            "evaluate e2sad S, seed 0, IFGSM eps=0.3 k=10",
            "evaluate e2sad S, seed 0, IFGSM eps=0.3 k=30",
            "evaluate e2sad S, seed 0, PGD eps=0.3 k=40",
            "evaluate natural H, seed 1000000, IFGSM eps=0.3 k=30",
            "evaluate e2sad S, seed 0, IFGSM eps=0.3 k=30 from natural H",
            "evaluate fgsm_adv H, seed 1000000, IFGSM eps=0.3 k=30",
            "evaluate e2sad S, seed 0, IFGSM eps=0.3 k=30 from fgsm_adv H",
            "evaluate ifgsm_adv H, seed 1000000, IFGSM eps=0.3 k=30",
            "evaluate e2sad S, seed 0, IFGSM eps=0.3 k=30 from ifgsm_adv H",
        ]
        assert (plan["new"], plan["done"]) == (27, 0)
        assert {stage["state"] for stage in plan["stages"]} == {"new"}
        cost = plan["cost"]
        assert cost["estimated_seconds"] == pytest.approx(cost["flop"] / cost["rate"])
        assert sum(stage["estimated_seconds"] for stage in plan["stages"]) == pytest.approx(cost["estimated_seconds"])
        assert cost["estimated_seconds"] > 86_400, "the paper's protocol takes days on two cores"
        assert cost["remaining_seconds"] == cost["estimated_seconds"]
        assert cost["rate_measured"] is False

    def test_a_plan_says_where_nobody_would_take_it(self, house: House):
        wait = "no live worker serves the queue {}; start one with `python -m worker`{}"
        assert house.plan(LITTLE)["waits_for"] == wait.format("cpu", "")
        elsewhere = house.plan({**LITTLE, "device": "cuda"})["waits_for"]
        assert elsewhere == wait.format("gpu", " on a machine with a CUDA device")
        with house.service.database.write() as session:
            row = {"incarnation": "a", "host": "h", "pid": 1, "device": "cpu", "device_name": "", "versions": {}}
            workers.register(session, {**row, "queues": ["cpu"]})
        assert house.plan(LITTLE)["waits_for"] is None

    def test_a_dry_run_stores_nothing(self, house: House):
        house.plan(E2SAD)
        assert house.rows() == {}

    def test_a_dry_run_and_the_job_are_of_the_same_stages(self, house: House):
        plan, job = house.plan(E2SAD), house.post(E2SAD)
        assert [stage["key"] for stage in job["stages"]] == [stage["key"] for stage in plan["stages"]]
        assert job["cost"]["flop"] == plan["cost"]["flop"]

    def test_the_job_says_what_was_understood(self, house: House):
        answer = house.client.post("/jobs", json=E2SAD)
        job = answer.json()
        assert answer.headers["Location"] == f"/jobs/{job['id']}"
        assert job["spec"]["defense"] == {
            **job["spec"]["defense"], "kind": "e2sad", "label_smoothing": 0.25, "alpha": 0.6, "eps1": "0.3",
            "eps2": "0.1", "dissimilarity_weight": 0.1, "second_step": "entropy",
        }  # fmt: skip
        assert (job["spec"]["kind"], job["spec"]["dataset"], job["spec"]["seeds"]) == ("benchmark", "mnist", [0])
        assert job["state"] == "queued"
        assert job["progress"] == {"stages": 27, "by_state": {"blocked": 23, "ready": 4}, "fraction": 0.0}
        assert [(model["label"], model["role"], model["seed"]) for model in job["models"]] == [
            ("e2sad S", "target", 0), ("natural H", "substitute", 1_000_000), ("fgsm_adv H", "substitute", 1_000_000),
            ("ifgsm_adv H", "substitute", 1_000_000),
        ]  # fmt: skip
        assert all(house.client.get(link).status_code == 200 for link in job["links"].values())


class TestSharing:
    """Nothing is computed twice."""

    def test_a_second_job_of_one_spec_shares_every_stage_and_is_done_at_once(self, house: House):
        first = house.post(LITTLE)
        house.work(60)
        stages = house.rows()["stages"]
        second = house.post({**LITTLE, "name": "again", "tags": ["x"], "priority": 3})
        assert second["id"] != first["id"]
        assert second["state"] == "succeeded"
        assert second["progress"] == {"stages": stages, "by_state": {"succeeded": stages}, "fraction": 1.0}
        assert house.rows()["stages"] == stages
        assert all(stage["reused"] for stage in second["stages"])
        assert not any(stage["reused"] for stage in house.get(f"/jobs/{first['id']}")["stages"])
        plan = house.plan(LITTLE)
        assert (plan["new"], plan["done"], plan["cost"]["remaining_seconds"]) == (0, stages, 0)

    def test_two_jobs_at_once_share_what_neither_has_done(self, house: House):
        first, second = house.post(LITTLE), house.post({**LITTLE, "seeds": [0, 1]})
        assert {stage["key"] for stage in first["stages"]} < {stage["key"] for stage in second["stages"]}
        assert house.rows()["stages"] == len(second["stages"])

    def test_a_stage_takes_the_highest_priority_of_its_jobs(self, house: House):
        house.post({**LITTLE, "priority": -5})
        house.post({**LITTLE, "dataset": "mnist", "priority": 0})
        house.post({**LITTLE, "priority": 7})
        assert factories.claim(house.service.database).spec["dataset"] == "mnist-mini"

    def test_used_and_estimated_device_time_are_in_the_reply(self, house: House):
        job = house.post(LITTLE)
        house.work(60)
        cost = house.get(f"/jobs/{job['id']}")["cost"]
        assert cost["remaining_seconds"] == 0
        assert cost["estimated_seconds"] > 0
        assert cost["rate_measured"] is False, "work of milliseconds tells nothing of the device's speed"
        assert cost["used_seconds"] > 0
        assert cost["reused_seconds"] == 0
        again = house.post(LITTLE)["cost"]
        assert again["reused_seconds"] == pytest.approx(cost["used_seconds"])


EVERYTHING = {
    "kind": "benchmark", "name": "all of it", "tags": ["a", "b"], "priority": -7, "device": "cpu",
    "defenses": [
        {"kind": "pgd_minmax", "eps": "24/255", "steps": 7, "step_size": "4/255", "random_start": False},
        {"defense": {"kind": "natural"}, "name": "long", "training": {"iterations": 20, "batch_size": 5}},
    ],
    "dataset": "svhn", "network": {"kind": "svhn_cnn", "input": "per-image"},
    "training": {"epochs": 2, "batch_size": 1000, "optimiser": "sgd", "lr": 0.5, "momentum": 0.1, "weight_decay": 0.01,
                 "label_smoothing": 0.1, "precision": "bf16"},
    "seeds": [3, 1], "attacks": [{"kind": "pgd", "eps": "8/255", "restarts": 2, "loss": "training"}],
    "substitutes": ["long", {"kind": "ifgsm_adv", "label_smoothing": 0}], "substitute_seeds": [9, 3],
    "transfer": [{"kind": "fgsm", "clip": False}], "pairing": "independent", "limit": 500,
}  # fmt: skip


class TestOverrides:
    """Every default can be given."""

    def test_all_of_them_at_once(self, small_house: House):
        job = small_house.post(EVERYTHING)
        given = json.loads(json.dumps(EVERYTHING))
        for name in given.keys() - {"defenses", "attacks", "substitutes", "transfer"}:
            assert job["spec"][name] == given[name], name
        assert (job["name"], job["tags"], job["priority"], job["pairing"]) == (
            "all of it",
            ["a", "b"],
            -7,
            "independent",
        )
        specs = [small_house.get(f"/stages/{stage['key']}")["spec"] for stage in job["stages"]]
        trains = [spec for spec in specs if spec["kind"] == "train"]
        assert sorted((t["defense"]["kind"], t["seed"]) for t in trains) == [
            ("ifgsm_adv", 3), ("ifgsm_adv", 9), ("natural", 1), ("natural", 3), ("natural", 9),
            ("pgd_minmax", 1), ("pgd_minmax", 3),
        ]  # fmt: skip
        schedules = {t["defense"]["kind"]: t["training"] for t in trains}
        shared = {"optimiser": "sgd", "lr": 0.5, "momentum": 0.1, "weight_decay": 0.01, "precision": "bf16"}
        assert schedules["pgd_minmax"] == schedules["ifgsm_adv"] == {"iterations": 2 * 74, "batch_size": 1000, **shared}
        assert schedules["natural"] == {"iterations": 20, "batch_size": 5, **shared}
        smoothing = {t["defense"]["kind"]: t["defense"]["label_smoothing"] for t in trains}
        assert smoothing == {"pgd_minmax": 0.1, "natural": 0.1, "ifgsm_adv": 0}
        assert {t["network"]["input"] for t in trains} == {"per-image"}
        crafts = [spec["attack"] for spec in specs if spec["kind"] == "craft"]
        assert {(a["kind"], a["eps"]) for a in crafts} == {("pgd", "8/255"), ("fgsm", "24/255")}
        assert {spec["limit"] for spec in specs if spec["kind"] != "train"} == {500}
        labels = {model["label"].split()[0] for model in job["models"]}
        assert labels == {"pgd_minmax", "long", "ifgsm_adv"}

    @pytest.mark.parametrize(
        ("dataset", "defense", "fields"),
        [
            ("svhn", "fgsm_adv", {"eps": "24/255"}),
            ("svhn", "e2sad", {"eps1": "24/255", "eps2": "8/255", "dissimilarity_weight": 0.3}),
        ],
    )
    def test_a_datasets_own_numbers(self, small_house: House, dataset: str, defense: str, fields: dict[str, Any]):
        job = small_house.post({"kind": "train", "dataset": dataset, "defense": {"kind": defense}})
        found = small_house.get(f"/stages/{job['stages'][0]['key']}")["spec"]["defense"]
        assert {name: found[name] for name in fields} == fields


class TestSuites:
    """Named suites, posted by name."""

    def test_they_are_listed_as_they_are_posted(self, small_house: House):
        listed = {suite["name"]: suite for suite in small_house.get("/suites")}
        assert set(listed) == set(suites())
        for name, suite in listed.items():
            assert suite["description"]
            by_name, by_spec = (small_house.plan(body) for body in ({"suite": name}, suite["spec"]))
            assert by_name.pop("cautions") == by_spec.pop("cautions")
            assert by_name == by_spec

    def test_a_job_remembers_its_suite(self, small_house: House):
        job = small_house.post({"suite": "quickstart"})
        assert (job["suite"], job["name"], job["tags"]) == ("quickstart", "quickstart", ["quickstart"])
        assert [model["label"] for model in job["models"] if model["role"] == "target"] == [
            "Natural H", "FGSM H", "IFGSM-10 H", "e2SAD S",
        ]  # fmt: skip

    def test_fields_beside_its_name_replace_the_suites(self, small_house: House):
        job = small_house.post(
            {"suite": "quickstart", "limit": 50, "seeds": [4], "training": {"iterations": 3}, "name": "mine"}
        )
        assert (job["suite"], job["name"], job["spec"]["limit"]) == ("quickstart", "mine", 50)
        assert {model["seed"] for model in job["models"]} == {4}
        assert job["spec"]["training"]["iterations"] == 3


class TestOtherKinds:
    """Jobs that only train, and jobs that only attack."""

    def test_train(self, small_house: House):
        job = small_house.post({"kind": "train", "defenses": [NATURAL, {"kind": "fgsm_adv"}], "seeds": [0, 1],
                          "dataset": "mnist-mini"})  # fmt: skip
        assert [stage["kind"] for stage in job["stages"]] == ["train"] * 4
        assert small_house.plan({"kind": "train", "defense": NATURAL})["images"] == 0

    def test_evaluate_by_key_and_by_spec(self, house: House):
        trained = {"dataset": "mnist-mini", "training": {"iterations": 10}}
        house.post({**trained, "kind": "train", "defenses": [NATURAL, {"kind": "fgsm_adv"}]})
        house.work(60)
        natural = next(model for model in house.get("/models")["models"] if model["defense"]["kind"] == "natural")
        body = {"kind": "evaluate", "targets": [{"key": natural["key"], "name": "by key"}], "limit": 50,
                "substitutes": [{**trained, "defense": {"kind": "fgsm_adv"}, "name": "by spec"}],
                "attacks": [{"kind": "fgsm"}]}  # fmt: skip
        job = house.post(body)
        assert [(model["label"], model["role"]) for model in job["models"]] == [
            ("by key", "target"), ("by spec", "substitute")]  # fmt: skip
        assert {stage["state"] for stage in job["stages"] if stage["kind"] == "train"} == {"succeeded"}
        house.work(30)
        assert house.get(f"/jobs/{job['id']}")["state"] == "succeeded"
        matrix = house.get("/results/blackbox-matrix", job=job["id"])
        assert matrix["cells"][0][0]["accuracy"] == 0.6

    def test_evaluate_needs_models_that_have_succeeded(self, small_house: House):
        train = small_house.post({"kind": "train", "dataset": "mnist-mini", "defense": NATURAL})
        for target in ({"key": train["stages"][0]["key"]}, {"dataset": "mnist-mini", "defense": NATURAL}):
            answer = small_house.client.post("/jobs", json={"kind": "evaluate", "targets": [target]})
            assert answer.status_code == 404

    def test_models_of_two_datasets(self, small_house: House):
        for dataset in ("mnist", "mnist-mini"):
            small_house.post({"kind": "train", "dataset": dataset, "defense": NATURAL})
        small_house.work(1)
        keys = [model["key"] for model in small_house.get("/models")["models"]]
        answer = small_house.client.post("/jobs", json={"kind": "evaluate", "targets": [{"key": key} for key in keys]})
        assert answer.status_code == 422
        field = answer.json()["error"]["fields"][0]
        assert field["path"] == "targets.1"
        assert "but the first target on" in field["message"]


class TestListing:
    """GET /jobs."""

    def test_newest_first_in_pages(self, house: House):
        for number in range(5):
            house.post({**LITTLE, "kind": "benchmark", "name": f"job {number}"})
        seen: list[int] = []
        cursor = None
        while True:
            page = house.get("/jobs", limit=2, **({"cursor": cursor} if cursor else {}))
            assert len(page["jobs"]) <= 2
            seen += [job["id"] for job in page["jobs"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert seen == [5, 4, 3, 2, 1]

    def test_a_list_counts_what_runs_as_the_job_does(self, house: House):
        """And a job that was cancelled stays where it ended."""
        job = house.post({k: v for k, v in LITTLE.items() if k != "transfer"} | {"substitutes": []})
        claim = factories.claim(house.service.database)
        with house.service.database.write() as session:
            stages.renew(session, claim.stage_id, claim.fence, 60, {"done": 1, "total": 2})
        (listed,), whole = house.get("/jobs")["jobs"], house.get(f"/jobs/{job['id']}")
        assert listed["progress"] == whole["progress"]
        assert 0 < listed["progress"]["fraction"] < 0.5
        factories.succeed(house.service.database, claim)
        reached = house.get("/jobs")["jobs"][0]["progress"]["fraction"]
        assert listed["progress"]["fraction"] < reached < 1
        house.client.post(f"/jobs/{job['id']}/cancel")
        (ended,) = house.get("/jobs")["jobs"]
        assert (ended["state"], ended["progress"]["fraction"]) == ("cancelled", reached)

    def test_filters(self, house: House):
        house.post({**LITTLE, "name": "A", "tags": ["paper", "x"]})
        house.work(1)
        house.post({**LITTLE, "name": "B", "tags": ["paper"], "seeds": [1]})
        house.post({"suite": "quickstart", "training": {"iterations": 1}, "limit": 5, "tags": ["x'\"?%"]})

        def names(**filters: Any) -> list[str]:
            return [job["name"] for job in house.get("/jobs", **filters)["jobs"]]

        assert names() == ["quickstart", "B", "A"]
        assert names(state="succeeded") == ["A"]
        assert names(state="queued") == ["quickstart", "B"]
        assert names(name="B") == ["B"]
        assert names(tag="paper") == ["B", "A"]
        assert names(tag="x") == ["A"]
        assert names(tag="x'\"?%") == ["quickstart"]
        assert names(suite="quickstart") == ["quickstart"]
        assert names(suite="quickstart", state="succeeded") == []
        assert names(tag="pape") == []

    def test_an_empty_database_has_an_empty_page(self, house: House):
        assert house.get("/jobs") == {"jobs": [], "cursor": None}
        assert house.get("/models")["models"] == house.get("/workers") == []


class TestCancel:
    """POST /jobs/{id}/cancel and retry."""

    def test_a_queued_job_stops_at_once_and_again_harmlessly(self, house: House):
        job = house.post(LITTLE)
        for _ in range(2):
            answer = house.client.post(f"/jobs/{job['id']}/cancel")
            assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
        assert set(answer.json()["progress"]["by_state"]) == {"cancelled"}

    def test_a_job_that_has_succeeded_cannot_be_stopped(self, house: House):
        job = house.post(LITTLE)
        house.work(60)
        answer = house.client.post(f"/jobs/{job['id']}/cancel")
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "conflict"
        assert "already succeeded" in answer.json()["error"]["message"]
        assert house.get(f"/jobs/{job['id']}")["state"] == "succeeded"

    def test_stages_that_another_job_wants_go_on(self, house: House):
        stays, goes = house.post(LITTLE), house.post({**LITTLE, "seeds": [0, 1]})
        house.client.post(f"/jobs/{goes['id']}/cancel")
        assert set(house.get(f"/jobs/{stays['id']}")["progress"]["by_state"]) == {"blocked", "ready"}
        house.work(60)
        assert house.get(f"/jobs/{stays['id']}")["state"] == "succeeded"

    def test_a_cancelled_job_can_be_tried_again_and_stays_as_it_ended(self, house: House):
        job = house.post({"dataset": "svhn", "defense": {"kind": "e2sad"}, "name": "once more"})
        assert job["spec"]["defense"]["eps1"] == "24/255", "what was understood is what SVHN's defaults are"
        house.client.post(f"/jobs/{job['id']}/cancel")
        again = house.client.post(f"/jobs/{job['id']}/retry")
        assert again.status_code == 201
        assert again.json()["name"] == "once more"
        assert [stage["key"] for stage in again.json()["stages"]] == [stage["key"] for stage in job["stages"]]
        assert set(again.json()["progress"]["by_state"]) == {"blocked", "ready"}
        assert house.get(f"/jobs/{job['id']}")["state"] == "cancelled"
        assert house.client.post(f"/jobs/{again.json()['id']}/retry").status_code == 409

    def test_a_job_whose_kind_is_gone_cannot_be_tried_again(self, house: House):
        job = house.post(LITTLE)
        house.client.post(f"/jobs/{job['id']}/cancel")
        with house.service.database.write() as session:
            row = session.get_one(Job, job["id"])
            row.spec = {**row.spec, "defense": {"kind": "was_here_once"}}
        answer = house.client.post(f"/jobs/{job['id']}/retry")
        assert answer.status_code == 409
        assert "was made by another version of the code" in answer.json()["error"]["message"]

    def test_a_retry_is_executed_as_the_job_was(self, small_house: House):
        """Whatever the service would choose by now: other threads, or CUDA because such a worker has come."""
        job = small_house.post({**LITTLE, "device": "auto"})
        assert job["spec"]["device"] == job["execution"]["device"] == "cpu"
        small_house.client.post(f"/jobs/{job['id']}/cancel")
        chosen = small_house.service.settings
        small_house.service.settings = chosen.model_copy(update={"cpu_threads": 7, "device": "cuda"})
        again = small_house.client.post(f"/jobs/{job['id']}/retry").json()
        assert again["execution"] == job["execution"]
        assert [stage["key"] for stage in again["stages"]] == [stage["key"] for stage in job["stages"]]

    def test_the_first_digits_of_its_key_name_a_stage_where_no_other_has_them(self, house: House):
        first, second, *_ = [stage["key"] for stage in house.post(LITTLE)["stages"]]
        twin = first[:20] + second[20:]
        with house.service.database.write() as session:
            session.execute(update(Stage).where(Stage.key == second).values(key=twin))
        for path in (f"/stages/{first[:8]}", f"/stages/{first[:20]}/log"):
            answer = house.client.get(path)
            assert answer.status_code == 422
            assert answer.json()["error"]["fields"][0]["path"] == "key"
            assert "the keys of several stages begin with" in answer.json()["error"]["message"]
        assert house.get(f"/stages/{twin[:21]}")["key"] == house.get(f"/stages/{twin}")["key"] == twin
        assert house.get(f"/stages/{first[:21]}")["key"] == first
        assert house.client.get("/stages/00000000").status_code == 404

    def test_a_failed_stage_says_why(self, house: House):
        job = house.post({**LITTLE, "kind": "benchmark"})
        factories.fail(house.service.database, factories.claim(house.service.database), message="the loss is NaN")
        found = house.get(f"/jobs/{job['id']}")
        failed = [stage for stage in found["stages"] if stage["state"] == "failed"]
        assert [(stage["reason"], stage["waits_for"]) for stage in failed] == [("the loss is NaN", None)]
        cancelled = [stage for stage in found["stages"] if stage["state"] == "cancelled"]
        assert cancelled and all("it needs a stage that failed" in stage["reason"] for stage in cancelled)
        detail = house.get(f"/stages/{failed[0]['key']}")
        assert detail["error"]["message"] == "the loss is NaN"
        assert [attempt["outcome"] for attempt in detail["attempts"]] == ["failed"]
        assert (detail["reason"], "reused" in detail) == ("the loss is NaN", False)

    def test_a_job_that_attacks_nothing_has_no_pairing(self, small_house: House):
        train = {"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}}
        for body in (train, {"kind": "figure", "figures": [{"kind": "illustration"}]}):
            assert (small_house.plan(body)["pairing"], small_house.post(body)["pairing"]) == (None, None)
        assert small_house.post(LITTLE)["pairing"] == "same"

    def test_nothing_of_a_stage_but_its_result_is_untyped(self):
        schemas = document()["components"]["schemas"]
        typed = {"StageDetail": ("error", "attempts", "environment"), "AttemptReply": ("error",), "CostTable": ("run",)}
        for name, fields in typed.items():
            for field in fields:
                assert "$ref" in str(schemas[name]["properties"][field]), (name, field)


class TestWaiting:
    """Every stage that does not run says why."""

    def test_without_a_worker(self, house: House):
        job = house.post(LITTLE)
        assert all(stage["waits_for"] for stage in job["stages"])
        first = next(stage for stage in job["stages"] if stage["kind"] == "train")
        assert first["waits_for"] == "no live worker serves the queue cpu; start one with `python -m worker`"
        last = job["stages"][-1]
        assert last["waits_for"].startswith("waits for ")


class TestIdempotencyKey:
    """One key, one job."""

    def test_the_same_request_again_is_answered_with_the_same_job(self, house: House):
        first = house.client.post("/jobs", json=LITTLE, headers={"Idempotency-Key": "k"})
        again = house.client.post("/jobs", json=dict(reversed(LITTLE.items())), headers={"Idempotency-Key": "k"})
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.json() == first.json()
        assert again.headers["Location"] == first.headers["Location"]
        assert again.headers["Idempotency-Replayed"] == "true"
        assert "Idempotency-Replayed" not in first.headers
        assert house.rows()["jobs"] == 1

    def test_another_request_with_it_is_refused(self, house: House):
        house.post(LITTLE, Idempotency_Key="k")
        answer = house.client.post("/jobs", json={**LITTLE, "name": "other"}, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 422
        assert "used with another body" in answer.json()["error"]["message"]
        assert house.rows()["jobs"] == 1

    def test_without_it_or_with_another_each_request_is_a_job(self, house: House):
        ids = [house.post(LITTLE)["id"], house.post(LITTLE)["id"]]
        ids += [house.post(LITTLE, Idempotency_Key=key)["id"] for key in ("a", "b")]
        assert ids == [1, 2, 3, 4]

    def test_many_at_once_make_one_job(self, house: House):
        def post() -> Any:
            while True:
                answer = house.client.post("/jobs", json=LITTLE, headers={"Idempotency-Key": "k"})
                if answer.status_code != 409:
                    return answer
                assert (answer.headers["Retry-After"], answer.json()["error"]["code"]) == ("1", "in_progress")

        answers = at_once(8, post)
        assert [answer.status_code for answer in answers] == [201] * 8
        assert len({(answer.content, answer.headers["Location"]) for answer in answers}) == 1
        assert house.rows()["jobs"] == 1
        assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1

    def test_the_second_is_told_to_come_again_while_the_first_is_in_progress(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ):
        arrived, go_on = threading.Event(), threading.Event()
        make_job = routes.make_job

        def slowly(*arguments: Any) -> int:
            arrived.set()
            assert go_on.wait(30)
            return make_job(*arguments)

        monkeypatch.setattr(routes, "make_job", slowly)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(keyed, house)
            assert arrived.wait(30)
            second = keyed(house)
            other = house.client.post("/jobs", json={**LITTLE, "name": "other"}, headers={"Idempotency-Key": "k"})
            go_on.set()
            assert first.result(30).status_code == 201
        assert (second.status_code, second.json()["error"]["code"]) == (409, "in_progress")
        assert int(second.headers["Retry-After"]) > 0
        assert other.status_code == 422
        assert keyed(house).content == first.result().content
        assert house.rows()["jobs"] == 1

    def test_one_that_died_blocks_its_key_for_no_longer_than_a_lease(self, house: House):
        body = digest(LITTLE)
        with house.service.database.write() as session:
            assert idempotency.take(session, "k", body, "dead", 60.0)
        assert keyed(house).status_code == 409
        with house.service.database.write() as session:
            session.execute(update(IdempotencyKey).values(expires=db_now()))
        first = keyed(house)
        assert (first.status_code, house.rows()["jobs"]) == (201, 1)
        with house.service.database.write() as session:
            assert not idempotency.tie(session, "k", "dead", 1), "what it would have stored late is not"
            idempotency.let_go(session, "k", "dead")
        assert keyed(house).content == first.content

    def test_one_that_comes_too_late_stores_nothing(self, house: House, monkeypatch: pytest.MonkeyPatch):
        """Its key was taken by another meanwhile."""
        plan = routes._planned

        def slowly(*arguments: Any) -> Any:
            with house.service.database.write() as session:
                session.execute(update(IdempotencyKey).values(expires=db_now()))
            with house.service.database.write() as session:
                assert idempotency.take(session, "k", digest(LITTLE), "other", 60.0)
            return plan(*arguments)

        monkeypatch.setattr(routes, "_planned", slowly)
        assert keyed(house).status_code == 409
        assert "jobs" not in house.rows()

    def test_what_failed_can_be_repeated_at_once(self, house: House):
        for _ in range(2):
            unknown = {"kind": "evaluate", "targets": [{"key": "0" * 64}], "attacks": [{"kind": "fgsm"}]}
            answer = house.client.post("/jobs", json=unknown, headers={"Idempotency-Key": "k"})
            assert answer.status_code == 404
            assert "trained model" in answer.text

    def test_the_answer_stays_as_it_was(self, house: House):
        """Also where the job has gone on since."""
        first = keyed(house)
        house.client.post(f"/jobs/{first.json()['id']}/cancel")
        again = keyed(house)
        assert (again.content, again.json()["state"]) == (first.content, "queued")
        assert house.client.get(first.headers["Location"]).json()["state"] == "cancelled"

    def test_the_answer_is_read_after_the_commit(self, house: House, monkeypatch: pytest.MonkeyPatch):
        """On SQLite a transaction that writes keeps every other writer waiting."""
        reply = routes.job_reply

        def with_a_writer_beside(*arguments: Any) -> Any:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(written_beside, house).result(10)
            return reply(*arguments)

        monkeypatch.setattr(routes, "job_reply", with_a_writer_beside)
        first = keyed(house)
        assert first.status_code == 201
        assert house.client.post(f"/jobs/{first.json()['id']}/cancel").status_code == 202

    def test_many_at_once_without_it_make_one_set_of_stages(self, house: House):
        answers = at_once(8, lambda: house.client.post("/jobs", json=LITTLE))
        assert sorted(answer.json()["id"] for answer in answers) == list(range(1, 9))
        assert house.rows()["stages"] == len(answers[0].json()["stages"])


def keyed(house: House) -> Any:
    """Post the little job under the key k."""
    return house.client.post("/jobs", json=LITTLE, headers={"Idempotency-Key": "k"})


def written_beside(house: House) -> bool:
    """Write something in a transaction of one's own, without any patience."""
    database = Database(house.service.database.url.render_as_string(hide_password=False), 0.1)
    try:
        with database.write() as session:
            return workers.hold(session, "beside", "test", 0.0)
    finally:
        database.close()


def at_once(times: int, request: Any) -> list[Any]:
    """Return the answers to `times` requests that set off together."""
    answers: list[Any] = []
    start = threading.Barrier(times)

    def run() -> None:
        start.wait()
        answers.append(request())

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
