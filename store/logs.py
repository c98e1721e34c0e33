"""How every process logs."""

import logging


def to_stderr() -> None:
    """Log with time, level and logger from now on, unless logging has been set up already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
