"""Jobs: post, look at, list, cancel."""

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, cast

from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from api import views
from api.errors import (
    RESPONSES,
    ApiError,
    Conflict,
    InProgress,
    Invalid,
    NotFound,
    QueryText,
    TooLarge,
    of_spec_error,
    of_validation,
)
from api.filters import require_suite
from api.forms import json_answer
from api.schemas import JobPage, JobReply, ModelLabel, PlanReply, PlanStage
from api.service import Service, ServiceDep
from core import protocol
from core.canonical import digest
from core.errors import SpecError
from core.execution import Execution
from core.jobs import JOB, Job, require_no_idle
from core.plan import Plan, plan
from core.suites import expand_suite, inherited, suites
from core.understood import understood
from store import idempotency, jobs, waiting, workers
from store.models import JOB_ENDED, JobState, Stage, StageState
from store.protocol import UNREAD, asked_of

router = APIRouter(tags=["jobs"], responses=RESPONSES)

JobId = Annotated[int, Path(ge=1, le=2**62, description="The job's number.")]
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "examples": {
                    "a defense": {"value": {"defense": {"kind": "e2sad"}}},
                    "a suite": {"value": {"suite": "quickstart"}},
                },
            }
        },
    }
}


MAX_BODY = 256 * 1024
PLANNED: dict[int | str, dict[str, Any]] = {
    200: {"model": PlanReply, "description": "dry_run: what the job would take; nothing was stored."}
}


@router.post("/jobs", status_code=201, response_model=JobReply, responses=PLANNED, openapi_extra=BODY)
async def post_job(
    request: Request,
    service: ServiceDep,
    dry_run: Annotated[bool, Query(description="Answer with the plan and store nothing.")] = False,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1)] = None,
) -> Response:
    """Make a job, or with `dry_run=1` say what it would take.

    A defense spec is enough; everything else has a default. Stages that any earlier job has computed are shared.
    """
    from starlette.concurrency import run_in_threadpool

    body = _json(await _read(request))
    return await run_in_threadpool(_post, service, body, dry_run, idempotency_key)


async def _read(request: Request) -> bytes:
    """Return the body; one that is too large is refused before it is read to its end."""
    refusal = TooLarge(f"the body is larger than {MAX_BODY} bytes; split the job")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise refusal
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise refusal
    return bytes(raw)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body cannot be read as JSON: {error}") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object; JSON leaves open what a name given twice means, so nobody can know what was wanted."""
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise ValueError(f"the field {double!r} is given twice in one object")
    return found


def _post(service: Service, body: Any, dry_run: bool, idempotency_key: str | None) -> Response:
    try:
        suite, job = parse_job(body)
        if dry_run:
            with service.database.read() as session:
                reply = _plan_reply(service, session, job, _planned(service, session, job))
            return json_answer(reply)
        return _once(service, suite, job, idempotency_key, digest(body))
    except SpecError as error:
        raise _with_origins(of_spec_error(error), body) from None
    except Invalid as error:
        raise _with_origins(error, body) from None


def _with_origins(error: ApiError, body: Any) -> ApiError:
    """Return the error; fields that the request does not give but its suite does say so."""
    suite = body.get("suite") if isinstance(body, dict) else None
    if not isinstance(suite, str) or suite not in suites():
        return error
    for field in error.body.fields:
        path = [int(part) if part.isdecimal() else part for part in field.path.split(".")]
        if inherited(path, body):
            field.message += f" (this field comes from the suite {suite})"
            error.body.message += f" ({field.path} comes from the suite {suite})"
    return error


def _once(
    service: Service, suite: str | None, job: Job, idempotency_key: str | None, request_sha256: str,
    execution: Execution | None = None,
) -> Response:  # fmt: skip
    """Return the answer to a request for a job: with an Idempotency-Key it makes one, however often it comes."""
    if idempotency_key is None:
        return _created(_shown(service, make_job(service, suite, job, execution=execution)))
    replay = _replay(service, idempotency_key, request_sha256)
    if replay is not None:
        return replay
    owner = uuid.uuid4().hex
    if not _take(service, idempotency_key, request_sha256, owner):
        replay = _replay(service, idempotency_key, request_sha256)  # of the request that was faster
        if replay is None:
            raise _in_progress_error()
        return replay
    try:
        job_id = make_job(service, suite, job, (idempotency_key, owner), execution)
    except Exception:
        _let_go(service, idempotency_key, owner)
        raise
    return _answer(service, idempotency_key, job_id)


def _take(service: Service, key: str, request_sha256: str, owner: str) -> bool:
    """Return whether this request has the key; where the answer to that is lost, look."""
    try:
        with service.database.write() as session:
            return idempotency.take(session, key, request_sha256, owner, service.settings.lease_seconds)
    except OperationalError:
        with service.database.read() as session:
            known = idempotency.known(session, key)
        if known is None or known.owner != owner:
            raise
        return True


