"""What of the figures in a file of results can be computed again: whatever their numbers say, and not their pixels."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from core.datasets import DATASETS
from core.errors import GauntletError
from core.figures.base import Figure, Part
from core.stages import Stage
from core.stages.base import Finished
from core.stages.draw import VALUES, Draw
from core.stages.samples import Samples
from core.stages.surface import SURFACE, Surface
from core.stages.sweep import Sweep
from core.stages.train import Train

Look = Surface | Sweep | Samples
"""The stages that look at one model for a figure."""
CLOSE = 1e-9
"""How far two machines' arithmetic on the same numbers may differ, relative to them."""


class BadFigure(GauntletError):
    """A stage of a figure does not show what its spec and its parts say; the message says in what."""


def cost_of(key: str, look: Look, train: Train, figures: Mapping[str, Figure]) -> float:
    """Return the floating-point operations of a look, as the figure counts them that it was made for."""
    return figures[key].cost(train, images_of(look, train)) if key in figures else 0.0


def images_of(look: Look, train: Train) -> int:
    """Return at how many test images it looks, at most."""
    most = DATASETS[train.dataset].test_size
    limit = None if isinstance(look, Samples) else look.limit
    return most if limit is None else min(limit, most)


def check_look(look: Look, found: Finished, train: Stage, artifacts: Mapping[str, bytes]) -> None:
    """Return where the result has the form that its spec gives it.

    Raises:
        BadFigure: it has not.
    """
    if not isinstance(train, Train):
        raise BadFigure(f"looks at {look.target}, which is no model")
    n, most = found.payload.get("n"), images_of(look, train)
    if not (isinstance(n, int) and (0 < n <= most if isinstance(look, Samples) else n == most)):
        raise BadFigure(f"is over {most} images, but its result says {n}")
    if isinstance(look, Sweep):
        radii, counts = look.model_dump(mode="json")["eps"], found.payload.get("n_correct")
        if found.payload.get("eps") != radii or not _are_counts(counts, len(radii), n):
            raise BadFigure(f"does not count, of {n} images, those classified correctly at each of {len(radii)} radii")
    if isinstance(look, Surface):
        values = _json(artifacts[found.artifacts[SURFACE]])
        if not isinstance(values, dict) or not all(
            _is_grid(values.get(name), look.points) for name in ("loss", "accuracy")
        ):
            raise BadFigure(f"has not {look.points} x {look.points} finite losses and accuracies")
        for name, expected in look.frame(train.dataset, n).items():
            if values.get(name) != expected:
                raise BadFigure(f"says {name} {values.get(name)!r} where its spec says {expected!r}")


def check_drawing(draw: Draw, found: Finished, parts: Mapping[str, Finished], artifacts: Mapping[str, bytes]) -> None:
    """Return where the drawing shows what its parts found.

    Raises:
        BadFigure: its parts are not those that its figure needs, or its values are not theirs.
    """
    for key in draw.parts:
        _check_part(draw, key, parts)
    shown = [
        Part(label, parts[key].spec, parts[key].payload, _reader(parts[key], artifacts))
        for key, label in zip(draw.parts, draw.labels, strict=True)
    ]
    try:
        values = json.loads(json.dumps(draw.figure.values(shown)))
    except BadFigure:
        raise
    except Exception as error:  # of whatever kind: the parts come from elsewhere, and may be anything
        raise BadFigure(f"cannot be made of what its parts found: {type(error).__name__}: {error}") from error
    if not alike(values, _json(artifacts[found.artifacts[VALUES]])):
        raise BadFigure("shows other values than its parts found")


def _check_part(draw: Draw, key: str, parts: Mapping[str, Finished]) -> None:
    spec = parts[key].spec
    train_key = key if isinstance(spec, Train) else getattr(spec, "target", "")
    train = parts[train_key].spec if train_key in parts else None
    if not isinstance(train, Train):
        raise BadFigure(f"shows {key}, which looks at no model")
    wanted = draw.figure.part(train, train_key, DATASETS[train.dataset](), spec.execution)
    if key != (train_key if wanted is None else wanted.identity()):
        raise BadFigure(f"shows {key}, which is not what a figure of the kind {draw.figure.kind!r} is made of")


def _reader(part: Finished, artifacts: Mapping[str, bytes]) -> Any:
    def read(name: str) -> bytes:
        if part.artifacts.get(name) not in artifacts:
            raise BadFigure(f"needs the {name} of the stage {part.spec.identity()}, which stayed behind")
        return artifacts[part.artifacts[name]]

    return read


def _are_counts(found: Any, many: int, most: int) -> bool:
    return (
        isinstance(found, list) and len(found) == many and all(type(one) is int and 0 <= one <= most for one in found)
    )


def _is_grid(found: Any, points: int) -> bool:
    return (
        isinstance(found, list) and len(found) == points
        and all(isinstance(row, list) and len(row) == points and all(map(_is_number, row)) for row in found)
    )  # fmt: skip


def _is_number(found: Any) -> TypeGuard[float]:
    return type(found) in (int, float) and math.isfinite(found)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise BadFigure(f"has values that are no JSON: {error}") from error


def alike(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same but for the last digits of their numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
    return type(one) is type(other) and one == other
