"""Jobs, their plans and their progress as text for a terminal."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from client.api import ENDED

SHOWN = 12
"""Digits of a stage's key that are printed: enough to name it to `gauntlet log` and `GET /stages/{key}`."""


def line(job: dict[str, Any]) -> str:
    """Return one line: how far the job is, and what runs now."""
    states = job["progress"]["by_state"]
    done, total = states.get("succeeded", 0), job["progress"]["stages"]
    running = [stage for stage in job["stages"] if stage["state"] == "running"]
    now = "; ".join(_running(stage) for stage in running[:2])
    if not running:
        waits = [stage["waits_for"] for stage in job["stages"] if stage["state"] == "ready"]
        now = waits[0] if waits else ""
    return f"{job['state']:9} {100 * job['progress']['fraction']:5.1f} %  {done}/{total} stages  {now}"


def _running(stage: dict[str, Any]) -> str:
    found = stage["progress"]
    return stage["title"] + (f" ({found['done']}/{found['total']})" if found and found.get("total") else "")


def whole(job: dict[str, Any], state: str | None = None) -> Iterator[str]:
    """Yield the lines of a job: what it is, its stages, those in `state` only where that is given, its cautions."""
    what = dict.fromkeys(name for name in (job["suite"], job["name"]) if name)
    dataset = job["spec"].get("dataset")  # models that exist have their own
    yield ", ".join([f"job {job['id']}: {job['kind']}" + (f" on {dataset}" if dataset else ""), *what])
    yield line({**job, "stages": []}).rstrip()
    yield f"posted {_at(job['created_at'])}, started {_at(job['started_at'])}, ended {_at(job['finished_at'])}"
    left = "" if job["state"] in ENDED else f", about {_long(job['cost']['remaining_seconds'])} to go"
    found = job["cost"]["reused_seconds"]
    shared = f", {_long(found)} of it in stages that other jobs had run" if found else ""
    yield f"device time {_long(job['cost']['used_seconds'])}{shared}{left}"
    for stage in job["stages"]:
        if state in (None, stage["state"]):
            yield f"{stage['key'][:SHOWN]}  {stage['state']:9}  {_running(stage)}{_why(stage)}"
    yield from (f"caution: {caution}" for caution in job["cautions"])


def plan(found: dict[str, Any]) -> str:
    """Return what a job would take."""
    kinds = Counter(stage["kind"] for stage in found["stages"])
    images = f", {found['images']} test images" if found["images"] else ""
    lines = [
        f"{found['kind']} on {found['dataset']}, {found['device']}{images}: "
        f"{len(found['stages'])} stages ({', '.join(f'{number} {kind}' for kind, number in kinds.items())})",
        f"{found['done']} have succeeded before, {found['new']} have to run",
        *expected(found, [found["waits_for"]] if found["waits_for"] else []),
        "nothing was stored",
    ]
    return "\n".join(lines)


def expected(found: dict[str, Any], waits: list[str]) -> list[str]:
    """Return what to know of a job or a plan before it runs: how long it takes, what it waits for, its cautions."""
    cost = found["cost"]
    rate = "measured" if cost["rate_measured"] else "assumed, none has been measured"
    return [
        f"about {_long(cost['remaining_seconds'])} of device time at {cost['rate']:.2g} floating-point operations per "
        f"second ({rate}); {cost['flop']:.2g} in all",
        *waits,
        *(f"caution: {caution}" for caution in found["cautions"]),
    ]


def nobody(job: dict[str, Any]) -> list[str]:
    """Return why stages that are ready find no worker that could take them."""
    waits = [stage["waits_for"] for stage in job["stages"] if stage["state"] == "ready" and stage["waits_for"]]
    return [reason for reason in dict.fromkeys(waits) if reason.startswith("no live worker")]


def _why(stage: dict[str, Any]) -> str:
    said = stage["reason"] or stage["waits_for"]
    return f": {' '.join(said.split())}" if said else ""


def _at(seconds: float | None) -> str:
    return "--" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def _long(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
