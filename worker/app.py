"""The worker's main process: Celery's app and the children that compute. No torch, no CUDA here, and no SQL once it
has asked whether the schema is this code's.

Celery's pool is `solo`: to take a message is to ring the children and to wait until one is idle again, so a busy worker
leaves the bells to idle ones. The children are not prefork's. Without an event loop, which the folder transport has
not, that pool hangs for good when its idle child is killed, because the dead child holds the queue's lock, and turns
the signal to drain into an exit; with one it kills a child that takes 4 s to import torch.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import signals

from store.broker import TASK, celery_app
from store.settings import settings

log = logging.getLogger(__name__)

BELL = b"!"
"""From the main process: look for work. From a child: there is none left. The end of the line: drain and end."""
STEADY_SECONDS = 10.0
"""A child that dies younger could not start, and is replaced after a pause, longer each time; then it is given up."""
PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
RETRY_SECONDS = 60.0
"""Between two tries at a child that was given up, for as long as others live: its GPU may come back."""


class Child:
    """A process at the other end of a line, replaced when it dies before it was told to end."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        """`environment` is added to this process's; `give_up` is called whenever the child is given up."""
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        gpu = (environment or {}).get("CUDA_VISIBLE_DEVICES")
        self._name = f"the child on GPU {gpu}" if gpu else "the child"
        self._give_up = give_up
        self.given_up = False
        """Whether none could be started, and none has lived since."""
        self._early = 0
        """Children that could not start, since the last one that could."""
        self._line: socket.socket | None = None
        self._draining = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="child", daemon=True)

    def start(self) -> None:
        """Start the child; it needs some seconds to import torch, and then looks for work by itself."""
        self._thread.start()

    def ring(self) -> socket.socket | None:
        """Return the line on which the answer comes, or the line's end; None where no child hears the bell."""
        line = self._line  # read once: another thread replaces it
        try:
            if line is not None:
                line.sendall(BELL)
        except OSError:
            return None
        return line

    def drain(self) -> None:
        """Have the child checkpoint, give its stage back, take no more and end. Safe inside a signal handler."""
        self._draining = True
        line = self._line
        if line is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Return when the child has drained and ended."""
        self.drain()
        self._stopped.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._draining:
            end = self._live()
            if self._draining:
                return
            if self._early > len(PAUSES):
                log.error(
                    "%s %s, as did those before it; another try in %g s if other children live",
                    self._name,
                    end,
                    RETRY_SECONDS,
                )
                self.given_up = True
                self._give_up()
                self._stopped.wait(RETRY_SECONDS)
            else:
                log.warning("%s %s; starting another", self._name, end)
                self._stopped.wait(PAUSES[max(0, self._early - 1)])

    def _live(self) -> str:
        """Return how a child ended, or why there was none."""
        self._early += 1
        try:
            line, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(self._command, stdin=theirs.fileno(), env=self._environment)
        except OSError as error:
            return f"could not be started ({error})"
        self._line = line
        if self._draining:
            self.drain()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"ended with status {process.wait(STEADY_SECONDS)}"
        self._early, self.given_up = 0, False
        return f"ended with status {process.wait()}"


class Children:
    """The processes that compute; each claims for itself."""

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._children: list[Child] = []
        self._rung: dict[Child, socket.socket] = {}

    def start(self, devices: Sequence[str], slots: int) -> None:
        """Start `slots` children on each of these CUDA devices; where there are none, on the CPU, seeing no device."""
        chosen = [{"CUDA_VISIBLE_DEVICES": device} for device in devices or [""]]
        self._children = [Child(self._command, environment, self._gave_up) for environment in chosen * slots]
        for child in self._children:
            child.start()

    def work(self) -> None:
        """Ring every child that has answered before, and return when one is idle. Successors look by themselves."""
        for child in self._children:
            if child not in self._rung and (line := child.ring()) is not None:
                self._rung[child] = line
        if not self._rung:
            return
        answered, _, _ = select.select(list(self._rung.values()), [], [])
        for child, line in [*self._rung.items()]:
            if line in answered:
                with contextlib.suppress(OSError):
                    line.recv(1)
                del self._rung[child]

    def drain(self) -> None:
        """Have all give their stages back and end. Safe inside a signal handler."""
        for child in self._children:
            child.drain()

    def stop(self) -> bool:
        """Return whether there was a child to the end, once all have drained and ended."""
        self.drain()
        for child in self._children:
            child.stop()
        return not self._all_given_up()

    def _all_given_up(self) -> bool:
        return all(child.given_up for child in self._children)

    def _gave_up(self) -> None:
        """End this process when all its children are given up: whoever started it shall see that it is broken."""
        if self._all_given_up():
            os.kill(os.getpid(), signal.SIGTERM)


app = celery_app(settings())
children = Children([sys.executable, "-m", "worker.child"])


@app.task(name=TASK)  # pyright: ignore[reportUntypedFunctionDecorator]
def work(stage_id: int) -> None:
    """Answer a bell: run what SQL says is ready, until nothing is. The stage id is only where it came from."""
    del stage_id
    children.work()


@signals.worker_shutting_down.connect  # pyright: ignore[reportUnknownMemberType]
def _drain(**_: Any) -> None:
    """Have the stages given back now; Celery's warm shutdown then waits for the task."""
    children.drain()
