"""What the paper leaves open, and how models of ours have it: said beside every table, at its own protocol too."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from core.defenses.e2sad import E2SAD
from core.stages.train import Train

T = TypeVar("T")
_SECOND_STEP = {
    "entropy": "the cross entropy with its arguments exchanged, at x1",
    "noise": "the dissimilarity at a point near x1, drawn from a normal distribution",
    "uniform": "the dissimilarity at a point near x1, drawn from a cube",
    "vat": "the dissimilarity near x1, along the direction of a power iteration",
    "literal": "what is printed, so that rounding decides its sign",
}
"""What e2SAD's second step climbs, by the field's name."""
_INPUT = {
    "pixel": "images stay in [0, 1], where eps is counted, and the network maps them to [-1, 1]",
    "per-image": "images stay in [0, 1], where eps is counted, and the network standardises each by itself",
}


def choices(dataset: str, models: Mapping[str, Train]) -> Iterable[str]:
    """Yield a sentence for each open question that these models of one of the paper's datasets have answered."""
    steps = {name: train.defense.second_step for name, train in models.items() if isinstance(train.defense, E2SAD)}
    for step, names in _by_value(steps):
        yield f"equation 7 has no gradient as printed: second_step {step} climbs {_SECOND_STEP[step]} ({names})"
    if any(train.defense.kind != "natural" for train in models.values()):
        yield "adversarial images of trainings and attacks are clipped to [0, 1]: equations 1, 6 and 7 print no clip"
    if dataset == "mnist":
        yield from _of_mnist(models)
    inputs = {name: getattr(train.network, "input", "") for name, train in models.items()}
    for chosen, _ in _by_value(inputs):
        if chosen in _INPUT:
            yield f"the normalisation's description contradicts itself: {_INPUT[chosen]}"


def _of_mnist(models: Mapping[str, Train]) -> Iterable[str]:
    optimisers = {name: f"{train.training.optimiser} at {train.training.lr:g}" for name, train in models.items()}
    for optimiser, names in _by_value(optimisers):
        yield f"the optimiser is named for SVHN alone: {optimiser} ({names})"
    weights = {
        name: getattr(train.defense, "alpha", None)
        for name, train in models.items() if train.defense.kind in ("fgsm_adv", "ifgsm_adv")
    }  # fmt: skip
    for alpha, names in _by_value(weights):
        yield f"the weight of clean images is given for e2SAD alone: alpha {alpha} ({names})"


def _by_value(values: Mapping[str, T]) -> Iterable[tuple[T, str]]:
    """Yield each value with the names that have it."""
    for value in dict.fromkeys(values.values()):
        yield value, ", ".join(name for name, one in values.items() if one == value)
