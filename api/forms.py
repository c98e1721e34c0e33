"""One answer in several forms: JSON, CSV, Markdown, LaTeX or text for a terminal, with an ETag."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from fastapi import Header, Response
from pydantic import BaseModel

MEDIA = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
    "latex": "application/x-latex; charset=utf-8",
    "text": "text/plain; charset=utf-8",
}
Form = Literal["json", "csv", "markdown", "latex", "text"]
Accept = Annotated[str | None, Header()]
IfNoneMatch = Annotated[str | None, Header()]
R = TypeVar("R", bound=BaseModel)


FORMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA[form].partition(";")[0]: {"schema": {"type": "string"}} for form in get_args(Form)[1:]}},
    304: {"description": "The table is what If-None-Match says it was."},
}
"""What OpenAPI says of a table that is answered in every form."""


def chosen(wanted: Form | None, accept: str | None) -> Form:
    """Return the form that is wanted, else the one that `accept` prefers, else JSON."""
    ranges = _qualities(accept or "")

    def preferred(form: str) -> tuple[float, int]:
        media = MEDIA[form].partition(";")[0]
        fits = (media, f"{media.partition('/')[0]}/*", "*/*")
        found = [(ranges[name], -place) for place, name in enumerate(fits) if name in ranges]
        return found[0] if found else (0.0, 0)

    return wanted or cast(Form, max(MEDIA, key=preferred))  # of equals the first, which is JSON


def _qualities(accept: str) -> dict[str, float]:
    """Return how much each media range of an Accept header is wanted, from 0, not at all, to 1."""
    found: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *parameters = (text.strip() for text in part.split(";"))
        quality = next((_QUALITY.fullmatch(text) for text in parameters if text.startswith("q")), None)
        found[media] = float(quality[1]) if quality else 1.0
    return found


_QUALITY = re.compile(r"q\s*=\s*(0(?:\.[0-9]*)?|1(?:\.0*)?)")


def answer(
    reply: R,
    writers: Mapping[str, Callable[[R], str]],
    wanted: Form | None,
    accept: str | None,
    known: str | None,
) -> Response:
    """Return `reply` in its form, with the ETag of its content; 304 where it is `known`."""
    form = chosen(wanted, accept)
    body = reply.model_dump_json() if form == "json" else writers[form](reply)
    etag = f'"{hashlib.sha256(f"{form}:{body}".encode()).hexdigest()[:32]}"'
    if is_known(etag, known):
        return unchanged(etag)
    return Response(body, media_type=MEDIA[form], headers=_headers(etag))


def json_answer(
    reply: BaseModel | Sequence[BaseModel], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return the reply as JSON, written here: FastAPI would write it in its event loop, which every request waits for.

    And by way of objects, which for a job of thousands of stages takes twice the memory.
    """
    if isinstance(reply, BaseModel):
        body = reply.model_dump_json()
    else:  # one by one, so that other threads have their turn in between
        body = f"[{','.join(one.model_dump_json() for one in reply)}]"
    return Response(body, status, headers, MEDIA["json"])


def is_known(etag: str, known: str | None) -> bool:
    """Return whether If-None-Match names the answer, or any there is."""
    return known is not None and (known.strip() == "*" or etag in known)


def unchanged(etag: str) -> Response:
    """Return 304: the answer is still what `etag` names."""
    return Response(status_code=304, headers=_headers(etag))


def _headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Accept"}
