"""The control: on the path of a worker, this leaves the fence out of every write. A storm must then find violations."""

from typing import Any

from store import stages
from store.models import Stage


def _unfenced(stage_id: int, _: int) -> Any:
    return Stage.id == stage_id


stages._held = _unfenced  # pyright: ignore[reportPrivateUsage]
