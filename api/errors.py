"""What a client is told when something is wrong: one shape, naming the field and the remedy.

ApiError
├── Forbidden     403
├── NotFound      404
├── Conflict      409
├── InProgress    409
├── TooLarge      413
├── Invalid       422
└── Unavailable   503
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.places import resolved
from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.errors import ModelMissing, SpecError
from core.fields import seen
from core.figures import FIGURES
from core.networks import NETWORKS

RETRY_SECONDS = 5
SOON_SECONDS = 1
"""For what a request in progress will have done soon."""
QueryText = Annotated[str, Field(max_length=200), AfterValidator(seen)]
"""Text of a query parameter, as a job's texts are; PostgreSQL holds no NUL."""


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
    """invalid, forbidden, not_found, conflict, in_progress, too_large, unavailable, ..."""
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


class Forbidden(ApiError):
    """A page of another site asks, or under a name that is not this service's."""

    status = 403
    code = "forbidden"


class NotFound(ApiError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class Conflict(ApiError):
    """The thing is in a state that does not allow this."""

    status = 409
    code = "conflict"


class InProgress(ApiError):
    """The same request is being answered; try again."""

    status = 409
    code = "in_progress"


class TooLarge(ApiError):
    """The body is larger than anything that makes sense here."""

    status = 413
    code = "too_large"


class Invalid(ApiError):
    """The request is understood and wrong."""

    status = 422
    code = "invalid"


class Unavailable(ApiError):
    """The service cannot do this now; try again."""

    status = 503
    code = "unavailable"


RESPONSES: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorReply, "description": "Another site's page asks, or the Host is not the service's."},
    404: {"model": ErrorReply, "description": "There is no such thing."},
    409: {"model": ErrorReply, "description": "The thing's state does not allow this."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    422: {"model": ErrorReply, "description": "A field is wrong; the answer names it and what is allowed."},
    503: {
        "model": ErrorReply,
        "description": "The database or the artifacts are away; try again after Retry-After seconds.",
    },
}


def of_spec_error(error: SpecError) -> ApiError:
    """Return the 422 for a spec that cannot be carried out; the 404 where it names a model that does not exist."""
    field = FieldError(path=".".join(map(str, error.path)), message=str(error), allowed=error.allowed)
    status = NotFound if isinstance(error, ModelMissing) else Invalid
    return status(str(error), [field])


def of_validation(errors: list[Any], body: Any) -> Invalid:
    """Return the 422 for a body that does not fit its schema."""
    fields = [_field(error, body) for error in errors]
    shown = "; ".join(f"{field.path or 'body'}: {field.message}" for field in fields[:3])
    more = f" (and {len(fields) - 3} more)" if len(fields) > 3 else ""
    return Invalid(shown + more, fields)


def _field(error: Any, body: Any) -> FieldError:
    location = list(error["loc"])
    message, allowed = _said(error)
    path = _path(location, body)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("kind")
    elif error["type"] == "missing" and path[-1:] != [str(location[-1])]:
        path.append(str(location[-1]))
    return FieldError(path=".".join(path), message=message, allowed=allowed)


def _said(error: Any) -> tuple[str, list[str] | None]:
    """Return what a validator's error says to a user, and what would be accepted where that can be listed."""
    context = error.get("ctx") or {}
    message, allowed = error["msg"].removeprefix("Value error, "), context.get("allowed")
    if error["type"] in ("literal_error", "enum"):
        allowed = _listed(str(context.get("expected", "")).replace(" or ", ","))
    elif error["type"] == "union_tag_invalid":
        allowed = _listed(context["expected_tags"])
        message = f"unknown kind {context['tag']!r}; allowed: {', '.join(allowed)}"
    elif error["type"] == "union_tag_not_found":
        allowed = _kinds_at(error["loc"])
        message = 'needs a "kind"' + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    elif error["type"] == "extra_forbidden":
        allowed = _known_fields(error["loc"][:-1])
        message = "unknown field" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    elif error["type"] == "string_pattern_mismatch" and (digits := _DIGITS.fullmatch(context["pattern"])):
        message = f"expected {digits[1].replace(',', ' to ')} hexadecimal digits, each 0 to 9 or a to f"
    return _PLAIN.get(error["type"], message), allowed


_PLAIN = {
    "missing": "this field is required",
    "model_type": "expected a JSON object",
    "model_attributes_type": "expected a JSON object",
    "string_unicode": "holds half a surrogate pair, which is no character",
    "invalid_key": "the name of a field holds half a surrogate pair, which is no character",
}
"""What pydantic says in terms of Python or of itself, by type of error."""


_DIGITS = re.compile(r"\^\[0-9a-f\]\{([0-9,]+)\}\$")
"""The pattern of a key, and of its beginning."""


def _listed(text: str) -> list[str]:
    return [part.strip(" '") for part in text.split(",")]


