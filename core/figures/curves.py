"""Figure kind `curves`: the losses of trainings against their iterations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from core.figures.base import Figure, Part, Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

CURVE = "curve"
PARTS = {
    "clean": "clean images", "adversarial": "adversarial images", "sensitivity": "sensitivity (penalty)",
    "dissimilarity": "dissimilarity",
}  # fmt: skip
"""Loss -> panel. The total is left out: every defense weighs its parts in its own way."""
SHOWN = {**PARTS, "loss": "training loss"}
"""The total as well, for a defense that reports no parts."""


class CurvesFigure(Figure):
    """Training losses of every model, part by part, over the iterations."""

    version = 2  # 2: losses without parts are no longer all taken for the clean images', and the penalty is drawn
    kind: Literal["curves"] = "curves"
    """What is drawn."""

    def values(self, parts: Sequence[Part]) -> Values:
        """Return each model's losses by name; what an only loss is of, its defense says."""
        return {
            "title": "Training curves",
            "caption": "Mean losses of single training batches, on the targets each model trains on: hard and soft "
            "targets have losses of different size.",
            "models": [{"label": part.label, "losses": _series(part)} for part in parts],
        }

    def draw(self, values: Values) -> Canvas:
        """Return one panel per loss that any of the models has."""
        from core.drawing import canvas, look, spread

        names = [name for name in SHOWN if any(name in model["losses"] for model in values["models"])]
        picture = canvas(max(3.4 * len(names), 4.2), 3.4)
        panels = picture.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            for position, model in enumerate(values["models"]):
                if series := model["losses"].get(name):
                    axes.plot(
                        series["iteration"], series["loss"], label=model["label"], linewidth=1.2, **look(position)
                    )
            axes.set(title=SHOWN[name], xlabel="iteration", ylabel="mean loss (nats)")
            spread(axes, [loss for model in values["models"] for loss in model["losses"].get(name, {}).get("loss", [])])
        lines = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        picture.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(lines)))
        return picture


def _series(part: Part) -> dict[str, dict[str, list[float]]]:
    from core.stages.train import Train

    only = part.spec.defense.only_loss if isinstance(part.spec, Train) else "loss"
    found: dict[str, dict[str, list[float]]] = {}
    for point in json.loads(part.artifact(CURVE)):
        losses = {name: value for name, value in point.items() if name in PARTS} or {only: point["loss"]}
        for name, value in losses.items():
            series = found.setdefault(name, {"iteration": [], "loss": []})
            series["iteration"].append(point["iteration"])
            series["loss"].append(value)
    return found
