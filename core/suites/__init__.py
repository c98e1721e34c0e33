"""Named suites: YAML files in core/suites/ with the schema of a job."""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, cast

import yaml

from core.datasets import DATASETS
from core.errors import SpecError
from core.jobs import OF_SUBSTITUTES

ABOUT = "description"
"""What a suite's file says of itself, beside the job's fields."""
LENGTHS = ("iterations", "epochs")
"""Two ways to give the length of a training: one given hides both of the suite's."""
EITHER = {
    "models": ("defenses", "defense", "dataset", "network", "training", "seeds"),
    "defense": ("defenses", "models"),
    "defenses": ("defense", "models"),
}
"""A field -> the suite's fields that it takes the place of."""


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Return suite name -> its file's content, with what it says of itself among the fields."""
    folder = resources.files("core.suites")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return {file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text()) for file in files}


def expand_suite(request: dict[str, Any]) -> dict[str, Any]:
    """Return the job spec of ``{"suite": NAME, ...}``: the suite's fields, overridden by the others given.

    An object that is no kind of something, such as `training`, is overridden field by field. `defense` takes the place
    of the suite's `defenses`, `models` that of all it says of trainings.

    Raises:
        SpecError: no suite has that name, the request names a kind, which is the suite's to say, or a dataset whose
            images are of another form than the suite's.
    """
    name = request["suite"]
    if not isinstance(name, str) or name not in suites():
        allowed = sorted(suites())
        raise SpecError(f"there is no suite {name!r}; allowed: {', '.join(allowed)}", ("suite",), allowed)
    spec = {key: value for key, value in suites()[name].items() if key != ABOUT}
    if "kind" in request:
        raise SpecError(f"the suite {name} is of kind {spec['kind']}; give a suite or a kind, not both", ("kind",))
    overrides = {key: value for key, value in request.items() if key != "suite"}
    _require_same_form(name, spec["dataset"], overrides.get("dataset"))
    hidden = {field for key in overrides for field in EITHER.get(key, ())}
    if overrides.get("substitutes") == []:
        hidden.update(OF_SUBSTITUTES)
    kept = {key: value for key, value in spec.items() if key not in hidden}
    return {"name": name, **kept, **{key: _over(value, kept.get(key)) for key, value in overrides.items()}}


def _require_same_form(name: str, own: str, given: Any) -> None:
    """Return unless `given` is a dataset of other images; one that is none is for the job's own schema to refuse."""
    if not isinstance(given, str) or given not in DATASETS or DATASETS[given].shape == DATASETS[own].shape:
        return
    form, other = (" x ".join(map(str, DATASETS[dataset].shape)) for dataset in (own, given))
    allowed = sorted(dataset for dataset in DATASETS if DATASETS[dataset].shape == DATASETS[own].shape)
    raise SpecError(
        f"the suite {name} is of images of {form}, those of {given} are {other}: give a dataset of that form",
        ("dataset",), allowed,
    )  # fmt: skip


def _over(mine: Any, suites_own: Any) -> Any:
    """Return the request's value of a field, with what it leaves out of a plain object taken from the suite's."""
    if not (isinstance(mine, dict) and isinstance(suites_own, dict)) or "kind" in suites_own:
        return cast(Any, mine)
    given, usual = cast(dict[str, Any], mine), cast(dict[str, Any], suites_own)
    hidden = LENGTHS if any(name in given for name in LENGTHS) else ()
    return {**{name: value for name, value in usual.items() if name not in hidden}, **given}


def inherited(path: Sequence[str | int], request: dict[str, Any]) -> bool:
    """Return whether the field at `path` of an expanded suite is the suite's own, not one that the request gives."""
    whole: Any = expand_suite(request)
    mine: Any = request
    for part in path:
        if not _has(whole, part):
            return False
        if not _has(mine, part):
            return True
        whole, mine = whole[part], mine[part]
    return False


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(cast(list[Any], value))
