"""Whether the service lives and is ready."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from sqlalchemy import text

from api.metrics import MEDIA, render
from api.schemas import HealthReply
from api.service import Service, ServiceDep
from store import migrate, workers
from store.gauges import gauges

router = APIRouter(tags=["system"])


async def start(_: Request) -> RedirectResponse:
    """Lead whoever opens the service in a browser to what it can do."""
    return RedirectResponse("/docs")


router.add_route("/", start, include_in_schema=False)


@router.get("/healthz")
async def healthz() -> HealthReply:
    """Answer ok while the process lives: in its event loop, so that no busy thread keeps it waiting."""
    return HealthReply(status="ok")


@router.get("/readyz", response_model=HealthReply, responses={503: {"model": HealthReply}})
def readyz(service: ServiceDep) -> JSONResponse:
    """Answer 200 when the database answers, stands at this code's revision, and artifacts can be stored."""
    checks = {"database": _database(service), "artifacts": _artifacts(service)}
    ready = all(check == "ok" for check in checks.values())
    if ready:
        checks["keeper"] = _keeper(service)
    reply = HealthReply(status="ok" if ready else "not ready", checks=checks)
    return JSONResponse(reply.model_dump(), 200 if ready else 503, None if ready else {"Retry-After": "5"})


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(service: ServiceDep) -> PlainTextResponse:
    """Answer with what an operator watches, in Prometheus' text format, counted in SQL now."""
    with service.database.read() as session:
        found = gauges(session, service.settings.alive_seconds)
    return PlainTextResponse(render(found), media_type=MEDIA)


def _database(service: Service) -> str:
    try:
        with service.database.read() as session:
            session.execute(text("SELECT 1"))
        migrate.require(service.database)
    except migrate.WrongSchema as error:
        return str(error)
    except Exception as error:
        return f"the database does not answer: {type(error).__name__}"
    return "ok"


def _artifacts(service: Service) -> str:
    try:
        service.store.check()
    except Exception as error:
        return f"the artifact store does not take bytes: {error}"
    return "ok"


def _keeper(service: Service) -> str:
    with service.database.read() as session:
        return workers.keeper_trouble(session, service.settings.keeper_seconds) or "ok"
