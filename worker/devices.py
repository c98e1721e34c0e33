"""What this machine computes on. Only a worker's child may ask torch: asking initialises CUDA."""

import logging
import os
import warnings
from collections.abc import Callable

from core.provenance import device_class, device_name
from store.settings import QUEUES, Settings

__all__ = ["device_class", "device_name", "has_its_device", "queues", "usable_gpus"]
log = logging.getLogger(__name__)


def has_its_device() -> bool:
    """Return whether this process finds the CUDA device it was given, if it was given one: GPUs fall off their bus."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not given or device_class() == "cuda":
        return True
    log.error("torch finds no CUDA device, and this process was given %s", given)
    return False


def usable_gpus() -> int:
    """Return the number of GPUs that torch can use in this process, which initialises CUDA; torch warns why none."""
    import torch

    warnings.formatwarning = _its_text

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _its_text(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning without the line of code that Python shows below it."""
    return f"{message}\n"


def queues(settings: Settings, has_cuda: Callable[[], bool]) -> list[str]:
    """Return the queues to serve: WORKER_QUEUES, else gpu and cpu where there is a CUDA device, else cpu."""
    return settings.queues or (list(QUEUES) if has_cuda() else ["cpu"])
