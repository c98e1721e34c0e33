"""What a job leaves out, filled in: the schedule, and the fields of its defenses and attacks, are its dataset's."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from core.attacks.base import Attack
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.defenses.base import Defense
from core.errors import SpecError
from core.jobs import (
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
from core.kinds import Kind
from core.training import Training

Path = tuple[str | int, ...]
"""Where a field stands in the request."""
K = TypeVar("K", bound=Kind)


def resolved(job: Job, dataset_name: str) -> Job:
    """Return `job` with the fields left out of its defenses and attacks set to what `plan` takes for them.

    Its dump, read again, asks for the same stages; a dump of `job` itself would turn the kinds' own defaults, which
    are MNIST's, into something that its author had given.
    """
    dataset, update = DATASETS[dataset_name](), dict[str, Any]()
    if isinstance(job, TrainingJob):
        own = job.defense and resolved_defense(job.defense, job.training, dataset)
        update |= {"defense": own, "defenses": _resolved_entries(job.defenses, job, dataset)}
    if isinstance(job, BenchmarkJob):
        update["substitutes"] = _resolved_entries(job.substitutes, job, dataset)
    if isinstance(job, EvaluateJob):
        for role in ("targets", "substitutes"):
            update[role] = [_resolved_model(model) for model in getattr(job, role)]
    if isinstance(job, FigureJob):
        update["models"] = job.models and [_resolved_model(model) for model in job.models]
        update["figures"] = [figure.resolved(dataset, lambda spec: filled(spec, dataset)) for figure in job.figures]
    if isinstance(job, BenchmarkJob | EvaluateJob):
        for name in ("attacks", "transfer"):
            given: list[Attack] | None = getattr(job, name)
            update[name] = given and [filled(attack, dataset) for attack in given]
    return job.model_copy(update=update)


def _resolved_entries(
    entries: Sequence[NamedDefense | str] | None, job: TrainingJob, dataset: Dataset
) -> list[NamedDefense | str] | None:
    def whole(entry: NamedDefense) -> NamedDefense:
        defense = resolved_defense(entry.defense, entry.training.over(job.training), dataset)
        return entry.model_copy(update={"defense": defense})

    return None if entries is None else [entry if isinstance(entry, str) else whole(entry) for entry in entries]


def _resolved_model(model: ModelByKey | ModelBySpec) -> ModelByKey | ModelBySpec:
    if isinstance(model, ModelByKey):
        return model
    defense = resolved_defense(model.defense, model.training, DATASETS[model.dataset]())
    return model.model_copy(update={"defense": defense})


def resolve_training(
    request: TrainingRequest, dataset: Dataset, where: Callable[[str], Path] = lambda field: (field,)
) -> Training:
    """Return the full schedule: what `request` leaves out is the paper's for `dataset`, epochs become iterations.

    Raises:
        SpecError: too many epochs, or momentum without sgd; `where` says where the request keeps a field.
    """
    given = request.model_dump(exclude_none=True, exclude={"label_smoothing", "iterations", "epochs"})
    batch_size = request.batch_size or Training.model_fields["batch_size"].default
    epochs = request.epochs or (None if request.iterations else dataset.default_epochs)
    per_epoch = -(-dataset.train_size // batch_size)
    iterations = request.iterations or (epochs * per_epoch if epochs else dataset.default_iterations)
    if iterations is None:
        raise TypeError(f"{dataset.kind} has neither default iterations nor default epochs")
    try:
        return Training(iterations=iterations, **given)
    except ValidationError as error:  # what TrainingRequest cannot know: the length in iterations, the optimiser
        found = error.errors()[0]
        if found["loc"] == ("iterations",):
            raise SpecError(f"{epochs} epochs are {iterations} iterations: too many", where("epochs")) from None
        raise SpecError(found["msg"].removeprefix("Value error, "), where("momentum")) from None


def filled(spec: K, dataset: Dataset) -> K:
    """Return `spec` with the fields its author left out set to the dataset's own defaults for that kind."""
    usual = {"eps": dataset.eps} if "eps" in type(spec).model_fields else {}
    return spec.filled({**usual, **dataset.defaults.get(spec.kind, {})})


def require_fit(spec: Kind, path: Path) -> None:
    """Return where a new job may ask for `spec`, which stands at `path`, and for the kinds inside it.

    Raises:
        SpecError: names the field that rules it out.
    """
    if found := spec.unfit():
        raise SpecError(found[1], (*path, found[0]))
    for name, value in spec:
        if isinstance(value, Kind):
            require_fit(value, (*path, name))


def require_images(limit: int | None, dataset: Dataset, path: Path) -> None:
    """Return where the test set has as many images as a job asks for.

    Raises:
        SpecError: it has fewer.
    """
    if limit is not None and limit > dataset.test_size:
        size = f"{dataset.kind} has {dataset.test_size:,} test images"
        raise SpecError(f"{size}; give at most that many, or leave {path[-1]} out for all of them", path)


def resolved_defense(defense: Defense, request: TrainingRequest, dataset: Dataset) -> Defense:
    """Return `defense` with the fields its author left out set to the schedule's and the dataset's defaults."""
    if request.label_smoothing is not None and "label_smoothing" not in defense.model_fields_set:
        defense = type(defense).model_validate(
            {**defense.model_dump(exclude_unset=True), "label_smoothing": request.label_smoothing}
        )
    return filled(defense, dataset)
