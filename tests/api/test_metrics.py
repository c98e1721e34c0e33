"""/metrics: Prometheus' format, numbers of SQL."""

import re

from sqlalchemy import text

from api.metrics import render
from store import workers
from store.gauges import Gauge
from tests import factories
from tests.api.house import House

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def parsed(text: str) -> dict[str, float]:
    """Return the samples by name and labels; every line must be a comment or a sample, each name typed before."""
    found: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# "):
            typed |= {line.split()[2]} if line.startswith("# TYPE ") else set()
            continue
        match = LINE.fullmatch(line)
        assert match, line
        assert match[1] in typed
        found[line.rpartition(" ")[0]] = float(match[3])
    return found


def metrics(house: House) -> dict[str, float]:
    answer = house.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


def test_an_empty_service(house: House):
    """What can be counted is 0, not absent: an alarm on a sample that is not there never fires."""
    found = metrics(house)
    assert set(found.values()) == {0}
    states = ("blocked", "ready", "running", "succeeded", "failed", "cancelled")
    outcomes = ("succeeded", "failed", "cancelled", "released", "refused", "lost")
    assert set(found) == {
        "gauntlet_keeper_up",
        *(f'gauntlet_stages{{queue="{queue}",state="{state}"}}' for queue in ("cpu", "gpu") for state in states),
        *(f'gauntlet_jobs{{state="{state}"}}' for state in ("queued", "cancelling", *states[2:])),
        *(f'gauntlet_workers{{device="{device}"}}' for device in ("cpu", "cuda")),
        *(f'gauntlet_attempts_total{{outcome="{outcome}"}}' for outcome in outcomes),
    }


def test_stages_jobs_and_attempts(house: House):
    house.post(factories.body(seeds=[1, 2]))
    database = house.service.database
    lost = factories.claim(database)
    factories.expire(database, lost)
    factories.reap(database)
    found = metrics(house)
    assert found['gauntlet_stages{queue="cpu",state="ready"}'] == 2
    assert found['gauntlet_stages{queue="cpu",state="blocked"}'] == 6
    assert found['gauntlet_jobs{state="running"}'] == 1
    assert found['gauntlet_attempts_total{outcome="lost"}'] == 1
    assert 0 <= found['gauntlet_ready_age_seconds{queue="cpu"}'] < 3600
    factories.pass_time(database, 60)
    factories.claim(database)
    assert metrics(house)['gauntlet_attempts_total{outcome="lost"}'] == 1, "an attempt that goes on has no outcome yet"
    house.work(60)


def test_the_age_of_what_is_ready_begins_when_it_may_run(house: House):
    """Not when it was first asked for: a month ago, and failed then; or hours before what it needs had succeeded."""
    name, database = 'gauntlet_ready_age_seconds{queue="cpu"}', house.service.database
    old = text("UPDATE stages SET created_at = created_at - 2592000")
    house.post(factories.body(seeds=[71]))
    factories.fail(database, factories.claim(database))
    with database.write() as session:
        session.execute(old)
    house.post(factories.body(seeds=[71]))
    assert metrics(house)[name] < 3600
    factories.succeed(database, factories.claim(database))
    assert metrics(house)[name] < 3600
    factories.pass_time(database, 7200)
    assert 7200 < metrics(house)[name] < 10800
    for held in [factories.claim(database), factories.claim(database)]:
        factories.fail(database, held, final=False)
    assert name not in metrics(house), "it pauses"
    factories.pass_time(database, 60)
    house.work(60)


def test_workers_and_keeper(house: House):
    with house.service.database.write() as session:
        workers.register(
            session,
            {"incarnation": "a", "host": "h", "pid": 1, "device": "cpu", "device_name": "", "queues": [],
             "versions": {}},
        )  # fmt: skip
        workers.hold(session, "keeper", "k", 60)
    found = metrics(house)
    assert (found['gauntlet_workers{device="cpu"}'], found["gauntlet_keeper_up"]) == (1, 1)
    factories.pass_time(house.service.database, 3600)
    found = metrics(house)
    assert (found['gauntlet_workers{device="cpu"}'], found["gauntlet_keeper_up"]) == (0, 0)


def test_labels_are_escaped():
    assert 'a{b="x\\"\\\\\\ny"} 1\n' in render([Gauge("a", "", ("b",), [('x"\\\ny', 1)])])
