"""Robustness: the worst case per example over every attack in one ball, beside each attack, and models in pairs."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from api import exports, terminal, views
from api.schemas import AxisReply, CellReply, MatrixReply, Reply, ScopeReply
from core.attacks import ATTACK
from core.bits import Bits, discordant, worst_case
from core.datasets import DATASETS
from core.errors import ArtifactCorrupt, SpecError
from core.fields import format_pixels, parse_pixels
from core.statistics import mcnemar_exact, wilson
from store.results import Axis, Cell, Matrix, SeedCount, Sums

WORST = "worst case"


class WorstSeed(Reply):
    """One model under the worst of the attacks, example by example."""

    seed: int
    """Its seed."""
    accuracy: float
    """Share of the examples that it gets right unchanged and under every attack that counts."""
    n: int
    """Examples."""
    n_correct: int
    """How many it gets right so."""
    interval: tuple[float, float]
    """Wilson's 95 % interval."""


class PairedSeed(Reply):
    """A model beside the reference of the same seed, on the same examples, both at their worst."""

    seed: int
    """The seed of both."""
    only_this: int
    """Examples that only this model gets right."""
    only_reference: int
    """Examples that only the reference gets right."""
    p_value: float
    """McNemar's exact two-sided p-value that both err equally often."""


class RobustReply(Reply):
    """What is known of one model's robustness."""

    label: str
    """Its name."""
    recipe: str
    """Key of the model without its seed."""
    attacks: list[CellReply]
    """Its accuracy under each attack alone, in the order of the table's `attacks`; seeds are left out."""
    worst: CellReply
    """Its accuracy where an example is right only if it is so unchanged and under every attack that counts; seeds are
    left out."""
    seeds: list[WorstSeed]
    """The worst case per seed."""
    paired: list[PairedSeed]
    """Beside the reference, per seed that both have; empty for the reference itself."""


class RobustnessReply(Reply):
    """Models under the worst of the attacks on them within one radius, each example by itself."""

    scope: ScopeReply | None
    """What the table is about; null where there is no evaluation."""
    attacks: list[AxisReply]
    """The attacks; those beyond `eps`, or that may leave [0, 1], are shown but count in no worst case."""
    eps: str | None
    """Radius of the ball that the worst case is over, in pixel units; null where no attack has one."""
    counted: int
    """How many of the attacks lie in it: the worst case is over those and the clean images, which every ball holds."""
    reference: str | None
    """Label of the model that the others are paired with."""
    models: list[RobustReply]
    """One per model."""
    others: list[ScopeReply]
    """Other scopes that have results; narrow with dataset=, device=, images= or job=."""
    reason: str | None
    """Why the table is empty."""
    cautions: list[str]
    """What to know before believing the table."""


@dataclass
class _Worst:
    """The worst case of one recipe: per seed its bits, and why seeds are missing."""

    bits: dict[int, Bits] = field(default_factory=dict[int, Bits])
    cell: Cell = field(default_factory=Cell)


def reply(
    found: Matrix, reference: Axis | None, bits: Mapping[str, str], read: Callable[[str], bytes], cautions: list[str],
    within: Fraction | None = None,
) -> RobustnessReply:  # fmt: skip
    """Return the table of a white-box matrix; `bits` says where each evaluation's are, which `read` gives.

    The worst case is over attacks `within` that radius; left out, the dataset's own, or the smallest that there is.

    Raises:
        SpecError: no attack of the table is within it.
    """
    climbed, eps = _in_one_ball(found, within)
    shown = [row for row in found.rows if _is_clean(row) or row in climbed] if climbed else []
    worst = {column.key: _worst(found, column, shown, bits, read) for column in found.columns}
    base = worst[reference.key].bits if reference else {}
    return RobustnessReply(
        scope=views.scope(found.scope) if found.scope else None,
        attacks=[views.axis(row) for row in found.rows],
        eps=None if eps is None else format_pixels(eps),
        counted=len(climbed),
        reference=reference.label if reference else None,
        models=[
            RobustReply(
                label=column.label,
                recipe=str(column.recipe),
                attacks=[_brief(found.cells.get((row.key, column.key))) for row in found.rows],
                worst=_brief(worst[column.key].cell),
                seeds=[_seed(seed, one) for seed, one in sorted(worst[column.key].bits.items())],
                paired=[] if column is reference else _paired(worst[column.key].bits, base),
            )
            for column in found.columns
        ],
        others=[views.scope(other) for other in found.others],
        reason=found.reason,
        cautions=cautions,
    )  # fmt: skip


