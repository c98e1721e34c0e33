"""Losses, each per example, on logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def soft_targets(labels: Tensor, classes: int, label_smoothing: float, dtype: torch.dtype) -> Tensor:
    """Return 1 - label_smoothing on the true class and label_smoothing spread evenly over the others.

    The paper's sense (0.25 over ten classes: .75 and nine times .0278). torch's `label_smoothing` is not that: it
    gives a share to the true class as well.
    """
    import torch

    off = label_smoothing / (classes - 1)
    spread = torch.full((len(labels), classes), off, dtype=dtype, device=labels.device)
    return spread.scatter_(1, labels.unsqueeze(1), 1 - label_smoothing)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return J: the cross entropy of probability targets, per example."""
    from torch.nn.functional import cross_entropy as of_batch

    return of_batch(logits, targets, reduction="none")


def dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """Return D = CE(f(first), f(second)) per example, given both as logits; gradients pass through both."""
    return -(first.softmax(1) * second.log_softmax(1)).sum(1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the predicted probabilities, per example: D of the logits with themselves."""
    return dissimilarity(logits, logits)


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the best wrong logit exceeds the true one, per example: above 0 where the model is fooled.

    The negated margin.
    """
    true = labels.unsqueeze(1)
    wrong = logits.scatter(1, true, float("-inf"))
    return wrong.amax(1) - logits.gather(1, true).squeeze(1)
