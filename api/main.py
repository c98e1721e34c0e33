"""The API: `uvicorn api.main:app`."""

import ctypes
import gc
import logging
import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from api import errors, front
from api.routes import catalog, costs, events, figures, jobs, paper, results, robustness, stages, system
from api.service import Service
from core.errors import SpecError, StoreAway
from core.jobs import JOB
from core.suites import suites
from store import logs, migrate
from store.database import AWAY
from store.settings import Settings, settings

THREADS = 24
"""Requests at once: below the connections of the database's pool, so that none waits for one until it is refused."""
M_ARENA_MAX = -8
PROBES = ("/healthz", "/readyz", "/metrics")
"""Asked for every few seconds, by machines: their lines would hide the others."""


def create_app(chosen: Settings | None = None) -> FastAPI:
    """Return the API on the given settings, or on the environment's."""
    chosen = chosen or settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        _share_heaps()
        current_default_thread_limiter().total_tokens = THREADS
        app.state.service = Service.open(chosen)
        migrate.require(app.state.service.database)
        _end_streams_on_stop(app.state.service)
        await run_in_threadpool(app.openapi)  # half a second, which no request should hold the event loop for
        yield
        app.state.service.stopping = True
        app.state.service.close()

    app = FastAPI(
        title="Gauntlet",
        version=version("gauntlet"),
        description="Benchmarks of adversarial defenses of image classifiers. Accuracies are shares in [0, 1]; "
        "eps and step sizes are in pixel units of [0, 1].",
        lifespan=lifespan,
        dependencies=[Depends(errors.known_parameters)],
    )
    app.add_middleware(front.HeadAsGet)
    app.add_middleware(front.OwnPages)
    for module in (jobs, events, results, robustness, figures, paper, costs, stages, catalog, system):
        app.include_router(module.router)
    app.add_exception_handler(errors.ApiError, errors.on_api_error)
    app.add_exception_handler(SpecError, errors.on_spec_error)
    app.add_exception_handler(RequestValidationError, errors.on_request_error)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    for error in AWAY:
        app.add_exception_handler(error, errors.on_database_error)
    app.add_exception_handler(StoreAway, errors.on_store_away)
    app.add_exception_handler(events.NothingFollows, events.on_nothing_follows)
    app.add_exception_handler(Exception, errors.on_bug)
    app.openapi = lambda: _openapi(app)
    return app


def _log_as_the_workers() -> None:
    """Have uvicorn's lines look as those of keeper and workers do, unless its `--log-config` says how they look."""
    if logging.getLogger().handlers:
        return
    logs.to_stderr()
    for logger in (logging.getLogger(name) for name in ("uvicorn", "uvicorn.access")):
        logger.propagate = logger.propagate or bool(logger.handlers)  # --no-access-log leaves none
        logger.handlers.clear()
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)


def _is_no_probe(access: logging.LogRecord) -> bool:
    match access.args:
        case (_, _, str(path), *_):
            return path.partition("?")[0] not in PROBES
        case _:
            return True


def _share_heaps() -> None:
    """Have threads share two heaps where glibc is: else each of the pool keeps what it once needed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def _end_streams_on_stop(service: Service) -> None:
    """Tell open streams of a signal before the server waits for them: it stops the lifespan only after they end."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before: Any = signal.getsignal(number)

        def stop(received: int, frame: Any, before: Any = before) -> None:
            service.stopping = True
            if callable(before):
                before(received, frame)

        signal.signal(number, stop)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with every kind of job, defense, attack and network among its schemas."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        request = JOB.json_schema(ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(request.pop("$defs", {}))
        components["SuiteRequest"] = {
            "type": "object",
            "title": "SuiteRequest",
            "description": "A named suite; any field of its job may be given beside it and replaces the suite's.",
            "properties": {"suite": {"type": "string", "enum": sorted(suites())}},
            "required": ["suite"],
        }
        suite = {"$ref": "#/components/schemas/SuiteRequest"}
        components["JobRequest"] = {"title": "JobRequest", "anyOf": [request, suite]}
        app.openapi_schema = document
    return app.openapi_schema


_log_as_the_workers()
app = create_app()
gc.freeze()  # what is loaded by now stays; looking through it at every full collection takes 70 ms
