"""Running sums are what the evaluations add up to, whoever finishes or is withdrawn at the same time."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from store import lost, migrate, results, tallies
from store.admin import doctor, repair
from store.artifacts import FolderStore
from store.database import Database
from store.invariants import violations
from store.models import Evaluation, JobModel, Stage, Tally
from store.results import Filters, Matrix
from tests import factories
from tests.factories import FGSM, body, claim, finish, post, succeed, try_claim

CROSSED: dict[str, Any] = {"substitutes": [{"kind": "fgsm_adv"}], "transfer": [FGSM], "attacks": [{"kind": "none"}]}


def numbers(matrix: Matrix) -> dict[Any, Any]:
    return {
        where: (cell.sums.evaluations, cell.sums.seeds, cell.n, cell.n_correct, cell.interval, cell.spread, cell.reason)
        for where, cell in matrix.cells.items()
    }


def blackbox(database: Database) -> Matrix:
    with database.read() as session:
        assert violations(session) == []
        return results.blackbox(session, Filters())


def test_a_table_of_sums_is_that_of_the_evaluations(database: Database, monkeypatch: pytest.MonkeyPatch):
    """With some seeds finished, some on their way and some withdrawn; listed and not."""
    choose = random.Random(3)
    post(database, body(seeds=[0, 1, 2, 3], **CROSSED))
    finish(database, lambda _: choose.randrange(11))
    post(database, body(seeds=[4, 5], **CROSSED))
    for _ in range(7):
        succeed(database, claim(database), choose.randrange(11))
    done = select(Evaluation.stage_id).where(Evaluation.n.is_not(None), Evaluation.whitebox.is_(False))
    with database.write() as session:
        lost.withdraw(session, session.scalars(done.order_by(Evaluation.stage_id)).all()[1:3], "altered")
    for listed in (results.LISTED, 0):
        monkeypatch.setattr(results, "LISTED", listed)
        quick = numbers(blackbox(database))
        with monkeypatch.context() as patch:
            patch.setattr(results, "_tallied", lambda filters: False)
            assert numbers(blackbox(database)) == quick
        assert len(quick) > 0


def test_what_was_counted_before_is_counted_again(database: Database):
    post(database, body(seeds=[0, 1], **CROSSED))
    finish(database)
    with database.write() as session:
        before = session.execute(select(Tally.__table__).order_by(Tally.cell)).all()
        tallies.recount_all(session)
        assert session.execute(select(Tally.__table__).order_by(Tally.cell)).all() == before != []


def test_many_at_once_on_one_cell(postgres: Database):
    """Workers that finish its seeds while results of it are withdrawn, which run again."""
    post(postgres, body(seeds=list(range(24)), **CROSSED))
    while (one := try_claim(postgres)) is not None and one.kind != "evaluate":
        succeed(postgres, one)
    assert one is not None
    succeed(postgres, one)

    def work(number: int) -> None:
        choose = random.Random(number)
        while (claimed := try_claim(postgres, f"w{number}")) is not None:
            succeed(postgres, claimed, choose.randrange(11))

    def lose(_: int) -> None:
        for _ in range(8):
            with postgres.write() as session:
                crossed = select(Evaluation.stage_id).where(Evaluation.n.is_not(None), Evaluation.whitebox.is_(False))
                found = session.scalars(crossed.order_by(func.random()).limit(2)).all()
                lost.withdraw(session, sorted(found), "altered")

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(task, number) for number, task in enumerate([work, work, work, work, lose])]:
            done.result(60)
    work(9)
    with postgres.read() as session:
        assert violations(session) == []
        assert session.scalars(select(Stage.state).distinct()).all() == ["succeeded"]
        assert session.scalar(select(func.sum(Tally.evaluations))) == 24
    assert factories.stages_by_title(postgres)


def crossed(database: Database) -> list[int]:
    with database.read() as session:
        done = (Evaluation.n.is_not(None), Evaluation.whitebox.is_(False))
        return list(session.scalars(select(Evaluation.stage_id).where(*done).order_by(Evaluation.stage_id)))


def withdraw(database: Database, stage_id: int) -> None:
    with database.write() as session:
        lost.withdraw(session, [stage_id], "altered")


def waits_for_a_withdrawal(database: Database, stage_id: int, other: Callable[[], object]) -> None:
    """Begin `other` amid a withdrawal: it must end after that has been committed, and not before."""
    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            lost.withdraw(session, [stage_id], "altered")
            begun = pool.submit(other)
            with pytest.raises(TimeoutError):
                begun.result(0.5)
        begun.result(10)


def paired(seeds: list[int], pairing: str = "same") -> dict[str, Any]:
    return body(seeds=seeds, substitute_seeds=seeds, pairing=pairing, **CROSSED)


@pytest.mark.parametrize("seeds", [[0, 1], [0, 1, 2]])
def test_two_withdrawn_of_one_cell_at_once(postgres: Database, seeds: list[int]):
    """The second recount begins before the first has committed what it counts."""
    post(postgres, paired(seeds))
    finish(postgres)
    first, second, *_ = crossed(postgres)
    waits_for_a_withdrawal(postgres, first, lambda: withdraw(postgres, second))
    assert len(crossed(postgres)) == len(seeds) - 2
    blackbox(postgres)
    post(postgres, paired(seeds))
    finish(postgres)
    assert [cell.sums.evaluations for cell in blackbox(postgres).cells.values()] == [len(seeds)]


def test_the_first_of_its_sort_ends_amid_a_recount(postgres: Database):
    """Its row is not there yet when the cell's are counted, so that no lock on a row would make it wait."""
    post(postgres, paired([0, 1]))
    finish(postgres)
    (old, _) = crossed(postgres)
    post(postgres, paired([0, 1], "independent"))
    while (one := claim(postgres)).kind != "evaluate":
        succeed(postgres, one)
    waits_for_a_withdrawal(postgres, old, lambda: succeed(postgres, one))
    assert one.stage_id in crossed(postgres)
    with postgres.read() as session:
        assert violations(session) == []
        assert {row.same: row.evaluations for row in session.scalars(select(Tally))} == {False: 1, True: 1}


