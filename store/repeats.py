"""Repeats: one target shown one set of examples again, crafted or evaluated with other threads or by a later version.

They measure the same thing and are no further seed: the newest that has finished counts, the others do not.
"""

from typing import Any

from sqlalchemy import and_, exists, or_
from sqlalchemy.orm import aliased

from store.models import Evaluation


def repeated_by(again: type[Evaluation], *conditions: Any) -> Any:
    """Return the condition that another evaluation counts instead: `again`, an alias, where those conditions hold."""
    mine, newer = Evaluation.n, again.stage_id > Evaluation.stage_id
    first = or_(
        and_(again.n.is_not(None), or_(mine.is_(None), newer)),
        and_(again.n.is_(None), mine.is_(None), newer),
    )
    return exists().where(*_alike(again), first, *conditions)


def repeats_a_finished_one() -> Any:
    """Return the condition that another evaluation, newer or older, has measured the same thing."""
    again = aliased(Evaluation)
    return exists().where(*_alike(again), again.stage_id != Evaluation.stage_id, again.n.is_not(None))


def _alike(again: type[Evaluation]) -> list[Any]:
    """Return the conditions that both are of one cell and of the same models: a recipe and a seed are one model."""
    e = Evaluation
    return [
        again.dataset == e.dataset,
        again.device == e.device,
        again.image_limit == e.image_limit,
        again.whitebox == e.whitebox,
        again.cell == e.cell,
        again.target_seed == e.target_seed,
        again.substitute_seed.is_not_distinct_from(e.substitute_seed),
    ]
