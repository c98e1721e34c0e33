"""Named places where a test can have a process kill itself, as a power cut would."""

import os
import signal
from pathlib import Path


def crashpoint(name: str) -> None:
    """Return at once, unless CRASHPOINT names this place: then SIGKILL this process.

    CRASHPOINT_ONCE names a file that must not exist yet; it is created first, so that the restarted process survives.
    CRASHPOINT may also be `@FILE`: the file says the name, and is removed first, so that one process dies once.
    """
    wanted = os.environ.get("CRASHPOINT", "")
    if wanted and (_taken(Path(wanted[1:]), name) if wanted.startswith("@") else wanted == name and _first_time()):
        os.kill(os.getpid(), signal.SIGKILL)


def _taken(file: Path, name: str) -> bool:
    try:
        if file.read_text() != name:
            return False
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def _first_time() -> bool:
    once = os.environ.get("CRASHPOINT_ONCE")
    try:
        if once:
            Path(once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