def tables(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[dict[Any, Any]]:
    """Return what both matrices hold, which is the same whether sums or evaluations are read."""
    with database.read() as session:
        assert violations(session) == []
        found = [numbers(table(session, Filters())) for table in (results.blackbox, results.whitebox)]
        with monkeypatch.context() as patch:
            patch.setattr(results, "_tallied", lambda filters: False)
            assert [numbers(table(session, Filters())) for table in (results.blackbox, results.whitebox)] == found
    return found


def repeat(database: Database) -> None:
    """Ask for every evaluation again, with other threads."""
    with database.read() as session:
        models = session.execute(select(JobModel.role, Stage.key).join(Stage, Stage.id == JobModel.stage_id)).all()
    named = {role: [{"key": key} for was, key in models if was == role] for role in ("target", "substitute")}
    again = {
        "kind": "evaluate", "limit": 10, "pairing": "same", "attacks": [{"kind": "none"}], "transfer": [FGSM],
        "targets": named["target"], "substitutes": named["substitute"],
    }  # fmt: skip
    post(database, again, execution=factories.EXECUTION.model_copy(update={"threads": 7}))


def test_a_repeated_evaluation_is_no_further_seed(database: Database, monkeypatch: pytest.MonkeyPatch):
    """The same models under the same attack with other threads: the newest that has finished counts, once."""
    post(database, body(seeds=[0, 1], **CROSSED))
    finish(database, lambda _: 4)
    before = tables(database, monkeypatch)
    repeat(database)
    assert tables(database, monkeypatch) == before, "one that is still to come leaves nothing open"
    finish(database, lambda _: 7)
    after = tables(database, monkeypatch)
    for old, new in zip(before, after, strict=True):
        assert [cell[:3] for cell in new.values()] == [cell[:3] for cell in old.values()]
        assert {cell[3] for cell in new.values()} == {14} != {cell[3] for cell in old.values()}
    with database.write() as session:
        lost.withdraw(session, session.scalars(select(Evaluation.stage_id).where(Evaluation.n_correct == 7)).all(), "")
    assert tables(database, monkeypatch) == before, "what has been repeated still counts where that is lost"


def test_a_database_that_counted_repeats_counts_anew_when_it_is_migrated(database: Database):
    post(database, body(seeds=[0, 1], **CROSSED))
    finish(database)
    repeat(database)
    finish(database)
    url = database.engine.url.render_as_string(hide_password=False)
    database.engine.dispose()
    migrate.downgrade(url, "0004")
    with database.read() as session:
        assert session.scalars(select(Tally.evaluations)).all() == [4]
    database.engine.dispose()
    migrate.upgrade(url)
    blackbox(database)


WRONG = {
    "too many": lambda row: update(Tally).values(evaluations=Tally.evaluations + 1),
    "missing": lambda row: delete(Tally),
    "of nothing": lambda row: insert(Tally).values({**row, "cell": row["cell"] // 2}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_doctor_counts_anew_what_is_wrong(database: Database, tmp_path: Path, wrong: str):
    store = FolderStore(tmp_path)
    post(database, paired([0, 1]))
    for done in finish(database):
        store.put(done.key.encode())
    before = factories.everything(database)
    with database.write() as session:
        (row,) = session.execute(select(Tally.__table__)).mappings()
        session.execute(WRONG[wrong](row))
    (said,) = doctor(database, store)
    (done,) = repair(database, store)
    cell = row["cell"] // 2 if wrong == "of nothing" else row["cell"]
    assert said.startswith(f"the tally of cell {cell}, ")
    assert done == f"the tally of cell {cell} was wrong and is counted anew"
    assert factories.everything(database) == before
    assert repair(database, store) == doctor(database, store) == []
