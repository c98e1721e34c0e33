"""Defense kind `natural`: clean examples only."""

from __future__ import annotations

from typing import ClassVar, Literal

from core.defenses.base import Batch, Defense, Gradients
from core.passes import Passes


class Natural(Defense):
    """Ordinary training: no defense."""

    only_loss: ClassVar[str] = "clean"
    kind: Literal["natural"] = "natural"
    """The kind's name."""

    def gradients(self, batch: Batch) -> Gradients:
        """Return the gradients of mean J(x)."""
        loss = batch.losses(batch.model(batch.images)).mean()
        return Gradients(batch.weight_gradient(loss), {"loss": loss.detach()})

    def passes(self) -> Passes:
        """Return one full pass."""
        return Passes(forward=1, full_backward=1)
