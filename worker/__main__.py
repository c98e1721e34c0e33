"""`python -m worker`: one Celery worker with warm children, one for each slot of each device."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from celery.platforms import SecurityWarning

from core.provenance import commit
from store import logs
from store.settings import Settings, names, settings
from worker.devices import queues
from worker.patience import await_schema

_log = logging.getLogger(__name__)
EXIT_NO_CHILD = 70
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Where there is neither there is no CUDA device, and torch need not be asked; the second is that of WSL."""
REMEDY = (
    "torch's CUDA 13 needs a driver of version 580 or newer and GPUs of the Turing generation or newer; "
    "for a worker on the CPU: docker compose -f docker-compose.yml up, or WORKER_QUEUES=cpu"
)


def _gpus(chosen: Settings) -> list[str]:
    """Return the CUDA devices to use, as CUDA_VISIBLE_DEVICES names them; exit where GPUs are to be served without."""
    if chosen.worker_gpus:
        return names(chosen.worker_gpus)
    visible = names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    number, why = count_gpus()
    if not number and "gpu" in chosen.queues:
        why = why.rstrip(".") or "there is no driver"
        sys.exit(f"gauntlet: WORKER_QUEUES names gpu, and torch can use no GPU here: {why}. {REMEDY}")
    if why:
        _log.warning("there is a GPU driver, but torch can use no GPU, so the CPU computes: %s", why)
    return [visible[index] if visible else str(index) for index in range(number)]


def count_gpus() -> tuple[int, str]:
    """Return the number of GPUs that torch can use, and why there is none in spite of a driver.

    Exit where torch cannot be asked, for then it computes nothing. Another process is asked: the one that talks to the
    broker never initialises CUDA.
    """
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0, ""
    count = "from worker.devices import usable_gpus; print(usable_gpus())"
    answer = subprocess.run([sys.executable, "-c", count], check=False, capture_output=True, text=True)
    said = (answer.stderr.strip().splitlines() or ["it gives no reason; is it built with CUDA?"])[-1].strip()
    if answer.returncode != 0:
        sys.exit(f"gauntlet: there is a GPU driver, and torch cannot be asked for its GPUs: {said}")
    found = int(answer.stdout)
    return found, "" if found else said


def _leave(*_: object) -> None:
    sys.exit(0)


def main() -> None:
    """Run the worker until it is told to stop.

    Exit 70 where its children cannot be started, 1 on another schema or where it shall serve GPUs and there is none.
    """
    argparse.ArgumentParser(prog="python -m worker", description=__doc__).parse_args()
    logs.to_stderr()
    warnings.simplefilter("ignore", SecurityWarning)  # root is fine: messages are JSON, and never more than a hint
    from worker.app import app, children

    if commit() is None:
        _log.warning(
            "results will not say which commit computed them: git does not, and GAUNTLET_COMMIT is unset "
            "(docker compose: GAUNTLET_COMMIT=$(git rev-parse HEAD) docker compose up --build)"
        )
    chosen = settings()
    await_schema(chosen.sql_url)
    gpus = _gpus(chosen)
    serves = queues(chosen, lambda: bool(gpus))
    signal.signal(signal.SIGTERM, _leave)  # until Celery has a handler of its own
    try:
        children.start(gpus if "gpu" in serves else [], chosen.worker_slots)
        app.worker_main(
            ["--quiet", "worker", "--pool", "solo", "--queues", ",".join(serves),
             "--hostname", "worker-%h", "--without-mingle", "--without-gossip", "--without-heartbeat",
             "--loglevel", "WARNING"]
        )  # fmt: skip
    finally:
        if not children.stop():
            sys.exit(EXIT_NO_CHILD)


if __name__ == "__main__":
    main()
