"""Canonical JSON and the sha256 keys built from it."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN, no -0.0 (jsonb reads that back as 0.0)."""
    return json.dumps(
        _without_negative_zero(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _without_negative_zero(value: Any) -> Any:
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, dict):
        return {key: _without_negative_zero(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_negative_zero(item) for item in value]
    return value


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derive_seed(*parts: Any) -> int:
    """Return a seed in [0, 2**63) that is a pure function of `parts` (sha256 of their canonical JSON)."""
    return int(digest(list(parts))[:16], 16) >> 1
