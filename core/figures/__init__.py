"""Figure kinds: what can be drawn of trained models. The folder is the registry."""

from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from core.figures.base import Figure
from core.kinds import discover, union_of

FIGURES = discover("core.figures", Figure, "gauntlet.figures")
if TYPE_CHECKING:
    AnyFigure = Figure
else:
    AnyFigure = union_of(FIGURES)
FIGURE: TypeAdapter[Figure] = TypeAdapter(AnyFigure)

__all__ = ["FIGURE", "FIGURES", "AnyFigure", "Figure"]
