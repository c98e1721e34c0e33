"""The pictures of loss surfaces: all models on one scale."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from core.drawing import MAP, PALE, canvas, look, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
PATH = "#D55E00"
T1, T2, LOSS = "t1 (pixel units)", "t2 (pixel units)", "mean loss (nats)"
T2_OF_PATH = "t2 (lengths of g1)"
"""g2 leads to x2, and has no signs: some pixels move further than t2."""


def surfaces(values: dict[str, Any]) -> Figure:
    """Return one surface per model, and below them the cuts along both directions."""
    models = values["models"]
    columns = min(COLUMNS, len(models))
    rows = ceil(len(models) / columns)
    picture = canvas(max(2.9 * columns + 0.8, 7.0), 2.9 * rows + 3.2)
    upper, lower = picture.subfigures(2, 1, height_ratios=(2.9 * rows, 3.2))
    panels = [upper.add_subplot(rows, columns, i + 1, projection="3d") for i in range(len(models))]
    top = _top(models)
    meshes = [_surface(axes, model, top) for axes, model in zip(panels, models, strict=True)]
    upper.colorbar(meshes[0], ax=panels, shrink=0.6, aspect=18, pad=0.04, label=LOSS)
    left, right = lower.subplots(1, 2, sharey=True)
    cuts = [([row[0] for row in model["loss"]], model["loss"][0]) for model in models]
    _cut(left, models, [cut[0] for cut in cuts], f"{T1}, at t2 = 0")
    _cut(right, models, [cut[1] for cut in cuts], f"{T2}, at t1 = 0")
    left.set_ylabel(LOSS)
    spread(left, [loss for cut in cuts for side in cut for loss in side])
    handles, labels = left.get_legend_handles_labels()
    lower.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    picture.suptitle(values["title"])
    return picture


def paths(values: dict[str, Any]) -> Figure:
    """Return, for each model, the surface with the path, and both seen from above."""
    models = values["models"]
    picture = canvas(8.0, 3.5 * len(models) + 0.4)
    top = _top(models)
    for position, (row, model) in enumerate(
        zip(picture.subfigures(len(models), 1, squeeze=False)[:, 0], models, strict=True)
    ):
        left = row.add_subplot(1, 2, 1, projection="3d")
        _surface(left, model, top)
        _path_in_space(left, model["path"])
        right = row.add_subplot(1, 2, 2)
        _from_above(right, model, top)
        if position == 0:
            right.set_title("seen from above")
    picture.suptitle(values["title"])
    return picture


def _top(models: list[dict[str, Any]]) -> float:
    """Return the largest loss of any model: the end of the scale that all share."""
    return max(
        max(*map(max, model["loss"]), *(place["loss"] for place in model["path"]), 1e-9) for model in models
    )  # fmt: skip


def _mesh(model: dict[str, Any]) -> tuple[Any, Any, Any]:
    import numpy as np

    t1, t2 = np.meshgrid(model["t"], model["t"], indexing="ij")
    return t1, t2, np.asarray(model["loss"])


def _surface(axes: Any, model: dict[str, Any], top: float) -> Any:
    from matplotlib.colors import Normalize

    axes.computed_zorder = False  # the path belongs in front
    mesh = axes.plot_surface(
        *_mesh(model), cmap=MAP, norm=Normalize(0, top), edgecolor="#33333355", linewidth=0.25, rcount=25, ccount=25,
        antialiased=True, shade=False, zorder=2,
    )  # fmt: skip
    reach = model["t"][-1]
    axes.set(xlabel="t1", ylabel="t2", zlabel="", xlim=(0, reach), ylim=(0, reach), zlim=(0, top), title=model["label"])
    axes.view_init(elev=24, azim=-128)
    axes.tick_params(pad=-2, labelsize=7)
    quarters = [reach * k / 4 for k in range(1, 5)]
    axes.set(xticks=quarters, yticks=quarters)  # without 0, where the axes' numbers would meet
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.3g}")
    axes.locator_params(axis="z", nbins=5)
    axes.xaxis.labelpad = axes.yaxis.labelpad = -6
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set(facecolor="white", edgecolor=PALE)
        axis._axinfo["grid"].update(color="#dddddd", linewidth=0.5)
    return mesh


def _path_in_space(axes: Any, path: list[dict[str, float]]) -> None:
    places = [[place[name] for place in path] for name in ("t1", "t2", "loss")]
    axes.plot(*places, color=PATH, linewidth=2, marker="o", markersize=5, markeredgecolor="white", zorder=5)
    for coordinate, name in enumerate(("xlim", "ylim")):
        low, high = getattr(axes, f"get_{name}")()
        axes.set(**{name: (min(low, *places[coordinate]), max(high, *places[coordinate]))})


def _from_above(axes: Axes, model: dict[str, Any], top: float) -> None:
    from matplotlib.ticker import MaxNLocator

    levels = MaxNLocator(12).tick_values(0, top)
    shown = axes.contourf(*_mesh(model), levels=levels, cmap=MAP)
    path = model["path"]
    axes.plot(
        [p["t1"] for p in path], [p["t2"] for p in path], color=PATH, linewidth=2, marker="o", markersize=6,
        markeredgecolor="white", clip_on=False, zorder=3,
    )  # fmt: skip
    for name, place in zip(("clean x", "first x1", "second x2"), path, strict=True):
        axes.annotate(
            f"{name}: {place['loss']:.3g}", (place["t1"], place["t2"]), (7, 7), textcoords="offset points", fontsize=8,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
    low = min(0.0, *(p["t2"] for p in path)) * 1.3
    axes.set(xlabel=T1, ylabel=T2_OF_PATH, ylim=(low, max(model["t"][-1], *(p["t2"] for p in path))))
    axes.figure.colorbar(shown, ax=axes, label=LOSS, format="%.3g")


def _cut(axes: Axes, models: list[dict[str, Any]], losses: list[list[float]], label: str) -> None:
    for position, (model, loss) in enumerate(zip(models, losses, strict=True)):
        axes.plot(model["t"], loss, label=model["label"], **look(position))
    axes.set(xlabel=label, xlim=(0, models[0]["t"][-1]))
    axes.grid(True, color=PALE, linewidth=0.4)
