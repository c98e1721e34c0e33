"""Canonical JSON and the sha256 keys built from it."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derive_seed(*parts: Any) -> int:
    """Return a seed in [0, 2**63) that is a pure function of `parts` (sha256 of their canonical JSON)."""
    return int(digest(list(parts))[:16], 16) >> 1
