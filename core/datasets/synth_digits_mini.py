"""The first pictures of synth-digits, drawn in seconds."""

from typing import Literal

from core.datasets.synth_digits import RenderedDigits


class SynthDigitsMini(RenderedDigits):
    """The first 4,000 training and 1,000 test pictures of synth-digits."""

    kind: Literal["synth-digits-mini"] = "synth-digits-mini"

    title = "synth-digits (mini)"
    train_size = 4_000
    test_size = 1_000
