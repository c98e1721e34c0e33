"""A file system that a test can fill to the last byte."""

import os
from pathlib import Path


def fill(folder: Path) -> Path:
    """Return a file that has taken all the room there was on the folder's file system."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65_536, 1):
            while _written(file.fileno(), size):
                pass
    return ballast


def _written(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) > 0
    except OSError as error:
        assert "No space left" in str(error), error
        return False
