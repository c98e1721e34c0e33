"""What trainings cost, and their curves."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from api import costs as views
from api.costs import CostTable, CurvesReply
from api.errors import RESPONSES, Invalid
from api.filters import JobQuery, require_models
from api.forms import FORMS, Accept, Form, IfNoneMatch, answer, json_answer
from api.service import ServiceDep
from core.jobs import Key
from store import costs

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)
MAX_CURVES = 100
MAX_TRAININGS = 2_000
"""Trainings that one table of costs is of."""


class CostQuery(JobQuery):
    """Which trainings are compared."""

    device: Literal["cpu", "cuda"] | None = None
    """Device class."""
    format: Form | None = None
    """Form of the answer; left out, what Accept asks for, else JSON."""


class CurvesQuery(JobQuery):
    """Which models' curves are shown: those of a suite, of a job, or named ones."""

    model: list[Key] = Field(default_factory=list[Key], max_length=MAX_CURVES)
    """Keys of train stages; may be repeated."""


@router.get("/cost", response_model=CostTable, responses=FORMS)
def cost(
    query: Annotated[CostQuery, Query()],
    service: ServiceDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Answer with passes and measured time per example of each training, and ratios to natural training, of one run."""
    with service.database.read() as session:
        query.require(session)
        found = costs.trainings(session, most=MAX_TRAININGS, suite=query.suite, job=query.job, device=query.device)
    if len(found) > MAX_TRAININGS:
        raise Invalid(f"these are more than {MAX_TRAININGS} trainings; narrow with job=, suite= or device=")
    return answer(views.cost_table(costs.runs(found)), views.WRITERS, query.format, accept, if_none_match)


@router.get("/curves", response_model=CurvesReply)
def curves(query: Annotated[CurvesQuery, Query()], service: ServiceDep) -> Response:
    """Answer with the training curves of models: losses and accuracy against iterations."""
    with service.database.read() as session:
        query.require(session)
        require_models(session, query.model)
        found = costs.trainings(session, most=MAX_CURVES, suite=query.suite, job=query.job, keys=query.model)
    if len(found) > MAX_CURVES:
        raise Invalid(f"these are more than {MAX_CURVES} models; narrow with model=, job= or suite=")
    return json_answer(views.curves(found, service.store.get))
