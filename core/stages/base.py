"""What every stage kind is: a spec that says what it needs, and a pure computation over its parents' results."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from core.errors import SpecError
from core.execution import Execution
from core.kinds import Kind
from core.monitor import Monitor

if TYPE_CHECKING:
    from core.datasets.base import Data


@dataclass(frozen=True)
class Finished:
    """A parent stage's spec and result."""

    spec: "Stage"
    payload: dict[str, Any]
    artifacts: dict[str, str]
    """Name of the artifact -> its sha256."""

    def artifact(self, name: str) -> str:
        """Return the sha256 of the artifact `name`.

        Raises:
            SpecError: it stayed on the machine that computed the stage, whose results were imported without it.
        """
        if name not in self.artifacts:
            raise SpecError(
                f"the {name} of the {self.spec.kind} stage {self.spec.identity()} are not here: its result was "
                f"imported without them; import a file that was exported with --{name}"
            )
        return self.artifacts[name]


@dataclass(frozen=True)
class Outcome:
    """What a stage found: figures for SQL, and bytes for the artifact store (name -> media type, bytes)."""

    payload: dict[str, Any]
    artifacts: dict[str, tuple[str, bytes]] = field(default_factory=dict[str, tuple[str, bytes]])
    seconds: float | None = None
    """Time spent on the result, without interruptions and what they lost; None where the stage keeps no time."""
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    """What is to be known of how it was computed, beside versions and device."""


class Context(Protocol):
    """What a stage may read while it runs. Nothing in it writes a result."""

    @property
    def monitor(self) -> Monitor:
        """Where progress goes, and where the order to stop comes from."""
        ...

    def parent(self, key: str) -> Finished:
        """Return the finished parent stage `key`."""
        ...

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified."""
        ...

    def dataset(self, name: str) -> "Data":
        """Return a dataset, verified against its published checksums."""
        ...

    def checkpoints(self) -> Iterator[bytes]:
        """Yield this stage's checkpoints, newest first, leaving out torn ones."""
        ...

    def log(self, line: str) -> None:
        """Add a line to the stage's log."""
        ...


def micro_batch(size: int | None) -> dict[str, Any]:
    """Return the environment of a result whose examples went through the network in smaller parts than planned."""
    return {} if size is None else {"micro_batch": size}


class Stage(Kind, ABC):
    """A resumable, memoized unit of work; `identity()` of its canonical spec is its key."""

    execution: Execution = Execution()
    """How it is executed."""

    def parents(self) -> tuple[str, ...]:
        """Return the keys of the stages whose results this one reads."""
        return ()

    @abstractmethod
    def run(self, context: Context) -> Outcome:
        """Return the stage's result."""
