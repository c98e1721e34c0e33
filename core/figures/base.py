"""What every figure is: a frozen spec that says which stages it needs, and draws what they found.

A figure is drawn from its values alone: `values` reads the finished stages, `draw` and `page` see nothing else, so the
same values give the same picture. matplotlib is imported by `draw` only, in the worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field

from core.fields import seen
from core.kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from core.datasets.base import Dataset
    from core.execution import Execution
    from core.stages.base import Stage
    from core.stages.train import Train

MAX_SHOWN = 8
"""Models in one figure: as many as there are colours that everybody can tell apart."""
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(seen)]
Values = dict[str, Any]
"""What a figure shows, as JSON."""


@dataclass(frozen=True)
class Part:
    """What a figure knows of one model: the finished stage that looked at it."""

    label: str
    spec: Stage
    payload: Mapping[str, Any]
    artifact: Callable[[str], bytes]
    """Name of an artifact of that stage -> its bytes."""


class Figure(Kind, ABC):
    """Base of every figure."""

    of_models: ClassVar[bool] = True
    """Whether it shows models; one that does not needs none."""
    surface: ClassVar[bool] = False
    """Whether its values are loss surfaces."""

    models: Annotated[list[Name], Field(min_length=1, max_length=MAX_SHOWN)] | None = None
    """Names of the job's models that it shows; left out, all."""

    def resolved(self, dataset: Dataset, fill: Callable[[Any], Any]) -> Self:
        """Return the figure with what its author left out set to the dataset's; `fill` does so for an attack."""
        del dataset, fill
        return self

    def part(self, train: Train, key: str, dataset: Dataset, execution: Execution) -> Stage | None:
        """Return the stage that looks at the model `train` of that key; None where the training itself says enough."""
        del train, key, dataset, execution
        return None

    def cost(self, train: Train, images: int) -> float:
        """Return the floating-point operations of `part` over that many images."""
        del train, images
        return 0.0

    @abstractmethod
    def values(self, parts: Sequence[Part]) -> Values:
        """Return what the figure shows: `title`, `caption`, and the numbers."""

    @abstractmethod
    def draw(self, values: Values) -> Canvas:
        """Return the picture of `values`."""

    def page(self, values: Values) -> str | None:
        """Return the interactive page of `values`, a document that loads nothing; None where there is none."""
        del values
        return None


def images_of(payload: Mapping[str, Any]) -> str:
    """Return how to say which images a stage looked at."""
    return f"the first {payload['n']:,} test images of {payload['dataset']}"
