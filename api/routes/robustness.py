"""Robustness: the worst case per example over attacks, with intervals over seeds and paired comparisons."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import robustness
from api.errors import RESPONSES, Invalid, QueryText
from api.filters import ScopeQuery
from api.forms import FORMS, Accept, Form, IfNoneMatch, answer
from api.robustness import RobustnessReply
from api.routes.results import cautions_of
from api.service import ServiceDep
from core.errors import SpecError
from core.fields import Pixels
from store import results
from store.labels import apart
from store.results import Axis, Matrix
from store.robustness import bits_of

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)

MAX_EVALUATIONS = 2_000
"""Evaluations whose bits one answer reads."""


class RobustnessQuery(ScopeQuery):
    """Which models and attacks are shown; without filters the newest comparable group."""

    reference: QueryText | None = None
    """Label, as the table shows it or not, or recipe of the model that the others are paired with; left out, the first
    one."""
    eps: Pixels | None = None
    """Worst case over the attacks within this radius, pixel units; left out, within the dataset's own."""
    format: Form | None = None
    """Form of the answer; left out, what Accept asks for, else JSON."""


@router.get("/robustness", response_model=RobustnessReply, responses=FORMS)
def robust(
    query: Annotated[RobustnessQuery, Query()],
    service: ServiceDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Answer with each model's worst case over the white-box attacks on it, example by example, and pairs of models."""
    with service.database.read() as session:
        query.require(session)
        found = results.whitebox(session, query.filters())
        bits = bits_of(session, _evaluations(found))
        cautions = cautions_of(session, found)
    reference = _reference(found, query.reference)
    reply = robustness.reply(found, reference, bits, service.store.get, cautions, query.eps)
    return answer(reply, robustness.WRITERS, query.format, accept, if_none_match)


def _evaluations(found: Matrix) -> list[str]:
    """Return the keys of the evaluations behind the table.

    Raises:
        Invalid: there are more than one answer reads.
    """
    number = sum(cell.sums.seeds for cell in found.cells.values())
    if number > MAX_EVALUATIONS:
        raise Invalid(
            f"this table is over {number} evaluations, more than {MAX_EVALUATIONS}; narrow it with job=, label=, seed="
        )
    return [count.evaluation for cell in found.cells.values() for count in cell.counts]


def _reference(found: Matrix, wanted: str | None) -> Axis | None:
    if wanted is None:
        return found.columns[0] if found.columns else None
    chosen = [axis for axis in found.columns if wanted in _names(axis)]
    if len(chosen) != 1:
        labels = [axis.label for axis in found.columns]
        number = "more than one" if chosen else "no"
        raise SpecError(f"{number} model of this table is called {wanted!r}", ("reference",), labels)
    return chosen[0]


def _names(axis: Axis) -> tuple[str, ...]:
    """Return what the model is called: its label with and without the start of its key, and the whole key."""
    recipe = str(axis.recipe)
    label = axis.label.removesuffix(apart("", recipe))
    return label, apart(label, recipe), recipe
