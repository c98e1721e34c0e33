"""What this machine computes on. Only a worker's child may ask torch: asking initialises CUDA."""

import logging
from collections.abc import Callable

from core.portions import ran_out
from core.provenance import device_class, device_name
from store.settings import QUEUES, Settings

__all__ = ["computes", "device_class", "device_name", "queues", "usable_gpus"]
log = logging.getLogger(__name__)


def computes() -> bool:
    """Return whether this process's device still computes: after an illegal access on CUDA it never does again."""
    import torch

    device = device_class()
    try:
        torch.nn.ReLU()(torch.ones(1, device=device)).sum().item()
    except RuntimeError as error:
        if ran_out(error):
            return True  # full, not broken
        log.error("the device %s is broken for this process: %s", device, error)
        return False
    return True


def usable_gpus() -> int:
    """Return the number of GPUs that torch can use in this process, which initialises CUDA."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def queues(settings: Settings, has_cuda: Callable[[], bool]) -> list[str]:
    """Return the queues to serve: WORKER_QUEUES, else gpu and cpu where there is a CUDA device, else cpu."""
    return settings.queues or (list(QUEUES) if has_cuda() else ["cpu"])
