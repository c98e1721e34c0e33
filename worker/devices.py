"""What this machine computes on. Only a worker's child may ask torch: asking initialises CUDA."""

from collections.abc import Callable

from core.provenance import device_class, device_name, processor_name
from store.broker import QUEUES
from store.settings import Settings

__all__ = ["device_class", "device_name", "processor_name", "queues"]


def queues(settings: Settings, has_cuda: Callable[[], bool]) -> list[str]:
    """Return the queues to serve: WORKER_QUEUES, else gpu and cpu where there is a CUDA device, else cpu."""
    if settings.worker_queues:
        return [name.strip() for name in settings.worker_queues.split(",") if name.strip()]
    return list(QUEUES) if has_cuda() else ["cpu"]
