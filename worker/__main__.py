"""`python -m worker`: one Celery worker with one warm child, which owns one device."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

from celery.platforms import SecurityWarning

from store.settings import settings
from worker.devices import queues


def _has_cuda() -> bool:
    """Ask in another process: the one that talks to the broker never initialises CUDA."""
    if not Path("/dev/nvidiactl").exists():
        return False
    answer = subprocess.run(
        [sys.executable, "-c", "import torch, sys; sys.exit(not torch.cuda.is_available())"], check=False
    )
    return answer.returncode == 0


def main() -> None:
    """Run the worker until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    warnings.simplefilter("ignore", SecurityWarning)  # root is fine: messages are JSON, and never more than a hint
    from worker.app import app, child

    child.start()
    try:
        app.worker_main(
            ["--quiet", "worker", "--pool", "solo", "--queues", ",".join(queues(settings(), _has_cuda)),
             "--hostname", "worker-%h", "--without-mingle", "--without-gossip", "--without-heartbeat",
             "--loglevel", "WARNING"]
        )  # fmt: skip
    finally:
        child.stop()


if __name__ == "__main__":
    main()
