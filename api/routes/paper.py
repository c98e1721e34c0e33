"""The paper's tables, published beside measured."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict

from api import exports, paper
from api.errors import RESPONSES, QueryText
from api.forms import FORMS, Accept, Form, IfNoneMatch, answer
from api.paper import PaperReply
from api.service import ServiceDep
from core.errors import SpecError
from core.execution import Execution
from core.paper import SUITES, fits
from core.suites import suites

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)


class PaperQuery(BaseModel):
    """Which of our results stand beside the published ones."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    suite: QueryText | None = None
    """The suite whose cells are shown; left out, the one at the paper's own protocol."""
    device: Literal["cpu", "cuda"] | None = None
    """Device class; left out, the one with most cells."""
    format: Form | None = None
    """Form of the answer; left out, what Accept asks for, else JSON."""


@router.get("/paper/{table}", response_model=PaperReply, responses=FORMS)
def paper_table(
    table: Annotated[int, Path(ge=1, le=3, description="Number of the table in the paper.")],
    query: Annotated[PaperQuery, Query()],
    service: ServiceDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Answer with Table 1, 2 or 3 of the e2SAD paper: published cells, ours, and whether chance explains the gap."""
    suite = query.suite or SUITES[table]
    allowed = [name for name in suites() if fits(table, name)]
    if suite not in allowed:
        said = "is on other images" if suite in suites() else "does not exist"
        raise SpecError(f"the suite {suite!r} {said}; for table {table}: {', '.join(allowed)}", ("suite",), allowed)
    device = query.device or ("cuda" if service.settings.device == "cuda" else "cpu")
    fallback = Execution.on(device, service.settings.cpu_threads)
    with service.database.read() as session:
        reply = paper.reply(session, table, suite, query.device, fallback)
    return answer(reply, exports.PAPER_WRITERS, query.format, accept, if_none_match)
