"""Running sums of black-box evaluations, so that a matrix over a million of them reads one row per cell.

A success adds to its cell's row in its own transaction; where it repeats another (store/repeats.py), or a result is
withdrawn, the cell is counted anew. All lock the cell after everything else, so that nobody waits with it for somebody
who waits for it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, bindparam, case, cast, delete, except_, func, insert, select, union
from sqlalchemy.orm import Session, aliased

from store.database import dialect_of, insert_in
from store.models import EVALUATIONS, TALLIES, Evaluation
from store.repeats import repeated_by, repeats_a_finished_one

_E = EVALUATIONS.c
_CORRECT = cast(_E.n_correct, BigInteger)
_OF = (_E.cell, (_E.target_seed == _E.substitute_seed).label("same"), _E.image_limit, _E.n, _E.dataset, _E.device)
_FINISHED = (
    select(
        *_OF, func.min(_E.stage_id).label("first"), func.count().label("evaluations"),
        func.sum(_CORRECT).label("total"), func.sum(_CORRECT * _E.n_correct).label("squares"),
        func.min(_E.n_correct).label("lowest"), func.max(_E.n_correct).label("highest"),
    )
    .where(_E.whitebox.is_(False), _E.n.is_not(None))
    .group_by(*_OF)
)  # fmt: skip
COUNTED = _FINISHED.where(~repeated_by(aliased(Evaluation)))
"""What the rows have to be, by reading the evaluations."""
_NAMES = [column.name for column in COUNTED.selected_columns]
_COUNT = insert(TALLIES).from_select(_NAMES, COUNTED)
_COUNT_CELL = insert(TALLIES).from_select(_NAMES, COUNTED.where(_E.cell == bindparam("of")))
_ALONE = _FINISHED.where(_E.stage_id == bindparam("stage"), ~repeats_a_finished_one())
_CROSSED = select(_E.cell).where(_E.stage_id == bindparam("stage"), _E.whitebox.is_(False))
_LOCK_CELL = select(func.pg_advisory_xact_lock(bindparam("of", type_=BigInteger)))
_FORGET_CELL = delete(TALLIES).where(TALLIES.c.cell == bindparam("of"))
SORT = ("cell", "same", "image_limit", "n")
"""Columns that tell one row from another."""
SUMS = ("evaluations", "total", "squares", "lowest", "highest")
_RIGHT, _KEPT = (select(*(rows.c[name] for name in (*SORT, *SUMS))) for rows in (COUNTED.subquery(), TALLIES))
_WRONG = union(
    select(except_(_RIGHT, _KEPT).subquery().c.cell),
    select(except_(_KEPT, _RIGHT).subquery().c.cell),
)


def add(session: Session, stage_id: int) -> None:
    """Add a finished evaluation to its cell's row; a white-box one has none."""
    cell = session.scalar(_CROSSED, {"stage": stage_id})
    if cell is None:
        return
    _lock(session, cell)
    added: Any = session.execute(_add_in(dialect_of(session)), {"stage": stage_id})
    if not added.rowcount:
        _count_anew(session, cell)


@cache
def _add_in(dialect: str) -> Any:
    adding = insert_in(dialect, TALLIES).from_select(_NAMES, _ALONE)
    before, new = TALLIES.c, adding.excluded
    return adding.execution_options(preserve_rowcount=True).on_conflict_do_update(
        index_elements=list(TALLIES.primary_key),
        set_={
            **{name: before[name] + new[name] for name in ("evaluations", "total", "squares")},
            "lowest": case((new.lowest < before.lowest, new.lowest), else_=before.lowest),
            "highest": case((new.highest > before.highest, new.highest), else_=before.highest),
        },
    )


def recount(session: Session, stage_ids: Sequence[int]) -> None:
    """Count the cells of these evaluations anew."""
    recount_cells(session, session.scalars(select(_E.cell).where(_E.stage_id.in_(stage_ids)).distinct()).all())


def recount_cells(session: Session, cells: Sequence[int]) -> None:
    """Count these cells anew."""
    for cell in sorted(cells):
        _lock(session, cell)
        _count_anew(session, cell)


def _lock(session: Session, cell: int) -> None:
    """Let nobody else touch the cell's rows, those that are still to come among them, before we have committed."""
    if dialect_of(session) == "postgresql":  # SQLite has one writer
        session.execute(_LOCK_CELL, {"of": cell})


def _count_anew(session: Session, cell: int) -> None:
    session.execute(_FORGET_CELL, {"of": cell})
    session.execute(_COUNT_CELL, {"of": cell})


def wrong_cells(session: Session) -> list[int]:
    """Return the cells whose rows are not what their evaluations add up to."""
    return list(session.scalars(_WRONG))


def recount_all(session: Session) -> None:
    """Count every cell, of evaluations that were not recorded one by one."""
    session.execute(delete(TALLIES))
    session.execute(_COUNT)
