"""The worker's main process: Celery's app and the one child that computes. No SQL, no torch, no CUDA here.

Celery's pool is `solo`: to take a message is to ring the child and to wait until it is idle again, so a busy worker
leaves the bells to idle ones. The child is not prefork's. Without an event loop, which the folder transport has not,
that pool hangs for good when its idle child is killed, because the dead child holds the queue's lock, and turns the
signal to drain into an exit; with one it kills a child that takes 4 s to import torch.
"""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery import signals

from store.broker import TASK, celery_app
from store.settings import settings

log = logging.getLogger(__name__)

BELL = b"!"
"""From the main process: look for work. From the child: there is none left. The end of the line: drain and end."""
STEADY_SECONDS = 10.0
"""A child that dies younger could not start, and is replaced after a pause, longer each time."""
PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)


class Child:
    """A process at the other end of a line, replaced when it dies before it was told to end."""

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._draining = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="child", daemon=True)

    def start(self) -> None:
        """Start the child; it needs some seconds to import torch, and bells wait for it."""
        self._spawn()
        self._thread.start()

    def work(self) -> None:
        """Ring the child and return when it is idle again. Where there is none, its successor looks by itself."""
        with contextlib.suppress(OSError):
            self._line.sendall(BELL)
            self._line.recv(1)

    def drain(self) -> None:
        """Have the child checkpoint, give its stage back, take no more and end. Safe inside a signal handler."""
        self._draining = True
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Return when the child has drained and ended."""
        self.drain()
        self._stopped.set()
        self._thread.join()

    def _spawn(self) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(self._command, stdin=theirs.fileno())
        if self._draining:
            self.drain()

    def _keep(self) -> None:
        early = 0
        while True:
            began = time.monotonic()
            status = self._process.wait()
            if self._draining:
                return
            log.warning("the child ended with status %s; starting another", status)
            early = early + 1 if time.monotonic() - began < STEADY_SECONDS else 0
            self._stopped.wait(PAUSES[min(max(0, early - 1), len(PAUSES) - 1)])
            if self._draining:
                return
            self._spawn()


app = celery_app(settings())
child = Child([sys.executable, "-m", "worker.child"])


@app.task(name=TASK)  # pyright: ignore[reportUntypedFunctionDecorator]
def work(stage_id: int) -> None:
    """Answer a bell: run what SQL says is ready, until nothing is. The stage id is only where it came from."""
    del stage_id
    child.work()


@signals.worker_shutting_down.connect  # pyright: ignore[reportUnknownMemberType]
def _drain(**_: Any) -> None:
    """Have the stage given back now; Celery's warm shutdown then waits for the task."""
    child.drain()
