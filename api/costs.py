"""What trainings cost, measured, and how they went."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from api import exports, terminal
from api.schemas import Reply
from core.canonical import canonical_json
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
    """The paper's claim as measured here: natural : FGSM : e2SAD : IFGSM, as far as the run has them; empty where one
    name stands for several models, as of two suites."""
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
        claim=" : ".join(f"{row.label} {row.measured_ratio:.2f}" for row in said) if _are_of_one_protocol(said) else "",
        others=[RunReply(**group[0].run) for group in groups[1:]],
        note=NOTE,
    )


def _are_of_one_protocol(rows: Sequence[CostRow]) -> bool:
    return len({row.label for row in rows}) == len(rows)


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


COLUMNS = (
    "label", "kind", "recipe", "iterations", "forward", "input_backward", "full_backward", "units", "counted_ratio",
    "measured_ratio", "seconds_per_example", "seed", "seconds", "key", "device", "device_name", "host", "torch",
    "dataset", "batch_size", "network", "threads", "layout", "precision", "captured", "claim", "note",
)  # fmt: skip


def to_csv(table: CostTable) -> str:
    """Return one line per training."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    run = table.run
    shared = {**run.model_dump(), **run.execution.model_dump(), "network": canonical_json(run.network)} if run else {}
    shared |= {"claim": table.claim, "note": table.note}
    for row in table.rows:
        for seed in row.seeds:
            known = {**shared, **row.model_dump(), **seed.model_dump()}
            writer.writerow([exports.inert(str("" if known[name] is None else known[name])) for name in COLUMNS])
    return text.getvalue()


SEVERAL = "one name stands for several models here; narrow by suite or job"
HEAD = ("", "iterations", "passes", "counted", "measured", "µs per example", "seeds")


def _lines(table: CostTable) -> list[list[str]]:
    """Return the cells of a table for people: passes and time, each also as its ratio to natural training."""
    return [
        [
            row.label, str(row.iterations), f"{row.units:g}", _ratio(row.counted_ratio), _ratio(row.measured_ratio),
            f"{1e6 * row.seconds_per_example:.1f}", str(len(row.seeds)),
        ]
        for row in table.rows
    ]  # fmt: skip


def _ratio(found: float | None) -> str:
    return "--" if found is None else f"{found:.2f}"


def _remarks(table: CostTable) -> list[str]:
    run = table.run
    if run is None:
        return ["no finished training recorded its time"]
    software = f", torch {run.torch}" if run.torch else ""
    where = f"{run.device_name or run.device}{software}, {run.dataset}, {run.network.get('kind')} network, "
    others = f"other runs with times: {len(table.others)}; narrow by suite, job or device"
    return [
        f"Cost of training per example and iteration, in forward passes and measured: {where}batches of "
        f"{run.batch_size}; counted and measured are ratios to natural training",
        *([table.claim] if table.claim else []),
        *([] if _are_of_one_protocol(table.rows) else [SEVERAL]),
        table.note,
        *([others] if table.others else []),
    ]


def to_text(table: CostTable) -> str:
    """Return the table aligned, under its caption."""
    caption, *more = _remarks(table)
    return "\n".join([caption, *([terminal.aligned(HEAD, _lines(table))] if table.rows else []), *more, ""])


def to_markdown(table: CostTable) -> str:
    """Return the table and how to read it."""
    return exports.markdown_table(HEAD, _lines(table), _remarks(table))


def to_latex(table: CostTable) -> str:
    """Return a tabular environment (booktabs), and how to read it as comments."""
    return exports.latex_table(HEAD, _lines(table), _remarks(table))


WRITERS: Mapping[str, Callable[[CostTable], str]] = {
    "csv": to_csv, "markdown": to_markdown, "latex": to_latex, "text": to_text,
}  # fmt: skip


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
