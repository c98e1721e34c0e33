"""Celery's app, and the bells that carry stage ids. A bell is a hint: losing, doubling or reordering any is harmless.

Early ack, no result backend, no ETA, no canvas: what has to be done and who does it stands in SQL alone.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps

from store.files import PARTIAL, sweep
from store.settings import Settings
from store.stages import Bell

log = logging.getLogger(__name__)

TASK = "gauntlet.work"
MAX_BELLS = 32
"""Bells rung for one event; the keeper rings the rest as hands become free."""
STALE_BELL_SECONDS = 600
UNFINISHED_SECONDS = 3600.0
"""A message that has been unfinished for so long is nobody's any more."""


def celery_app(settings: Settings) -> Celery:
    """Return the Celery app on Redis where REDIS_URL is set, else on folders in STATE_DIR."""
    app = Celery("gauntlet")
    app.conf.update(
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_default_queue="cpu",
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        **(_redis(settings.redis_url) if settings.redis_url else _folders(settings)),
    )
    return app


def _redis(url: str) -> dict[str, Any]:
    options = {
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0.2,
    }
    return {"broker_url": url, "broker_transport_options": options, "worker_disable_prefetch": True}


def _folders(settings: Settings) -> dict[str, Any]:
    messages = settings.state_dir / "broker" / "messages"
    control = settings.state_dir / "broker" / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    sweep(messages, UNFINISHED_SECONDS)
    options = {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.1,
    }
    return {
        "broker_url": "filesystem://localhost",
        "broker_transport": f"{FolderTransport.__module__}:{FolderTransport.__name__}",
        "broker_transport_options": options,
    }


class FolderChannel(filesystem.Channel):
    """kombu's, but a message appears whole or not at all: reading half of one ends kombu's consumer for good."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}"  # the channel reads in the order of names
        folder = Path(self.data_folder_out)
        hidden = folder / f"{PARTIAL}{name}"
        try:
            hidden.write_text(dumps(payload), encoding="utf-8")
            hidden.replace(folder / f"{name}.{queue}.msg")
        except BaseException:
            hidden.unlink(missing_ok=True)  # a disk that is full would else fill up with names
            raise

    def _get(self, queue: str) -> Any:
        try:
            return super()._get(queue)
        except ValueError:  # cut short by a power cut
            raise Empty from None


class FolderTransport(filesystem.Transport):
    """Celery's messages as files in folders of STATE_DIR."""

    Channel = FolderChannel


class Ringer:
    """Sends bells from a thread of its own, so that no request and no stage ever waits for the broker."""

    def __init__(self, app: Celery):
        self._app = app
        self._calls: Queue[Callable[[], object] | None] = Queue(maxsize=10_000)
        self._trouble: Exception | None = None
        self._thread = threading.Thread(target=self._do_all, name="ringer", daemon=True)
        self._thread.start()

    def ring(self, bells: Iterable[Bell]) -> None:
        """Take bells to send and return at once; those beyond what is useful now are the keeper's."""
        for bell in list(bells)[:MAX_BELLS]:
            self._ask(partial(self._send, bell))

    def trouble(self) -> Exception | None:
        """Return why the broker could not be reached when it was last tried, and have it tried again."""
        self._ask(self._connect)
        return self._trouble

    def close(self, timeout: float = 3.0) -> None:
        """Send what is waiting, as far as `timeout` seconds allow."""
        self._calls.put(None)
        self._thread.join(timeout)

    def _ask(self, call: Callable[[], object]) -> None:
        with suppress(Full):
            self._calls.put_nowait(call)

    def _send(self, bell: Bell) -> None:
        self._app.send_task(TASK, args=[bell.stage_id], queue=bell.queue, expires=STALE_BELL_SECONDS, retry=False)

    def _connect(self) -> None:
        with self._app.connection_for_write() as connection:
            connection.connect()

    def _do_all(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
                self._trouble = None
            except Exception as error:
                self._trouble = error
                log.warning("the broker takes no bells: %s", error)
