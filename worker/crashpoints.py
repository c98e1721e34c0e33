"""Named places where a test can have a process kill itself, as a power cut would."""

import os
import signal
from pathlib import Path
from typing import Any


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


def limit_memory() -> None:
    """Return at once, unless MEMORY_EXAMPLES is a number: then no network of this process takes more at once.

    A network given more raises what torch raises when a device's memory runs out, in the middle of its forward pass.
    """
    most = os.environ.get("MEMORY_EXAMPLES", "")
    if not most:
        return
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    def full(_: object, arguments: Any) -> None:
        if len(arguments[0]) > int(most):
            raise torch.OutOfMemoryError(f"MEMORY_EXAMPLES is {most}. Tried to allocate {len(arguments[0])} examples.")

    register_module_forward_pre_hook(full)
