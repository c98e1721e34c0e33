"""The storm: faults over real stages, then the count: lost, duplicate, stale.

Two APIs, two keepers and four workers on one PostgreSQL and one Redis; every process loses the answer to some of its
transactions, and the last worker is behind a network that is cut. Jobs are posted all the time; processes are killed
and stopped past their leases, messages lost, both servers restarted and crashed. When the storm is over every job must
succeed, the invariants must hold, and every number must be that of the undisturbed run, which this process computes by
calling core. In the control the workers' writes leave the fence out: then something must be wrong.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import and_, func, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from client.api import ApiRefused
from store import migrate
from store.artifacts import FolderStore
from store.database import Database, db_now
from store.invariants import violations
from store.models import LIVE, Attempt, Evaluation, Job, LostResult, Result, Stage
from tests.answers import ON_PATH, ROOT
from tests.processes import Processes, wait_until
from tests.proxy import Network
from tests.servers import PostgresServer, RedisServer
from tests.storm.faults import Room
from tests.storm.requeue import EPILOG, percentiles
from tests.worker.calm import calm

LEASE_SECONDS = 2.0
WORKERS = ("worker", "worker2", "worker3", "worker4")
BACKLOG = 40
"""Stages that wait, at most, before the next job is posted: what is left takes time when the storm is over."""
TURN_SECONDS = (0.2, 1.2)
"""Between two faults."""
NEWS_SECONDS = 30.0
"""Between two reports of a storm that still blows."""
CONTROL_CALM_SECONDS = 60.0
"""What a control may leave unfinished is wrong anyway."""
CONTROL_PAUSES = (LEASE_SECONDS + 1, LEASE_SECONDS + 2)
UNFENCED = os.pathsep.join([str(Path(__file__).with_name("unfenced")), str(ROOT)])
ENVIRONMENT = {
    "HEARTBEAT_SECONDS": "0.4", "LEASE_SECONDS": str(LEASE_SECONDS), "KEEPER_SECONDS": "0.25",
    "CHECKPOINT_SECONDS": "0.3", "MAX_LOSSES": "1000", "MAX_FAILURES": "1000", "CPU_THREADS": "1",
}  # fmt: skip
Tell = Callable[[dict[str, Any]], None]


def spec(seed: int) -> dict[str, Any]:
    """Return a small real job: two models, a transfer; every second trains long enough to be killed in the middle."""
    schedule = {"iterations": 150 if seed % 2 == 0 else 6, "batch_size": 4}
    return {
        "dataset": "mnist-mini", "training": schedule, "seeds": [seed], "limit": 10,
        "defenses": [{"kind": "natural"}], "attacks": [{"kind": "none"}, {"kind": "ifgsm", "steps": 2}],
        "substitutes": [{"kind": "fgsm_adv"}], "transfer": [{"kind": "fgsm"}],
    }  # fmt: skip


@dataclass
class Patience:
    """How long everything may take. The first interrupt ends the storm, the second the wait for its end."""

    seconds: float = 60.0
    faults: int = 1_000_000
    control_seconds: float = 60.0
    calm_seconds: float = 300.0
    seed: int = 0
    lost_answers: str = "share=0.02"
    interrupts: int = 0
    _until: float = field(default=float("inf"))

    @classmethod
    def of(cls, arguments: list[str]) -> "Patience":
        """Return what the command line says."""
        parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__, epilog=EPILOG)
        parser.add_argument("--seconds", type=float, default=cls.seconds, help="length of the storm at most")
        parser.add_argument("--faults", type=int, default=cls.faults, help="faults at most")
        parser.add_argument("--control-seconds", type=float, default=cls.control_seconds, help="at most; 0 for none")
        parser.add_argument("--calm-seconds", type=float, default=cls.calm_seconds, help="for what is left, at most")
        parser.add_argument("--lost-answers", default=cls.lost_answers, help="as tests/answers.py has it; '' for none")
        parser.add_argument("--seed", type=int, default=cls.seed)
        return cls(**vars(parser.parse_args(arguments)))

    def interrupt(self, *_: object) -> None:
        """Note a signal."""
        self.interrupts += 1

    def begin(self, seconds: float) -> None:
        """Start the clock."""
        self._until = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time that was begun is over."""
        return time.monotonic() >= self._until


