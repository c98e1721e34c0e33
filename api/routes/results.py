"""Results: the matrices, as JSON, CSV, Markdown or LaTeX."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field, TypeAdapter, field_validator
from sqlalchemy.orm import Session

from api import views
from api.errors import RESPONSES, QueryText
from api.filters import AttackName, NetworkName, ScopeQuery
from api.forms import FORMS, Accept, Form, IfNoneMatch, answer, chosen, is_known, unchanged
from api.schemas import MatrixReply
from api.service import Service, ServiceDep
from api.terminal import WRITERS
from core import protocol
from core.fields import Pixels, format_pixels
from store import results
from store.protocol import UNREAD, asked_of_matrix
from store.results import Filters, Matrix

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)

_pixels: TypeAdapter[Fraction] = TypeAdapter(Pixels)


class MatrixQuery(ScopeQuery):
    """How a matrix is narrowed; without filters it is the newest comparable group."""

    network: NetworkName | None = None
    """Architecture."""
    attack: AttackName | None = None
    """Kind of attack."""
    eps: QueryText | None = None
    """Radius of the attack, as a number or a fraction."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the attack."""
    pairing: Literal["all", "same", "independent"] | None = None
    """Which substitutes a target meets; left out, as the newest job said."""
    format: Form | None = None
    """Form of the answer; left out, what Accept asks for, else JSON."""

    @field_validator("eps")
    @classmethod
    def _exact(cls, value: str | None) -> str | None:
        return None if value is None else format_pixels(_pixels.validate_python(value))

    def filters(self) -> Filters:
        """Return the query as the store takes it."""
        return replace(
            super().filters(), network=self.network, attack=self.attack, eps=self.eps, steps=self.steps,
            pairing=self.pairing,
        )  # fmt: skip


@router.get("/whitebox-matrix", response_model=MatrixReply, responses=FORMS)
def whitebox_matrix(
    query: Annotated[MatrixQuery, Query()],
    service: ServiceDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Answer with attacks by targets: accuracy of each target under examples crafted on itself, and on clean images."""
    return _answer("whitebox", _whitebox, service, query, accept, if_none_match)


@router.get("/blackbox-matrix", response_model=MatrixReply, responses=FORMS)
def blackbox_matrix(
    query: Annotated[MatrixQuery, Query()],
    service: ServiceDep,
    accept: Accept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Answer with substitutes by targets: accuracy of each target under examples crafted on each substitute."""
    return _answer("blackbox", _blackbox, service, query, accept, if_none_match)


def _whitebox(session: Session, query: MatrixQuery) -> MatrixReply:
    found = results.whitebox(session, query.filters())
    return views.matrix("whitebox", found, {}, cautions_of(session, found))


def _blackbox(session: Session, query: MatrixQuery) -> MatrixReply:
    filters = query.filters()
    found = results.blackbox(session, filters)
    strength = results.self_strength(session, filters, found.scope) if found.scope else {}
    return views.matrix("blackbox", found, strength, cautions_of(session, found))


def cautions_of(session: Session, found: Matrix) -> list[str]:
    """Return what is known against believing the table: of its models, and how they and it differ from the paper's."""
    asked = asked_of_matrix(session, found)
    if asked is None:
        return [UNREAD] if found.scope else []
    return protocol.beside(asked)


def _answer(
    name: str, make: Callable[[Session, MatrixQuery], MatrixReply], service: Service, query: MatrixQuery,
    accept: str | None, if_none_match: str | None,
) -> Response:  # fmt: skip
    """Return the table that `make` makes, or 304; where nothing has changed since it was last made, by one query."""
    question = (name, chosen(query.format, accept), query.model_dump_json())
    with service.database.read() as session:
        stamp = results.stamp(session)
        known = service.tags.of(question, stamp)
        if known is not None and is_known(known, if_none_match):
            return unchanged(known)
        query.require(session)
        reply = make(session, query)
    found = answer(reply, WRITERS, query.format, accept, if_none_match)
    service.tags.learn(question, stamp, found.headers["etag"])
    return found
