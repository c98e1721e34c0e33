"""On the path of a real process, this loses the answers to the transactions that LOST_ANSWERS names."""

import os

if text := os.environ.get("LOST_ANSWERS"):
    from tests.answers import install

    install(text)