def storm_and_control(patience: Patience, folder: Path, tell: Tell) -> tuple[dict[str, Any], bool]:
    """Return the report, and whether the storm left nothing wrong behind and the control did."""
    report = storm(patience, folder / "storm", tell)
    tell({**report, "control": None})
    if not patience.control_seconds or patience.interrupts:
        return {**report, "control": None}, sound(report)
    report["control"] = control(patience, folder / "control")
    return report, sound(report) and report["control"]["stale"] > 0


def storm(patience: Patience, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return what a storm left behind."""
    lossy = {"LOST_ANSWERS": patience.lost_answers, "PYTHONPATH": ON_PATH}
    with ExitStack() as stack:
        room = _room(stack, folder, {**ENVIRONMENT, **lossy}, patience.seed)
        began = time.monotonic()
        _blow(room, patience, tell)
        blown = round(time.monotonic() - began, 1)
        _wait_for_the_end(room, patience)
        return {"fenced": True, **_so_far(room, patience, blown), "unfinished": False, **_count(room)}


def control(patience: Patience, folder: Path) -> dict[str, Any]:
    """Return what workers without fences left behind, once a result stands that should not."""
    with ExitStack() as stack:
        room = _room(stack, folder, {**ENVIRONMENT, "PYTHONPATH": UNFENCED}, patience.seed)
        room.pauses = CONTROL_PAUSES
        began = time.monotonic()
        patience.begin(patience.control_seconds)
        while not (patience.over or patience.interrupts or _wrongly_recorded(room)):
            _keep_busy(room, patience)
            room.strike_asleep()
            time.sleep(room.dice.uniform(*TURN_SECONDS))
            room.recover()
        blown = round(time.monotonic() - began, 1)
        _wait_for_the_end(room, replace(patience, calm_seconds=min(CONTROL_CALM_SECONDS, patience.calm_seconds)))
        return {"fenced": False, **_so_far(room, patience, blown), "unfinished": False, **_count(room)}


def _room(stack: ExitStack, folder: Path, environment: dict[str, str], seed: int) -> Room:
    postgres, redis = stack.enter_context(PostgresServer()), stack.enter_context(RedisServer())
    network = stack.enter_context(Network())
    url = postgres.create_database("storm")
    migrate.upgrade(url)
    environment = {**environment, "DATABASE_URL": url, "REDIS_URL": redis.url}
    service = stack.enter_context(Processes(folder / "a", environment))
    other = stack.enter_context(Processes(folder / "b", environment))
    other.environment["STATE_DIR"] = service.environment["STATE_DIR"]
    service.own[WORKERS[-1]] = {
        "DATABASE_URL": url.replace(f":{postgres.port}/", f":{network.to(postgres.port)}/"),
        "REDIS_URL": redis.url.replace(f":{redis.port}/", f":{network.to(redis.port)}/"),
    }
    service.start("api", "keeper", "keeper2", *WORKERS)
    other.start("api")
    wait_until("both APIs answer", lambda: service.client.ready() and other.client.ready(), 120)
    wait_until("every worker lives", lambda: len(service.workers()) == len(WORKERS), 240)
    database = Database(url)
    stack.callback(database.close)
    store = FolderStore(Path(service.environment["STATE_DIR"]) / "artifacts")
    return Room(service, other, postgres, redis, network, database, store, random.Random(seed), WORKERS)


def _blow(room: Room, patience: Patience, tell: Tell) -> None:
    """Let faults come, and jobs."""
    began = time.monotonic()
    news = began - NEWS_SECONDS
    patience.begin(patience.seconds)
    while not (patience.over or patience.interrupts) and room.struck < patience.faults:
        _keep_busy(room, patience)
        room.strike()
        time.sleep(room.dice.uniform(*TURN_SECONDS))
        room.recover()
        if time.monotonic() - news > NEWS_SECONDS:
            news = time.monotonic()
            tell(_so_far(room, patience, round(news - began, 1)))


def _so_far(room: Room, patience: Patience, blown: float) -> dict[str, Any]:
    return {
        "seed": patience.seed, "faults": room.struck, "by_fault": dict(room.counts), "storm_seconds": blown,
        "lost_answers": patience.lost_answers, "cores": os.cpu_count(), "interrupted": patience.interrupts > 0,
        "unfinished": True,
    }  # fmt: skip


def _keep_busy(room: Room, patience: Patience) -> None:
    """Post the next job, under an Idempotency-Key, where little is left to do. Whoever answers, it is one job."""
    try:
        with room.database.read() as session:
            waiting = session.scalar(select(func.count()).where(Stage.state.in_(LIVE))) or 0
            at_hand = or_(Stage.state == "running", and_(Stage.state == "ready", Stage.not_before <= db_now()))
            busy = session.scalar(select(func.count()).where(at_hand)) or 0
    except DBAPIError:
        return
    if busy > len(WORKERS) or waiting >= BACKLOG:
        return
    while not (patience.over or patience.interrupts):
        api = room.dice.choice((room.service, room.other_api)).client
        try:
            api.post_job(spec(room.posted), key=f"storm-{room.posted}")
        except (httpx.HTTPError, ApiRefused):
            time.sleep(0.1)
            room.recover()
        else:
            room.posted += 1
            return


def _wait_for_the_end(room: Room, patience: Patience) -> None:
    """Return when no job is live, or when that has taken too long: what is left then counts as lost."""
    room.calm_down()
    patience.begin(patience.calm_seconds)
    while not patience.over and patience.interrupts < 2:
        room.recover()
        with suppress(DBAPIError), room.database.read() as session:
            if not session.scalar(select(func.count()).where(Job.finished_at.is_(None))):
                return
        time.sleep(0.5)


def _wrongly_recorded(room: Room) -> bool:
    """Return whether a result stands under a fence that is not its stage's."""
    with room.database.read() as session:
        return _stale(session) > 0


def _stale(session: Session) -> int:
    """Return the number of results that were not written under the fence their stage has, as its winner's is."""
    wrong = select(func.count()).select_from(Result).join(Stage, Stage.id == Result.stage_id)
    return session.scalar(wrong.where(Result.fence != Stage.fence)) or 0


def _count(room: Room) -> dict[str, Any]:
    with room.database.read() as session:
        seeds = [row["seeds"][0] for row in session.scalars(select(Job.spec))]
        jobs = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        number = session.scalar(select(func.count()).select_from(Stage)) or 0
        succeeded = select(Attempt.stage_id, func.count()).where(Attempt.outcome == "succeeded")
        wins = dict(session.execute(succeeded.group_by(Attempt.stage_id)).all())
        aside = select(LostResult.stage_id, func.count()).group_by(LostResult.stage_id)
        withdrawn = dict(session.execute(aside).all())
        results = session.scalar(select(func.count()).select_from(Result)) or 0
        outcomes = dict(session.execute(select(Attempt.outcome, func.count()).group_by(Attempt.outcome)).all())
        stale, wrong = _stale(session), violations(session)
        counts = select(Stage.key, Evaluation.n, Evaluation.n_correct).join(Stage, Stage.id == Evaluation.stage_id)
        found = {row.key: (row.n, row.n_correct) for row in session.execute(counts)}
        again = _requeues(room, session)
    different = _differences(seeds, found)
    forgotten = len(set(range(room.posted)) - set(seeds))
    return {
        "jobs": jobs,
        "posted": room.posted,
        "stages": number,
        "attempts": {str(outcome): count for outcome, count in outcomes.items()},
        "lost": number - results + sum(count for state, count in jobs.items() if state != "succeeded") + forgotten,
        "withdrawn": sum(withdrawn.values()),
        "duplicate": sum(count - 1 - withdrawn.get(stage, 0) for stage, count in wins.items())
        + len(seeds)
        - len(set(seeds)),
        "stale": stale,
        "violations": wrong[:20],
        "different_from_calm": different,
        "requeue_seconds": again,
    }


def _requeues(room: Room, session: Any) -> dict[str, float]:
    """Return how long after the SIGKILL of its process an orphaned stage was ready again: count and percentiles."""
    ended = {
        (row.stage_id, row.fence): row.ended_at
        for row in session.execute(
            select(Attempt.stage_id, Attempt.fence, Attempt.ended_at).where(Attempt.outcome == "lost")
        )
    }
    delays = [ended[held] - at for held, at in room.killed_at.items() if held in ended]
    return {"orphans": len(delays), **(percentiles(delays) if len(delays) > 1 else {})}


def _differences(seeds: list[int], found: dict[str, tuple[int, int]]) -> int:
    """Return how many evaluations differ from the undisturbed run, which is computed here and now."""
    different = 0
    for seed in set(seeds):
        for key, outcome in calm(spec(seed)).outcomes.items():
            if "n_correct" in outcome.payload:
                different += found.get(key) != (outcome.payload["n"], outcome.payload["n_correct"])
    return different


def sound(report: dict[str, Any]) -> bool:
    """Return whether nothing was lost, doubled, stale, in violation or different."""
    return not any(report.get(name) for name in ("lost", "duplicate", "stale", "violations", "different_from_calm"))
