"""Brings what a stage found into the artifact store and into SQL, however long either is away."""

import logging
from collections.abc import Sequence

from core.errors import ArtifactCorrupt, StoreAway
from core.stages import Outcome
from store import garbage, lost, stages
from store.artifacts import ArtifactStore
from store.crashpoints import crashpoint
from store.database import AWAY, Database
from store.models import StageState
from store.stages import Bell, Claim, StaleFence, StoredArtifact
from worker.patience import patiently
from worker.spool import Finding, Spool
from worker.watch import Watch

log = logging.getLogger(__name__)
Lines = Sequence[tuple[float, str]]


class Publisher:
    """Publishes findings under the fence of a claim, and keeps in the spool those it cannot publish yet."""

    def __init__(self, database: Database, store: ArtifactStore, spool: Spool):
        self._database = database
        self._store = store
        self._spool = spool
        self._pending: Finding | None = None

    def publish(self, claim: Claim, watch: Watch, finding: Finding) -> list[Bell]:
        """Return the bells of the children that the result makes ready; what is away is waited for.

        Raises:
            StaleFence: the claim is lost; nothing was written.
            Interrupted: the work is told to stop. The finding stays in the spool.
        """
        self._pending = finding
        try:
            bells = self._published(claim, watch, finding)
        finally:
            self._pending = None
        crashpoint("after-result")
        self._spool.drop(claim.key)
        return bells

    def _published(self, claim: Claim, watch: Watch, finding: Finding) -> list[Bell]:
        def spool() -> None:
            self._keep(watch, finding)

        away, what = (StoreAway, ArtifactCorrupt), "its result is found but cannot be stored"
        stored = patiently(lambda: self._stored(finding.outcome), away, watch, what, spool)
        crashpoint("after-artifacts")
        what = "its result is found but cannot be recorded"
        return patiently(lambda: self._recorded(claim, watch, finding, stored), AWAY, watch, what, spool)

    def _recorded(self, claim: Claim, watch: Watch, finding: Finding, stored: Sequence[StoredArtifact]) -> list[Bell]:
        lines = watch.take_lines()
        try:
            bells, outlived = self._record(claim, lines, finding, stored)
        except BaseException:
            watch.put_back(lines)
            raise
        watch.recorded()  # first: to delete what is not needed any more may take longer than a stop may
        self.discard(outlived)
        return bells

    def flush(self) -> list[Bell]:
        """Publish once what still can be under the fence it was found under; return the bells.

        The rest waits for a claim of its stage. What a stage has a result of is dropped.
        """
        bells: list[Bell] = []
        for key in self._spool.waiting():
            with self._database.read() as session:
                stage = stages.by_key(session, key)
            if stage is not None and stage.state == StageState.SUCCEEDED:
                self._spool.drop(key)
            elif stage is not None and stage.state == StageState.RUNNING and stage.fence == self._spool.fence(key):
                claim = Claim(stage.id, stage.fence, stage.key, stage.kind, stage.title, stage.spec)
                bells += self._publish_late(claim)
        return bells

    def save(self) -> None:
        """Put what is being published into the spool, for a process that is about to be ended."""
        finding = self._pending
        if finding is not None:
            self._spool.keep(finding)

    def _publish_late(self, claim: Claim) -> list[Bell]:
        finding = self._spool.find(claim.key)
        if finding is None:
            return []
        try:
            bells, outlived = self._record(claim, (), finding, self._stored(finding.outcome))
        except (StaleFence, StoreAway, ArtifactCorrupt) as error:
            log.warning("stage %s stays in the spool: %s", claim.key[:12], error or type(error).__name__)
            return []
        except AWAY:
            raise
        except Exception:
            log.exception("what the spool has of stage %s cannot be published; it is found again", claim.key[:12])
            self._spool.drop(claim.key)
            return []
        self._spool.drop(claim.key)
        self.discard(outlived)
        log.info("stage %s is published from the spool under its fence %s", claim.key[:12], claim.fence)
        return bells

    def _stored(self, outcome: Outcome) -> list[StoredArtifact]:
        return [
            StoredArtifact(name, self._store.put(data), len(data), media_type)
            for name, (media_type, data) in outcome.artifacts.items()
        ]

    def _record(
        self, claim: Claim, lines: Lines, finding: Finding, stored: Sequence[StoredArtifact]
    ) -> tuple[list[Bell], list[str]]:  # fmt: skip
        """Publish in one transaction, whose fence makes repeating it safe; return bells, and checkpoints to discard."""
        outcome = finding.outcome
        with self._database.write() as session:
            outlived = stages.checkpoints(session, claim.stage_id)
            bells = lost.succeed(
                session, claim.stage_id, claim.fence, outcome.payload, finding.environment, stored, lines
            )  # fmt: skip
            crashpoint("before-result")
        return bells, outlived

    def discard(self, checkpoints: Sequence[str]) -> None:
        """Delete checkpoints that nothing refers to any more; what cannot be deleted now is for `gauntlet gc`."""
        try:
            garbage.discard(self._database, self._store, checkpoints)
        except Exception as error:  # whatever it is, the stage goes on
            log.warning("checkpoints that are not needed any more stay: %s", error)

    def _keep(self, watch: Watch, finding: Finding) -> None:
        """Write the finding to disk; where that is full too, it waits in memory."""
        try:
            self._spool.keep(finding)
        except OSError as error:
            watch.add_line(f"its result is not in the spool either: {error}")
