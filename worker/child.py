"""`python -m worker.child`: the process that computes, a fresh interpreter at the end of its main process's line.

The line is a socket on descriptor 0. When it ends, because the main process says so or has died, and at SIGTERM, the
child checkpoints, gives its stage back and ends.
"""

import contextlib
import gc
import logging
import queue
import random
import signal
import socket
import sys
import threading

from core.compute import computes, keep_freed_memory
from store import logs
from store.settings import settings
from store.stages import JITTER
from worker.app import BELL
from worker.devices import has_its_device
from worker.process import WorkerProcess
from worker.runner import DeviceBroken

log = logging.getLogger(__name__)
EXIT_BROKEN = 76
"""The device is not there, or does not compute in this process."""


class Line:
    """The child's end of the line: bells come in, and an answer goes out for each."""

    def __init__(self, process: WorkerProcess, line: socket.socket, look_seconds: float):
        """`look_seconds` is how long it hears nothing, more or less, before it looks for work all the same."""
        self._process = process
        self._socket = line
        self._look_seconds = look_seconds
        self._bells: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="line", daemon=True).start()

    def hang_up(self, *_: object) -> None:
        """Drain, and let `bells` end. Safe inside a signal handler."""
        self._process.drain()
        self._bells.put(False)

    def serve(self) -> None:
        """Look for work now, at every bell and now and then, until the line ends."""
        self._look()
        while self._heard():
            self._look()
            with contextlib.suppress(OSError):
                self._socket.sendall(BELL)

    def _heard(self) -> bool:
        """Return whether there is a bell to answer; false at the end of the line."""
        while True:
            try:
                return self._bells.get(timeout=self._look_seconds * random.uniform(1 - JITTER, 1 + JITTER))
            except queue.Empty:
                self._look()

    def _look(self) -> None:
        try:
            self._process.work()
        except DeviceBroken:
            raise
        except Exception as error:
            log.warning("no work for now: %s: %s", type(error).__name__, error)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while heard := self._socket.recv(64):
                for _ in heard:
                    self._bells.put(True)
        self.hang_up()


def main() -> None:
    """Serve until the line ends or SIGTERM comes. Ctrl-C in a terminal is for the main process, which tells us."""
    logs.to_stderr()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    if not (has_its_device() and computes()):
        sys.exit(EXIT_BROKEN)
    process = WorkerProcess(settings())
    line = Line(process, socket.socket(fileno=0), settings().look_seconds)
    signal.signal(signal.SIGTERM, line.hang_up)
    process.start()
    gc.freeze()  # torch has a quarter of a million objects: 120 ms for every full collection, in the middle of a stage
    try:
        line.serve()
    except DeviceBroken:
        sys.exit(EXIT_BROKEN)
    finally:
        process.stop()


if __name__ == "__main__":
    main()
