"""Figure kind `illustration`: the paper's Figure 2, three classes in one dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import exp, log
from typing import TYPE_CHECKING, ClassVar, Literal

from core.figures.base import Figure, Part, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

CLEAN, EPS1, EPS2 = -0.2, 0.2, 1.0
"""The clean input and the lengths of both steps, in units of the input."""
LOW, HIGH, POINTS = -1.3, 1.3, 261


def probabilities(x: float) -> list[float]:
    """Return f(x), the probabilities of three classes. The paper's example is a drawing; these curves are ours."""
    logits = (0.0, -1.6 - 0.6 * x + 1.45 * x**2 + 0.25 * x**3, -0.7 + 0.3 * x - 0.7 * x**2 + x**3)
    weights = [exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def loss(x: float) -> float:
    """Return the cross entropy of the one-hot label, class 1."""
    return -log(probabilities(x)[0])


def cross_entropy(x: float, y: float) -> float:
    """Return CE(f(x), f(y))."""
    return -sum(p * log(q) for p, q in zip(probabilities(x), probabilities(y), strict=True))


def step(x: float, climbed: Callable[[float], float], length: float) -> float:
    """Return where a step along the sign of the slope of `climbed` leads (central difference)."""
    slope = climbed(x + 1e-5) - climbed(x - 1e-5)
    return x + (length if slope > 0 else -length)


class IllustrationFigure(Figure):
    """Loss and dissimilarity of a three-class model of one input, and where climbing each of them leads (Figure 2)."""

    kind: Literal["illustration"] = "illustration"
    """What is drawn."""
    of_models: ClassVar[bool] = False

    def values(self, parts: Sequence[Part]) -> Values:
        """Return the curves and the four points."""
        del parts
        first = step(CLEAN, loss, EPS1)
        inputs = [LOW + (HIGH - LOW) * i / (POINTS - 1) for i in range(POINTS)]
        by_loss = step(first, loss, EPS2)
        by_dissimilarity = step(first, partial(cross_entropy, y=first), EPS2)
        places = {"clean": CLEAN, "first": first, "by_loss": by_loss, "by_dissimilarity": by_dissimilarity}
        return {
            "title": "Climbing the loss, or the dissimilarity",
            "caption": "A three-class model of one input, written down, not trained; the true class is 1. From the "
            "first adversarial example x1 a step that climbs the loss ends where the loss is highest of the four "
            "points and class 1 is still predicted; one that climbs the dissimilarity CE(f(x), f(x1)) ends in class 2. "
            "Read as printed, CE(f(x1), f(x)) has its minimum at x1, and no slope there (dashed).",
            "input": inputs,
            "probabilities": [[probabilities(x)[k] for x in inputs] for k in range(3)],
            "loss": [loss(x) for x in inputs],
            "dissimilarity": [cross_entropy(x, first) for x in inputs],
            "dissimilarity_as_printed": [cross_entropy(first, x) for x in inputs],
            "points": {
                name: {"input": x, "loss": loss(x), "dissimilarity": cross_entropy(x, first),
                       "predicted": 1 + max(range(3), key=lambda k: probabilities(x)[k])}
                for name, x in places.items()
            },
        }  # fmt: skip

    def draw(self, values: Values) -> Canvas:
        """Return the probabilities above the two curves that can be climbed."""
        from core.drawing import canvas

        picture = canvas(6.4, 5.2)
        upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        _probabilities(upper, values)
        _climbed(lower, values)
        wrong = [max(row) > row[0] for row in zip(*values["probabilities"], strict=True)]
        for axes in (upper, lower):
            axes.fill_between(
                values["input"], 0, 1, where=wrong, transform=axes.get_xaxis_transform(), color="#eeeeee", linewidth=0,
                zorder=0,
            )  # fmt: skip
            for point in values["points"].values():
                axes.axvline(point["input"], color="#bbbbbb", linewidth=0.7, linestyle=":", zorder=0.5)
        return picture


LOOKS = {
    "clean": ("clean input x", "o", "#222222"),
    "first": ("first adversarial x1", "X", "#009E73"),
    "by_loss": ("climbing the loss", "X", "#D55E00"),
    "by_dissimilarity": ("climbing the dissimilarity", "X", "#F0E442"),
}


NAMED_AT = ((-0.6, 0.63), (-0.78, 0.42), (0.3, 0.34))
"""Where the classes are named: beside their curves, off the others."""


def _probabilities(axes: Axes, values: Values) -> None:
    from core.drawing import COLOURS

    looks = zip((COLOURS[2], COLOURS[1], COLOURS[3]), ("-", "--", "-."), NAMED_AT, strict=True)
    for k, (colour, line, place) in enumerate(looks):
        axes.plot(values["input"], values["probabilities"][k], color=colour, linestyle=line)
        axes.text(*place, f"class {k + 1}", color=colour)
    axes.set(ylabel="probability", ylim=(0, 1), xlim=(LOW, HIGH))
    axes.text(0, 0.93, "grey: class 1 is not predicted", va="top", ha="center", fontsize=8)


def _climbed(axes: Axes, values: Values) -> None:
    from core.drawing import COLOURS

    blue, orange = COLOURS[0], COLOURS[5]
    axes.plot(values["input"], values["loss"], color=blue, label="loss, CE(class 1, f(x))")
    axes.plot(values["input"], values["dissimilarity"], color=orange, label="dissimilarity, CE(f(x), f(x1))")
    axes.plot(
        values["input"], values["dissimilarity_as_printed"], color=orange, linestyle="--", linewidth=1,
        label="as printed, CE(f(x1), f(x))",
    )  # fmt: skip
    for name, (label, marker, colour) in LOOKS.items():
        point = values["points"][name]
        curve = "dissimilarity" if name == "by_dissimilarity" else "loss"
        axes.plot(
            point["input"], point[curve], marker, color=colour, markeredgecolor="#222222", markersize=9,
            linestyle="none", label=label, zorder=5,
        )  # fmt: skip
    axes.set(xlabel="input (its own units)", ylabel="nats", ylim=(0, 3.2))
    axes.legend(loc="upper center", ncols=2, fontsize=8)
