"""What a result was computed with: versions, machine, device, commit. Written beside results, never part of a key."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import SpecError

if TYPE_CHECKING:
    from core.stages.base import Outcome

ROOT = Path(__file__).resolve().parent.parent


@cache
def environment() -> dict[str, Any]:
    """Return the versions, the machine, the device and, where it is known, the commit of this process."""
    import torch

    return {
        "gauntlet": _installed(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_cuda(),
        "platform": platform.platform(),
        "host": platform.node(),
        "device": device_name(),
    }


def _cuda() -> dict[str, Any]:
    """Return the versions that decide the bits on a CUDA device; nothing where there is none."""
    if device_class() == "cpu":
        return {}
    import torch

    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def made_in(outcome: "Outcome", device: str) -> dict[str, Any]:
    """Return what is recorded of how a stage was computed: this process, and what the stage says of itself.

    `device` is the class that it was computed on: where there is a GPU, some stages are a processor's all the same.
    """
    made = environment() if device == device_class() else {**environment(), "device": processor_name()}
    return {**made, **outcome.environment, "seconds": outcome.seconds}


def _installed() -> str:
    try:
        return version("gauntlet")
    except PackageNotFoundError:  # run from a bare checkout
        return "not installed"


def commit() -> str | None:
    """Return the commit the code is at, with "+changes" where files differ from it; None where nothing says it.

    A new file in core/ is a change: kinds are found by the files there. Outside a git checkout GAUNTLET_COMMIT says
    it, which the container image is built with.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get("GAUNTLET_COMMIT") or None
    changed = _git("status", "--porcelain", "--untracked-files=no") or _git("status", "--porcelain", "--", "core")
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


@cache
def device_class() -> Literal["cpu", "cuda"]:
    """Return cuda where torch finds a device, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> None:
    """Return where this process can compute on that device class.

    Raises:
        SpecError: it cannot.
    """
    if device == "cuda" and device_class() != "cuda":
        raise SpecError(
            "device: torch finds no CUDA device here; take cpu or auto, or a machine with a driver and a CUDA build "
            "of torch"
        )


@cache
def device_name() -> str:
    """Return the name of the GPU or of the processor."""
    if device_class() == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return processor_name()


def processor_name() -> str:
    """Return the processor's name as Linux gives it, else the machine's architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