def _kinds_at(location: Sequence[Any]) -> list[str] | None:
    """Return the kinds of what stands where the validator's location points."""
    registries: dict[Any, Mapping[str, Any]] = {
        "defense": DEFENSES, "bare": DEFENSES, "network": NETWORKS, "attacks": ATTACKS, "transfer": ATTACKS,
        "direction": ATTACKS, "attack": ATTACKS, "figures": FIGURES,
    }  # fmt: skip
    return next((sorted(registries[part]) for part in reversed(location) if part in registries), None)


def _known_fields(location: Sequence[Any]) -> list[str] | None:
    """Return the fields of the innermost model that the validator's location names."""
    _, model = resolved(location)
    return sorted(model.model_fields) if model else None


def _path(location: Sequence[Any], body: Any) -> list[str]:
    """Return the location as the user wrote it, as far as the body has it."""
    path: list[str] = []
    here = body
    for part in resolved(location)[0]:
        inside = isinstance(here, dict) and part in here
        if inside or (isinstance(here, list) and isinstance(part, int) and part < len(here)):
            path.append(str(part))
            here = here[part]
    return path


def reply(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the error as a response."""
    return JSONResponse(ErrorReply(error=error.body).model_dump(), error.status, headers)


def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """Render an error a route raised."""
    assert isinstance(error, ApiError)  # noqa: S101 - the handler is registered for it
    seconds = RETRY_SECONDS if isinstance(error, Unavailable) else SOON_SECONDS if isinstance(error, InProgress) else 0
    return reply(error, {"Retry-After": str(seconds)} if seconds else None)


def on_spec_error(_: Request, error: Exception) -> JSONResponse:
    """Render a spec that cannot be carried out."""
    assert isinstance(error, SpecError)  # noqa: S101 - the handler is registered for it
    return reply(of_spec_error(error))


def on_request_error(_: Request, error: Exception) -> JSONResponse:
    """Render parameters that do not fit their schema."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for it
    fields: list[FieldError] = []
    for found in error.errors():
        message, allowed = _said(found)
        fields.append(
            FieldError(path=".".join(str(part) for part in found["loc"][1:]), message=message, allowed=allowed)
        )
    return reply(Invalid("; ".join(f"{field.path}: {field.message}" for field in fields), fields))


async def known_parameters(request: Request) -> None:
    """Return where every query parameter is one of the route's, and given once unless it takes several values.

    Raises:
        Invalid: a name is unknown, or two values leave open what is meant. A misspelt `dry_run` must not make a job,
            nor a misspelt filter list them all.
    """
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = {found["name"]: found["schema"] for found in operation.get("parameters", []) if found["in"] == "query"}
    allowed = sorted(known)
    there = f"allowed: {', '.join(allowed)}" if allowed else "this address takes none"
    given = Counter(name for name, _ in request.query_params.multi_items())
    fields = [
        FieldError(path=name, message=f"unknown parameter; {there}", allowed=allowed)
        for name in given
        if name not in known
    ] + [
        FieldError(path=name, message="given twice; it takes one value")
        for name, times in given.items()
        if times > 1 and name in known and known[name].get("type") != "array"
    ]
    if fields:
        raise Invalid("; ".join(f"{field.path}: {field.message}" for field in fields), fields)


def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Render what the framework itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for it
    codes = {404: "not_found", 405: "method_not_allowed", 400: "invalid"}
    messages = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.method} is not possible at {request.url.path}; /docs lists what is",
    }
    message = messages.get(error.status_code, str(error.detail))
    body = ErrorBody(code=codes.get(error.status_code, "error"), message=message)
    headers = {"Allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    return JSONResponse(ErrorReply(error=body).model_dump(), error.status_code, headers)


def _methods(request: Request) -> list[str]:
    """Return what all routes together answer at the request's path; the framework names those of the first alone."""
    return [
        method
        for method, asked in (("GET", "GET"), ("HEAD", "GET"), ("POST", "POST"))
        if any(route.matches({**request.scope, "method": asked})[0] is Match.FULL for route in request.app.routes)
    ]


def on_database_error(_: Request, error: Exception) -> JSONResponse:
    """Render a database that does not answer, or that takes no writes: locked, read-only, or on a full disk."""
    original = getattr(error, "orig", None)
    said = isinstance(original, sqlite3.Error) or getattr(original, "sqlstate", None) is not None
    why = str(original).partition("\n")[0]
    what = f"the database cannot do this now: {why}" if said else "the database does not answer"
    return _come_again(
        f"{what}; a POST of a job with an Idempotency-Key can be repeated safely, whether or not it was stored"
    )


def on_store_away(_: Request, error: Exception) -> JSONResponse:
    """Render an artifact store that does not answer."""
    return _come_again(str(error))


def _come_again(message: str) -> JSONResponse:
    return reply(Unavailable(message), {"Retry-After": str(RETRY_SECONDS)})


def on_bug(_: Request, error: Exception) -> JSONResponse:
    """Render what nobody expected; the server logs the traceback."""
    body = ErrorBody(
        code="internal", message=f"a bug in the service ({type(error).__name__}); its log has the traceback"
    )
    return JSONResponse(ErrorReply(error=body).model_dump(), 500)
