"""A stage that looks at a trained model sees the dataset its key names, or says why it cannot."""

from functools import cache
from typing import Any

import pytest

from core.datasets import DATASETS
from core.errors import OtherCode, SpecError
from core.stages import Stage
from core.stages.base import Finished
from core.stages.draw import Draw
from core.stages.evaluate import Evaluate
from tests.core.test_plan import Known, only_train, planned
from tests.worker.calm import Calm, calm

SMALL: dict[str, Any] = {"dataset": "mnist-mini", "training": {"iterations": 1, "batch_size": 2}}
LOOKS = ("craft", "evaluate", "surface", "sweep", "samples")


@cache
def house() -> dict[str, tuple[Calm, Stage]]:
    """Return each kind of stage that looks at a model, with the run it belongs to."""
    defense = {"defense": {"kind": "natural"}, **SMALL}
    figures = [{"kind": "accuracy", "limit": 2, "eps": [0, 0.1]}, {"kind": "surfaces", "limit": 2, "points": 2},
               {"kind": "samples"}, {"kind": "curves"}]  # fmt: skip
    drawn = calm({**defense, "kind": "figure", "figures": figures})
    attacked = calm({**defense, "limit": 2, "attacks": [{"kind": "fgsm"}], "substitutes": []})
    runs = [(run, stage.spec) for run in (drawn, attacked) for stage in run.plan.ordered]
    return {spec.kind: (run, spec) for run, spec in runs}


@pytest.mark.parametrize("kind", ["train", *LOOKS])
def test_another_content_of_the_dataset_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch):
    run, stage = house()[kind]
    cls = DATASETS["mnist-mini"]
    monkeypatch.setattr(cls, "checksums", dict.fromkeys(cls.checksums, "0" * 32))
    with pytest.raises(OtherCode, match="mnist-mini has another content here"):
        stage.run(run)


class WithoutArtifacts:
    """A run whose results were imported without their artifacts."""

    def __init__(self, run: Calm):
        self._run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def parent(self, key: str) -> Finished:
        found = self._run.parent(key)
        return Finished(found.spec, found.payload, {})


@pytest.mark.parametrize("kind", LOOKS)
def test_weights_that_stayed_behind_are_named(kind: str):
    run, stage = house()[kind]
    left_behind: Any = WithoutArtifacts(run)
    with pytest.raises(SpecError, match=r"weights of the train stage .* exported with --weights"):
        stage.run(left_behind)


def test_examples_of_other_images_are_refused():
    """Else one label would be held against every example."""
    run, _ = house()["craft"]
    evaluate = next(s.spec for s in run.plan.ordered if isinstance(s.spec, Evaluate) and s.spec.examples)
    assert evaluate.run(run).payload["n"] == 2
    with pytest.raises(TypeError, match="no craft stage over the same images"):
        evaluate.model_copy(update={"limit": 1}).run(run)


def test_a_drawing_says_too_what_stayed_behind():
    run, _ = house()["draw"]
    curves = next(s.spec for s in run.plan.ordered if isinstance(s.spec, Draw) and s.spec.figure.kind == "curves")
    left_behind: Any = WithoutArtifacts(run)
    with pytest.raises(SpecError, match="the curve of the train stage"):
        curves.run(left_behind)


@pytest.mark.parametrize(
    ("body", "role"),
    [({"kind": "evaluate", "targets": [{}]}, "targets"),
     ({"kind": "evaluate", "targets": [{}], "substitutes": [{}]}, "targets"),
     ({"kind": "figure", "models": [{}], "figures": [{"kind": "curves"}]}, "models")],
)  # fmt: skip
def test_a_plan_refuses_a_model_of_another_content(body: dict[str, Any], role: str):
    old = only_train({"defense": {"kind": "natural"}, **SMALL}).model_copy(update={"dataset_sha256": "0" * 64})
    body = {**body, role: [{"key": old.identity()}]}
    if "substitutes" in body:
        body["substitutes"] = [{"key": old.identity()}]
    with pytest.raises(SpecError, match="another content of mnist-mini") as refused:
        planned(body, old)
    assert refused.value.path == (role, 0)


def test_a_substitute_of_another_content_is_refused_too():
    new = only_train({"defense": {"kind": "natural"}, **SMALL})
    old = new.model_copy(update={"dataset_sha256": "0" * 64})
    body = {"kind": "evaluate", "targets": [{"key": new.identity()}], "substitutes": [{"key": old.identity()}]}
    with pytest.raises(SpecError, match="another content") as refused:
        planned(body, new, old)
    assert refused.value.path == ("substitutes", 0)


def test_a_dataset_that_is_not_installed_any_more_is_said():
    gone = only_train({"defense": {"kind": "natural"}, **SMALL}).model_copy(update={"dataset": "gone"})
    with pytest.raises(SpecError, match="gone, which is not installed"):
        planned({"kind": "evaluate", "targets": [{"key": gone.identity()}]}, gone)
    assert Known(gone).by_key(gone.identity())
