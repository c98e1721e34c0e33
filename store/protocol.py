"""What stored jobs and tables asked for, as `core.protocol` compares it with the paper's protocol."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.attacks import ATTACK
from core.datasets import DATASETS
from core.figures import FIGURE
from core.protocol import Asked
from core.stages.train import Train
from store import jobs
from store.models import Stage
from store.results import Matrix

UNREAD = "this service lacks a kind of model, figure or dataset that is in here: what is known against it is left out"
"""Caution of results whose specs this code, with the packages that are installed, cannot read."""


def asked_of(
    session: Session, job_id: int, rows: Sequence[Stage], models: Sequence[Mapping[str, Any]]
) -> Asked | None:  # fmt: skip
    """Return what the job of these stages and models asked for; None where this code cannot read it any more."""
    try:
        return _asked_of(session, job_id, rows, models) if rows and rows[0].dataset in DATASETS else None
    except ValidationError:
        return None


def _asked_of(session: Session, job_id: int, rows: Sequence[Stage], models: Sequence[Mapping[str, Any]]) -> Asked:
    own = {row.key for row in rows}
    recipes: dict[str, tuple[str, Train]] = {}
    for model in models:
        if model["key"] in own and model["recipe"] not in recipes:
            recipes[model["recipe"]] = model["label"], _train(json.dumps(model["spec"]))
    drawn = [row.id for row in rows if row.kind == "draw"]
    return Asked(
        rows[0].dataset,
        list(recipes.values()),
        jobs.images_of(session, job_id) if any(row.kind == "evaluate" for row in rows) else None,
        [ATTACK.validate_python(attack) for attack in jobs.attacks_of(session, job_id)],
        [FIGURE.validate_python(spec["figure"]) for spec in jobs.specs(session, drawn)] if drawn else [],
    )


@lru_cache(maxsize=200)
def _train(spec: str) -> Train:
    """Return the stage of that JSON; the models of a job are the same every time it is asked for. 4 KB each."""
    return Train.model_validate_json(spec)


def asked_of_matrix(session: Session, found: Matrix) -> Asked | None:
    """Return what the cells of a matrix asked for; None where it has none, or this code cannot read them any more."""
    if found.scope is None or found.scope.dataset not in DATASETS:
        return None
    names = {axis.recipe: axis.label for axis in reversed([*found.columns, *found.rows]) if axis.recipe}
    first = select(func.min(Stage.id)).where(Stage.recipe.in_(list(names))).group_by(Stage.recipe)
    rows = session.execute(select(Stage.recipe, Stage.spec).where(Stage.id.in_(first)))
    try:
        trains = {str(recipe): _train(json.dumps(spec)) for recipe, spec in rows}
        attacks = [ATTACK.validate_python(axis.attack) for axis in found.rows if axis.attack]
    except ValidationError:
        return None
    models = [(label, trains[recipe]) for recipe, label in reversed(names.items()) if recipe in trains]
    return Asked(found.scope.dataset, models, found.scope.image_limit, attacks)
