"""How a stage is executed: whatever changes its bits without changing its mathematics."""

from typing import Literal

from pydantic import model_validator

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
    """Number format of the computation; float64 is for tests. A training may compute in less: `Training.precision`."""
    captured: bool = False
    """Whether a training iteration is captured as a CUDA graph and replayed; on CUDA only."""

    @classmethod
    def on(cls, device: Literal["cpu", "cuda"], threads: int) -> "Execution":
        """Return the plan for a device class: so many threads on a CPU; one, and captured iterations, on CUDA."""
        return cls(device=device, threads=threads) if device == "cpu" else cls(device=device, threads=1, captured=True)

    @model_validator(mode="after")
    def _only_cuda_captures(self) -> "Execution":
        if self.captured and self.device != "cuda":
            raise ValueError("captured needs device cuda")
        return self
