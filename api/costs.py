"""What trainings cost, measured, and how they went."""

import json
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from api.schemas import Reply
from core.errors import ArtifactCorrupt
from core.execution import Execution
from core.passes import Passes
from store.costs import Training

CLAIM = ("natural", "fgsm_adv", "e2sad", "ifgsm_adv")
"""The defenses of the paper's claim of efficiency, in its order."""


class TimedSeed(Reply):
    """One training."""

    seed: int
    """Its seed."""
    key: str
    """Key of its train stage."""
    seconds: float
    """Its time, over all attempts, without outages and what they lost."""


class CostRow(Reply):
    """What training one defense costs."""

    label: str
    """Its name in tables."""
    kind: str
    """Kind of the defense."""
    recipe: str
    """Key without the seed."""
    iterations: int
    """Optimiser steps."""
    forward: float
    """Forward passes per example and iteration."""
    input_backward: float
    """Backward passes to the images alone, per example and iteration."""
    full_backward: float
    """Backward passes to the weights, per example and iteration."""
    units: float
    """Cost in forward passes: an input-only backward counts 1, a full one 2."""
    seconds_per_example: float
    """Measured time per example and iteration, mean over the seeds."""
    counted_ratio: float | None
    """`units` over those of natural training; null where the run has none."""
    measured_ratio: float | None
    """`seconds_per_example` over that of natural training; null where the run has none."""
    seeds: list[TimedSeed]
    """Per seed."""


class RunReply(Reply):
    """What trainings share whose times may be compared."""

    device: str
    """Device class."""
    device_name: str | None
    """Name of the GPU or the processor."""
    host: str | None
    """Name of the machine; null where it was not recorded."""
    torch: str | None
    """Version of torch."""
    execution: Execution
    """Device class, threads, layout, precision, capture."""
    dataset: str
    """Dataset."""
    network: dict[str, Any]
    """Architecture."""
    batch_size: int
    """Examples per step."""


class CostTable(Reply):
    """Trainings of one run: one machine, one software, one dataset, network and batch size."""

    run: RunReply | None
    """What they share; null where no finished training recorded its time."""
    rows: list[CostRow]
    """Cheapest first, by counted passes."""
    claim: str
    """The paper's claim as measured here: natural : FGSM : e2SAD : IFGSM, as far as the run has them."""
    others: list[RunReply]
    """Other runs with timed trainings; narrow with suite=, job= or device=."""
    note: str
    """How to read it."""


NOTE = (
    "Seconds are of the training loop, from its first to its last iteration, the device's warm-up included: compare "
    "long trainings on an otherwise idle machine."
)


def cost_table(groups: Sequence[Sequence[Training]]) -> CostTable:
    """Return the table of the first run, and what the others are."""
    rows = _rows(groups[0]) if groups else []
    said = [row for kind in CLAIM for row in rows if row.kind == kind and row.measured_ratio is not None]
    said.sort(key=lambda row: (CLAIM.index(row.kind), row.units))
    return CostTable(
        run=RunReply(**groups[0][0].run) if groups else None,
        rows=rows,
        claim=" : ".join(f"{row.label} {row.measured_ratio:.2f}" for row in said),
        others=[RunReply(**group[0].run) for group in groups[1:]],
        note=NOTE,
    )


def _rows(group: Sequence[Training]) -> list[CostRow]:
    recipes: dict[str, list[Training]] = {}
    for training in group:
        recipes.setdefault(training.spec.recipe, []).append(training)
    rows = [_row(recipe, trainings) for recipe, trainings in recipes.items()]
    natural = [row for row in rows if row.kind == "natural"]
    if natural:
        seconds = fmean(row.seconds_per_example for row in natural)
        rows = [
            row.model_copy(
                update={
                    "measured_ratio": row.seconds_per_example / seconds,
                    "counted_ratio": row.units / natural[0].units,
                }
            )
            for row in rows
        ]
    return sorted(rows, key=lambda row: (row.units, row.label))


def _row(recipe: str, trainings: Sequence[Training]) -> CostRow:
    first = trainings[0]
    passes = Passes(**first.payload["passes_per_example"])
    seeds = sorted(trainings, key=lambda training: training.spec.seed)
    return CostRow(
        label=first.label, kind=first.spec.defense.kind, recipe=recipe, iterations=first.spec.training.iterations,
        **passes._asdict(), units=passes.units,
        seconds_per_example=fmean((one.seconds or 0.0) / one.examples for one in trainings),
        counted_ratio=None, measured_ratio=None,
        seeds=[TimedSeed(seed=one.spec.seed, key=one.key, seconds=one.seconds or 0.0) for one in seeds],
    )  # fmt: skip


class Curve(Reply):
    """How one training went."""

    key: str
    """Key of its train stage."""
    label: str
    """Its name in tables."""
    seed: int
    """Its seed."""
    dataset: str
    """What it was trained on."""
    device: str
    """Device class."""
    series: dict[str, list[float]]
    """iteration, and per iteration: loss and its parts on the batch, accuracy on the next batch's clean images."""


class CurvesReply(Reply):
    """Training curves."""

    curves: list[Curve]
    """One per model."""
    missing: dict[str, str]
    """Models without a curve: key -> why."""


def curves(every: Sequence[Training], read: Callable[[str], bytes]) -> CurvesReply:
    """Return the curves of the trainings, whose artifacts `read` gives."""
    reply = CurvesReply(curves=[], missing={})
    for one in every:
        try:
            reply.curves.append(_curve(one, _points(one, read)))
        except (ArtifactCorrupt, Unreadable) as error:
            reply.missing[one.key] = str(error)
    return reply


class Unreadable(Exception):
    """A training's result holds no curve, or what it holds is none."""


def _points(training: Training, read: Callable[[str], bytes]) -> list[dict[str, float]]:
    if training.curve is None:
        raise Unreadable("its result holds no curve")
    try:
        return json.loads(read(training.curve))
    except ValueError:
        raise Unreadable("its curve is no JSON") from None


def _curve(training: Training, points: Sequence[dict[str, float]]) -> Curve:
    names = list(dict.fromkeys(name for point in points for name in point))
    whole = {name: [point[name] for point in points] for name in names if all(name in point for point in points)}
    return Curve(
        key=training.key, label=training.label, seed=training.spec.seed, dataset=training.spec.dataset,
        device=training.spec.execution.device, series=whole,
    )  # fmt: skip
