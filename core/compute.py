"""How an execution plan is put into effect: threads, number format, memory layout, exactness."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.portions import ran_out
from core.provenance import device_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from core.execution import Execution


log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Have the C library keep up to a GiB that was freed, for as long as the process lives.

    Tensors of one iteration then take the memory of those of the iteration before. glibc gives large pieces back to the
    system as they are freed, and each page costs a fault when it is wanted again: a fifth of the time of a short stage.
    Nothing is changed where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, KEPT_BYTES)


@contextmanager
def configured(execution: Execution, *, tf32: bool = False) -> Generator[None]:
    """Set threads and repeatable kernels as planned, in full precision but for `tf32`; restore what was before."""
    import torch

    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    torch.set_num_threads(execution.threads)
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, tf32, tf32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[1:]


def computes() -> bool:
    """Return whether this process's device still computes: after an illegal access on CUDA it never does again.

    Nor where the recording of a graph has failed so that torch can give no memory back any more.
    """
    import torch

    device = device_class()
    try:
        torch.nn.ReLU()(torch.ones(1, device=device)).sum().item()
        if device == "cuda":
            torch.cuda.empty_cache()
    except RuntimeError as error:
        if ran_out(error):
            return True  # full, not broken
        log.error("the device %s is broken for this process: %s", device, error)
        return False
    return True


def in_bfloat16(module: nn.Module) -> nn.Module:
    """Return a module whose layers multiply in bfloat16; its weights stay the given ones, its output is float32."""
    from torch import autocast, bfloat16, nn

    class InBfloat16(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            # without the cache: a cached cast would outlive the iteration that a CUDA graph captures
            with autocast(images.device.type, bfloat16, cache_enabled=False):
                return module(images).float()

    return InBfloat16()


def number_format(execution: Execution) -> torch.dtype:
    """Return the plan's floating-point type."""
    import torch

    return torch.float64 if execution.precision == "float64" else torch.float32


def placed(module: nn.Module, execution: Execution) -> nn.Module:
    """Return the module, moved in place to the plan's device, number format and layout."""
    moved: Any = module.to(execution.device, number_format(execution))
    return moved.to(memory_format=_layout(execution))


def unit_images(images: Tensor, execution: Execution) -> Tensor:
    """Return images on the plan's device as floats in [0, 1]; whole numbers are pixel values of 0 to 255."""
    floats = images.to(execution.device).to(number_format(execution), memory_format=_layout(execution))
    # a tensor: CUDA multiplies by the reciprocal of a number, which is another pixel value in half of all cases
    return floats if images.is_floating_point() else floats.div_(floats.new_full((), 255))


def _layout(execution: Execution) -> torch.memory_format:
    import torch

    return torch.channels_last if execution.layout == "channels_last" else torch.contiguous_format