def _let_go(service: Service, key: str, owner: str) -> None:
    """Let the client repeat at once what failed; where that cannot be written it has to wait as after a crash."""
    with suppress(SQLAlchemyError), service.database.write() as session:
        idempotency.let_go(session, key, owner)


def make_job(
    service: Service, suite: str | None, job: Job, key: tuple[str, str] | None = None,
    execution: Execution | None = None,
) -> int:  # fmt: skip
    """Return the id of the job made in one transaction, with its Idempotency-Key and owner where it has one.

    Raises:
        InProgress: it took so long that another request has the key by now; nothing was stored.
    """
    with service.database.read() as session:
        planned = _planned(service, session, job, execution)
    wanted = jobs.Submission(
        kind=getattr(job, "kind", "benchmark"),
        spec=understood(job, planned).model_dump(mode="json", exclude_none=True),
        name=job.name, suite=suite, tags=list(job.tags), priority=job.priority,
    )  # fmt: skip
    with service.database.write() as session:
        job_id, bells = jobs.submit(session, wanted, planned)
        if key is not None and not idempotency.tie(session, *key, job_id):
            raise _in_progress_error()
    service.ringer.ring(bells)
    return job_id


def _in_progress_error() -> InProgress:
    return InProgress("another request with this Idempotency-Key is in progress; come again for its answer")


def _shown(service: Service, job_id: int) -> JobReply:
    with service.database.read() as session:
        return job_reply(service, session, job_id)


def _answer(service: Service, key: str, job_id: int, **headers: str) -> Response:
    """Return the key's one answer, which this request gives where no other has: the job as it was then."""
    rendered = bytes(_created(_shown(service, job_id)).body).decode()
    with service.database.write() as session:
        body = idempotency.settle(session, key, rendered)
    return _kept(job_id, body, **headers)


def _kept(job_id: int, body: str, **headers: str) -> Response:
    return Response(body, 201, {"Location": f"/jobs/{job_id}", **headers}, "application/json")


def _created(reply: JobReply) -> Response:
    return json_answer(reply, 201, {"Location": f"/jobs/{reply.id}"})


def parse_job(body: Any) -> tuple[str | None, Job]:
    """Return the suite's name, if one was asked for, and the job.

    Raises:
        Invalid: names every field at fault.
    """
    if not isinstance(body, dict):
        raise Invalid('the body must be a JSON object such as {"defense": {"kind": "e2sad"}}')
    request = cast(dict[str, Any], body)
    suite = None
    try:
        if "suite" in request:
            suite, request = str(request["suite"])[:100], expand_suite(request)
        job = JOB.validate_python(request)
        require_no_idle(job)
        return suite, job
    except ValidationError as error:
        raise of_validation(error.errors(), request) from None
    except SpecError as error:
        raise of_spec_error(error) from None


def _planned(service: Service, session: Session, job: Job, execution: Execution | None = None) -> Plan:
    """Return the plan of a job, executed as given, else as the job and the service say."""
    planned = plan(job, execution or service.execution(session, job), jobs.TrainedModels(session))
    service.require_dataset(job, planned.dataset)
    return planned


def _execution(session: Session, rows: Sequence[Stage]) -> Execution | None:
    """Return how a job of these stages is executed: its models may have come from elsewhere, its last stages not.

    Drawing is the same everywhere.
    """
    last = next((row for row in reversed(rows) if row.kind != "draw"), None)
    return last and Execution.model_validate(jobs.specs(session, [last.id])[0]["execution"])


def _replay(service: Service, key: str, request_sha256: str) -> Response | None:
    """Return the answer an Idempotency-Key has been given, None where it is new.

    Raises:
        Invalid: it was given to another request.
        InProgress: its request has not been answered yet.
    """
    with service.database.read() as session:
        known = idempotency.known(session, key)
    if known is None:
        return None
    if known.request_sha256 != request_sha256:
        raise Invalid("this Idempotency-Key was used with another body; use a fresh key")
    if known.job_id is None:
        raise _in_progress_error()
    replayed = {"Idempotency-Replayed": "true"}
    if known.answer is None:
        return _answer(service, key, known.job_id, **replayed)
    return _kept(known.job_id, known.answer, **replayed)


def _plan_reply(service: Service, session: Session, job: Job, planned: Plan) -> PlanReply:
    known = jobs.states_of_keys(session, list(planned.stages))
    ordered = planned.ordered
    every = [(stage.flop, known.get(stage.key, "new"), False, 0.0) for stage in ordered]
    price = views.cost(session, planned.device, every)
    queue = jobs.queue_of(planned.device)
    served = queue in workers.live_queues(session, service.settings.alive_seconds)
    return PlanReply(
        kind=getattr(job, "kind", "benchmark"),
        dataset=planned.dataset,
        device=planned.device,
        pairing=views.pairing(getattr(job, "kind", "benchmark"), planned.pairing),
        images=max((stage.images for stage in ordered), default=0),
        stages=[
            PlanStage(
                key=stage.key, kind=stage.spec.kind, title=stage.title, state=known.get(stage.key, "new"),
                parents=list(stage.spec.parents()), flop=stage.flop, estimated_seconds=stage.flop / price.rate,
            )
            for stage in ordered
        ],
        new=sum(known.get(stage.key) != StageState.SUCCEEDED for stage in ordered),
        done=sum(known.get(stage.key) == StageState.SUCCEEDED for stage in ordered),
        cost=price,
        waits_for=None if served else waiting.unserved(queue),
        cautions=protocol.cautions(protocol.of_plan(planned)),
    )  # fmt: skip


