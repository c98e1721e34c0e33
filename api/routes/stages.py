"""Stages, their logs, artifacts, trained models, workers."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from api import views
from api.errors import RESPONSES, NotFound
from api.forms import IfNoneMatch, is_known, json_answer
from api.schemas import (
    AttemptReply,
    EnvironmentReply,
    ErrorDetail,
    LogLine,
    ModelPage,
    ModelReply,
    StageDetail,
    WorkerReply,
)
from api.service import ServiceDep
from core.errors import ArtifactCorrupt, SpecError
from core.jobs import DatasetName
from store import refusals, stages, trained, waiting, workers
from store.models import Attempt
from store.trained import TrainedModel

router = APIRouter(tags=["stages"], responses=RESPONSES)

AS_A_STRANGER = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox allow-scripts"}
"""What is stored may have been imported: a page or picture of it may run scripts, but as nobody to the service."""
KEY_DIGITS = 64
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits.")]
StageKey = Annotated[
    str,
    Path(pattern=r"^[0-9a-f]{8,64}$", description="64 hexadecimal digits, or the first 8 or more where one has them."),
]


def _whole(session: Session, digits: str) -> str:
    """Return the key that begins with the digits; one in full is taken as it is.

    Raises:
        NotFound: none does.
        SpecError: several do.
    """
    if len(digits) == KEY_DIGITS:
        return digits
    found = stages.keys_beginning(session, digits, 2)
    if not found:
        raise NotFound(f"there is no stage {digits}")
    if len(found) > 1:
        raise SpecError(f"the keys of several stages begin with {digits}; give more digits", ("key",))
    return found[0]


@router.get("/stages/{key}")
def get_stage(key: StageKey, service: ServiceDep) -> StageDetail:
    """Answer with a stage: spec, state, attempts, result and where its artifacts are."""
    with service.database.read() as session:
        found = stages.details(session, _whole(session, key))
        if found is None:
            raise NotFound(f"there is no stage {key}")
        row = found.stage
        reasons = waiting.reasons(session, [row], service.settings.alive_seconds)
        return StageDetail(
            **views.of_stage(row, reasons),
            spec=row.spec, parents=found.parents, queue=row.queue, fence=row.fence, failures=row.failures,
            losses=row.losses, error=_error(row.error), attempts=[_attempt(attempt) for attempt in found.attempts],
            result=found.result.payload if found.result else None,
            environment=EnvironmentReply.model_validate(found.result.environment) if found.result else None,
            artifacts=found.artifacts,
        )  # fmt: skip


def _error(found: dict[str, Any] | None) -> ErrorDetail | None:
    return None if found is None else ErrorDetail.model_validate(found)


def _attempt(row: Attempt) -> AttemptReply:
    return AttemptReply(
        fence=row.fence, worker=row.worker, started_at=row.started_at, ended_at=row.ended_at, outcome=row.outcome,
        error=_error(row.error),
    )  # fmt: skip


@router.get("/stages/{key}/log", response_model=list[LogLine])
def get_log(
    key: StageKey,
    service: ServiceDep,
    after: Annotated[int, Query(ge=0, le=2**62, description="Lines up to this number are left out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=5000, description="Lines at most.")] = 1000,
) -> Response:
    """Answer with the lines of a stage's log, oldest first."""
    with service.database.read() as session:
        stage = stages.by_key(session, _whole(session, key))
        if stage is None:
            raise NotFound(f"there is no stage {key}")
        lines = stages.log_of(session, stage.id, after, limit)
        return json_answer([LogLine(number=line.id, at=line.at, fence=line.fence, line=line.line) for line in lines])


@router.get(
    "/artifacts/{sha256}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        304: {"description": "If-None-Match names it: an artifact never changes."},
    },
)
def get_artifact(sha256: Sha256, service: ServiceDep, if_none_match: IfNoneMatch = None) -> Response:
    """Answer with stored bytes, verified against their sha256. Pages among them run without the service's origin."""
    with service.database.read() as session:
        row = stages.artifact(session, sha256)
    if row is None:
        raise NotFound(f"there is no artifact {sha256}")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "public, max-age=31536000, immutable", **AS_A_STRANGER}
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    try:
        size, parts = service.store.stream(sha256)
    except ArtifactCorrupt as error:
        raise NotFound(str(error)) from error
    return StreamingResponse(parts, media_type=row.media_type, headers={**headers, "Content-Length": str(size)})


@router.get("/models", response_model=ModelPage)
def list_models(
    service: ServiceDep,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="From the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Models per page.")] = 200,
    dataset: Annotated[DatasetName | None, Query(description="Only models trained on it.")] = None,
) -> Response:
    """List trained models, newest first."""
    with service.database.read() as session:
        page = trained.newest(session, before=cursor, limit=limit, dataset=dataset)
        return json_answer(ModelPage(models=[_model(found) for found in page.models], cursor=page.cursor))


def _model(found: TrainedModel) -> ModelReply:
    return ModelReply(
        key=found.stage.key, recipe=str(found.stage.recipe), label=found.label, dataset=found.stage.dataset,
        seed=found.stage.seed or 0, defense=found.stage.spec["defense"], weights=found.weights, n=found.n,
        clean_accuracy=found.n_correct / found.n if found.n and found.n_correct is not None else None,
    )  # fmt: skip


@router.get("/workers")
def list_workers(service: ServiceDep) -> list[WorkerReply]:
    """List worker processes with their devices and heartbeats, newest first."""
    with service.database.read() as session:
        rows = workers.all_workers(session, service.settings.alive_seconds)
        keys = stages.keys_of(session, [worker.stage_id for worker, *_ in rows if worker.stage_id])
        leaves = refusals.by_worker(session)
    return [
        WorkerReply(
            id=worker.incarnation, host=worker.host, pid=worker.pid, device=worker.device,
            device_name=worker.device_name, queues=worker.queues, versions=worker.versions, alive=alive,
            seconds_since_seen=age, draining=worker.draining, stage=keys.get(worker.stage_id or 0),
            leaves=leaves.get(worker.incarnation, []),
        )
        for worker, alive, age in rows
    ]  # fmt: skip
