"""Figure kind `path`: the paper's Figure 3, e2SAD's two steps on the loss surface of a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from core.attacks.ifgsm import IFGSM
from core.defenses.e2sad import E2SAD
from core.fields import Count, Flag
from core.figures.base import Figure, Part, Values
from core.figures.surfaces import plane_of, surface_of, usual_reach, without_way
from core.ranges import Points, RadiusAttack, Reach
from core.surface_page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.stages.base import Stage
    from core.stages.train import Train


class PathFigure(Figure):
    """Loss of a minibatch over x + t1 * g1 + t2 * g2, and the way from x over x1 to x2 (Figure 3).

    The paper leaves open how g2 is chosen. Here it is the part of x2 - x that is orthogonal to g1, scaled to g1's
    length, so that x2 lies in the plane; the points stand at their mean projections and at their own losses.
    """

    kind: Literal["path"] = "path"
    """What is drawn."""
    surface: ClassVar[bool] = True
    direction: RadiusAttack = IFGSM(steps=30)
    """g1 is the sign of this attack's perturbation."""
    path: E2SAD | None = None
    """Whose two steps are taken; left out, those of each model that is e2SAD's, and e2SAD's defaults on the others."""
    reach: Reach | None = None
    """Largest t1, in pixel units, and t2, in lengths of g1; left out, 4/3 of the usual radius: 0.4 on MNIST."""
    points: Points = 21
    """Values of t1, and of t2, evenly spaced from 0 to `reach`."""
    clip: Flag = True
    """Whether the images of the plane are clipped to [0, 1]; the paper prints no clip."""
    limit: Count = 128
    """The minibatch: the first `limit` test images."""

    def resolved(self, dataset: Dataset, fill: Callable[[Any], Any]) -> Self:
        """Return the figure with the dataset's reach, and its defaults of attack and path."""
        reach = self.reach or usual_reach(dataset)
        filled = {"direction": fill(self.direction), "path": self.path and fill(self.path)}
        return self.model_copy(update={"reach": reach, **filled})

    def unfit(self) -> tuple[str, str] | None:
        """Return a direction that leads nowhere."""
        return without_way(self.direction)

    def part(self, train: Train, key: str, dataset: Dataset, execution: Execution) -> Stage:
        """Return the surface of one model, with the path."""
        from core.stages.surface import Surface

        return Surface(
            target=key, direction=self.direction, across="path", points=self.points,
            reach=self.reach or usual_reach(dataset), path=self.path or steps_on(train, dataset), clip=self.clip,
            limit=dataset.first(self.limit), execution=execution,
        )  # fmt: skip

    def cost(self, train: Train, images: int) -> float:
        """Return the attack, the two steps and a look at every point."""
        return (self.direction.passes().units + 10 + self.points**2) * train.network.flop * images

    def values(self, parts: Sequence[Part]) -> Values:
        """Return the surfaces and paths, one per model."""
        return {
            "title": "e2SAD's two steps on the loss surface of a minibatch",
            "caption": f"{plane_of(parts[0], self.direction, self.clip)}; g2: the part of x2 - x that is orthogonal to "
            "g1, scaled to its length. Points of the path: clean, first and second adversarial images, at "
            "their mean projections on g1 and g2 and at their own mean losses.",
            "models": [{"label": part.label, **surface_of(part)} for part in parts],
        }

    def draw(self, values: Values) -> Canvas:
        """Return one surface per model with its path, beside the same seen from above."""
        from core.surface_drawing import paths

        return paths(values)

    def page(self, values: Values) -> str:
        """Return the surfaces and paths to be turned and read."""
        return page(values)


def steps_on(train: Train, dataset: Dataset) -> E2SAD:
    """Return the e2SAD whose steps are taken on a model: its own, else e2SAD's defaults on the dataset."""
    if isinstance(train.defense, E2SAD):
        return train.defense
    return E2SAD.model_validate(dict(dataset.defaults.get("e2sad", {})))
