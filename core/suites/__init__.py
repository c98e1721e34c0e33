"""Named suites: YAML files in core/suites/ with the schema of a job."""

from functools import cache
from importlib import resources
from typing import Any

import yaml

from core.errors import SpecError

ABOUT = frozenset({"description", "reductions"})
"""What a suite's file says of itself, beside the job's fields: `reductions` is how it was shortened, line by line."""


@cache
def suites() -> dict[str, dict[str, Any]]:
    """Return suite name -> its file's content, with what it says of itself among the fields."""
    folder = resources.files("core.suites")
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return {file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text()) for file in files}


def expand_suite(request: dict[str, Any]) -> dict[str, Any]:
    """Return the job spec of ``{"suite": NAME, ...}``: the suite's fields, overridden by the others given.

    `defense` replaces the suite's `defenses`.

    Raises:
        SpecError: no suite has that name.
    """
    name = request["suite"]
    if not isinstance(name, str) or name not in suites():
        allowed = sorted(suites())
        raise SpecError(f"there is no suite {name!r}; allowed: {', '.join(allowed)}", ("suite",), allowed)
    spec = {key: value for key, value in suites()[name].items() if key not in ABOUT}
    overrides = {key: value for key, value in request.items() if key != "suite"}
    if "defense" in overrides:
        spec.pop("defenses", None)
    return {"name": name, **spec, **overrides}


def reductions(name: str | None) -> list[str]:
    """Return how the suite was shortened against the paper's protocol, one sentence each; none where it was not."""
    said = suites().get(name or "", {}).get("reductions", [])
    return [f"{name} is shortened: {reduction}" for reduction in said]
