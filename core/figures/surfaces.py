"""Figure kind `surfaces`: the paper's Figure 4, loss surfaces of several models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from core.attacks.fgsm import FGSM
from core.fields import Count, Flag, Seed, parse_pixels
from core.figures.base import Figure, Part, Values, images_of
from core.ranges import Points, RadiusAttack, Reach
from core.surface_page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from core.attacks.base import Attack
    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.stages.base import Stage
    from core.stages.train import Train


class SurfacesFigure(Figure):
    """Loss of every model over x + t1 * g1 + t2 * g2 (Figure 4a with FGSM, 4b with IFGSM)."""

    kind: Literal["surfaces"] = "surfaces"
    """What is drawn."""
    surface: ClassVar[bool] = True
    direction: RadiusAttack = FGSM()
    """g1 is the sign of this attack's perturbation, made on each model for itself."""
    reach: Reach | None = None
    """Largest t1 and t2, in pixel units; left out, 4/3 of the dataset's usual radius: 0.4 on MNIST."""
    points: Points = 21
    """Values of t1, and of t2, evenly spaced from 0 to `reach`."""
    clip: Flag = True
    """Whether the images of the plane are clipped to [0, 1]; the paper prints no clip."""
    seed: Seed = 0
    """Seed of g2: random signs orthogonal to g1."""
    limit: Count | None = None
    """Only the first `limit` test images; left out, all."""

    def resolved(self, dataset: Dataset, fill: Callable[[Any], Any]) -> Self:
        """Return the figure with the dataset's reach, and its defaults of the attack."""
        reach, limit = self.reach or usual_reach(dataset), dataset.first(self.limit)
        return self.model_copy(update={"reach": reach, "direction": fill(self.direction), "limit": limit})

    def unfit(self) -> tuple[str, str] | None:
        """Return a direction that leads nowhere."""
        return without_way(self.direction)

    def part(self, train: Train, key: str, dataset: Dataset, execution: Execution) -> Stage:
        """Return the surface of one model."""
        from core.stages.surface import Surface

        return Surface(
            target=key, direction=self.direction, reach=self.reach or usual_reach(dataset), points=self.points,
            clip=self.clip, seed=self.seed,
            limit=self.limit, execution=execution,
        )  # fmt: skip

    def cost(self, train: Train, images: int) -> float:
        """Return the attack and a look at every point."""
        return (self.direction.passes().units + self.points**2) * train.network.flop * images

    def values(self, parts: Sequence[Part]) -> Values:
        """Return the surfaces, one per model."""
        return {
            "title": f"Loss surfaces along {self.direction.label()}",
            "caption": f"{plane_of(parts[0], self.direction, self.clip)}, made on each model for itself; g2: random "
            "signs orthogonal to g1, image by image.",
            "models": [{"label": part.label, **surface_of(part)} for part in parts],
        }

    def draw(self, values: Values) -> Canvas:
        """Return one surface per model on one scale, and all of them along g1 and along g2."""
        from core.surface_drawing import surfaces

        return surfaces(values)

    def page(self, values: Values) -> str:
        """Return the surfaces to be turned and read."""
        return page(values)


def without_way(direction: Any) -> tuple[str, str] | None:
    """Return the field of a direction whose attack moves no pixel, and what to do; None where it moves some."""
    return None if direction.eps else ("direction", "an attack within eps 0 has no direction: give it an eps above 0")


def usual_reach(dataset: Dataset) -> Fraction:
    """Return 4/3 of the dataset's usual radius, the paper's 0.4 on MNIST."""
    return min(Fraction(1), parse_pixels(dataset.eps) * 4 / 3)


def plane_of(part: Part, direction: Attack, clip: bool) -> str:
    """Return the begin of a caption: what is shown, and of which images."""
    return (
        f"Mean cross entropy of the true label over {images_of(part.payload)} at x + t1 g1 + t2 g2, "
        f"{'' if clip else 'not '}clipped to [0, 1]. g1: the sign of the perturbation by {direction.label()}"
    )


def surface_of(part: Part) -> dict[str, Any]:
    """Return the values of a surface stage."""
    return json.loads(part.artifact("surface"))
