"""Digits drawn by a program, as many and of the format of SVHN, so that its network and suites run anywhere."""

from pathlib import Path
from typing import Literal

from core.datasets.base import Data, RenderedDigits


class SynthDigits(RenderedDigits):
    """House-number-like digits, 32 x 32 colour: several hands, colours, neighbours, bars, blur and noise."""

    kind: Literal["synth-digits"] = "synth-digits"

    title = "synth-digits"
    train_size = 73_257
    test_size = 26_032

    def read(self, data_dir: Path) -> Data:
        """Return the pictures; without a kept copy they are drawn, about a millisecond each."""
        import torch

        return Data(*(torch.from_numpy(array) for array in self.arrays(data_dir)))
