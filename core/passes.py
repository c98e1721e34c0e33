"""The unit in which attacks and defenses state their cost."""

from typing import NamedTuple


class Passes(NamedTuple):
    """Passes through the network per example; the first layer's share of a backward pass is not split off."""

    forward: float = 0
    """Forward passes."""
    input_backward: float = 0
    """Backward passes that stop at the images and leave the weights out."""
    full_backward: float = 0
    """Backward passes to the weights, with or without the images."""

    @property
    def units(self) -> float:
        """Return the cost in forward passes: an input-only backward is 1, a full one 2."""
        return self.forward + self.input_backward + 2 * self.full_backward
