"""What trainings cost, and their curves."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api import costs as views
from api.costs import CostTable, CurvesReply
from api.errors import RESPONSES, Invalid, NotFound, QueryText
from api.filters import require_job, require_suite
from api.service import ServiceDep
from core.jobs import Key
from store import costs, stages

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)
MAX_CURVES = 100


class TrainingQuery(BaseModel):
    """Which trainings are shown."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    suite: QueryText | None = None
    """Only models of jobs posted as this suite."""
    job: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """Only models of this job."""


class CostQuery(TrainingQuery):
    """Which trainings are compared."""

    device: Literal["cpu", "cuda"] | None = None
    """Device class."""


class CurvesQuery(TrainingQuery):
    """Which models' curves are shown: those of a suite, of a job, or named ones."""

    model: Annotated[list[Key], Field(max_length=MAX_CURVES)] = []
    """Keys of train stages; may be repeated."""


@router.get("/cost")
def cost(query: Annotated[CostQuery, Query()], service: ServiceDep) -> CostTable:
    """Answer with passes and measured time per example of each training, and ratios to natural training, of one run."""
    with service.database.read() as session:
        require_job(session, query.job)
        require_suite(session, query.suite)
        found = costs.trainings(session, suite=query.suite, job=query.job, device=query.device)
    return views.cost_table(costs.runs(found))


@router.get("/curves")
def curves(query: Annotated[CurvesQuery, Query()], service: ServiceDep) -> CurvesReply:
    """Answer with the training curves of models: losses and accuracy against iterations."""
    with service.database.read() as session:
        require_job(session, query.job)
        require_suite(session, query.suite)
        for key in query.model:
            stage = stages.by_key(session, key)
            if stage is None or stage.kind != "train":
                raise NotFound(f"there is no model {key}; GET /models lists them")
        found = costs.trainings(session, suite=query.suite, job=query.job, keys=query.model)
    if len(found) > MAX_CURVES:
        raise Invalid(f"these are {len(found)} models, more than {MAX_CURVES}; narrow with model=, job= or suite=")
    return views.curves(found, service.store.get)
