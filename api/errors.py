"""What a client is told when something is wrong: one shape, naming the field and the remedy.

ApiError
├── NotFound      404
├── Conflict      409
├── Invalid       422
└── Unavailable   503
"""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.errors import SpecError
from core.jobs import BenchmarkJob, EvaluateJob, ModelByKey, ModelBySpec, NamedDefense, TrainingRequest, TrainJob
from core.networks import NETWORKS

RETRY_SECONDS = 5


class FieldError(BaseModel):
    """One thing that is wrong with the request."""

    path: str
    """Where, as dotted names and positions: defenses.0.eps"""
    message: str
    """What is wrong, and what would be right."""
    allowed: list[str] | None = None
    """The values or names that would be accepted, where they can be listed."""


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    """invalid, not_found, conflict, too_large, unavailable, ..."""
    message: str
    """One sentence for a person."""
    fields: list[FieldError] = []
    """The fields at fault."""


class ErrorReply(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """Base of errors that a route raises; `status` and `code` are the class's."""

    status = 500
    code = "internal"

    def __init__(self, message: str, fields: list[FieldError] | None = None):
        super().__init__(message)
        self.body = ErrorBody(code=self.code, message=message, fields=fields or [])


class NotFound(ApiError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class Conflict(ApiError):
    """The thing is in a state that does not allow this."""

    status = 409
    code = "conflict"


class Invalid(ApiError):
    """The request is understood and wrong."""

    status = 422
    code = "invalid"


class Unavailable(ApiError):
    """The service cannot do this now; try again."""

    status = 503
    code = "unavailable"


RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorReply, "description": "There is no such thing."},
    409: {"model": ErrorReply, "description": "The thing's state does not allow this."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    422: {"model": ErrorReply, "description": "A field is wrong; the answer names it and what is allowed."},
    503: {"model": ErrorReply, "description": "The database is away; try again after Retry-After seconds."},
}


def of_spec_error(error: SpecError) -> Invalid:
    """Return the 422 for a spec that cannot be carried out."""
    field = FieldError(path=".".join(map(str, error.path)), message=str(error), allowed=error.allowed)
    return Invalid(str(error), [field])


def of_validation(errors: list[Any], body: Any) -> Invalid:
    """Return the 422 for a body that does not fit its schema."""
    fields = [_field(error, body) for error in errors]
    shown = "; ".join(f"{field.path or 'body'}: {field.message}" for field in fields[:3])
    more = f" (and {len(fields) - 3} more)" if len(fields) > 3 else ""
    return Invalid(shown + more, fields)


def _field(error: Any, body: Any) -> FieldError:
    location = list(error["loc"])
    context = error.get("ctx") or {}
    message = error["msg"].removeprefix("Value error, ")
    allowed = None
    if error["type"] in ("literal_error", "enum"):
        allowed = [part.strip(" '") for part in str(context.get("expected", "")).replace(" or ", ",").split(",")]
    elif error["type"] == "union_tag_invalid":
        location.append("kind")
        allowed = [part.strip(" '") for part in context["expected_tags"].split(",")]
        message = f"unknown kind {context['tag']!r}; allowed: {', '.join(allowed)}"
    elif error["type"] == "union_tag_not_found":
        location.append("kind")
        message = 'needs a "kind"'
    elif error["type"] == "extra_forbidden":
        allowed = _known_fields(location[:-1])
        message = "unknown field" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    elif error["type"] == "missing":
        message = "this field is required"
    return FieldError(path=_path(location, body), message=message, allowed=allowed)


def _known_fields(location: list[Any]) -> list[str] | None:
    """Return the fields of the innermost model that the validator's location names."""
    models: dict[str, Any] = {
        **NETWORKS, **ATTACKS, **DEFENSES, "training": TrainingRequest, "named": NamedDefense,
        "by_key": ModelByKey, "by_spec": ModelBySpec, "train": TrainJob, "benchmark": BenchmarkJob,
        "evaluate": EvaluateJob,
    }  # fmt: skip
    for part in reversed(location):
        if part in models:
            return sorted(models[part].model_fields)
    return None


def _path(location: list[Any], body: Any) -> str:
    """Return the location as the user wrote it: without the tags a validator puts in to tell union members apart."""
    path: list[str] = []
    here = body
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, dict) and (part in here or last):
            path.append(str(part))
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            path.append(str(part))
            here = here[part] if part < len(here) else None
    return ".".join(path)


def reply(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the error as a response."""
    return JSONResponse(ErrorReply(error=error.body).model_dump(), error.status, headers)


def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """Render an error a route raised."""
    assert isinstance(error, ApiError)  # noqa: S101 - the handler is registered for it
    return reply(error, {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else None)


def on_spec_error(_: Request, error: Exception) -> JSONResponse:
    """Render a spec that cannot be carried out."""
    assert isinstance(error, SpecError)  # noqa: S101 - the handler is registered for it
    return reply(of_spec_error(error))


def on_request_error(_: Request, error: Exception) -> JSONResponse:
    """Render parameters that do not fit their schema."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for it
    errors = list(error.errors())
    if any(found["type"] == "json_invalid" for found in errors):
        return reply(Invalid("the body is not JSON", [FieldError(path="", message=errors[0]["ctx"]["error"])]))
    fields = [
        FieldError(path=".".join(str(part) for part in found["loc"][1:]), message=found["msg"]) for found in errors
    ]
    return reply(Invalid("; ".join(f"{field.path or 'body'}: {field.message}" for field in fields), fields))


def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """Render what the framework itself refuses: unknown paths, methods, bodies that are too large."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for it
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 400: "invalid"}
    body = ErrorBody(code=codes.get(error.status_code, "error"), message=str(error.detail))
    return JSONResponse(ErrorReply(error=body).model_dump(), error.status_code, error.headers)


def on_database_error(_: Request, error: Exception) -> JSONResponse:
    """Render a database that does not answer."""
    del error
    return reply(Unavailable("the database does not answer; nothing was changed"), {"Retry-After": str(RETRY_SECONDS)})


DATABASE_ERRORS = (DBAPIError, PoolTimeout)
