"""`python -m tests.storm`: the storm; `python -m tests.storm requeue` and `cancel`: how long two promises take."""

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from core.provenance import commit
from tests.storm import cancel, requeue, storm

OTHERS = {"requeue": requeue.main, "cancel": cancel.main}


class Out:
    """Where a report goes: to the file after --out, if there is one, as often as there is news."""

    def __init__(self, arguments: list[str]):
        command = " ".join(["python -m tests.storm", *arguments])
        self._head = {"command": command, "commit": commit()}
        self._file = None
        if "--out" in arguments:
            at = arguments.index("--out")
            self._file = Path(arguments[at + 1])
            del arguments[at : at + 2]

    def write(self, report: dict[str, Any]) -> None:
        """Replace what was written before."""
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            new.write_text(json.dumps({**self._head, **report}, indent=1) + "\n")
            new.replace(self._file)


def main() -> int:
    """Return 0 where every promise was kept."""
    arguments = sys.argv[1:]
    out = Out(arguments)
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        if arguments and arguments[0] in OTHERS:
            report, kept = OTHERS[arguments[0]](arguments[1:], Path(folder))
        else:
            patience = storm.Patience.of(arguments)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, patience.interrupt)
            report, kept = storm.storm_and_control(patience, Path(folder), out.write)
    out.write(report)
    print(json.dumps(report, indent=1))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
