"""From the figures of a job to the stages that look at its models and the stages that draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.errors import SpecError
from core.figures.base import MAX_SHOWN, Figure
from core.stages.draw import Draw

if TYPE_CHECKING:
    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.plan import Model, Plan


def add_figures(result: Plan, figures: Sequence[Figure], dataset: Dataset, execution: Execution) -> None:
    """Add the stages of every figure to a plan that has the trainings.

    Raises:
        SpecError: a figure names a model that the job does not have, or shows too many.
    """
    named = _named(result.targets)
    for i, figure in enumerate(figures):
        chosen = _chosen(figure, named, i) if figure.of_models else {}
        parts = [_part(result, figure, label, model, dataset, execution) for label, model in chosen.items()]
        drawn = figure.model_copy(update={"models": None})  # the parts say which
        spec = Draw(figure=drawn, parts=parts, labels=list(chosen))
        result.add(spec, f"draw {figure.kind}" + (f" of {', '.join(chosen)}" if chosen else ""), 0.0, 0)


def _named(models: Sequence[Model]) -> dict[str, Model]:
    """Return label -> model; labels that several models share get their seeds."""
    taken = Counter(model.label for model in models)
    found: dict[str, Model] = {}
    for i, model in enumerate(models):
        label = model.label if taken[model.label] == 1 else f"{model.label}, seed {model.train.seed}"
        if label in found:
            raise SpecError(f"two models are called {label!r}; give one a name", ("models", i, "name"))
        found[label] = model
    return found


def _chosen(figure: Figure, named: dict[str, Model], i: int) -> dict[str, Model]:
    wanted = figure.models or list(named)
    for position, label in enumerate(wanted):
        path = ("figures", i, "models", position)
        if label not in named:
            said = f"no model of this job is called {label!r}: give figures whose models are"
            raise SpecError(said, path, list(named))
        if label in wanted[:position]:
            raise SpecError(f"{label!r} is named twice: leave one out", path)
    if len(wanted) > MAX_SHOWN:
        raise SpecError(f"a figure shows at most {MAX_SHOWN} models; name some", ("figures", i, "models"), list(named))
    return {label: named[label] for label in wanted}


def _part(
    result: Plan, figure: Figure, label: str, model: Model, dataset: Dataset, execution: Execution
) -> str:  # fmt: skip
    spec = figure.part(model.train, model.key, dataset, execution)
    if spec is None:
        return model.key
    images = getattr(spec, "limit", None) or dataset.test_size
    return result.add(spec, f"{spec.kind} of {label} for {figure.kind}", figure.cost(model.train, images), images)
