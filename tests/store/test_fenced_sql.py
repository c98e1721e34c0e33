"""Every statement a worker causes names the fence it holds, as SQL is captured on its way to the database."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from store import jobs, refusals, stages
from store.database import Database
from store.stages import Claim
from tests import factories

FENCED = re.compile(r"WHERE (stages\.id|attempts\.stage_id) = \S+ AND (stages|attempts)\.fence = \S+")
ALLOWED = {
    "children woken; not the worker's own stage, and locked by the statement before": re.compile(
        r"UPDATE stages SET state=\S+, not_before=.* WHERE stages\.id IN \(.*\) AND stages\.state = \S+ AND NOT \("
    ),
    "descendants of a failed stage; not the worker's own stage, and locked by the statement before": re.compile(
        r"UPDATE stages SET state=\S+, error=\S+, finished_at=.* WHERE stages\.id IN \("
    ),
    "checkpoints; their stage was locked under the fence by the first statement": re.compile(
        r"DELETE FROM checkpoints WHERE checkpoints\.stage_id = "
    ),
    "integers of an evaluation; its stage was ended under the fence by the first statement": re.compile(
        r"UPDATE evaluations SET n=\S+, n_correct=\S+ WHERE evaluations\.stage_id = "
    ),
    "the state and event number of a job; a function of its stages, taken under the job's lock": re.compile(
        r"UPDATE jobs SET "
    ),
}
GUARD = re.compile(
    r"(UPDATE stages SET .*|SELECT stages\..* )WHERE stages\.id = \S+ AND stages\.fence = \S+ AND stages\.state = "
)


@contextmanager
def captured(database: Database) -> Iterator[list[str]]:
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.append(" ".join(statement.split()))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


WRITES: dict[str, Callable[[Session, Claim], Any]] = {
    "renew": lambda s, c: stages.renew(s, c.stage_id, c.fence, 60.0, {"done": 1, "total": 2}),
    "succeed": lambda s, c: stages.succeed(
        s, c.stage_id, c.fence, {"n": 1, "n_correct": 1}, {}, [factories.stored("a", "1"), factories.stored("b", "2")]
    ),
    "fail for good": lambda s, c: stages.fail(s, c.stage_id, c.fence, {"message": ""}, final=True, max_failures=3),
    "fail": lambda s, c: stages.fail(s, c.stage_id, c.fence, {"message": ""}, final=False, max_failures=3),
    "release": lambda s, c: stages.release(s, c.stage_id, c.fence),
    "lose": lambda s, c: stages.lose(s, c.stage_id, c.fence, "broken", 5),
    "refuse": lambda s, c: refusals.refuse(
        s, c.stage_id, c.fence, {"cause": "Test", "message": ""}, alive_seconds=35.0, patience=600.0
    ),
    "add_checkpoint": lambda s, c: stages.add_checkpoint(s, c.stage_id, c.fence, factories.stored("c")),
    "write_log": lambda s, c: stages.write_log(s, c.stage_id, c.fence, [(0.0, "line")]),
}


def changes(statements: list[str]) -> list[str]:
    return [statement for statement in statements if statement.startswith(("UPDATE", "DELETE"))]


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_every_change_names_the_fence(database: Database, kind: str, cancelling: bool):
    seen = 0
    for seed, (name, write) in enumerate(WRITES.items()):
        job_id = factories.post(database, factories.body(seeds=[seed]))
        held = factories.claim(database)
        while held.kind != kind:
            factories.succeed(database, held)
            held = factories.claim(database)
        if cancelling:
            with database.write() as session:
                jobs.cancel(session, job_id)
        with captured(database) as statements, database.write() as session:
            write(session, held)
        assert GUARD.match(statements[1 if database.is_sqlite else 0]), f"{name} begins with {statements[0]}"
        for statement in changes(statements):
            seen += 1
            allowed = any(pattern.match(statement) for pattern in ALLOWED.values())
            assert FENCED.search(statement) or allowed, f"{name} changes rows without the fence: {statement}"
        factories.pass_time(database, 1000)
        factories.reap(database)
        factories.pass_time(database, 1000)
        factories.finish(database)
    assert seen > 15, "too little was captured for this to mean anything"


def test_a_write_without_its_fence_would_be_noticed(database: Database):
    with captured(database) as statements, database.write() as session:
        session.execute(stages.update(stages.Stage).where(stages.Stage.id == 1).values(state="succeeded"))
    assert len(changes(statements)) == 1
    assert not FENCED.search(changes(statements)[0])
    assert not any(pattern.match(changes(statements)[0]) for pattern in ALLOWED.values())
