"""What can happen to a machine room, one fault at a time."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from store.artifacts import FolderStore
from store.database import Database
from store.models import LIVE, Attempt, Stage, StageArtifact, StageParent, Worker
from tests.processes import Processes, children
from tests.proxy import Network
from tests.servers import PostgresServer, RedisServer

PAUSE_SECONDS = (0.5, 4.0)
"""How long a process is stopped: sometimes within its lease, sometimes well past it."""


@dataclass
class Room:
    """The processes under the storm, and what was done to them."""

    service: Processes
    other_api: Processes
    postgres: PostgresServer
    redis: RedisServer
    network: Network
    """Between the last worker and both servers."""
    database: Database
    store: FolderStore
    """Where the processes keep their artifacts."""
    dice: random.Random
    workers: tuple[str, ...]
    pauses: tuple[float, float] = PAUSE_SECONDS
    posted: int = 0
    """Jobs posted, each under the seed of its number."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    killed_at: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    """Stage and fence of an attempt whose process was killed -> when, seconds since 1970."""
    asleep: dict[int, float] = field(default_factory=dict[int, float])
    """Process id of a stopped process -> when it goes on, by the monotonic clock."""
    cut_until: float = 0.0
    """When the network comes back, by the monotonic clock."""

    @property
    def struck(self) -> int:
        """The number of faults so far."""
        return sum(self.counts.values())

    def strike(self) -> None:
        """Let one random fault happen."""
        faults: list[tuple[int, Callable[[], None]]] = [
            (8, self.kill_child), (4, self.kill_worker), (6, self.pause_child), (3, self.kill_keeper),
            (2, self.pause_keeper), (3, self.kill_api), (3, self.flush_redis), (1, self.restart_redis),
            (1, self.restart_postgres), (1, self.crash_postgres), (2, self.cut_network), (4, self.lose_artifact),
        ]  # fmt: skip
        self._let(self.dice.choices([fault for _, fault in faults], [weight for weight, _ in faults])[0])

    def strike_asleep(self) -> None:
        """Let the one fault happen that only a fence stands against, while there are others to take over."""
        if len(self.asleep) < len(self.workers) // 2:
            self._let(self.pause_child)

    def _let(self, fault: Callable[[], None]) -> None:
        fault()
        self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1

    def recover(self) -> None:
        """Wake who has slept enough, and start again what has died, as a supervisor would."""
        now = time.monotonic()
        for pid in [pid for pid, until in self.asleep.items() if until <= now]:
            del self.asleep[pid]
            _send(pid, signal.SIGCONT)
        if now >= self.cut_until:
            self.network.restore()
        self.service.start_missing("api", "keeper", "keeper2", *self.workers)
        self.other_api.start_missing("api")

    def calm_down(self) -> None:
        """Wake everyone."""
        for pid in list(self.asleep):
            self.asleep[pid] = 0.0
        self.cut_until = 0.0
        self.recover()

    def kill_child(self) -> None:
        """SIGKILL the process that computes."""
        for pid in self._a_child():
            self._note_orphan(pid)
            _send(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        """SIGKILL a worker's main process; its child notices by itself."""
        name = self.dice.choice(self.workers)
        if self.service[name].running:
            self.service[name].kill()

    def pause_child(self) -> None:
        """SIGSTOP the process that computes, and let it come back later."""
        for pid in self._a_child():
            _send(pid, signal.SIGSTOP)
            self.asleep[pid] = time.monotonic() + self.dice.uniform(*self.pauses)

    def kill_keeper(self) -> None:
        """SIGKILL one of the keepers."""
        name = self.dice.choice(("keeper", "keeper2"))
        if self.service[name].running:
            self.service[name].kill()

    def pause_keeper(self) -> None:
        """SIGSTOP one of the keepers, maybe the one that holds the lease."""
        process = self.service[self.dice.choice(("keeper", "keeper2"))]
        if process.running:
            _send(process.pid, signal.SIGSTOP)
            self.asleep[process.pid] = time.monotonic() + self.dice.uniform(*self.pauses)

    def kill_api(self) -> None:
        """SIGKILL one of the APIs."""
        api = self.dice.choice((self.service, self.other_api))["api"]
        if api.running:
            api.kill()

    def flush_redis(self) -> None:
        """Lose every message."""
        self.redis.flush()

    def restart_redis(self) -> None:
        """Kill the broker and start it again, empty."""
        self.redis.kill()
        self.redis.start()

    def restart_postgres(self) -> None:
        """Restart the database: every connection breaks."""
        self.postgres.restart()

    def crash_postgres(self) -> None:
        """SIGKILL the database and let it recover."""
        self.postgres.kill()
        self.postgres.start()

    def cut_network(self) -> None:
        """Cut the last worker off from both servers."""
        self.network.cut()
        self.cut_until = time.monotonic() + self.dice.uniform(*self.pauses)

    def lose_artifact(self) -> None:
        """Delete what a finished stage has found and an unfinished one needs; half of the time, flip a byte of it."""
        needed = (
            select(StageArtifact.sha256)
            .join(StageParent, StageParent.parent_id == StageArtifact.stage_id)
            .join(Stage, Stage.id == StageParent.stage_id)
            .where(Stage.state.in_(LIVE))
            .order_by(StageArtifact.sha256)
            .distinct()
        )
        with contextlib.suppress(DBAPIError, FileNotFoundError), self.database.read() as session:
            found = session.scalars(needed).all()
            path = self.store.path(self.dice.choice(found)) if found else None
            if path and self.dice.random() < 0.5:
                path.unlink()
            elif path:
                data = bytearray(path.read_bytes())
                data[0] ^= 1
                path.write_bytes(data)

    def _a_child(self) -> list[int]:
        """Return the id of one worker's child, of one that holds a stage where there is such a one."""
        names = [name for name in self.workers if self.service[name].running]
        found = [pid for name in names for pid in children(self.service[name].pid) if pid not in self.asleep]
        busy = [pid for pid in found if pid in self._at_work()]
        return [self.dice.choice(busy or found)] if found else []

    def _at_work(self) -> set[int]:
        holding = (
            select(Worker.pid).join(Attempt, Attempt.worker == Worker.incarnation).where(Attempt.ended_at.is_(None))
        )
        with contextlib.suppress(DBAPIError), self.database.read() as session:
            return set(session.scalars(holding))
        return set()

    def _note_orphan(self, pid: int) -> None:
        """Remember when the attempt that this process holds is about to be orphaned."""
        held = (
            select(Attempt.stage_id, Attempt.fence)
            .join(Worker, Worker.incarnation == Attempt.worker)
            .where(Worker.pid == pid, Attempt.ended_at.is_(None))
        )
        with contextlib.suppress(DBAPIError), self.database.read() as session:
            for row in session.execute(held):
                self.killed_at[row.stage_id, row.fence] = time.time()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
