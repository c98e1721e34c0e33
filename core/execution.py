"""How a stage is executed: whatever changes its bits without changing its mathematics."""

from typing import Literal

from core.fields import Count
from core.kinds import Spec


class Execution(Spec):
    """Resolved when a job is posted, part of every stage's key, repeated by every resume."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Device class. Results of different classes are never mixed in one cell."""
    threads: Count = 2
    """Threads of a CPU computation; sums change with it in their last bits. 1 on CUDA."""
    layout: Literal["contiguous", "channels_last"] = "channels_last"
    """Memory layout of images and convolution weights."""
    precision: Literal["float32", "float64"] = "float32"
    """Number format of the computation; float64 is for tests."""
