"""Runs one claimed stage and publishes what it found under the claim's fence."""

import logging
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from core.datasets import DATASETS
from core.errors import ArtifactCorrupt, DatasetMissing, Interrupted, SpecError
from core.stages import AnyStage, Outcome, Stage
from core.stages.base import Finished
from store import stages
from store.artifacts import ArtifactStore
from store.broker import Ringer
from store.database import Database
from store.settings import Settings
from store.stages import Bell, Claim, StaleFence, StoredArtifact
from worker.crashpoints import crashpoint
from worker.devices import device_name
from worker.watch import Watch

if TYPE_CHECKING:
    from core.datasets.base import Data

log = logging.getLogger(__name__)
_stage: TypeAdapter[Stage] = TypeAdapter(AnyStage)
PUBLISH_WAITS = (0.1, 0.5, 1.0, 2.0, 5.0)
FINAL = (SpecError, DatasetMissing)
"""Errors that the same spec meets again: they fail at once."""
AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""The database does not answer: no fault of the stage, whose lease runs out and which then runs again."""


class StageRunner:
    """Turns claims into results."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, ringer: Ringer):
        self._settings = settings
        self._database = database
        self._store = store
        self._ringer = ringer
        self.dataset = lru_cache(maxsize=3)(self._load_dataset)

    def run(self, claim: Claim, watch: Watch) -> None:
        """Run the stage and publish its result, its failure, or its return to the queue."""
        crashpoint("after-claim")
        watch.add_line(f"{claim.title}: attempt under fence {claim.fence}")
        began = time.monotonic()
        try:
            outcome = self._compute(claim, watch)
            watch.add_line(f"done in {time.monotonic() - began:.1f} s: {outcome.payload}")
            bells = self._publish(claim, watch, outcome)
        except StaleFence:
            log.warning("stage %s moved on while it ran here; its result is dropped", claim.key[:12])
            return
        except Interrupted as stop:
            bells = self._stopped(claim, watch, stop)
        except AWAY as error:
            log.warning("stage %s is left to its lease, the database does not answer: %s", claim.key[:12], error)
            return
        except Exception as error:
            bells = self._failed(claim, watch, error)
        self._ringer.ring(bells)

    def keep_checkpoint(self, claim: Claim, data: bytes) -> None:
        """Store a checkpoint and record it under the claim's fence; a lost claim stops the work.

        One that cannot be kept, on a full disk or without SQL, is done without: the lease says how long work goes on.
        """
        crashpoint("mid-checkpoint")
        try:
            stored = StoredArtifact("checkpoint", self._store.put(data), len(data), "application/x-safetensors")
            with self._database.write() as session:
                stages.add_checkpoint(session, claim.stage_id, claim.fence, stored)
        except StaleFence:
            raise Interrupted("lost") from None
        except (*AWAY, OSError, ArtifactCorrupt) as error:
            log.warning("no checkpoint of stage %s: %s", claim.key[:12], error)

    def _compute(self, claim: Claim, watch: Watch) -> Outcome:
        spec = _stage.validate_python(claim.spec)
        if spec.identity() != claim.key:
            raise SpecError("this stage was planned by another version of the code; post the job again")
        return spec.run(StageContext(self, claim, watch))

    def _publish(self, claim: Claim, watch: Watch, outcome: Outcome) -> list[Bell]:
        stored = [
            StoredArtifact(name, self._store.put(data), len(data), media_type)
            for name, (media_type, data) in outcome.artifacts.items()
        ]
        crashpoint("after-artifacts")
        lines, made_in = watch.take_lines(), {**environment(), **outcome.environment}

        def record() -> list[Bell]:
            crashpoint("before-result")
            with self._database.write() as session:
                stages.write_log(session, claim.stage_id, claim.fence, lines)
                return stages.succeed(session, claim.stage_id, claim.fence, outcome.payload, made_in, stored)

        bells = _insist(record)
        crashpoint("after-result")
        return bells

    def _stopped(self, claim: Claim, watch: Watch, stop: Interrupted) -> list[Bell]:
        watch.add_line(f"stopped: {stop.reason}")
        if stop.reason == "lost":
            return []
        lines = watch.take_lines()

        def record() -> list[Bell]:
            with self._database.write() as session:
                stages.write_log(session, claim.stage_id, claim.fence, lines)
                if stop.reason == "cancel":
                    stages.confirm_cancelled(session, claim.stage_id, claim.fence)
                    return []
                return stages.release(session, claim.stage_id, claim.fence)

        return _insist(record)

    def _failed(self, claim: Claim, watch: Watch, error: Exception) -> list[Bell]:
        log.warning("stage %s failed: %s: %s", claim.key[:12], type(error).__name__, error)
        cause = {
            "cause": type(error).__name__,
            "message": str(error) or type(error).__name__,
            "traceback": traceback.format_exc(limit=30),
        }
        watch.add_line(f"failed: {cause['cause']}: {cause['message']}")
        lines = watch.take_lines()

        def record() -> list[Bell]:
            with self._database.write() as session:
                stages.write_log(session, claim.stage_id, claim.fence, lines)
                stages.fail(
                    session, claim.stage_id, claim.fence, cause,
                    final=isinstance(error, FINAL), max_failures=self._settings.max_failures,
                )  # fmt: skip
            return []

        try:
            return _insist(record)
        except StaleFence:
            return []

    def _load_dataset(self, name: str) -> "Data":
        return DATASETS[name]().load(self._settings.data_dir, download=self._settings.data_download)

    def parent(self, key: str) -> Finished:
        """Return a finished stage.

        Raises:
            ArtifactCorrupt: it has no result.
        """
        with self._database.read() as session:
            row = stages.by_key(session, key)
            found = row and stages.result_of(session, row.id)
        if row is None or found is None:
            raise ArtifactCorrupt(f"the parent stage {key} has no result")
        return Finished(_stage.validate_python(row.spec), found[0], found[1])

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified."""
        return self._store.get(sha256)

    def checkpoints(self, stage_id: int) -> Iterator[tuple[str, bytes | None]]:
        """Yield the sha256 and the bytes of a stage's checkpoints, newest first; None where the store lost them."""
        with self._database.read() as session:
            found = stages.checkpoints(session, stage_id)
        for sha256 in found:
            try:
                yield sha256, self._store.get(sha256)
            except ArtifactCorrupt as torn:
                log.warning("%s", torn)
                yield sha256, None


