"""One worker process: it registers, claims stages, keeps its lease alive from a thread, and stops when told to.

The thread is the process's conscience. It renews the lease, carries progress and logs, hears of cancellations, and
where SQL does not answer it stops the work before the lease ends by this process's own monotonic clock. Work that
does not stop when told to is ended with the process.
"""

import ctypes
import logging
import os
import platform
import signal
import socket
import threading
import time
import uuid
from typing import Any

from store import stages, workers
from store.artifacts import open_store
from store.broker import Ringer, celery_app
from store.database import Database
from store.settings import Settings
from store.stages import Claim
from worker.devices import device_class, device_name, queues
from worker.runner import StageRunner
from worker.watch import Watch

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
DRAIN_SIGNAL = signal.SIGUSR2
"""Asks the child to checkpoint, give its stage back and take no more: from its parent, or when that dies."""
GRACE_SECONDS = 8.0
"""How long work may take to notice that it was cancelled or lost before its process is ended."""
EXIT_STUCK = 75


class WorkerProcess:
    """The process that runs stages. Make it after the fork."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._incarnation = uuid.uuid4().hex
        self._database = Database(settings.sql_url)
        self._ringer = Ringer(celery_app(settings))
        self._runner = StageRunner(settings, self._database, open_store(settings.artifacts), self._ringer)
        self._queues = queues(settings, lambda: device_class() == "cuda")
        self._ended = threading.Event()
        self._draining = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register and begin to report; load torch now, so that the first stage finds it warm."""
        _end_with_parent()
        row = self._describe()
        with self._database.write() as session:
            workers.register(session, row)
        self._thread.start()
        log.info("worker %s serves %s on %s", self._incarnation[:8], row["queues"], row["device_name"])

    def work(self) -> None:
        """Run ready stages until there are none, or until told to stop."""
        while not self._draining.is_set():
            claim = self._claim()
            if claim is None:
                return
            self._run(claim)

    def drain(self) -> None:
        """Ask the work to checkpoint and stop, and take no more. Safe inside a signal handler."""
        self._draining.set()
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
        with self._database.write() as session:
            claim = stages.claim(session, self._queues, self._incarnation, self._settings.lease_seconds)
            if claim is not None:
                workers.report(session, self._incarnation, claim.stage_id, draining=False)
        return claim

    def _run(self, claim: Claim) -> None:
        watch = Watch(claim, self._settings.checkpoint_seconds, self._runner.keep_checkpoint)
        self._watch = watch
        if self._draining.is_set():
            watch.stop("drain")
        try:
            self._runner.run(claim, watch)
        finally:
            self._watch = None
            self._report(None)

    def _report(self, stage_id: int | None) -> None:
        try:
            with self._database.write() as session:
                workers.report(session, self._incarnation, stage_id, self._draining.is_set())
        except Exception as error:
            log.warning("could not report: %s", error)

    def _beat(self) -> None:
        while not self._ended.wait(self._settings.heartbeat_seconds):
            watch = self._watch
            try:
                self._renew(watch)
            except Exception as error:
                log.warning("heartbeat failed: %s", error)
            if watch is not None:
                self._enforce(watch)

    def _renew(self, watch: Watch | None) -> None:
        with self._database.write() as session:
            workers.report(session, self._incarnation, watch.claim.stage_id if watch else None, self._draining.is_set())
            if watch is None:
                return
            asked = time.monotonic()
            claim = watch.claim
            cancel = stages.renew(
                session, claim.stage_id, claim.fence, self._settings.lease_seconds, watch.latest_progress()
            )
            stages.write_log(session, claim.stage_id, claim.fence, watch.take_lines())
        if cancel is None and self._watch is watch:
            watch.stop("lost")
        elif cancel:
            watch.stop("cancel")
        else:
            watch.renewed_at(asked)

    def _enforce(self, watch: Watch) -> None:
        """Stop work whose lease is about to end, and end the process where told work does not stop."""
        margin = min(self._settings.heartbeat_seconds, self._settings.lease_seconds / 3)
        if watch.since_renewal() > self._settings.lease_seconds - margin:
            watch.stop("lost")
        if self._watch is watch and watch.overdue(GRACE_SECONDS):
            log.error("stage %s did not stop when told to; ending this process", watch.claim.key[:12])
            self._confirm(watch)
            os._exit(EXIT_STUCK)

    def _confirm(self, watch: Watch) -> None:
        try:
            with self._database.write() as session:
                stages.confirm_cancelled(session, watch.claim.stage_id, watch.claim.fence)
        except Exception as error:
            log.warning("could not confirm the cancellation: %s", error)

    def _describe(self) -> dict[str, Any]:
        import numpy as np
        import torch

        return {
            "incarnation": self._incarnation,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": device_class(),
            "device_name": device_name(),
            "queues": self._queues,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }


def _end_with_parent() -> None:
    """Drain when the worker's main process dies without saying so."""
    if platform.system() == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, DRAIN_SIGNAL)
