"""Where the time of an e2SAD iteration goes: torch.profiler over iterations alone, summed by what the kernels do."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from core.compute import configured
from core.datasets import DATASETS
from core.defenses import DEFENSES
from core.execution import Execution
from core.networks import NETWORKS
from core.training import Loop, Training

GROUPS = {
    "convolution": ("conv", "mkldnn_conv", "cudnn", "implicit_gemm", "fprop", "dgrad", "wgrad"),
    "matrix product": ("mm", "gemm", "linear", "cutlass"),
    "pooling": ("max_pool",),
    "ReLU": ("relu", "threshold", "clamp_min"),
    "optimiser": ("adam", "sgd"),
    "loss": ("softmax", "nll", "cross_entropy"),
    "gather, copy, layout": (
        "index",
        "copy",
        "cat",
        "clone",
        "contiguous",
        "reorder",
        "fill",
        "zero",
        "empty",
        "memcpy",
    ),
    "attack step": ("sign", "clamp", "add", "mul", "sub", "div", "neg", "sum"),
}
"""Words in an operator's name, first match wins."""
ITERATIONS = 20


def measured(execution: Execution) -> tuple[dict[str, float], str]:
    """Return the share of self time per group, and the profiler's table of the twenty most expensive operators."""
    data = DATASETS["mnist-mini"]().load(Path())
    on_cuda = execution.device == "cuda"
    with configured(execution):
        loop = Loop(
            defense=DEFENSES["e2sad"](), network=NETWORKS["mnist_cnn"](), training=Training(iterations=2 * ITERATIONS),
            execution=execution, mathematics="profile", seed=0, images=data.train_images, labels=data.train_labels,
        )  # fmt: skip
        for _ in range(ITERATIONS):
            loop.advance()
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as found:
            for _ in range(ITERATIONS):
                loop.advance()
            if on_cuda:
                torch.cuda.synchronize()
    events: Any = found.key_averages()
    which = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    spent = {event.key: float(getattr(event, which)) for event in events}
    total = sum(spent.values()) or 1.0  # where the device's profiler recorded nothing
    shares = dict.fromkeys([*GROUPS, "rest"], 0.0)
    for name, time in spent.items():
        shares[_group(name)] += time / total
    return shares, events.table(sort_by=which, row_limit=20)


def _group(operator: str) -> str:
    name = operator.lower()
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), "rest")
