"""A job as it was understood: every default that its plan took, written out."""

from collections.abc import Sequence
from typing import Any

from core.attacks import ATTACK
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.errors import SpecError
from core.jobs import (
    OF_SUBSTITUTES,
    BenchmarkJob,
    EvaluateJob,
    FigureJob,
    Job,
    ModelByKey,
    ModelBySpec,
    NamedDefense,
    TrainingJob,
    TrainingRequest,
)
from core.plan import Model, Plan
from core.resolve import resolve_training, resolved


def understood(job: Job, planned: Plan) -> Job:
    """Return `job` with every field that it left out set to what `planned` took; it asks for the same stages.

    Of a schedule the length stays as it was said, in iterations or in epochs: a defense's own batch size changes what
    epochs are.
    """
    dataset, update = DATASETS[planned.dataset](), dict[str, Any](device=planned.device)
    whole = resolved(job, planned.dataset)
    if isinstance(whole, TrainingJob) and not (isinstance(whole, FigureJob) and not whole.trains):
        update["training"] = _schedule(whole.training, dataset)
        update["network"] = planned.targets[0].train.network
    if isinstance(whole, BenchmarkJob):
        update |= _attacker(whole, planned.substitutes) | {"pairing": planned.pairing}
    if isinstance(whole, EvaluateJob):
        update["targets"] = _models(whole.targets, planned.targets)
        update["substitutes"] = _models(whole.substitutes, planned.substitutes)
    if isinstance(whole, FigureJob) and whole.models:
        update["models"] = _models(whole.models, planned.targets)
    if isinstance(whole, BenchmarkJob | EvaluateJob):
        update["attacks"] = whole.attacks or [ATTACK.validate_python(found) for found in dataset.panel]
        none = dict.fromkeys(name for name in OF_SUBSTITUTES if name in type(whole).model_fields)
        transfer = whole.transfer or [ATTACK.validate_python(dataset.transfer)]
        update |= {"transfer": transfer} if planned.substitutes else none
        update["limit"] = whole.limit or dataset.test_size
    return whole.model_copy(update=update)


def _schedule(request: TrainingRequest, dataset: Dataset) -> TrainingRequest:
    try:
        found = resolve_training(request, dataset).model_dump(exclude={"iterations"})
    except SpecError:  # every defense overrides what is wrong with it
        return request
    length: dict[str, Any] = {"iterations": request.iterations, "epochs": request.epochs}
    if not request.iterations and not request.epochs:
        length = {"epochs": dataset.default_epochs, "iterations": dataset.default_iterations}
    return TrainingRequest(**found, **length, label_smoothing=request.label_smoothing)


def _attacker(job: BenchmarkJob, planned: Sequence[Model]) -> dict[str, Any]:
    """Return the attacker's models and their seeds."""
    seeds = list(dict.fromkeys(model.train.seed for model in planned))
    update: dict[str, Any] = {"substitute_seeds": job.substitute_seeds or seeds or None}
    if job.substitutes is None:
        recipes = {model.train.recipe: NamedDefense(defense=model.train.defense) for model in planned}
        update["substitutes"] = list(recipes.values())
    return update


def _models(entries: Sequence[ModelByKey | ModelBySpec], planned: Sequence[Model]) -> list[ModelByKey | ModelBySpec]:
    return [
        entry
        if isinstance(entry, ModelByKey)
        else entry.model_copy(
            update={
                "network": model.train.network,
                "training": _schedule(entry.training, DATASETS[entry.dataset]()),
            }
        )
        for entry, model in zip(entries, planned, strict=True)
    ]
