"""Progress as text for a terminal."""

from typing import Any


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
