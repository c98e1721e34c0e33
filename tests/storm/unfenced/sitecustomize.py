"""The control: on the path of a worker, this leaves the fence out of every write. A storm must then find violations.

The worker's own clock, which would stop its work before its lease ends, is left out too: else it would hide most of it.
"""

import sys
from typing import Any

from store import stages
from store.models import Stage


def _unfenced(stage_id: int, _: int) -> Any:
    return Stage.id == stage_id


stages._held = _unfenced  # pyright: ignore[reportPrivateUsage]

if "worker.child" in sys.orig_argv:
    from worker.process import WorkerProcess

    WorkerProcess._enforce = lambda *_: None  # pyright: ignore[reportPrivateUsage]
