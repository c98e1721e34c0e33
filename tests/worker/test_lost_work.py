"""How much work a kill costs a training: no more iterations are repeated than were done in one checkpoint interval."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import Process, wait_until

EVERY = 0.3
TRAINING = f"""
import sys, time
from pathlib import Path
from core.datasets import DATASETS
from core.defenses.natural import Natural
from core.execution import Execution
from core.networks.mnist_cnn import MnistCnn
from core.training import Training, train
from store.files import write_atomically
from store.stages import Claim
from worker.watch import Watch

log, kept = Path("iterations").open("a"), Path("checkpoint")

def note(what, done):
    print(what, done, time.monotonic(), file=log, flush=True)

class Seen(Watch):
    def progress(self, done, total, **figures):
        self.done = done
        note("done", done)

    def save_checkpoint(self, data):
        super().save_checkpoint(data)
        note("kept", self.done)

claim = Claim(1, 1, "k" * 64, "train", "train natural", {{}})
watch = Seen(claim, time.monotonic(), {EVERY}, lambda _, data: write_atomically(kept, data))
data = DATASETS["mnist-mini"]().load(Path("unused"))
note("began", 0)
train(
    Natural(), MnistCnn(), Training(iterations=int(sys.argv[1]), batch_size=4), Execution(threads=1), mathematics="r",
    seed=0, images=data.train_images, labels=data.train_labels, monitor=watch,
    resume=kept.read_bytes() if kept.exists() else None,
)
"""


def lines(folder: Path) -> list[tuple[str, int, float]]:
    """Return what has been noted: what, at which iteration, when."""
    file = folder / "iterations"
    whole = file.read_text().splitlines() if file.exists() else []
    return [(what, int(done), float(at)) for what, done, at in (line.split() for line in whole if line.count(" ") == 2)]


@pytest.mark.parametrize("checkpoints", [1, 3])
def test_a_kill_repeats_at_most_one_interval(tmp_path: Path, checkpoints: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TRAINING]
    first = Process("first", [*command, "1000000"], tmp_path, environment)
    try:
        wait_until("checkpoints", lambda: sum(line[0] == "kept" for line in lines(tmp_path)) >= checkpoints, 120)
        first.send(signal.SIGKILL)
    finally:
        first.end()
    before = lines(tmp_path)
    _, newest, saved_at = next(line for line in reversed(before) if line[0] == "kept")
    repeated = [line for line in before if line[0] == "done" and line[1] > newest]
    assert sum(at > saved_at + EVERY for _, _, at in repeated) <= 1, "work beyond one interval is lost"
    again = Process("again", [*command, str(newest + 2)], tmp_path, environment)
    assert again.wait(120) == 0
    done = [line[1] for line in lines(tmp_path)[len(before) :] if line[0] == "done"]
    assert done == [newest + 1, newest + 2]
