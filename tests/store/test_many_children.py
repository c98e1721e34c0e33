"""More children of one stage than PostgreSQL takes parameters in a statement: 65,535."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from store import lost
from store.database import Database
from store.models import Stage
from store.stages import Claim
from tests import factories, servers
from tests.store.conftest import sound_after

CHILDREN = 70_000
FIRST = 1_000
MADE = (
    "SET LOCAL session_replication_role = replica",  # which checks no foreign keys
    """INSERT INTO stages (id, key, kind, title, spec, dataset, queue, state, priority, flop, fence, not_before,
           announced_at, cancel_requested, failures, losses, device_seconds, created_at)
       SELECT :first + n, lpad(n::text, 64, '0'), 'surface', 'child', '{}', 'mnist-mini', 'cpu', 'blocked', 0, 1, 0, 0,
           0, false, 0, 0, 0, 0
       FROM generate_series(1, :children) n""",
    "INSERT INTO stage_parents (stage_id, parent_id) SELECT id, :parent FROM stages WHERE id > :first",
    """INSERT INTO job_stages (job_id, stage_id, position, reused)
       SELECT :job, id, id - :first, false FROM stages WHERE id > :first""",
    "UPDATE jobs SET unfinished = unfinished + :children",
    "ANALYZE",
)


@pytest.fixture(scope="module")
def template(
    postgres_server: servers.PostgresServer | servers.NamedPostgres, postgres_template: str
) -> Iterator[tuple[str, Claim]]:
    """A database in which a training with very many children runs, for one job."""
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    with factories.opened(postgres_server.create_database(name, template=postgres_template)) as database:
        job_id = factories.post(database, factories.trainings())
        held = factories.claim(database)
        values = {"first": FIRST, "children": CHILDREN, "parent": held.stage_id, "job": job_id}
        with database.write() as session:
            for statement in MADE:
                named = {name: value for name, value in values.items() if f":{name}" in statement}
                session.execute(text(statement), named)
    yield name, held
    postgres_server.drop_database(name)


@pytest.fixture
def parent(template: tuple[str, Claim]) -> Claim:
    return template[1]


@pytest.fixture
def database(
    postgres_server: servers.PostgresServer | servers.NamedPostgres, template: tuple[str, Claim]
) -> Iterator[Database]:
    """A copy of it, sound in the end."""
    name = f"gauntlet_{uuid.uuid4().hex[:12]}"
    with factories.opened(postgres_server.create_database(name, template=template[0])) as database:
        yield from sound_after(database)
    postgres_server.drop_database(name)


def states(database: Database) -> dict[str, int]:
    """Return how many children are in which state."""
    with database.read() as session:
        query = select(Stage.state, func.count()).where(Stage.id > FIRST).group_by(Stage.state)
        return {row[0]: row[1] for row in session.execute(query)}


@pytest.mark.parametrize("how", ["fails", "is lost"])
def test_they_end_with_their_parent(database: Database, parent: Claim, how: str) -> None:
    if how == "fails":
        factories.fail(database, parent)
    else:
        factories.expire(database, parent)
        factories.reap(database, max_losses=1)
    assert states(database) == {"cancelled": CHILDREN}
    assert factories.job(database, 1).state == "failed"


@pytest.mark.slow
def test_they_wake_and_wait_again(database: Database, parent: Claim) -> None:
    """The parent's result is lost and it runs again, to other bytes."""
    assert len(factories.succeed(database, parent)) == CHILDREN
    assert states(database) == {"ready": CHILDREN}
    sha256 = factories.result(parent)[1][0].sha256
    with database.write() as session:
        assert len(lost.withdraw_artifact(session, sha256, "its bytes are lost")) == 1
    assert states(database) == {"blocked": CHILDREN}


def test_a_statement_that_cannot_be_sent_is_no_outage(unchecked_postgres: Database) -> None:
    """Waiting for the database does not help; what its server ends does pass."""
    with unchecked_postgres.read() as session, pytest.raises(ProgrammingError, match="65535"):
        session.execute(select(Stage.id).where(Stage.id.in_(range(CHILDREN))))
    ended: Any = text("SELECT pg_terminate_backend(pg_backend_pid())")
    with unchecked_postgres.read() as session, pytest.raises(OperationalError):
        session.execute(ended)
