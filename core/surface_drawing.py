"""The picture of loss surfaces: one panel per model on one scale, and cuts along both directions."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from core.drawing import MAP, PALE, canvas, look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
PATH = "#D55E00"


def surfaces(values: dict[str, Any]) -> Figure:
    """Return the picture: surfaces above, cuts below, or the losses along the paths where there are any."""
    models = values["models"]
    columns = min(COLUMNS, len(models))
    rows = ceil(len(models) / columns)
    picture = canvas(max(3.0 * columns, 6.4), 2.9 * rows + 3.0)
    upper, lower = picture.subfigures(2, 1, height_ratios=(2.9 * rows, 3.0))
    _panels(upper, models, rows, columns)
    left, right = lower.subplots(1, 2)
    _cut(left, models, "t1 (pixel units), t2 = 0", lambda loss: [row[0] for row in loss])
    if any(model["path"] for model in models):
        _along_path(right, models)
    else:
        _cut(right, models, "t2 (pixel units), t1 = 0", lambda loss: loss[0])
    handles, labels = left.get_legend_handles_labels()
    lower.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    picture.suptitle(values["title"])
    return picture


def _panels(figure: Any, models: list[dict[str, Any]], rows: int, columns: int) -> None:
    import numpy as np
    from matplotlib.colors import Normalize

    top = max(max(map(max, model["loss"])) for model in models)
    top = max([top, *(place["loss"] for model in models for place in model["path"])])
    scale = Normalize(0, top)
    mesh = None
    for position, model in enumerate(models):
        axes = figure.add_subplot(rows, columns, position + 1, projection="3d")
        t1, t2 = np.meshgrid(model["t"], model["t"], indexing="ij")
        mesh = axes.plot_surface(
            t1, t2, np.asarray(model["loss"]), cmap=MAP, norm=scale, edgecolor="#33333355", linewidth=0.25,
            rcount=21, ccount=21, antialiased=True, shade=False,
        )  # fmt: skip
        _path_on(axes, model["path"])
        axes.set(xlabel="t1", ylabel="t2", zlim=(0, top), title=model["label"])
        axes.view_init(elev=24, azim=-128)
        axes.tick_params(pad=-2, labelsize=7)
        axes.locator_params(nbins=4)
        axes.xaxis.labelpad = axes.yaxis.labelpad = -6
    figure.colorbar(mesh, ax=figure.axes, shrink=0.6, aspect=18, pad=0.02, label="mean loss (nats)")


def _path_on(axes: Any, path: list[dict[str, float]]) -> None:
    if path:
        places = [[place[name] for place in path] for name in ("t1", "t2", "loss")]
        axes.plot(*places, color=PATH, linewidth=2, marker="o", markersize=5, markeredgecolor="white", zorder=10)


def _cut(axes: Axes, models: list[dict[str, Any]], label: str, taken: Any) -> None:
    for position, model in enumerate(models):
        axes.plot(model["t"], taken(model["loss"]), label=model["label"], **look(position))
    axes.set(xlabel=label, ylabel="mean loss (nats)", yscale="log", xlim=(0, models[0]["t"][-1]))
    axes.grid(True, color=PALE, linewidth=0.4)


def _along_path(axes: Axes, models: list[dict[str, Any]]) -> None:
    for position, model in enumerate(models):
        losses = [place["loss"] for place in model["path"]]
        axes.plot(range(len(losses)), losses, marker="o", label=model["label"], **look(position))
    axes.set(ylabel="mean loss (nats)", yscale="log", xticks=range(3), xlim=(-0.2, 2.2))
    axes.set_xticklabels(["clean x", "first x1", "second x2"])
    axes.grid(True, axis="y", color=PALE, linewidth=0.4)
