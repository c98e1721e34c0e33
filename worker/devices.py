"""What this machine computes on. Only a worker's child may ask torch: asking initialises CUDA."""

import platform
from collections.abc import Callable
from functools import cache

from store.broker import QUEUES
from store.settings import Settings


def queues(settings: Settings, has_cuda: Callable[[], bool]) -> list[str]:
    """Return the queues to serve: WORKER_QUEUES, else gpu and cpu where there is a CUDA device, else cpu."""
    if settings.worker_queues:
        return [name.strip() for name in settings.worker_queues.split(",") if name.strip()]
    return list(QUEUES) if has_cuda() else ["cpu"]


@cache
def device_class() -> str:
    """Return cuda where torch finds a device, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
