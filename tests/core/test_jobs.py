"""Job specs: what a user may write, and what it is read as."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.figures import FIGURES
from core.jobs import JOB, BenchmarkJob, EvaluateJob, Job, NamedDefense, TrainingRequest, TrainJob

NATURAL = {"kind": "natural"}


def read(body: Any) -> Any:
    return JOB.validate_python(body)


@pytest.mark.parametrize(
    ("body", "cls"),
    [
        ({"defense": NATURAL}, BenchmarkJob),
        ({"kind": "benchmark", "defense": NATURAL}, BenchmarkJob),
        ({"kind": "train", "defense": NATURAL}, TrainJob),
        ({"kind": "evaluate", "targets": [{"defense": NATURAL}]}, EvaluateJob),
    ],
)
def test_the_kind_tells_jobs_apart_and_may_be_left_out(body: Any, cls: type[Job]):
    assert type(read(body)) is cls


def test_a_defense_may_stand_bare_or_with_a_name_and_a_schedule():
    job = read({"defenses": [NATURAL, {"defense": NATURAL, "name": "n", "training": {"lr": 1}}]})
    assert job.entries() == [
        NamedDefense(defense=job.defenses[0].defense),
        NamedDefense(defense=job.defenses[0].defense, name="n", training=TrainingRequest(lr=1.0)),
    ]


def test_one_defense_is_a_list_of_one():
    assert [entry.defense.kind for entry in read({"defense": NATURAL}).entries()] == ["natural"]


def test_substitutes_are_names_or_defenses():
    job = read({"defense": NATURAL, "substitutes": ["natural H", NATURAL, {"defense": NATURAL, "name": "s"}]})
    assert job.substitutes[0] == "natural H"
    assert [entry.name for entry in job.substitutes[1:]] == ["", "s"]


def test_models_are_named_by_key_or_by_spec():
    job = read({"kind": "evaluate", "targets": [{"key": "0" * 64}, {"defense": NATURAL, "seed": 3}]})
    assert [type(target).__name__ for target in job.targets] == ["ModelByKey", "ModelBySpec"]


@pytest.mark.parametrize(
    "body",
    [
        {"defense": {"kind": "e2sad", "eps1": "24/255"}, "seeds": [0, 7], "attacks": [{"kind": "pgd"}], "tags": ["a"]},
        {"kind": "train", "defenses": [NATURAL, {"defense": {"kind": "fgsm_adv"}, "training": {"epochs": 2}}]},
        {"kind": "evaluate", "targets": [{"key": "0" * 64}], "substitutes": [{"defense": NATURAL}], "limit": 5},
        {"defense": NATURAL, "substitutes": ["natural H", {"kind": "pgd_minmax"}], "pairing": "independent"},
    ],
)
def test_a_job_stored_and_read_again_is_the_same_job(body: Any):
    job = read(body)
    assert read(job.model_dump(mode="json", exclude_none=True)) == job


@pytest.mark.parametrize(
    ("mine", "others", "whole"),
    [
        ({}, {"epochs": 3, "lr": 0.1}, {"epochs": 3, "lr": 0.1}),
        ({"iterations": 5}, {"epochs": 3, "lr": 0.1}, {"iterations": 5, "lr": 0.1}),
        ({"epochs": 2}, {"iterations": 9}, {"epochs": 2}),
        ({"epochs": 2}, {"epochs": 9}, {"epochs": 2}),
        ({"label_smoothing": 0.0}, {"label_smoothing": 0.25}, {"label_smoothing": 0.0}),
    ],
)
def test_gaps_are_filled_and_a_length_hides_both(mine: Any, others: Any, whole: Any):
    assert TrainingRequest(**mine).over(TrainingRequest(**others)).model_dump(exclude_none=True) == whole


@pytest.mark.parametrize("text", [" ", "  ", "\u3000"])
def test_a_name_of_nothing_but_blanks_is_refused(text: str):
    for body in ({"name": text}, {"defenses": [{"defense": NATURAL, "name": text}]}, {"substitutes": [text]}):
        with pytest.raises(ValidationError, match="is blank: leave it out"):
            read({"defense": NATURAL, **body} if "defenses" not in body else body)


@pytest.mark.parametrize(
    "cls", [*ATTACKS.values(), *DEFENSES.values(), *FIGURES.values()], ids=lambda cls: cls.__name__
)
def test_true_and_false_are_no_words_and_no_numbers(cls: Any):
    for name in (name for name, field in cls.model_fields.items() if field.annotation is bool):
        assert getattr(cls(**{name: False}), name) is False
        for value in ("off", "false", 0, 1, 0.0):
            with pytest.raises(ValidationError, match="valid boolean"):
                cls(**{name: value})


@pytest.mark.parametrize(
    "character", ["\0", "\n", "\x1f", "\x7f", "\x85", "\x9b", "\xad", "\u2028", "\u2029", "\u202e", "\u2066", "\ufeff"]
)
def test_texts_hold_no_control_characters(character: str):
    text = f"a{character}b"
    named = {"defenses": [{"defense": NATURAL, "name": text}]}
    for spec in ({"defense": NATURAL, "name": text}, {"defense": NATURAL, "tags": [text]}, named):
        with pytest.raises(ValidationError, match=re.escape(f"holds a control character (U+{ord(character):04X})")):
            read(spec)


def test_texts_are_bounded():
    with pytest.raises(ValidationError, match="at most 200 characters"):
        read({"defense": NATURAL, "name": "x" * 201})


@pytest.mark.parametrize("text", ["", "Größe & 100 % <b>_#", "名前", "x" * 200, "=SUM(A1)", "👩\u200d🔬", "a\u200cb"])
def test_texts_hold_everything_else(text: str):
    assert read({"defense": NATURAL, "name": text}).name == text


def test_an_unknown_dataset_lists_those_that_are_known():
    with pytest.raises(ValidationError) as refused:
        read({"defense": NATURAL, "dataset": "imagenet"})
    assert refused.value.errors()[0]["ctx"]["allowed"] == sorted(refused.value.errors()[0]["ctx"]["allowed"])
    assert "mnist-mini" in refused.value.errors()[0]["ctx"]["allowed"]
