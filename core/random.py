"""Random numbers that are a pure function of (seed, stream, example, element).

Counter-based: a number depends on no draw before it, so neither the batch size, the order of the examples, a resume
nor the device changes it. Splitmix64 (Steele, Lea and Flood 2014), in wrapping int64 arithmetic, on the device of
`indices`; nothing synchronises with the host and nothing loops over examples. Each draw keeps 24 bits, so that
float32 and float64 computations see the same numbers.
"""

from __future__ import annotations

from math import prod, tau
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
"""2**64 / golden ratio, as a signed number."""
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


def fold(key: int | Tensor, *parts: int | Tensor) -> Tensor:
    """Return a key that is a pure function of all arguments, in their order; tensors broadcast."""
    import torch

    folded = torch.as_tensor(key, dtype=torch.int64)
    for part in parts:
        folded = _mix(folded + _GOLDEN) ^ torch.as_tensor(part, dtype=torch.int64)
    return _mix(folded + _GOLDEN)


def uniform(seed: int, stream: int | Tensor, indices: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return numbers in [0, 1), one block of `shape` for each of `indices`."""
    high, low = _bits(seed, stream, indices, shape)
    return _shaped(_both(high, low).to(dtype) * 2.0**-24, indices, shape)


def normal(seed: int, stream: int | Tensor, indices: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return standard normal numbers (Box and Muller 1958); devices may differ in the last bit of log and cos."""
    import torch

    high, low = _bits(seed, stream, indices, shape)
    length = torch.sqrt(-2 * torch.log((high + 1).to(dtype) * 2.0**-24))
    angle = low.to(dtype) * (tau * 2.0**-24)
    return _shaped(_both(length * torch.cos(angle), length * torch.sin(angle)), indices, shape)


def _bits(seed: int, stream: int | Tensor, indices: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return two draws of 24 bits out of every 64-bit word, words enough for `shape`."""
    import torch

    words = (prod(shape) + 1) // 2
    keys = fold(seed, stream, indices).unsqueeze(1)
    counters = torch.arange(1, words + 1, device=indices.device) * _GOLDEN
    mixed = _mix(keys + counters)
    return _shift(mixed, 40), mixed & 0xFFFFFF


def _both(high: Tensor, low: Tensor) -> Tensor:
    import torch

    return torch.cat((high, low), dim=1)


def _shaped(draws: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    return draws[:, : prod(shape)].reshape(len(indices), *shape)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: Tensor, by: int) -> Tensor:
    """Return a logical right shift: torch's own repeats the sign bit."""
    return (value >> by) & ((1 << (64 - by)) - 1)
