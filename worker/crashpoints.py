"""Named places where a test can have a process kill itself, as a power cut would."""

import os
import signal
from pathlib import Path


def crashpoint(name: str) -> None:
    """Return at once, unless CRASHPOINT names this place: then SIGKILL this process.

    CRASHPOINT_ONCE names a file that must not exist yet; it is created first, so that the restarted process survives.
    """
    if os.environ.get("CRASHPOINT") != name:
        return
    once = os.environ.get("CRASHPOINT_ONCE")
    if once:
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
