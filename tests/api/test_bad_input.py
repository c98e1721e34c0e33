"""Whatever is wrong is refused with its place, a sentence and what would be right; nothing of it is ever stored."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.attacks import ATTACKS
from core.attacks.fgsm import FGSM
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.defenses.e2sad import E2SAD
from core.figures.path import PathFigure
from core.networks import NETWORKS
from core.suites import suites
from tests.api.conftest import opened
from tests.api.house import House

NATURAL = {"kind": "natural"}
FGSM_ADV = {"kind": "fgsm_adv"}
ONE = {"defense": NATURAL}
NAN, INFINITY = float("nan"), float("inf")
NO_KEY = "0" * 64
JOBS = ["benchmark", "train", "evaluate", "figure"]
SUITES = sorted(suites())
FIT = [kind for kind, cls in NETWORKS.items() if cls.input_shape == (1, 28, 28)]


def defense(**fields: Any) -> dict[str, Any]:
    return {"defense": {"kind": "fgsm_adv", **fields}}


def attack(**fields: Any) -> dict[str, Any]:
    return {**ONE, "attacks": [{"kind": "ifgsm", **fields}]}


def training(**fields: Any) -> dict[str, Any]:
    return {**ONE, "training": fields}


def drawn(**figure: Any) -> dict[str, Any]:
    return {**ONE, "kind": "figure", "figures": [figure]}


def targets(*models: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "targets": list(models), **more}


SCHEDULE = [
    "batch_size", "epochs", "iterations", "label_smoothing", "lr", "momentum", "optimiser", "precision", "weight_decay",
]  # fmt: skip
NUMBER = 'expected a number or a fraction such as 0.3 or "24/255"'

# body, path of the field, part of the message, allowed values (None: none can be listed)
TABLE: dict[str, tuple[Any, str, str, list[str] | None]] = {
    # kinds
    "job kind": ({**ONE, "kind": "tournament"}, "kind", "unknown kind 'tournament'", JOBS),
    "job kind null": ({**ONE, "kind": None}, "kind", "unknown kind", JOBS),
    "job kind an object": ({"kind": {"a": 1}}, "kind", "unknown kind", JOBS),
    "defense kind": ({"defense": {"kind": "magic"}}, "defense.kind", "unknown kind 'magic'", sorted(DEFENSES)),
    "defense kind missing": ({"defense": {}}, "defense.kind", 'needs a "kind"', sorted(DEFENSES)),
    "defense kind a list": ({"defense": {"kind": ["natural"]}}, "defense.kind", "unknown kind", sorted(DEFENSES)),
    "defense kind is an attack's": ({"defense": {"kind": "fgsm"}}, "defense.kind", "unknown kind", sorted(DEFENSES)),
    "second defense's kind": (
        {"defenses": [NATURAL, {"kind": "x"}]}, "defenses.1.kind", "unknown kind 'x'", sorted(DEFENSES)),
    "named defense's kind": ({"defenses": [{"defense": {"kind": "x"}, "name": "a"}]}, "defenses.0.defense.kind",
                             "unknown kind 'x'", sorted(DEFENSES)),
    "attack kind": ({**ONE, "attacks": [{"kind": "x"}]}, "attacks.0.kind", "unknown kind 'x'", sorted(ATTACKS)),
    "attack kind missing": ({**ONE, "attacks": [{"eps": 0.3}]}, "attacks.0.kind", 'needs a "kind"', sorted(ATTACKS)),
    "transfer kind": ({**ONE, "transfer": [{"kind": "x"}]}, "transfer.0.kind", "unknown kind 'x'", sorted(ATTACKS)),
    "substitute's kind": ({**ONE, "substitutes": [{"kind": "x"}]}, "substitutes.0.kind", "unknown", sorted(DEFENSES)),
    "network kind": ({**ONE, "network": {"kind": "x"}}, "network.kind", "unknown kind 'x'", sorted(NETWORKS)),
    # unknown fields, at every level
    "field of a job": ({**ONE, "sedes": [1]}, "sedes", "unknown field; allowed: attacks, dataset, defense", None),
    "attacks of a train job": ({**ONE, "kind": "train", "attacks": []}, "attacks", "unknown field", None),
    "defense of an evaluate job": (targets({"key": NO_KEY}, **ONE), "defense", "unknown field", None),
    "field of a defense": (defense(epz=0.3), "defense.epz", "unknown field",
                           ["alpha", "clip", "eps", "kind", "label_smoothing"]),
    "field of a bare defense": ({"defenses": [{**NATURAL, "bare": 1}]}, "defenses.0.bare", "unknown field",
                                ["kind", "label_smoothing"]),
    "field of a named defense": ({"defenses": [{"defense": NATURAL, "title": "x"}]}, "defenses.0.title",
                                 "unknown field", ["defense", "name", "training"]),
    "field inside a named defense": ({"defenses": [{"defense": {**NATURAL, "eps1": 1}}]}, "defenses.0.defense.eps1",
                                     "unknown field", ["kind", "label_smoothing"]),
    "field of a defense's schedule": ({"defenses": [{"defense": NATURAL, "training": {"x": 1}}]},
                                      "defenses.0.training.x", "unknown field", SCHEDULE),
    "field of an attack": (attack(step=3), "attacks.0.step", "unknown field", ["clip", "eps", "kind", "loss", "steps"]),
    "field of a schedule": (training(epoch=3), "training.epoch", "unknown field", SCHEDULE),
    "field of a network": ({**ONE, "network": {"kind": "mnist_cnn", "input": "pixel"}}, "network.input",
                           "unknown field", ["kind"]),
    "field of a model by key": (targets({"key": NO_KEY, "seed": 1}), "targets.0.seed", "unknown field",
                                ["key", "name"]),
    "field of a model by spec": (targets({**ONE, "seeds": [1]}), "targets.0.seeds", "unknown field",
                                 ["dataset", "defense", "name", "network", "seed", "training"]),
    # a figure's kind `path` has a field `path`
    "points of a path": (drawn(kind="path", points=100), "figures.0.points", "less than or equal to 81", None),
    "points beside a path's path": (drawn(kind="path", path={"kind": "e2sad"}, points=100), "figures.0.points",
                                    "less than or equal to 81", None),
    "field inside a path's path": (drawn(kind="path", path={"kind": "e2sad", "epz": 1}), "figures.0.path.epz",
                                   "unknown field; allowed: alpha", sorted(E2SAD.model_fields)),
    "value inside a path's path": (drawn(kind="path", path={"kind": "e2sad", "alpha": 2}), "figures.0.path.alpha",
                                   "less than or equal to 1", None),
    "field of a path": (drawn(kind="path", pionts=1), "figures.0.pionts", "unknown field",
                        sorted(PathFigure.model_fields)),
    "field of a path's direction": (drawn(kind="path", direction={"kind": "fgsm", "x": 1}), "figures.0.direction.x",
                                    "unknown field", sorted(FGSM.model_fields)),
    # images
    "more images than there are": ({**ONE, "dataset": "mnist-mini", "limit": 2001}, "limit",
                                   "mnist-mini has 2,000 test images; give at most that many, or leave", None),
    "more images for a figure": ({**drawn(kind="surfaces", limit=2001), "dataset": "mnist-mini"}, "figures.0.limit",
                                 "mnist-mini has 2,000 test images", None),
    # pixel distances
    "eps above 1": (defense(eps=1.5), "defense.eps", "must lie in [0, 1] (pixel units), got 1.5", None),
    "eps below 0": (defense(eps=-0.1), "defense.eps", "must lie in [0, 1]", None),
    "eps in grey levels": (attack(eps=8), "attacks.0.eps", "must lie in [0, 1] (pixel units), got 8", None),
    "eps by zero": (attack(eps="24/0"), "attacks.0.eps", "the denominator is 0", None),
    "eps NaN": (defense(eps=NAN), "defense.eps", NUMBER, None),
    "eps infinite": (defense(eps=INFINITY), "defense.eps", NUMBER, None),
    "eps minus infinite": (defense(eps=-INFINITY), "defense.eps", NUMBER, None),
    "eps NaN in words": (defense(eps="nan"), "defense.eps", NUMBER, None),
    "eps a word": (defense(eps="abc"), "defense.eps", NUMBER, None),
    "eps empty": (defense(eps=""), "defense.eps", NUMBER, None),
    "eps true": (defense(eps=True), "defense.eps", NUMBER, None),
    "eps null": (defense(eps=None), "defense.eps", NUMBER, None),
    "eps a list": (defense(eps=[0.3]), "defense.eps", NUMBER, None),
    "eps a long text": (defense(eps="1" * 100_000), "defense.eps", NUMBER, None),
    "eps a huge number": (defense(eps=10**4000), "defense.eps", "must lie in [0, 1]", None),
    "eps with a huge exponent": (defense(eps="1e999999999"), "defense.eps", NUMBER, None),
    "eps with a tiny exponent": (defense(eps="1e-999"), "defense.eps", "finer than 1e-30", None),
    "eps in other digits": (defense(eps="\u0660.\u0663"), "defense.eps", NUMBER, None),
    "eps a surrogate": (defense(eps="\ud800"), "defense.eps", NUMBER, None),
    "e2sad's eps1": ({"defenses": [{"kind": "e2sad", "eps1": "x"}]}, "defenses.0.eps1", NUMBER, None),
    "step size": ({**ONE, "attacks": [{"kind": "pgd", "step_size": 2}]}, "attacks.0.step_size", "must lie in", None),
    # counts
    "steps 0": (attack(steps=0), "attacks.0.steps", "greater than or equal to 1", None),
    "steps too many": (attack(steps=10_001), "attacks.0.steps", "less than or equal to 10000", None),
    "steps in words": (attack(steps="ten"), "attacks.0.steps", "valid integer", None),
    "steps in digits": (attack(steps="10"), "attacks.0.steps", "valid integer", None),
    "steps broken": (attack(steps=1.5), "attacks.0.steps", "valid integer", None),
    "steps true": (attack(steps=True), "attacks.0.steps", "valid integer", None),
    "steps astronomic": (attack(steps=10**30), "attacks.0.steps", "less than or equal to 10000", None),
    "limit 0": ({**ONE, "limit": 0}, "limit", "greater than or equal to 1", None),
    "limit below 0": ({**ONE, "limit": -5}, "limit", "greater than or equal to 1", None),
    "priority": ({**ONE, "priority": 101}, "priority", "less than or equal to 100", None),
    # numbers
    "alpha above 1": (defense(alpha=1.01), "defense.alpha", "less than or equal to 1", None),
    "alpha NaN": (defense(alpha=NAN), "defense.alpha", "finite number", None),
    "alpha true": (defense(alpha=True), "defense.alpha", "valid number", None),
    "label smoothing 1": (training(label_smoothing=1), "training.label_smoothing", "less than 1", None),
    "label smoothing above 1": (training(label_smoothing=1.2), "training.label_smoothing", "less than 1", None),
    "lr 0": (training(lr=0), "training.lr", "greater than 0", None),
    "lr NaN": (training(lr=NAN), "training.lr", "finite number", None),
    "lr true": (training(lr=True), "training.lr", "valid number", None),
    "weight decay infinite": (training(weight_decay=INFINITY), "training.weight_decay", "finite number", None),
    # words
    "optimiser": (training(optimiser="rmsprop"), "training.optimiser", "'adam' or 'sgd'", ["adam", "sgd"]),
    "device": ({**ONE, "device": "tpu"}, "device", "'auto', 'cpu' or 'cuda'", ["auto", "cpu", "cuda"]),
    "pairing nobody has": ({**ONE, "substitute_seeds": [7], "pairing": "same"}, "pairing",
                           "no target meets a substitute of its own seed", ["independent"]),
    "pairing with oneself": ({"defenses": [NATURAL, FGSM_ADV], "substitutes": ["natural H"], "pairing": "independent"},
                             "pairing", "no target meets a substitute of another seed", ["same"]),
    "pairing with oneself alone": ({**ONE, "substitutes": ["natural H"], "pairing": "independent"}, "pairing",
                                   "no target meets a substitute of another seed", ["same"]),
    "pairing": ({**ONE, "pairing": "any"}, "pairing", "'same' or 'independent'", ["same", "independent"]),
    "loss": (attack(loss="hinge"), "attacks.0.loss", "'label' or 'training'", ["label", "training"]),
    "dataset": ({**ONE, "dataset": "imagenet"}, "dataset", "unknown dataset 'imagenet'", sorted(DATASETS)),
    "dataset a list": ({**ONE, "dataset": ["mnist"]}, "dataset", "valid string", None),
    "dataset of a model": (targets({**ONE, "dataset": "x"}), "targets.0.dataset", "unknown dataset", sorted(DATASETS)),
    "suite": ({"suite": "slowstart"}, "suite", "there is no suite 'slowstart'", SUITES),
    "suite a list": ({"suite": ["quickstart", 1]}, "suite", "there is no suite ['quickstart', 1]", SUITES),
    "suite null": ({"suite": None}, "suite", "there is no suite None", SUITES),
    "suite a path": ({"suite": "../../secret"}, "suite", "there is no suite", SUITES),
    "suite and a bad override": ({"suite": "quickstart", "limit": 0}, "limit", "greater than or equal to 1", None),
    "suite and an unknown override": ({"suite": "quickstart", "limits": 5}, "limits", "unknown field", None),
    "suite and other substitutes": ({"suite": "quickstart", "substitutes": ["Natural S"]}, "substitutes.0",
                                    "no defense of this job is called 'Natural S'",
                                    ["Natural H", "FGSM H", "IFGSM-10 H", "e2SAD S"]),
    # lists
    "no defenses": ({"defenses": []}, "defenses", "at least 1 item", None),
    "no attacks": ({**ONE, "attacks": []}, "attacks", "at least 1 item", None),
    **{
        f"{name} without substitutes": ({**ONE, "substitutes": [], name: value}, name, "leave it out", None)
        for name, value in {"transfer": [{"kind": "fgsm"}], "pairing": "same", "substitute_seeds": [1]}.items()
    },
    "pairing of targets alone": ({"kind": "evaluate", "targets": [{"defense": NATURAL}], "pairing": "all"}, "pairing",
                                 "leave it out", None),
    "no transfer": ({**ONE, "transfer": []}, "transfer", "at least 1 item", None),
    "no seeds": ({**ONE, "seeds": []}, "seeds", "at least 1 item", None),
    "no targets": (targets(), "targets", "at least 1 item", None),
    "targets missing": ({"kind": "evaluate"}, "targets", "required", None),
    "seeds twice": ({**ONE, "seeds": [3, 1, 3]}, "seeds", "holds 3 twice", None),
    "seed below 0": ({**ONE, "seeds": [0, -1]}, "seeds.1", "greater than or equal to 0", None),
    "seed too large": ({**ONE, "seeds": [2**31]}, "seeds.0", "less than or equal to 2147483647", None),
    "seed true": ({**ONE, "seeds": [True]}, "seeds.0", "valid integer", None),
    "seed without room for the attacker's": ({**ONE, "seeds": [2**31 - 1]}, "seeds.0", "give substitute_seeds", None),
    "too many seeds": ({**ONE, "seeds": list(range(101))}, "seeds", "at most 100 items", None),
    "too many stages": ({"defenses": [{**FGSM_ADV, "eps": i / 1000} for i in range(150)], "seeds": list(range(100)),
                         "kind": "train", "dataset": "mnist-mini", "tags": ["x"] * 21}, "tags", "at most 20", None),
    "attacks not a list": ({**ONE, "attacks": {"kind": "fgsm"}}, "attacks", "valid list", None),
    "an attack twice": ({**ONE, "attacks": [{"kind": "fgsm", "eps": 0.3}, {"kind": "fgsm", "eps": "3/10"}]},
                        "attacks.1", "FGSM eps=0.3 is given twice", None),
    "clean transferred": ({**ONE, "transfer": [{"kind": "none"}]}, "transfer.0.kind", "clean images cannot",
                          sorted(set(ATTACKS) - {"none"})),
    # what does not go together
    "defense and defenses": ({**ONE, "defenses": [NATURAL]}, "", 'exactly one of "defense" and "defenses"', None),
    "neither": ({"dataset": "mnist"}, "", 'exactly one of "defense" and "defenses"', None),
    "nothing": ({}, "", 'exactly one of "defense" and "defenses"', None),
    "iterations and epochs": (training(iterations=5, epochs=5), "training", "iterations or epochs, not both", None),
    "epochs beyond counting": (training(epochs=10_000_000), "training.epochs", "iterations: too many", None),
    "momentum with adam": (training(momentum=0.5), "training.momentum", "where optimiser is sgd", None),
    "momentum with one's own adam": (
        {"defenses": [NATURAL, {"defense": FGSM_ADV, "training": {"momentum": 0.5}}]},
        "defenses.1.training.momentum", "where optimiser is sgd", None),
    "momentum with a substitute's adam": (
        {**ONE, "substitutes": [{"defense": FGSM_ADV, "training": {"momentum": 0.5}}]},
        "substitutes.0.training.momentum", "where optimiser is sgd", None),
    "momentum with a model's adam": (targets({**ONE, "training": {"momentum": 0.5}}), "targets.0.training.momentum",
                                     "where optimiser is sgd", None),
    "an idle parameter": ({"defense": {"kind": "e2sad", "sigma": 0.5}}, "defense",
                          'where second_step is "noise"', None),
    "restarts without a random start": (
        {**ONE, "attacks": [{"kind": "pgd", "restarts": 2, "random_start": False}]}, "attacks.0", "restarts above 1",
        None),
    "two alike": ({"defenses": [NATURAL, NATURAL]}, "defenses.1.name", "two defenses are called 'natural H'", None),
    "two of one name": ({"defenses": [{"defense": NATURAL, "name": "A"}, {"defense": FGSM_ADV, "name": "A"}]},
                        "defenses.1.name", "two defenses are called 'A'", None),
    "two alike through the schedule": (
        {"defenses": [NATURAL, {**NATURAL, "label_smoothing": 0.25}], "training": {"label_smoothing": 0.25}},
        "defenses.1.name", "two defenses are called 'natural S'", None),
    "no such substitute": ({**ONE, "substitutes": ["Natural"]}, "substitutes.0", "no defense of this job",
                           ["natural H"]),
    "network for other images": ({**ONE, "network": {"kind": "svhn_cnn"}}, "network", "svhn_cnn takes images of shape",
                                 FIT),
    "network of a model": (targets({**ONE, "network": {"kind": "svhn_cnn"}}), "targets.0.network", "takes images",
                           FIT),
    # models that do not exist
    "unknown key of a figure": (
        {"kind": "figure", "models": [{"key": NO_KEY}], "figures": [{"kind": "curves"}]}, "models.0.key",
        "no trained model has this key", None),
    **{f"{name} beside models": (
        {"kind": "figure", "models": [{"key": NO_KEY}], "figures": [{"kind": "curves"}], name: value}, name,
        f"models that exist have a {name} of their own", None)
       for name, value in (("dataset", "mnist"), ("training", {}), ("seeds", [0]), ("network", {"kind": "mnist_cnn"}))},
    "kind beside a suite": ({"suite": "quickstart", "kind": "train"}, "kind", "the suite quickstart is of kind", None),
    "unknown key": (targets({"key": NO_KEY}), "targets.0.key", "no trained model has this key", None),
    "key of another form": (targets({"key": "abc"}), "targets.0.key", "expected 64 hexadecimal digits", None),
    "key in capitals": (targets({"key": "A" * 64}), "targets.0.key", "expected 64 hexadecimal digits", None),
    "never trained": (targets(ONE), "targets.0", 'post it as a job of kind "train"', None),
    # texts
    "name too long": ({**ONE, "name": "x" * 201}, "name", "at most 200 characters", None),
    "name a number": ({**ONE, "name": 7}, "name", "valid string", None),
    "name with NUL": ({**ONE, "name": "a\0b"}, "name", "holds a control character (U+00", None),
    "name with a newline": ({**ONE, "name": "a\nb"}, "name", "holds a control character (U+00", None),
    "name with half a pair": ({**ONE, "name": "\ud83d"}, "name", "half a surrogate pair", None),
    "tag with NUL": ({**ONE, "tags": ["\0"]}, "tags.0", "holds a control character (U+00", None),
    "tag empty": ({**ONE, "tags": ["a", ""]}, "tags.1", "at least 1 character", None),
    "label with NUL": ({"defenses": [{"defense": NATURAL, "name": "\0"}]}, "defenses.0.name",
                       "holds a control character (U+00", None),
    "dataset with NUL": ({**ONE, "dataset": "mnist\0"}, "dataset", "unknown dataset 'mnist\\x00'", sorted(DATASETS)),
    "suite with NUL": ({"suite": "\0"}, "suite", "there is no suite '\\x00'", SUITES),
    "field with NUL": ({**ONE, "a\0": 1}, "a\0", "unknown field", None),
    "field with half a pair": ({**ONE, "\ud800": 1}, "", "half a surrogate pair", None),
    "kind with half a pair": ({"defense": {"kind": "\ud800"}}, "defense.kind", "unknown kind", sorted(DEFENSES)),
    # shapes
    "defense a word": ({"defense": "natural"}, "defense", "expected a JSON object", None),
    "defense null": ({"defense": None}, "", 'exactly one of "defense" and "defenses"', None),
    "defenses of lists": ({"defenses": [[]]}, "defenses.0", "expected a JSON object", None),
    "substitute a number": ({**ONE, "substitutes": [5]}, "substitutes.0", "expected a JSON object", None),
    "training a list": ({**ONE, "training": []}, "training", "expected a JSON object", None),
    "training null": ({**ONE, "training": None}, "training", "expected a JSON object", None),
}  # fmt: skip


def refusal(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Return the error, after checking that it has the one shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["code", "message", "fields"]
    assert error["code"] == code
    assert error["message"]
    assert all(list(field) == ["path", "message", "allowed"] for field in error["fields"])
    return error


MISSING = {"unknown key", "never trained", "unknown key of a figure"}
"""Nothing is wrong with the body; the model that it names is not there."""


@pytest.mark.parametrize("case", TABLE)
def test_a_body_that_is_wrong(strict_house: House, case: str):
    body, path, message, allowed = TABLE[case]
    status, code = (404, "not_found") if case in MISSING else (422, "invalid")
    error = refusal(strict_house.client.post("/jobs", content=json.dumps(body)), status, code)
    field = error["fields"][0]
    assert field["path"] == path
    assert message in field["message"]
    assert allowed is None or sorted(field["allowed"]) == sorted(allowed)
    assert strict_house.rows() == {}


@pytest.mark.parametrize("case", ["eps by zero", "unknown key", "momentum with adam"])
def test_a_dry_run_refuses_alike(strict_house: House, case: str):
    posted, tried = (strict_house.client.post(url, json=TABLE[case][0]) for url in ("/jobs", "/jobs?dry_run=1"))
    assert (tried.status_code, tried.json()) == (posted.status_code, posted.json())


def test_every_field_at_fault_is_named_at_once(strict_house: House):
    body = {"defense": {"kind": "fgsm_adv", "eps": 7, "epz": 1}, "seeds": [], "training": {"lr": "fast"}}
    error = refusal(strict_house.client.post("/jobs", json=body), 422, "invalid")
    assert [field["path"] for field in error["fields"]] == ["defense.eps", "defense.epz", "training.lr", "seeds"]
    assert "(and 1 more)" in error["message"]


RAW = {
    "empty": b"",
    "no JSON": b"defense: natural",
    "cut short": b'{"defense": {"kind": "nat',
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"defense": {"kind": "natural"}}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a field twice": b'{"defense": {"kind": "natural"}, "defense": {"kind": "e2sad"}}',
    "a field twice, inside": b'{"defense": {"kind": "fgsm_adv", "eps": 0.1, "eps": 0.2}}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"defense":' * 20_000 + b"1" + b"}" * 20_000,
    "a number of 5000 digits": b'{"limit": ' + b"9" * 5000 + b"}",
    "null": b"null",
    "a list": b"[]",
    "a number": b"17",
    "a text": b'"natural"',
    "deep below the parser's limit": b'{"name": ' + b"[" * 900 + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("case", RAW)
def test_a_body_that_is_no_job(strict_house: House, case: str):
    refusal(strict_house.client.post("/jobs", content=RAW[case]), 422, "invalid")
    assert strict_house.rows() == {}


def test_a_field_given_twice_is_named(strict_house: House):
    error = refusal(strict_house.client.post("/jobs", content=RAW["a field twice, inside"]), 422, "invalid")
    assert "the field 'eps' is given twice" in error["message"]


@pytest.mark.parametrize("in_chunks", [False, True], ids=["at once", "in chunks"])
def test_a_body_that_is_too_large(strict_house: House, in_chunks: bool):
    chunks = [b" " * 1024] * 300
    content = iter(chunks) if in_chunks else b"".join(chunks)
    error = refusal(strict_house.client.post("/jobs", content=content), 413, "too_large")
    assert "262144 bytes" in error["message"]
    assert strict_house.rows() == {}


def test_a_large_body_that_is_not_too_large(strict_house: House):
    padded = json.dumps(ONE).encode() + b" " * 200 * 1024
    assert strict_house.client.post("/jobs?dry_run=1", content=padded).status_code == 200


def test_a_job_of_too_many_stages(small_house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("core.plan.MAX_STAGES", 300)
    body = {"kind": "train", "dataset": "mnist-mini", "seeds": list(range(15)),
            "defenses": [{**FGSM_ADV, "alpha": i / 1000} for i in range(20)]}  # fmt: skip
    attacked = {**body, "kind": "benchmark", "attacks": [{"kind": "fgsm"}]}
    error = refusal(small_house.client.post("/jobs", json=attacked), 422, "invalid")
    assert "more than 300 stages" in error["message"]
    assert small_house.rows() == {}


def test_a_dataset_that_is_not_installed(sqlite_url: str, tmp_path: Path):
    with opened(sqlite_url, tmp_path / "state", tmp_path / "empty") as house:
        error = refusal(house.client.post("/jobs", json=ONE), 422, "invalid")
        field = error["fields"][0]
        assert field["path"] == "dataset"
        assert "the dataset mnist is not installed (MNIST/raw/train-images-idx3-ubyte is missing)" in field["message"]
        assert "run `gauntlet data mnist`, or restart the service with DATA_DIR set" in field["message"]
        assert field["allowed"] == ["mnist-mini", "synth-digits", "synth-digits-mini"]
        assert house.rows() == {}
        assert house.plan({**ONE, "dataset": "mnist-mini"})["dataset"] == "mnist-mini"


TOO_LARGE = "9" * 20
ADDRESSES = {
    # status, path of the field, part of the message
    "/jobs/0": (422, "job_id", "greater than or equal to 1"),
    "/jobs/abc": (422, "job_id", "valid integer"),
    "/jobs/1.5": (422, "job_id", "valid integer"),
    f"/jobs/{TOO_LARGE}": (422, "job_id", "less than or equal"),
    "/jobs/1": (404, None, "there is no job 1"),
    "/jobs/1/history": (404, None, "there is no job 1"),
    "/jobs/1/events": (404, None, "there is no job 1"),
    f"/jobs/{TOO_LARGE}/history": (422, "job_id", "less than or equal"),
    f"/jobs/1/history?after={TOO_LARGE}": (422, "after", "less than or equal"),
    "/jobs?cursor=0": (422, "cursor", "greater than or equal to 1"),
    "/jobs?cursor=next": (422, "cursor", "valid integer"),
    f"/jobs?cursor={TOO_LARGE}": (422, "cursor", "less than or equal"),
    "/jobs?limit=0": (422, "limit", "greater than or equal to 1"),
    "/jobs?limit=201": (422, "limit", "less than or equal to 200"),
    "/jobs?state=done": (422, "state", "'queued', 'running'"),
    "/jobs?sate=failed": (422, "sate", "unknown parameter; allowed: cursor, limit, name, state, suite, tag"),
    "/jobs?name=%00": (422, "name", "holds a control character (U+00"),
    "/jobs?name=%C2%9B": (422, "name", "holds a control character (U+009B)"),
    "/jobs?tag=%00": (422, "tag", "holds a control character (U+00"),
    "/jobs?suite=a%00": (422, "suite", "holds a control character (U+00"),
    "/models?dataset=%00": (422, "dataset", "unknown dataset"),
    "/models?dataset=imagenet": (422, "dataset", "unknown dataset 'imagenet'; allowed: cifar10"),
    "/models?cursor=0": (422, "cursor", "greater than or equal to 1"),
    "/models?limit=x": (422, "limit", "valid integer"),
    "/stages/xyz": (422, "key", "expected 8 to 64 hexadecimal digits"),
    "/stages/xyz/log": (422, "key", "expected 8 to 64 hexadecimal digits"),
    f"/stages/{'A' * 64}": (422, "key", "expected 8 to 64 hexadecimal digits"),
    f"/stages/{NO_KEY}": (404, None, f"there is no stage {NO_KEY}"),
    f"/stages/{NO_KEY}/log": (404, None, f"there is no stage {NO_KEY}"),
    f"/stages/{NO_KEY}/log?after={TOO_LARGE}": (422, "after", "less than or equal"),
    "/artifacts/..%2f..%2fetc%2fpasswd": (404, None, "there is nothing at"),
    "/artifacts/x": (422, "sha256", "expected 64 hexadecimal digits"),
    f"/artifacts/{NO_KEY}": (404, None, f"there is no artifact {NO_KEY}"),
    "/results/whitebox-matrix?job=7": (404, None, "there is no job 7"),
    "/results/blackbox-matrix?job=7": (404, None, "there is no job 7"),
    f"/results/whitebox-matrix?job={TOO_LARGE}": (422, "job", "less than or equal"),
    "/results/whitebox-matrix?job=0": (422, "job", "greater than or equal to 1"),
    f"/results/whitebox-matrix?seed={TOO_LARGE}": (422, "seed.0", "less than or equal"),
    "/results/whitebox-matrix?seed=0&seed=x": (422, "seed.1", "valid integer"),
    "/results/blackbox-matrix?eps=abc": (422, "eps", NUMBER),
    "/results/blackbox-matrix?eps=24/0": (422, "eps", "the denominator is 0"),
    "/results/blackbox-matrix?eps=1e400": (422, "eps", "must lie in [0, 1]"),
    "/results/blackbox-matrix?eps=8": (422, "eps", "must lie in [0, 1]"),
    "/results/whitebox-matrix?steps=0": (422, "steps", "greater than or equal to 1"),
    "/results/whitebox-matrix?label=%00": (422, "label.0", "holds a control character (U+00"),
    "/results/whitebox-matrix?suite=%00": (422, "suite", "holds a control character (U+00"),
    "/results/whitebox-matrix?dataset=imagenet": (422, "dataset", "unknown dataset 'imagenet'"),
    "/results/whitebox-matrix?attack=fsgm": (422, "attack", "unknown attack 'fsgm'; allowed: fgsm, ifgsm"),
    "/results/blackbox-matrix?network=x": (422, "network", "unknown network 'x'; allowed: mnist_cnn"),
    "/results/whitebox-matrix?label=x": (422, "label.0", "no model is called 'x'"),
    "/results/whitebox-matrix?suite=nope": (422, "suite", "there is no suite 'nope', and no job was posted as one"),
    "/results/figures?suite=nope": (422, "suite", "there is no suite 'nope'"),
    "/results/surfaces?limit=11": (422, "limit", "less than or equal to 10"),
    "/results/cost?suite=nope": (422, "suite", "there is no suite 'nope'"),
    "/results/curves?suite=nope": (422, "suite", "there is no suite 'nope'"),
    "/results/paper/1?execution=x": (422, "execution", "expected 12 hexadecimal digits, each 0 to 9 or a to f"),
    "/results/curves?model=x": (422, "model.0", "expected 64 hexadecimal digits"),
    "/results/paper/1?suite=nope": (422, "suite", "the suite 'nope' does not exist"),
    "/results/paper/1?suite=": (422, "suite", "the suite '' does not exist"),
    "/jobs?suite=nope": (422, "suite", "there is no suite 'nope'"),
    "/results/whitebox-matrix?device=tpu": (422, "device", "'cpu' or 'cuda'"),
    "/results/whitebox-matrix?format=xml": (422, "format", "'json', 'csv', 'markdown', 'latex' or 'text'"),
    "/results/whitebox-matrix?pairing=any": (422, "pairing", "'all', 'same' or 'independent'"),
    "/results/whitebox-matrix?epz=0.3": (422, "epz", "unknown parameter; allowed: attack, dataset"),
    "/results/greybox-matrix": (404, None, "there is nothing at /results/greybox-matrix"),
    "/nowhere": (404, None, "there is nothing at /nowhere"),
    "/results/whitebox-matrix?suite=a&suite=b": (422, "suite", "given twice; it takes one value"),
    "/results/whitebox-matrix?job=5&job=1": (422, "job", "given twice; it takes one value"),
    "/jobs?name=a&name=a": (422, "name", "given twice; it takes one value"),
    "/catalog?x=1": (422, "x", "this address takes none"),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_wrong(strict_house: House, address: str):
    status, path, message = ADDRESSES[address]
    answer = strict_house.client.get(address)
    error = refusal(answer, status, "invalid" if status == 422 else "not_found")
    assert message in error["message"]
    assert [field["path"] for field in error["fields"]] == ([] if path is None else [path])


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("/jobs?state=x", ["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]),
        ("/results/whitebox-matrix?format=x", ["json", "csv", "markdown", "latex", "text"]),
        ("/results/whitebox-matrix?dataset=x", sorted(DATASETS)),
        ("/jobs?x=1", ["cursor", "limit", "name", "state", "suite", "tag"]),
    ],
)
def test_a_parameter_that_is_wrong_says_what_is_allowed(strict_house: House, address: str, allowed: list[str]):
    assert strict_house.client.get(address).json()["error"]["fields"][0]["allowed"] == allowed


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("PUT", "/jobs", 405), ("DELETE", "/jobs/1", 405), ("POST", "/results/whitebox-matrix", 405),
        ("GET", "/jobs/1/cancel", 405), ("POST", "/jobs/1/cancel", 404), ("POST", "/jobs/abc/cancel", 422),
        ("POST", f"/jobs/{TOO_LARGE}/cancel", 422), ("POST", "/jobs/1/retry", 404), ("POST", "/jobs/0/retry", 422),
    ],
)  # fmt: skip
def test_a_method_that_is_wrong(strict_house: House, method: str, address: str, status: int):
    code = {404: "not_found", 405: "method_not_allowed", 422: "invalid"}[status]
    refusal(strict_house.client.request(method, address), status, code)
    assert strict_house.rows() == {}


@pytest.mark.parametrize("address", ["/jobs?dry_run=perhaps", "/jobs?dryrun=1", "/jobs?dry_run=1&dry_run=0"])
def test_a_misspelt_dry_run_makes_no_job(strict_house: House, address: str):
    refusal(strict_house.client.post(address, json=ONE), 422, "invalid")
    assert strict_house.rows() == {}


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_an_idempotency_key_that_is_wrong(strict_house: House, key: str):
    answer = strict_house.client.post("/jobs", json=ONE, headers={"Idempotency-Key": key})
    error = refusal(answer, 422, "invalid")
    assert error["fields"][0]["path"] == "idempotency-key"
    assert strict_house.rows() == {}
