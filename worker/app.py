"""The Celery worker. Its main process talks to the broker and nothing else: no SQL, no torch, no CUDA.

The one child of its prefork pool registers as a worker, keeps its lease alive and runs stages, warm between them.
"""

import os
import signal
from typing import Any

from celery import signals

from store.broker import TASK, celery_app
from store.settings import settings
from worker.process import DRAIN_SIGNAL, WorkerProcess

app = celery_app(settings())
_state: dict[str, Any] = {}


@app.task(name=TASK)  # pyright: ignore[reportUntypedFunctionDecorator]
def work(stage_id: int) -> None:
    """Answer a bell: run what SQL says is ready, until nothing is. The stage id is only where it came from."""
    del stage_id
    process: WorkerProcess = _state["process"]
    # the pool resets SIGTERM after a child's start to end it in the middle; while stages run it means: drain
    before = signal.signal(signal.SIGTERM, _drain_child)
    try:
        process.work()
    finally:
        signal.signal(signal.SIGTERM, before)


@signals.worker_init.connect  # pyright: ignore[reportUnknownMemberType]
def _remember_pool(sender: Any, **_: Any) -> None:
    _state["controller"] = sender


@signals.worker_shutting_down.connect  # pyright: ignore[reportUnknownMemberType]
def _drain(**_: Any) -> None:
    """Tell the child to checkpoint and give its stage back; Celery's warm shutdown then waits for it."""
    for pid in _state["controller"].pool.info["processes"]:
        os.kill(pid, DRAIN_SIGNAL)


def _drain_child(*_: object) -> None:
    _state["process"].drain()


@signals.worker_process_init.connect  # pyright: ignore[reportUnknownMemberType]
def _start_process(**_: Any) -> None:
    process = _state["process"] = WorkerProcess(settings())
    signal.signal(DRAIN_SIGNAL, _drain_child)
    process.start()


@signals.worker_process_shutdown.connect  # pyright: ignore[reportUnknownMemberType]
def _stop_process(**_: Any) -> None:
    if "process" in _state:
        _state["process"].stop()
