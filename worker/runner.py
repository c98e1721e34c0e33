"""Runs one claimed stage and publishes what it found under the claim's fence."""

import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from core.compute import computes
from core.datasets import DATASETS
from core.errors import (
    ArtifactCorrupt,
    DatasetMissing,
    DeviceMissing,
    Interrupted,
    OtherCode,
    OutOfMemory,
    SpecError,
    StoreAway,
    WorkerUnfit,
)
from core.provenance import made_in
from core.stages import STAGE, Stage
from core.stages.base import Finished
from store import lost, refusals, stages
from store.artifacts import ArtifactStore
from store.broker import Ringer
from store.crashpoints import crashpoint
from store.database import AWAY, Database
from store.settings import Settings
from store.stages import Bell, Claim, StaleFence, StoredArtifact
from worker.devices import device_class
from worker.patience import patiently
from worker.publisher import Publisher
from worker.spool import Finding, Spool
from worker.watch import Watch

if TYPE_CHECKING:
    from core.datasets.base import Data

log = logging.getLogger(__name__)
T = TypeVar("T")
FINAL = (SpecError, OutOfMemory)
"""Errors that the same spec meets again: they fail at once."""
REFUSED_SECONDS = 600.0
"""How long a stage waits, which every live worker has refused, for another to come; for missing files not at all."""


class DeviceBroken(Exception):
    """This process's device does not compute any more; only another process may find it whole."""


