"""Does the speed hold through the service? One training by a worker, the same training in core, pair after pair.

The worker's time is what SQL recorded: from the claim to the published result, with the reading of the data, the
heartbeats, the artifacts and the publishing. Core's is the stage called in a process of its own that has run it before.
Whether worker or core goes first alternates; both must find the same weights.
"""

import hashlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.compute import keep_freed_memory
from core.datasets import DATASETS
from core.monitor import Unwatched
from core.stages.train import WEIGHTS, Train
from store import stages
from store.database import Database
from store.models import Attempt, Result, Stage
from tests.processes import Processes

AIM = 1.03


class Bare:
    """What a training stage reads, without the service around it."""

    monitor = Unwatched()

    def __init__(self) -> None:
        self._data = DATASETS["mnist-mini"]().load(Path())

    def dataset(self, _: str) -> Any:
        """Return the dataset, loaded once."""
        return self._data

    def checkpoints(self) -> Iterator[bytes]:
        """Return none."""
        return iter(())

    def log(self, line: str) -> None:
        """Forget it."""


def ratios(service: Processes, database: Database, pairs: int, iterations: int) -> list[tuple[float, float]]:
    """Return seconds in the worker and in core of each pair, one seed per pair; the first seed warms both up."""

    def in_worker(seed: int) -> tuple[float, str]:
        key = service.succeeded(service.post(_training(seed, iterations)), 600)["stages"][0]["key"]
        return _recorded(database, key)

    in_worker(0)
    with database.read() as session:
        spec = session.scalars(select(Stage.spec).where(Stage.recipe.is_not(None), Stage.seed == 0)).one()
    found: list[tuple[float, float]] = []
    # as a worker's child, with a session of its own: where the scheduler groups by session, both get the same share
    with multiprocessing.get_context("spawn").Pool(1, _begin) as pool:
        in_core = lambda seed: pool.apply(_in_core, ({**spec, "seed": seed},))  # noqa: E731
        in_core(0)
        for seed in range(1, pairs + 1):
            order = (in_worker, in_core) if seed % 2 else (in_core, in_worker)
            answers = {work: work(seed) for work in order}
            (worker, weights), (core, same) = answers[in_worker], answers[in_core]
            assert weights == same, f"worker and core find other weights for seed {seed}"
            found.append((worker, core))
    return found


def row(found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the row of the report: ratios, and the interval of their median."""
    shares = sorted(worker / core for worker, core in found)
    median, interval = statistics.median(shares), median_interval(shares)
    seconds = statistics.median(core for _, core in found)
    return {
        "name": f"training of {seconds:.1f} s through a worker / in core", "unit": "x", "n": len(shares),
        "median": median, "p95": shares[-1 - len(shares) // 20], "p99": shares[-1], "interval": interval,
        "pairs": found, "aim": f"median <= {AIM}", "met": median <= AIM,
    }  # fmt: skip


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the order statistics that enclose the median at least so surely, whatever the distribution: sign test.

    None where there are too few values for that.
    """
    n, ordered = len(values), sorted(values)
    below = 0.0
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - confidence:
            return (ordered[k - 1], ordered[n - k]) if k else None
    return None


def _training(seed: int, iterations: int) -> dict[str, Any]:
    return {
        "kind": "train", "dataset": "mnist-mini", "defense": {"kind": "fgsm_adv"}, "device": "cpu",
        "training": {"iterations": iterations, "batch_size": 64}, "seeds": [seed],
    }  # fmt: skip


def _recorded(database: Database, key: str) -> tuple[float, str]:
    """Return the seconds from claim to result, and the sha256 of the weights."""
    with database.read() as session:
        stage = session.scalars(select(Stage).where(Stage.key == key)).one()
        began = session.scalars(select(Attempt.started_at).where(Attempt.stage_id == stage.id)).one()
        ended = session.scalars(select(Result.created_at).where(Result.stage_id == stage.id)).one()
        weights = stages.result_of(session, stage.id)[1][WEIGHTS]
    return ended - began, weights


@cache
def _bare() -> Bare:
    return Bare()


def _begin() -> None:
    os.setsid()
    keep_freed_memory()


def _in_core(spec: dict[str, Any]) -> tuple[float, str]:
    stage, context = Train.model_validate(spec), _bare()
    began = time.perf_counter()
    outcome = stage.run(context)
    seconds = time.perf_counter() - began
    return seconds, hashlib.sha256(outcome.artifacts[WEIGHTS][1]).hexdigest()
