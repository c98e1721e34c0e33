"""Devices that run out of memory or break where a test says so."""

import os
from pathlib import Path
from typing import Any


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
        if len(arguments[0]) > int(most) and not arguments[0].is_meta:
            raise torch.OutOfMemoryError(f"MEMORY_EXAMPLES is {most}. Tried to allocate {len(arguments[0])} examples.")

    register_module_forward_pre_hook(full)


def break_device() -> None:
    """Return at once, unless DEVICE_BREAKS names a file: the device breaks for this process at its next forward pass.

    The file is removed first, so that the next process finds the device whole. Every later pass of this process fails
    too, as after an illegal access on CUDA.
    """
    file = os.environ.get("DEVICE_BREAKS", "")
    if not file:
        return
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    broken: list[bool] = []

    def breaks(_: object, arguments: Any) -> None:
        if arguments[0].is_meta:
            return  # no device computes there
        if Path(file).exists():
            Path(file).unlink()
            broken.append(True)
        if broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    register_module_forward_pre_hook(breaks)
