"""Figure kind `accuracy`: accuracy against the radius of an attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self

from core.attacks.ifgsm import IFGSM
from core.fields import Count, parse_pixels
from core.figures.base import Figure, Part, Values, images_of
from core.ranges import Radii, RadiusAttack
from core.statistics import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.stages.base import Stage
    from core.stages.train import Train


class AccuracyFigure(Figure):
    """Accuracy of every model under one attack, over the attack's radius."""

    kind: Literal["accuracy"] = "accuracy"
    """What is drawn."""
    attack: RadiusAttack = IFGSM(steps=30)
    """The attack; its own eps is not used."""
    eps: Radii | None = None
    """Radii, in pixel units; left out, nine from 0 to 4/3 of the dataset's usual one: 0 to 0.4 on MNIST."""
    limit: Count | None = None
    """Only the first `limit` test images; left out, all."""

    def resolved(self, dataset: Dataset, fill: Callable[[Any], Any]) -> Self:
        """Return the figure with the dataset's radii, in growing order, and its defaults of the attack.

        The attack's own eps, which is not used, is the dataset's usual one, whatever was given: no key depends on it.
        """
        usual = parse_pixels(dataset.eps)
        eps = sorted(set(self.eps)) if self.eps else [min(Fraction(1), usual * i / 6) for i in range(9)]
        attack = fill(self.attack).model_copy(update={"eps": usual})
        return self.model_copy(update={"eps": eps, "attack": attack, "limit": dataset.first(self.limit)})

    def part(self, train: Train, key: str, dataset: Dataset, execution: Execution) -> Stage:
        """Return the sweep over the radii."""
        from core.stages.sweep import Sweep

        return Sweep(target=key, attack=self.attack, eps=self.eps or [], limit=self.limit, execution=execution)

    def cost(self, train: Train, images: int) -> float:
        """Return one attack and one look for each radius."""
        return (self.attack.passes().units + 1) * train.network.flop * images * len(self.eps or [])

    def values(self, parts: Sequence[Part]) -> Values:
        """Return radii and counts of every model, with the shares and their 95 % intervals."""
        label = self.attack.label().replace(f" eps={self.attack.model_dump(mode='json')['eps']}", "")
        return {
            "title": f"Accuracy under {label}",
            "caption": f"Share of {images_of(parts[0].payload)} classified correctly, white-box. Bands: Wilson's "
            "95 % interval of each share.",
            "attack": label,
            "models": [_curve(part) for part in parts],
        }

    def draw(self, values: Values) -> Canvas:
        """Return one line per model over its interval."""
        from core.drawing import canvas, look

        picture = canvas(6.8, 3.6)
        axes = picture.subplots()
        for position, model in enumerate(values["models"]):
            radii = [float(parse_pixels(eps)) for eps in model["eps"]]
            line = look(position)
            low, high = ([ends[side] for ends in model["interval"]] for side in (0, 1))
            axes.fill_between(radii, low, high, color=line["color"], alpha=0.15, linewidth=0)
            axes.plot(radii, model["accuracy"], label=model["label"], marker="o", markersize=3.5, **line)
        axes.set(
            title=values["title"], xlabel="eps (pixel units; images span 0 to 1)", ylabel="accuracy (share correct)",
            ylim=(-0.02, 1.02), xlim=(0, None),
        )  # fmt: skip
        picture.legend(loc="outside right upper")
        return picture


def _curve(part: Part) -> dict[str, Any]:
    n, counts = part.payload["n"], part.payload["n_correct"]
    return {
        "label": part.label, "n": n, "eps": part.payload["eps"], "n_correct": counts,
        "accuracy": [count / n for count in counts], "interval": [wilson(count, n) for count in counts],
    }  # fmt: skip