class StageRunner:
    """Turns claims into results."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore, ringer: Ringer):
        self._settings = settings
        self._database = database
        self._store = store
        self._ringer = ringer
        self._spool = Spool(settings.state_dir / "spool")
        self._publisher = Publisher(database, store, self._spool)
        self.dataset = lru_cache(maxsize=3)(self._load_dataset)
        self.has_refused = False
        """Whether there is anything that this worker leaves to others."""

    def run(self, claim: Claim, watch: Watch) -> None:
        """Run the stage and publish its result, its failure, or its return to the queue."""
        crashpoint("after-claim")
        watch.add_line(f"{claim.title}: attempt under fence {claim.fence}")
        try:
            finding = self._spooled(claim, watch) or self._compute(claim, watch)
            bells = self._publisher.publish(claim, watch, finding)
        except StaleFence:
            log.warning("stage %s moved on while it ran here; its result is dropped", claim.key[:12])
            return
        except Interrupted as stop:
            bells = self._stopped(claim, watch, stop)
        except WorkerUnfit as error:
            bells = self._refused(claim, watch, error)
        except ArtifactCorrupt as error:
            bells = self._without_artifact(claim, watch, error)
        except FINAL as error:
            bells = self._failed(claim, watch, error, final=True)
        except Exception as error:
            if not computes():
                self._ringer.ring(self._broken(claim, watch, error))
                raise DeviceBroken from error
            bells = self._failed(claim, watch, error, final=False)
        self._ringer.ring(bells)

    def keep_checkpoint(self, claim: Claim, data: bytes) -> None:
        """Store a checkpoint and record it under the claim's fence; a lost claim stops the work.

        One that cannot be kept, on a full disk or without SQL, is done without: the lease says how long work goes on.
        Those that it supersedes are deleted.
        """
        try:
            sha256 = self._store.put(data, "checkpoint")
            stored = StoredArtifact("checkpoint", sha256, len(data), "application/x-safetensors")
            with self._database.write() as session:
                superseded = stages.add_checkpoint(session, claim.stage_id, claim.fence, stored)
        except StaleFence:
            raise Interrupted("lost") from None
        except (*AWAY, StoreAway, ArtifactCorrupt) as error:
            log.warning("no checkpoint of stage %s: %s", claim.key[:12], error)
        else:
            self._publisher.discard(superseded)

    def spooled(self) -> list[str]:
        """Return the keys of the stages whose result waits here for a claim."""
        return self._spool.waiting()

    def flush(self) -> None:
        """Publish what waits here and needs no claim."""
        self._ringer.ring(self._publisher.flush())

    def save(self) -> None:
        """Keep what has been found and not yet published, for a process that is about to be ended."""
        self._publisher.save()

    def _spooled(self, claim: Claim, watch: Watch) -> Finding | None:
        finding = self._spool.find(claim.key)
        if finding is not None:
            watch.add_line(f"its result was found under fence {finding.fence} and has waited in the spool")
        return finding

    def _compute(self, claim: Claim, watch: Watch) -> Finding:
        began = time.monotonic()
        spec = _planned(claim)
        outcome = spec.run(StageContext(self, claim, watch))
        watch.add_line(f"done in {time.monotonic() - began:.1f} s: {outcome.payload}")
        return Finding(claim.key, claim.fence, outcome, made_in(outcome, spec.execution.device))

    def _stopped(self, claim: Claim, watch: Watch, stop: Interrupted) -> list[Bell]:
        watch.add_line(f"stopped: {stop.reason}")
        if stop.reason == "lost":
            return []

        def end(session: Session) -> list[Bell]:
            return stages.release(session, claim.stage_id, claim.fence)

        return self._ended(claim, watch, end)

    def _without_artifact(self, claim: Claim, watch: Watch, error: ArtifactCorrupt) -> list[Bell]:
        """Let the stage whose artifact is lost run again, this one after it; a failure where that cannot help.

        Where a parent has no result, which no failure of this one changes, it is given back for a while.
        """
        sha256, cause = error.sha256, _cause(error)
        watch.add_line(str(error))
        most = self._settings.max_failures

        def end(session: Session) -> list[Bell]:
            bells = lost.report(session, claim.stage_id, claim.fence, sha256, str(error)) if sha256 else None
            if bells is None and lost.lacks_parent(session, claim.stage_id):
                stages.release(session, claim.stage_id, claim.fence, cause, refusals.AGAIN_SECONDS)
            elif bells is None:
                stages.fail(session, claim.stage_id, claim.fence, cause, final=False, max_failures=most)
            return bells or []

        return self._ended(claim, watch, end)

    def _refused(self, claim: Claim, watch: Watch, unfit: WorkerUnfit) -> list[Bell]:
        """Give a stage back that this worker cannot run; from now on it leaves such stages to others."""
        host = socket.gethostname()
        log.warning("stage %s is left to other workers: %s", claim.key[:12], unfit)
        watch.add_line(f"the worker on {host} cannot run it: {unfit}")
        cause = {"cause": type(unfit).__name__, "message": str(unfit), "refused_by": host}
        alive = self._settings.alive_seconds
        patience = 0.0 if isinstance(unfit, DatasetMissing) else REFUSED_SECONDS
        self.has_refused = True
        return self._ended(
            claim, watch,
            lambda session: refusals.refuse(
                session, claim.stage_id, claim.fence, cause, alive_seconds=alive, patience=patience
            ),
        )  # fmt: skip

    def _broken(self, claim: Claim, watch: Watch, error: Exception) -> list[Bell]:
        """Count a stage as lost whose device broke, whatever it raised."""
        why = f"the device of worker {socket.gethostname()} broke: {error}"
        watch.add_line(why)
        most = self._settings.max_losses
        return self._ended(
            claim, watch, lambda session: stages.lose(session, claim.stage_id, claim.fence, why, most)
        )  # fmt: skip

    def _failed(self, claim: Claim, watch: Watch, error: Exception, *, final: bool) -> list[Bell]:
        log.warning("stage %s failed: %s: %s", claim.key[:12], type(error).__name__, error)
        self._spool.drop(claim.key)  # where a finding cannot be published, it is found again
        cause = _cause(error)
        watch.add_line(f"failed: {cause['cause']}: {cause['message']}")
        most = self._settings.max_failures

        def end(session: Session) -> list[Bell]:
            stages.fail(session, claim.stage_id, claim.fence, cause, final=final, max_failures=most)
            return []

        return self._ended(claim, watch, end)

    def _ended(self, claim: Claim, watch: Watch, end: Callable[[Session], list[Bell]]) -> list[Bell]:
        """Return the bells of `end`, which records how an attempt ended; SQL is waited for while the lease lasts."""
        watch.obeyed()
        lines = watch.take_lines()

        def record() -> list[Bell]:
            with self._database.write() as session:
                stages.write_log(session, claim.stage_id, claim.fence, lines)
                return end(session)

        try:
            return patiently(record, AWAY, watch, "its end cannot be recorded")
        except StaleFence:
            return []
        except Interrupted as stop:
            log.warning("stage %s is left to its lease (%s), its end was not recorded", claim.key[:12], stop)
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
        return Finished(STAGE.validate_python(row.spec), found[0], found[1])

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified."""
        return self._store.get(sha256)

    def checkpoints(self, stage_id: int) -> list[str]:
        """Return the sha256 of a stage's checkpoints, newest first."""
        with self._database.read() as session:
            return stages.checkpoints(session, stage_id)

    def checkpoint(self, sha256: str) -> bytes | None:
        """Return the bytes of a checkpoint, None where the store has lost them."""
        try:
            return self._store.get(sha256)
        except ArtifactCorrupt as torn:
            log.warning("%s", torn)
            return None


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
        """Return the finished parent stage `key`; SQL that is away is waited for."""
        return self._patiently(lambda: self._runner.parent(key))

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified; a store that is away is waited for."""
        return self._patiently(lambda: self._runner.artifact(sha256))

    def dataset(self, name: str) -> "Data":
        """Return a dataset, verified against its published checksums."""
        return self._runner.dataset(name)

    def checkpoints(self) -> Iterator[bytes]:
        """Yield this stage's sound checkpoints, newest first; the first attempt has none."""
        if self._claim.fence == 1:
            return
        for sha256 in self._patiently(lambda: self._runner.checkpoints(self._claim.stage_id)):
            data = self._patiently(partial(self._runner.checkpoint, sha256))
            self.log(f"checkpoint {sha256[:12]}: " + ("torn, trying the one before" if data is None else "going on"))
            if data is not None:
                yield data

    def log(self, line: str) -> None:
        """Add a line to the stage's log."""
        self._watch.add_line(line)

    def _patiently(self, read: Callable[[], T]) -> T:
        return patiently(read, (StoreAway, *AWAY), self._watch, "what it needs cannot be read")


def _cause(error: Exception) -> dict[str, str]:
    """Return a failure's cause as a stage shows it."""
    return {
        "cause": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "traceback": traceback.format_exc(limit=30),
    }


def _planned(claim: Claim) -> Stage:
    """Return the stage's spec.

    Raises:
        OtherCode: what this code makes of it is not what was planned.
        DeviceMissing: it is for a device class that this process has not.
    """
    try:
        spec = STAGE.validate_python(claim.spec)
    except ValidationError as error:
        raise OtherCode(f"this stage was planned by another version of the code: {error.errors()[0]['msg']}") from error
    if spec.identity() != claim.key:
        raise OtherCode("this stage was planned by another version of the code; post the job again")
    if spec.execution.device == "cuda" and device_class() != "cuda":
        raise DeviceMissing("this stage needs a CUDA device, which this worker has not")
    return spec
