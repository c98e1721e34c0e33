"""Digits drawn by a program, as many and of the format of SVHN, so that its network and suites run anywhere."""

from typing import Literal

from core.datasets.base import RenderedDigits


class SynthDigits(RenderedDigits):
    """House-number-like digits, 32 x 32 colour: several hands, colours, neighbours, bars, blur and noise."""

    kind: Literal["synth-digits"] = "synth-digits"

    title = "synth-digits"
    train_size = 73_257
    test_size = 26_032
