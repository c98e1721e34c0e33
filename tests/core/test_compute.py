"""What a process does with the memory that its tensors have left."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from core.compute import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(4)][-1])
"""


def faults(*arguments: str) -> int:
    """Return the page faults of a process that takes and leaves 64 MB eight times."""
    asked = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again() -> None:
    assert faults("keep") < faults() / 8