def _in_one_ball(found: Matrix, within: Fraction | None) -> tuple[list[Axis], Fraction | None]:
    """Return the attacks that one worst case can be over, and the largest of their radii.

    A model that an attack beyond the ball defeats may well be robust in it. What bounds something else than the change
    of a pixel, or leaves the pixel box, is in no ball; where nothing else is there, all of it counts.
    """
    climbed = [row for row in found.rows if not _is_clean(row)]
    radii = {row.key: radius for row in climbed if (radius := _radius(row)) is not None}
    if not radii and (within is None or not climbed):
        return climbed, None
    smallest = min(radii.values(), default=Fraction(0))
    own = DATASETS.get(found.scope.dataset) if found.scope else None
    reach = within if within is not None else max(smallest, parse_pixels(own.eps) if own else smallest)
    inside = [row for row in climbed if row.key in radii and radii[row.key] <= reach]
    if not inside:
        there = sorted(set(radii.values()))
        said = ", ".join(map(format_pixels, there)) or "no radius"
        raise SpecError(
            f"no attack of this table is within {format_pixels(reach)}; they are of {said} (pixel units)",
            ("eps",), [format_pixels(radius) for radius in there],
        )  # fmt: skip
    return inside, max(radii[row.key] for row in inside)


def _is_clean(row: Axis) -> bool:
    return (row.attack or {}).get("kind") == "none"


def _radius(row: Axis) -> Fraction | None:
    try:
        attack = ATTACK.validate_python(row.attack)
    except ValidationError:  # of a kind that is gone
        return None
    return attack.radius() if attack.in_box() else None


def _worst(
    found: Matrix, column: Axis, shown: Sequence[Axis], bits: Mapping[str, str], read: Callable[[str], bytes]
) -> _Worst:
    """Return the worst case of each seed that has a count in every row that is `shown` to it."""
    cells = [found.cells.get((row.key, column.key), Cell()) for row in shown]
    counts = [{count.target_seed: count for count in cell.counts} for cell in cells]
    result = _Worst(cell=Cell(whitebox=True))
    for seed in sorted({seed for counted in counts for seed in counted}):
        lacking = [row.label for row, counted in zip(shown, counts, strict=True) if seed not in counted]
        try:
            if lacking:
                raise _Incomplete(f"no count for {', '.join(lacking)}")
            result.bits[seed] = worst_case(*(_bits(counted[seed], bits, read) for counted in counts))
            result.cell.sums += Sums.of(result.bits[seed].n, result.bits[seed].n_right)
        except (_Incomplete, ArtifactCorrupt, ValueError) as error:
            result.cell.sums += Sums(evaluations=1)
            result.cell.missing.append(f"seed {seed}: {error}")
    if not result.cell.sums.evaluations:
        result.cell.sums = Sums(evaluations=1)
        under: dict[str, list[str]] = {}
        for row, cell in zip(shown, cells, strict=True):
            if cell.reason:
                under.setdefault(cell.reason, []).append(row.label)
        reasons = [f"{', '.join(labels)}: {reason}" for reason, labels in under.items()]
        result.cell.missing = reasons or ["there is no attack"]
    return result


class _Incomplete(Exception):
    """A seed lacks a count or its bits."""


def _bits(count: SeedCount, bits: Mapping[str, str], read: Callable[[str], bytes]) -> Bits:
    if count.evaluation not in bits:
        raise _Incomplete(f"the evaluation {count.evaluation[:12]} has no per-example bits")
    return Bits.unpacked(read(bits[count.evaluation]), count.n)


def _brief(cell: Cell | None) -> CellReply:
    return views.cell(cell).model_copy(update={"seeds": []})


def _seed(seed: int, bits: Bits) -> WorstSeed:
    interval = wilson(bits.n_right, bits.n)
    return WorstSeed(seed=seed, accuracy=bits.n_right / bits.n, n=bits.n, n_correct=bits.n_right, interval=interval)


