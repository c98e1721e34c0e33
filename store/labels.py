"""What models are called: by their label, by it with the start of their recipe's key behind it, or by that key."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from store.models import JobModel

DIGITS = 6
_APART = re.compile(rf"(.+) \[([0-9a-f]{{{DIGITS}}})\]")


def told_apart(names: Mapping[str, str], recipes: Iterable[str]) -> dict[str, str]:
    """Return recipe -> name of those recipes, in the names' order, with the start of a key where several share it."""
    shown = set(recipes)
    named = {recipe: label for recipe, label in names.items() if recipe in shown}
    taken = Counter(named.values())
    return {recipe: apart(label, recipe) if taken[label] > 1 else label for recipe, label in named.items()}


def apart(label: str, recipe: str) -> str:
    """Return what a model is called where others have its label."""
    return f"{label} [{recipe[:DIGITS]}]"


def called(name: str) -> Any:
    """Return the condition on a job's model to be called so."""
    found = _APART.fullmatch(name)
    longer = [and_(JobModel.label == found[1], JobModel.recipe.startswith(found[2]))] if found else []
    return or_(JobModel.label == name, JobModel.recipe == name, *longer)


def has_label(session: Session, name: str) -> bool:
    """Return whether a model of any job is called so."""
    return session.scalar(select(JobModel.job_id).where(called(name)).limit(1)) is not None


def labels(session: Session, limit: int) -> list[str]:
    """Return names of models in tables, in order, `limit` at most."""
    return list(session.scalars(select(JobModel.label).distinct().order_by(JobModel.label).limit(limit)))
