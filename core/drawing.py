"""How every picture looks, and how it becomes bytes: the same values, the same bytes. matplotlib on first use only."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
"""Okabe and Ito 2008: told apart with every common form of colour blindness."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
"""Beside the colours, for print without them."""
MAP = "viridis"
INK, PALE = "#222222", "#bbbbbb"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib ships it: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "text.parse_math": False,  # labels are their author's words, dollars included
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "gauntlet",
    "svg.fonttype": "path",
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}


@contextmanager
def styled() -> Generator[None]:
    """Draw in our style, whatever the machine's own configuration says; what was set before is restored."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty picture of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def look(position: int) -> dict[str, Any]:
    """Return the colour and the dash of the line at `position`."""
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": LINES[position % len(LINES)]}


def spread(axes: Axes, values: Iterable[float]) -> None:
    """Give the axis of `values` a logarithmic scale with plain numbers where they span more than a factor of five."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    positive = [value for value in values if value > 0]
    if not positive or max(positive) < 5 * min(positive):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if max(positive) > 1000 * min(positive) else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def forms(picture: Figure) -> dict[str, bytes]:
    """Return the picture as PNG and as SVG, without a date.

    It is laid out once: each drawing would move the axes on from where the one before had left them.
    """
    picture.draw_without_rendering()
    picture.set_layout_engine("none")
    return {
        "png": _saved(picture, "png", {"Software": None}),
        "svg": _saved(picture, "svg", {"Date": None, "Creator": None}),
    }


def _saved(picture: Figure, form: str, metadata: dict[str, Any]) -> bytes:
    target = BytesIO()
    picture.savefig(target, format=form, metadata=metadata)
    return target.getvalue()