def _paired(mine: Mapping[int, Bits], reference: Mapping[int, Bits]) -> list[PairedSeed]:
    found: list[PairedSeed] = []
    for seed in sorted(mine.keys() & reference.keys()):
        this, other = discordant(mine[seed], reference[seed])
        p = mcnemar_exact(this, other)
        found.append(PairedSeed(seed=seed, only_this=this, only_reference=other, p_value=p))
    return found


def as_matrix(table: RobustnessReply) -> MatrixReply:
    """Return models by attacks with the worst case last, as the forms of a matrix take it."""
    axes = [AxisReply(key=model.recipe, label=model.label, recipe=model.recipe) for model in table.models]
    within = f" within {table.eps}" if table.eps else ""
    columns = [*table.attacks, AxisReply(key="worst", label=f"{WORST} of {table.counted}{within}")]
    cells = [[*model.attacks, model.worst] for model in table.models]
    return MatrixReply(
        matrix="robustness", scope=table.scope, pairing=None, rows=axes, columns=columns, cells=cells,
        others=table.others, reason=table.reason, cautions=table.cautions,
    )  # fmt: skip


COLUMNS = ("label", "recipe", "seed", "n", "n_correct", "accuracy", "low", "high", "attacks", "eps", "reference",
           "only_this", "only_reference", "p_value", "reason", "dataset", "device", "images", "note", "cautions",
           "others")  # fmt: skip


def to_csv(table: RobustnessReply) -> str:
    """Return one line per model and seed: its worst case, and the pair with the reference; one more for the reason.

    Behind `COLUMNS` stands the model's accuracy under each attack alone, over all seeds.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(attack.label for attack in table.attacks)])
    scope = table.scope
    where = [scope.dataset, scope.device, scope.images, scope.note] if scope else [""] * 4
    said = [*where, exports.inert("; ".join(table.cautions)), "; ".join(map(exports.scope_named, table.others))]
    reference = exports.inert(table.reference or "")
    for model in table.models:
        tail = [*said, *("" if cell.accuracy is None else cell.accuracy for cell in model.attacks)]
        pairs = {pair.seed: pair for pair in model.paired}
        label = exports.inert(model.label)
        for seed in model.seeds:
            pair = pairs.get(seed.seed)
            against: list[Any] = [pair.only_this, pair.only_reference, pair.p_value] if pair else ["", "", ""]
            writer.writerow([label, model.recipe, seed.seed, seed.n, seed.n_correct, seed.accuracy, *seed.interval,
                             table.counted, table.eps or "", reference, *against, "", *tail])  # fmt: skip
        if model.worst.reason:
            empty = [""] * (COLUMNS.index("reason") - 2)
            writer.writerow([label, model.recipe, *empty, exports.inert(model.worst.reason), *tail])
    return text.getvalue()


def to_markdown(table: RobustnessReply) -> str:
    """Return the accuracies in per cent, and below them the pairs with the reference."""
    return exports.to_markdown(as_matrix(table), _pairs(table))


def _pairs(table: RobustnessReply) -> list[str]:
    return [
        f"{model.label} and {table.reference}, images only one of them gets right at its worst: "
        + "; ".join(f"seed {one.seed}: {one.only_this} and {one.only_reference}, p = {one.p_value:.3g}"
                    for one in model.paired)
        + " (McNemar, exact)"
        for model in table.models if model.paired
    ]  # fmt: skip


def to_text(table: RobustnessReply) -> str:
    """Return the accuracies aligned for a terminal, and below them the pairs with the reference."""
    return terminal.to_text(as_matrix(table)) + "".join(f"{pair}\n" for pair in _pairs(table))


def to_latex(table: RobustnessReply) -> str:
    """Return the accuracies in per cent as a tabular environment, and the pairs among its comments."""
    return exports.to_latex(as_matrix(table), _pairs(table))


WRITERS: Mapping[str, Callable[[RobustnessReply], str]] = {
    "csv": to_csv, "markdown": to_markdown, "latex": to_latex, "text": to_text,
}  # fmt: skip