class StageContext:
    """What the running stage may read: `core.stages.base.Context` over the database and the artifact store."""

    def __init__(self, runner: StageRunner, claim: Claim, watch: Watch):
        self._runner = runner
        self._claim = claim
        self._watch = watch

    @property
    def monitor(self) -> Watch:
        """Where progress goes, and where the order to stop comes from."""
        return self._watch

    def parent(self, key: str) -> Finished:
        """Return the finished parent stage `key`."""
        return self._runner.parent(key)

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified."""
        return self._runner.artifact(sha256)

    def dataset(self, name: str) -> "Data":
        """Return a dataset, verified against its published checksums."""
        return self._runner.dataset(name)

    def checkpoints(self) -> Iterator[bytes]:
        """Yield this stage's sound checkpoints, newest first."""
        for sha256, data in self._runner.checkpoints(self._claim.stage_id):
            self.log(f"checkpoint {sha256[:12]}: " + ("torn, trying the one before" if data is None else "going on"))
            if data is not None:
                yield data

    def log(self, line: str) -> None:
        """Add a line to the stage's log."""
        self._watch.add_line(line)


def _insist(record: Callable[[], list[Bell]]) -> list[Bell]:
    """Return what `record` returns, trying again while the database is away. Its fence makes repeating it safe."""
    for wait in PUBLISH_WAITS:
        try:
            return record()
        except (DBAPIError, PoolTimeout) as error:
            log.warning("the database did not take the result, trying again in %s s: %s", wait, error)
            time.sleep(wait)
    return record()


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return what a result was computed with: versions and device."""
    import torch

    return {
        "gauntlet": version("gauntlet"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device_name(),
    }
