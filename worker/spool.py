"""Results that could not be recorded yet, on this machine's disk, where the process's end does not reach them.

One file per stage, named by its key: whoever claims that stage here publishes the file instead of computing again.
That is as good as computing, because a key names everything that its result depends on.

A finding may be the only copy there is, and the clock that dates it may be set, so none goes for its age: it goes when
its stage has a result, whoever's. So the folder holds at most one file for each stage that was computed here and has
none.
"""

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.stages import Outcome
from store.database import to_json
from store.files import sweep, write_atomically

log = logging.getLogger(__name__)

KEPT_SECONDS = 7 * 86400.0
"""The unfinished files of writers that died go after a week."""


@dataclass(frozen=True)
class Finding:
    """What a stage found, under which fence, computed with what."""

    key: str
    fence: int
    outcome: Outcome
    environment: dict[str, Any]


class Spool:
    """A folder of findings, safe for several workers: a file appears whole or not at all."""

    def __init__(self, folder: Path):
        self._folder = folder

    def keep(self, finding: Finding) -> None:
        """Write a finding to disk; one of the same stage is replaced.

        Raises:
            OSError: the disk does not take it.
        """
        outcome = finding.outcome
        sizes = {name: [media_type, len(data)] for name, (media_type, data) in outcome.artifacts.items()}
        head = {"fence": finding.fence, "environment": finding.environment, "payload": outcome.payload}
        parts = [to_json({**head, "artifacts": sizes}).encode() + b"\n"]
        parts += [data for _, data in outcome.artifacts.values()]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / finding.key, _digest(parts), *parts)

    def find(self, key: str) -> Finding | None:
        """Return the stage's finding; one that is not as it was written is removed, one that cannot be read stays."""
        try:
            return _parsed(key, (self._folder / key).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the finding of stage %s in the spool cannot be read now: %s", key[:12], error)
            return None
        except ValueError as error:
            log.warning("the finding of stage %s in the spool is dropped: %s", key[:12], error)
            self.drop(key)
            return None

    def fence(self, key: str) -> int | None:
        """Return the fence that the stage's finding was found under, None where there is none."""
        try:
            with (self._folder / key).open("rb") as file:
                file.readline()
                return int(json.loads(file.readline())["fence"])
        except (OSError, ValueError, KeyError):
            return None

    def waiting(self) -> list[str]:
        """Return the keys of the stages that have a finding here."""
        if not self._folder.is_dir():
            return []
        sweep(self._folder, KEPT_SECONDS)
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def drop(self, key: str) -> None:
        """Forget a finding: its stage has a result, or cannot be published."""
        with contextlib.suppress(OSError):
            (self._folder / key).unlink(missing_ok=True)


def _digest(parts: list[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode() + b"\n"


def _parsed(key: str, content: bytes) -> Finding:
    digest, _, rest = content.partition(b"\n")
    if _digest([rest]) != digest + b"\n":
        raise ValueError("it is torn")
    line, _, data = rest.partition(b"\n")
    head = json.loads(line)
    artifacts: dict[str, tuple[str, bytes]] = {}
    for name, (media_type, size) in head["artifacts"].items():
        artifacts[name], data = (media_type, data[:size]), data[size:]
    return Finding(key, head["fence"], Outcome(head["payload"], artifacts), head["environment"])
