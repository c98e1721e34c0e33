"""What lists a rare kind, a training or a picture, does not read the stages of all the other kinds."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from core.stages.train import Train
from store import figures, trained
from store.database import Database
from store.figures import FigureFilters
from store.jobs import TrainedModels
from store.models import Stage
from tests import factories


def like(session: Session) -> Any:
    (train,) = (stage.spec for stage in factories.planned(factories.trainings()).stages.values())
    assert isinstance(train, Train)
    other = train.model_copy(update={"execution": train.execution.model_copy(update={"threads": 7})})
    return TrainedModels(session).like(other)


ASKED: dict[str, tuple[str, Callable[[Session], Any]]] = {
    "figures": ("ix_stages_draw", lambda session: figures.figures(session, FigureFilters(), 50)),
    "models": ("ix_stages_train", lambda session: trained.newest(session, before=None, limit=50, dataset=None)),
    "models of a dataset": (
        "ix_stages_train",
        lambda session: trained.newest(session, before=None, limit=50, dataset="mnist"),
    ),
    "a model like it": ("ix_stages_train", like),
}


def crowd(session: Session) -> None:
    """Add thousands of finished evaluations, and statistics that tell of them."""
    columns = [column.name for column in Stage.__table__.columns if column.name not in {"id", "key"}]
    session.execute(
        text(f"""
        WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 1000)
        INSERT INTO stages (key, {", ".join(columns)})
        SELECT substr(key, 1, 58) || '-' || CAST(i AS VARCHAR), {", ".join(columns)}
        FROM stages, numbers WHERE kind = 'evaluate'""")
    )
    session.execute(text("ANALYZE stages"))


def explained(session: Session, ask: Callable[[Session], Any]) -> str:
    """Return how the database answers what is asked."""
    connection = session.connection()
    said: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        said.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    ask(session)
    event.remove(connection, "before_cursor_execute", note)
    how = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    rows = [row for statement, values in said for row in connection.exec_driver_sql(how + statement, values)]
    return "\n".join(str(row) for row in rows)


@pytest.mark.parametrize("name", ASKED)
def test_a_rare_kind_is_found_by_its_index(unchecked: Database, name: str):
    index, ask = ASKED[name]
    factories.post(unchecked, factories.transfer())
    factories.finish(unchecked)
    with unchecked.write() as session:
        crowd(session)
    with unchecked.read() as session:
        assert index in explained(session, ask)


def test_a_model_like_it_was_trained_under_another_execution(database: Database):
    factories.post(database, factories.trainings([0], kind="fgsm_adv"))
    factories.post(database, factories.trainings([1]))
    factories.finish(database)
    with database.read() as session:
        assert like(session) is None, "another defense, or another seed, is not like it"
    factories.post(database, factories.trainings([0]))
    factories.finish(database)
    with database.read() as session:
        found = like(session)
    assert found is not None
    assert (found.seed, found.execution.threads) == (0, 1)
