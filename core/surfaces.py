"""Loss surfaces: the loss of a model over a plane through every clean image (the paper's appendix A.2 and A.3).

The plane is x + t1 * g1 + t2 * g2. g1 is the sign of an attack's perturbation of x; g2 is orthogonal to g1, and the
paper says no more of it, so how it is chosen is a field. The paper sums the loss over the images; ours is the mean,
so that samples of different size can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.compute import configured, unit_images
from core.defenses.base import Batch
from core.losses import soft_targets
from core.monitor import UNWATCHED, Monitor
from core.portions import Portion
from core.random import uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from core.attacks.base import Attack
    from core.defenses.e2sad import E2SAD
    from core.execution import Execution
STILL = 1e-5
"""A pixel that an attack moved by less has not moved: steps forth and back leave rounding errors, not a direction."""


@dataclass(frozen=True)
class Plane:
    """Which plane is looked at, and at which points of it."""

    direction: Attack
    """Its perturbation's sign is g1."""
    ticks: Sequence[float]
    """Values of t1 and of t2, in pixel units."""
    through_second: bool
    """Whether g2 leads to e2SAD's second adversarial images, which then lie in the plane; else random signs."""
    clip: bool
    """Whether the images of the plane are clipped to [0, 1]."""
    seed: int
    """Seed of the random signs."""


@dataclass(frozen=True)
class Grid:
    """Means over images at every point of a plane, and at the ends of e2SAD's two steps."""

    loss: list[list[float]]
    """Mean cross entropy of the true label; `loss[i][j]` is at t1 = ticks[i], t2 = ticks[j]."""
    accuracy: list[list[float]]
    """Share classified correctly, at the same points."""
    path: list[dict[str, float]]
    """Clean, first and second adversarial images: t1, t2 (mean projection on g1, g2), loss and accuracy."""


def grid(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    plane: Plane,
    steps: E2SAD | None,
    execution: Execution,
    *,
    smoothing: float = 0.0,
    monitor: Monitor = UNWATCHED,
    portion: Portion | None = None,
) -> Grid:
    """Return loss and accuracy over `plane`, and along the two steps of `steps` where they are asked for.

    `portion` says how many images go through at once, and learns what memory allowed.

    Raises:
        OutOfMemory: the device cannot hold the passes of a single image.
        Interrupted: the monitor said so, between two points of the plane.
    """
    import torch

    side = len(plane.ticks)
    points = torch.zeros(2, side, side, dtype=torch.float64, device=execution.device)
    path = torch.zeros(3, 4, dtype=torch.float64, device=execution.device)

    def sums(begin: int, size: int) -> tuple[Tensor, Tensor | None]:
        end = begin + size
        indices = torch.arange(begin, end, device=execution.device)
        clean, truth = unit_images(images[begin:end], execution), labels[begin:end].to(execution.device)
        adversarial = plane.direction(
            model, clean, truth, smoothing=smoothing, indices=indices, monitor=monitor
        )  # fmt: skip
        first = signs(adversarial - clean)
        ends = two_steps(steps, model, clean, truth, indices) if steps is not None else None
        second = (
            beside(first, ends[1] - clean)
            if plane.through_second and ends is not None
            else random_across(first, plane.seed, indices)
        )
        found = _over(plane, model, clean, truth, first, second, monitor)
        visited = None if ends is None else _along(model, clean, truth, (clean, *ends), first, second)
        monitor.progress(end, len(images))
        return found, visited

    with configured(execution):
        for found, visited in (portion or Portion.of_images(execution.device)).over(len(images), sums):
            points += found
            path += 0 if visited is None else visited
    loss, accuracy = (points / len(images)).tolist()
    names = ("t1", "t2", "loss", "accuracy")
    visited = (path / len(images)).tolist() if steps is not None else []
    return Grid(loss, accuracy, [dict(zip(names, place, strict=True)) for place in visited])


def two_steps(steps: E2SAD, model: nn.Module, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return e2SAD's first and second adversarial images for `images`, as its training makes them."""
    import torch

    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    targets = soft_targets(labels, classes, steps.label_smoothing, images.dtype)
    batch = Batch(
        model=model, params=(), images=images, labels=labels, targets=targets, indices=indices, iteration=0, seed=0
    )
    return steps.examples(batch)


def signs(perturbation: Tensor) -> Tensor:
    """Return the sign of each pixel's move, 0 where it did not move."""
    return perturbation.sign() * (perturbation.abs() > STILL)


def random_across(first: Tensor, seed: int, indices: Tensor) -> Tensor:
    """Return random signs that are exactly orthogonal to the signs `first`, image by image.

    Where `first` is not 0, half of the pixels keep its sign and half have the other one; of an odd number one is 0.
    An image's signs depend on its position in the dataset, not on the batch.
    """
    import torch

    flat = first.flatten(1)
    draws = uniform(seed, 0, indices, flat.shape[1:], torch.float64)
    moved = flat != 0
    half = moved.sum(1, keepdim=True) // 2
    rank = torch.where(moved, draws, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    kept = (rank < half).to(flat.dtype) - ((rank >= moved.sum(1, keepdim=True) - half) & moved).to(flat.dtype)
    free = 1 - 2 * (draws < 0.5).to(flat.dtype)
    return torch.where(moved, flat * kept, free).view_as(first)


def beside(first: Tensor, perturbation: Tensor) -> Tensor:
    """Return what `perturbation` adds to `first`, image by image: its orthogonal part, as long as `first`."""
    across = perturbation - _share(perturbation, first).view(-1, 1, 1, 1) * first
    length, own = (vector.square().sum((1, 2, 3), keepdim=True).sqrt() for vector in (first, across))
    return across * (length / own.clamp(min=STILL))


def _share(vector: Tensor, direction: Tensor) -> Tensor:
    """Return the coordinate of `vector` along `direction` per image, 0 where there is no direction."""
    length = direction.square().sum((1, 2, 3))
    return (vector * direction).sum((1, 2, 3)) / length.where(length > 0, 1)


def _over(
    plane: Plane, model: nn.Module, clean: Tensor, labels: Tensor, first: Tensor, second: Tensor, monitor: Monitor
) -> Tensor:
    """Return summed loss and number correct at every point of the plane, [2, t1, t2]."""
    import torch

    rows: list[Tensor] = []
    for t1 in plane.ticks:
        along = clean + t1 * first
        for t2 in plane.ticks:
            monitor.check()
            images = along + t2 * second
            rows.append(_looked_at(model, images.clamp(0, 1) if plane.clip else images, labels))
    side = len(plane.ticks)
    return torch.stack(rows, dim=1).view(2, side, side)


def _looked_at(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross entropy of the true label and the number of images classified correctly."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.no_grad():
        logits = model(images)
        loss = cross_entropy(logits, labels, reduction="none").double().sum()
        return torch.stack((loss, (logits.argmax(1) == labels).double().sum()))


def _along(
    model: nn.Module, clean: Tensor, labels: Tensor, visited: Sequence[Tensor], first: Tensor, second: Tensor
) -> Tensor:
    """Return t1, t2, loss and number correct, summed over the images, one row for each of `visited`."""
    import torch

    rows: list[Tensor] = []
    for images in visited:
        moved = images - clean
        places: Any = [_share(moved, direction).double().sum() for direction in (first, second)]
        rows.append(torch.cat((torch.stack(places), _looked_at(model, images, labels))))
    return torch.stack(rows)