def job_reply(service: Service, session: Session, job_id: int) -> JobReply:
    """Return a job with its stages.

    Raises:
        NotFound: there is no such job.
    """
    job = jobs.by_id(session, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    rows = jobs.stages_of(session, job_id, specs=False)
    reasons = waiting.reasons(session, [row for row, _ in rows], service.settings.alive_seconds)
    every = [(row.flop, row.state, reused, row.device_seconds) for row, reused in rows]
    running = [(row.flop, row.progress) for row, _ in rows if row.state == StageState.RUNNING]
    device = "cuda" if any(row.queue == "gpu" for row, _ in rows) else "cpu"
    short = views.summary(job, views.counted([row for row, _ in rows]), running)
    models = jobs.models_of(session, job_id)
    asked = asked_of(session, job_id, [row for row, _ in rows], models)
    return JobReply(
        **short.model_dump(),
        spec=job.spec,
        execution=_execution(session, [row for row, _ in rows]),
        pairing=views.pairing(job.kind, job.pairing),
        cost=views.cost(session, device, every),
        models=[ModelLabel(**{name: model[name] for name in ModelLabel.model_fields}) for model in models],
        stages=[views.stage(row, reused, reasons) for row, reused in rows],
        links={
            "whitebox-matrix": f"/results/whitebox-matrix?job={job_id}",
            "blackbox-matrix": f"/results/blackbox-matrix?job={job_id}",
            "figures": f"/results/figures?job={job_id}",
        },
        cautions=protocol.cautions(asked) if asked else [UNREAD] if rows else [],
    )


@router.get("/jobs/{job_id}", response_model=JobReply)
def get_job(job_id: JobId, service: ServiceDep) -> Response:
    """Answer with a job: progress, cost, and every stage with what it waits for."""
    return json_answer(_shown(service, job_id))


@router.get("/jobs", response_model=JobPage)
def list_jobs(
    service: ServiceDep,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="From the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs per page.")] = 50,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    name: Annotated[QueryText | None, Query(description="Only jobs of this name.")] = None,
    tag: Annotated[QueryText | None, Query(description="Only jobs with this tag.")] = None,
    suite: Annotated[QueryText | None, Query(description="Only jobs posted as this suite.")] = None,
) -> Response:
    """List jobs, newest first."""
    with service.database.read() as session:
        require_suite(session, suite)
        page = jobs.newest(session, before=cursor, limit=limit, state=state, name=name, tag=tag, suite=suite)
        listed = [job.id for job in page.jobs]
        counts, running = jobs.counts(session, listed), jobs.running(session, listed)
        shown = [views.summary(job, counts[job.id], running.get(job.id, [])) for job in page.jobs]
        return json_answer(JobPage(jobs=shown, cursor=page.cursor))


@router.post("/jobs/{job_id}/cancel", status_code=202, response_model=JobReply)
def cancel_job(job_id: JobId, service: ServiceDep) -> Response:
    """Stop a job. Stages that another live job wants go on; the rest stop within seconds."""
    with service.database.write() as session:
        before = jobs.by_id(session, job_id)
        if before is None:
            raise NotFound(f"there is no job {job_id}")
        if before.state in JOB_ENDED and before.state != JobState.CANCELLED:
            raise Conflict(f"job {job_id} has already {before.state}; there is nothing to cancel")
        jobs.cancel(session, job_id)
    return json_answer(_shown(service, job_id), 202)


@router.post("/jobs/{job_id}/retry", status_code=201, response_model=JobReply)
def retry_job(
    job_id: JobId,
    service: ServiceDep,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1)] = None,
) -> Response:
    """Make a new job of the same spec: what failed or was cancelled gets a new life, the rest is shared.

    It is executed as the old one, whatever workers have come since; the old job stays as it ended.
    """
    with service.database.read() as session:
        old = jobs.by_id(session, job_id)
        execution = _execution(session, [row for row, _ in jobs.stages_of(session, job_id, specs=False)])
    if old is None:
        raise NotFound(f"there is no job {job_id}")
    if old.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"job {job_id} is {old.state}; only a failed or cancelled job can be retried")
    try:
        spec = JOB.validate_python(old.spec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Conflict(
            f"job {job_id} was made by another version of the code, which this one no longer reads "
            f"({where}: {first['msg']}); post it anew"
        ) from None
    return _once(service, old.suite, spec, idempotency_key, digest({"retry": job_id}), execution)
