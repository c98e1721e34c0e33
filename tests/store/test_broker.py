"""The broker's folders: messages of STATE_DIR, where there is no Redis."""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from store import broker
from store.broker import TASK, celery_app
from store.settings import Settings
from tests.disk import fill


def messages(state_dir: Path) -> set[str]:
    return {path.name for path in (state_dir / "broker" / "messages").iterdir()}


def test_a_message_that_a_full_disk_does_not_take_leaves_nothing(small_disk: Path):
    send = partial(celery_app(Settings(state_dir=small_disk)).send_task, TASK, args=[1], queue="cpu", retry=False)
    send()
    before = messages(small_disk)
    ballast = fill(small_disk)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            send()
    assert messages(small_disk) == before
    ballast.unlink()
    send()
    assert len(messages(small_disk) - before) == 1


def test_what_writers_that_died_have_left_goes_at_the_next_start(tmp_path: Path):
    celery_app(Settings(state_dir=tmp_path))
    for name, age in ((".new-1_a", broker.UNFINISHED_SECONDS + 10), (".new-2_b", 0.0), ("3_c.cpu.msg", 1e6)):
        path = tmp_path / "broker" / "messages" / name
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    celery_app(Settings(state_dir=tmp_path))
    assert messages(tmp_path) == {".new-2_b", "3_c.cpu.msg"}
