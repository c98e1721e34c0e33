"""Read by Python at its start where this folder is on PYTHONPATH: the device of a worker's child runs out of memory or
breaks, as the environment says.

MEMORY_EXAMPLES  A network given more examples raises what torch raises when a device's memory runs out, in the middle
                 of its forward pass.
DEVICE_BREAKS    A file: the device breaks for the process of the next network's pass, which removes the file first, so
                 that the next process finds the device whole. Every later pass of the process fails too, as after an
                 illegal access on CUDA.
"""

import os
import sys
from pathlib import Path
from typing import Any


def _limit_memory(most: int) -> None:
    def full(_: object, arguments: Any) -> None:
        if len(arguments[0]) > most and not arguments[0].is_meta:
            raise torch.OutOfMemoryError(f"MEMORY_EXAMPLES is {most}. Tried to allocate {len(arguments[0])} examples.")

    register_module_forward_pre_hook(full)


def _break_device(file: Path) -> None:
    broken: list[bool] = []

    def breaks(module: object, arguments: Any) -> None:
        if arguments[0].is_meta:
            return  # no device computes there
        # a single ReLU is how a worker asks whether its device computes
        if not isinstance(module, torch.nn.ReLU) and file.exists():
            file.unlink()
            broken.append(True)
        if broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    register_module_forward_pre_hook(breaks)


if "worker.child" in sys.orig_argv:
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    if "MEMORY_EXAMPLES" in os.environ:
        _limit_memory(int(os.environ["MEMORY_EXAMPLES"]))
    if "DEVICE_BREAKS" in os.environ:
        _break_device(Path(os.environ["DEVICE_BREAKS"]))
