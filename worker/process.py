"""One worker process: it registers, claims stages, keeps its lease alive from a thread, and stops when told to.

One thread renews the lease, carries progress and logs, and hears of cancellations. Another, which waits for nothing
while the process lives, is its watchdog: where the lease could not be renewed it stops the work before the lease
ends by this process's own monotonic clock, and work that does not stop when told to it ends with the process. What it
then still has to tell SQL or the disk has a second or two, by a timer.
"""

import importlib
import logging
import os
import platform
import socket
import threading
import time
import uuid
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store import refusals, stages, workers
from store.artifacts import open_store
from store.broker import Ringer, celery_app
from store.crashpoints import crashpoint
from store.database import AWAY, Database
from store.settings import Settings
from store.stages import Claim
from worker.devices import device_class, device_name, queues
from worker.runner import StageRunner
from worker.watch import Watch

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""How often the watchdog looks, at least."""
GRACE_SECONDS = 3.0
"""How long work may take to notice that it was cancelled or lost before its process is ended."""
DRAIN_SECONDS = 90.0
"""The same for work that was asked to drain; less than `stop_grace_period` in docker-compose.yml."""
LAST_WORDS_SECONDS = 1.0
"""How long the process then lives on to confirm a cancellation. Cancelled work is gone after a heartbeat, which brings
the order, and these, POLL_SECONDS and GRACE_SECONDS: less than 15 s."""
SAVE_SECONDS = 10.0
"""How long it lives on to save what it has found, at most, as long as its lease lasts."""
EXIT_STUCK = 75
RETRY_SECONDS = 1.0
"""Between two attempts to register, or to claim, where SQL does not answer."""


class WorkerProcess:
    """The process that runs stages."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._incarnation = uuid.uuid4().hex
        self._database = Database(settings.sql_url)
        self._ringer = Ringer(celery_app(settings))
        store = open_store(settings.artifacts, settings.s3, self._database)
        self._runner = StageRunner(settings, self._database, store, self._ringer)
        self._queues = queues(settings, lambda: device_class() == "cuda")
        self._ended = threading.Event()
        self._draining = False
        self._sure = True  # that no claim was granted without our hearing of it
        self._known: Claim | None = None
        self._watch: Watch | None = None
        self._row: dict[str, Any] = {}
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._watchdog = threading.Thread(target=self._guard, name="watchdog", daemon=True)

    def start(self) -> None:
        """Register, waiting for SQL, and begin to report; load torch now, so that the first stage finds it warm."""
        row = self._row = self._describe()
        while not self._draining and not self._registered(row):
            self._ended.wait(RETRY_SECONDS)
        self._heart.start()
        self._watchdog.start()
        log.info("worker %s serves %s on %s", self._incarnation[:8], row["queues"], row["device_name"])

    def work(self) -> None:
        """Run ready stages until there are none, or until told to stop; SQL that does not answer is asked again."""
        while not self._draining:
            try:
                self._runner.flush()
                asked = time.monotonic()
                claim = self._claim()
            except AWAY as error:
                log.warning("no work for now: %s", error)
                self._ended.wait(RETRY_SECONDS)
                continue
            if claim is None:
                return
            self._run(claim, asked)

    def drain(self) -> None:
        """Ask the work to checkpoint and stop, and take no more. Safe inside a signal handler."""
        self._draining = True
        watch = self._watch
        if watch is not None:
            watch.stop("drain")

    def stop(self) -> None:
        """Leave: stop reporting and say so in SQL."""
        self._ended.set()
        try:
            with self._database.write() as session:
                workers.leave(session, self._incarnation)
        except Exception as error:
            log.warning("could not sign off: %s", error)
        self._ringer.close()

    def _claim(self) -> Claim | None:
        """Return the best ready stage; or what this process holds already, where the answer to its claim was lost."""
        lease, me, spooled = self._settings.lease_seconds, self._incarnation, self._runner.spooled()
        sure, self._sure = self._sure, False
        with self._database.write() as session:
            claim = None if sure else stages.unheard_claim(session, me, lease, self._known)
            claim = claim or stages.claim_one_of(session, spooled, me, lease)
            claim = claim or stages.claim(session, self._queues, me, lease, self._left_to_others(session))
            workers.report(session, me, claim.stage_id if claim else None, self._draining)
            if claim is not None:
                crashpoint("before-claim")
        self._sure, self._known = True, claim or self._known
        return claim

    def _left_to_others(self, session: Session) -> set[tuple[str, str]]:
        if not self._runner.has_refused:
            return set()
        return refusals.left_to_others(session, self._incarnation, self._settings.alive_seconds)

    def _registered(self, row: dict[str, Any]) -> bool:
        try:
            with self._database.write() as session:
                workers.register(session, row)
        except IntegrityError:
            return True  # the attempt before was committed, though its answer was lost
        except Exception as error:
            log.warning("cannot register yet: %s", error)
            return False
        return True

    def _run(self, claim: Claim, asked: float) -> None:
        watch = Watch(claim, asked, self._settings.checkpoint_seconds, self._runner.keep_checkpoint)
        self._watch = watch
        if self._draining:
            watch.stop("drain")
        try:
            self._runner.run(claim, watch)
        finally:
            self._watch = None  # the next claim reports what comes after it

    def _beat(self) -> None:
        while not self._ended.wait(self._settings.heartbeat_seconds):
            watch = self._watch
            try:
                self._renew(watch)
            except Exception as error:
                log.warning("heartbeat failed: %s", error)

    def _renew(self, watch: Watch | None) -> None:
        lines = watch.take_lines() if watch else []
        try:
            with self._database.write() as session:
                stage_id = watch.claim.stage_id if watch else None
                if not workers.report(session, self._incarnation, stage_id, self._draining):
                    self._register_anew(session)
                if watch is None:
                    return
                asked = time.monotonic()
                claim = watch.claim
                cancel = stages.renew(
                    session, claim.stage_id, claim.fence, self._settings.lease_seconds, watch.latest_progress()
                )
                stages.write_log(session, claim.stage_id, claim.fence, lines)
        except Exception:
            if watch is not None:
                watch.put_back(lines)
            raise
        if cancel is None and self._watch is watch:
            watch.stop("lost")
        elif cancel:
            watch.stop("cancel")
        else:
            watch.renewed_at(asked)

    def _register_anew(self, session: Session) -> None:
        log.warning("the database does not know this worker any more; it registers again")
        workers.register(session, self._row)

    def _guard(self) -> None:
        margin = min(self._settings.heartbeat_seconds, self._settings.lease_seconds / 3)
        while not self._ended.wait(min(POLL_SECONDS, margin / 8)):
            watch = self._watch
            try:
                if watch is not None:
                    self._enforce(watch, margin)
            except Exception:
                log.exception("the watchdog of this worker")  # it must not fall silent

    def _enforce(self, watch: Watch, margin: float) -> None:
        """Stop work whose lease is about to end, and end the process where told work does not stop in time."""
        left = self._settings.lease_seconds - watch.since_renewal()
        if left < margin and watch.stop("lost"):
            log.warning("stage %s is stopped: its lease could not be renewed", watch.claim.key[:12])
        # half a margin of grace: a process that was paused hears only now that it must stop
        ended = left < margin / 4 and watch.overdue(margin / 2, margin / 2)
        if self._watch is watch and (ended or watch.overdue(GRACE_SECONDS, DRAIN_SECONDS)):
            log.error("stage %s did not stop when told to; ending this process", watch.claim.key[:12])
            self._end(watch, left)

    def _end(self, watch: Watch, left: float) -> None:
        """End this process, after its last words: a cancellation confirmed, or what it has found saved."""
        told = watch.told()
        seconds = LAST_WORDS_SECONDS if told == "cancel" else max(LAST_WORDS_SECONDS, min(SAVE_SECONDS, left))
        timer = threading.Timer(seconds, os._exit, (EXIT_STUCK,))
        timer.daemon = True
        timer.start()
        try:
            if told != "cancel":
                self._save()
            if told in ("cancel", "drain"):
                self._give_back(watch)
        finally:
            os._exit(EXIT_STUCK)

    def _save(self) -> None:
        try:
            self._runner.save()
        except OSError as error:
            log.warning("could not keep what was found: %s", error)

    def _give_back(self, watch: Watch) -> None:
        try:
            with self._database.write() as session:
                stages.release(session, watch.claim.stage_id, watch.claim.fence)
        except Exception as error:
            log.warning("could not give the stage back: %s", error)

    def _describe(self) -> dict[str, Any]:
        import numpy as np
        import torch

        importlib.import_module("torch._dynamo")  # two seconds that the first training would wait for
        return {
            "incarnation": self._incarnation,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": device_class(),
            "device_name": device_name(),
            "queues": self._queues,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
