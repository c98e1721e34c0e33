"""The paper's tables, published beside measured."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api import paper
from api.errors import RESPONSES, NotFound, QueryText
from api.forms import FORMS, Accept, Form, IfNoneMatch, answer
from api.paper import PaperReply
from api.service import ServiceDep
from api.terminal import PAPER_WRITERS
from core.errors import SpecError
from core.execution import Execution
from core.jobs import DatasetName
from core.paper import SUITES, Source, fits, of_job, of_suite, standing
from core.suites import suites
from store import jobs

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)


class PaperQuery(BaseModel):
    """Which of our results stand beside the published ones."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    suite: QueryText | None = None
    """The suite whose cells are shown; left out, the one at the paper's own protocol."""
    job: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """The job whose cells are shown. Give this or `suite`."""
    dataset: DatasetName | None = None
    """What the suite ran on, where that is not its own dataset; the answer says it among the reductions."""
    device: Literal["cpu", "cuda"] | None = None
    """Device class; left out, the one with most cells."""
    execution: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")] | None = None
    """Key of one execution, as `others` lists them; left out, the one with most cells."""
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
    device = query.device or ("cuda" if service.settings.device == "cuda" else "cpu")
    fallback = Execution.on(device, service.settings.cpu_threads)
    with service.database.read() as session:
        source = _source(session, table, query)
        reply = paper.reply(session, table, source, fallback, device=query.device, execution=query.execution)
    _require_what_was_asked(query, reply)
    return answer(reply, PAPER_WRITERS, query.format, accept, if_none_match)


def _source(session: Session, table: int, query: PaperQuery) -> Source:
    """Return whose cells are asked for.

    Raises:
        NotFound: there is no such job.
        SpecError: nothing of it stands for the table; names the suites that have something.
    """
    if query.job is not None:
        return _job(session, table, query, query.job)
    suite = SUITES[table] if query.suite is None else query.suite
    allowed = [name for name in suites() if fits(table, name)]
    if suite not in suites():
        said = f"the suite {suite!r} does not exist; for table {table}: {', '.join(allowed)}"
        raise SpecError(said, ("suite",), allowed)
    source = of_suite(suite, query.dataset)
    try:
        standing(table, source, Execution())
    except SpecError as error:
        field = "suite" if suite not in allowed else "dataset"
        said = f"{error}; for table {table}: {', '.join(allowed)}" if field == "suite" else str(error)
        raise SpecError(said, (field,), allowed if field == "suite" else None) from None
    return source


def _job(session: Session, table: int, query: PaperQuery, number: int) -> Source:
    if query.suite is not None or query.dataset is not None:
        field = "suite" if query.suite is not None else "dataset"
        raise SpecError(f"a job has a {field} of its own; give job or {field}, not both", (field,))
    job = jobs.by_id(session, number)
    if job is None:
        raise NotFound(f"there is no job {number}")
    source = of_job(number, job.suite, job.spec)
    try:
        standing(table, source, Execution())
    except SpecError as error:
        raise SpecError(str(error), ("job",)) from None
    return source


def _require_what_was_asked(query: PaperQuery, reply: PaperReply) -> None:
    """Return where the table is of the execution that was asked for; else nothing here was executed so."""
    if query.execution not in (None, reply.execution_key):
        raise SpecError("nothing of this was executed so; `others` of the table lists the executions", ("execution",))
