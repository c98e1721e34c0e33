"""The undisturbed run of a job: every stage computed in this process by calling core, without the service."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from core.datasets import DATASETS
from core.datasets.base import Data
from core.execution import Execution
from core.jobs import JOB
from core.monitor import Unwatched
from core.plan import Plan, plan
from core.stages import Outcome
from core.stages.base import Finished
from core.stages.train import Train
from tests.processes import QUICK, Processes

EXECUTION = Execution(threads=int(QUICK["CPU_THREADS"]))
_trains: dict[str, Train] = {}


@cache
def _dataset(name: str) -> Data:
    return DATASETS[name]().load(Path("unused"))  # mnist-mini is in the package


class Calm:
    """A job's plan and the outcome of each of its stages; the context of its stages, too."""

    monitor = Unwatched()

    def __init__(self, spec: dict[str, Any]):
        self.plan: Plan = plan(JOB.validate_python(spec), EXECUTION, self)
        _trains.update({model.key: model.train for model in self.plan.targets})
        self.outcomes: dict[str, Outcome] = {}
        self._artifacts: dict[str, bytes] = {}
        for stage in self.plan.ordered:
            outcome = self.outcomes[stage.key] = stage.spec.run(self)
            self._artifacts |= {hashlib.sha256(data).hexdigest(): data for _, data in outcome.artifacts.values()}

    def by_key(self, key: str) -> Train | None:
        """Return a train stage of this or an earlier job."""
        return _trains.get(key)

    def like(self, train: Train) -> Train | None:
        return self.by_key(train.identity())

    def artifacts(self, key: str) -> dict[str, str]:
        """Return name -> sha256 of a stage's artifacts."""
        return {name: hashlib.sha256(data).hexdigest() for name, (_, data) in self.outcomes[key].artifacts.items()}

    def parent(self, key: str) -> Finished:
        return Finished(self.plan.stages[key].spec, self.outcomes[key].payload, self.artifacts(key))

    def artifact(self, sha256: str) -> bytes:
        return self._artifacts[sha256]

    def dataset(self, name: str) -> Data:
        return _dataset(name)

    def checkpoints(self) -> Iterator[bytes]:
        return iter(())

    def log(self, line: str) -> None:
        """Forget it."""


@cache
def _calm(text: str) -> Calm:
    return Calm(json.loads(text))


def calm(spec: dict[str, Any]) -> Calm:
    """Return the undisturbed run of a job."""
    return _calm(json.dumps(spec))


def assert_as_calm(service: Processes, job: dict[str, Any], spec: dict[str, Any]) -> None:
    """Check that a job's stages have the payloads and, bit for bit, the artifacts of the undisturbed run."""
    expected = calm(spec)
    assert {stage["key"] for stage in job["stages"]} == set(expected.outcomes)
    for key, outcome in expected.outcomes.items():
        stage = service.client.get(f"/stages/{key}")
        assert stage["state"] == "succeeded", stage
        assert stage["result"] == outcome.payload, stage["title"]
        assert stage["artifacts"] == expected.artifacts(key), stage["title"]
