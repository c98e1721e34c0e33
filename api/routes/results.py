"""Results: the matrices, as JSON, CSV, Markdown or LaTeX."""

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator
from sqlalchemy.orm import Session

from api import views
from api.errors import RESPONSES, QueryText
from api.filters import AttackName, NetworkName, require_job, require_labels, require_suite
from api.forms import Accept, IfNoneMatch, MatrixForm, answer, chosen, in_forms, unchanged
from api.schemas import MatrixReply
from api.service import Service, ServiceDep
from api.terminal import WRITERS
from core import protocol
from core.fields import MAX_SEED, Pixels, format_pixels
from core.jobs import DatasetName
from store import results
from store.protocol import asked_of_matrix
from store.results import Filters, Matrix

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)

FORMS = in_forms(*WRITERS)
_pixels: TypeAdapter[Fraction] = TypeAdapter(Pixels)


class MatrixQuery(BaseModel):
    """How a matrix is narrowed; without filters it is the newest comparable group."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    job: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """Only what this job asked for."""
    suite: QueryText | None = None
    """Only jobs posted as this suite."""
    dataset: DatasetName | None = None
    """Dataset."""
    device: Literal["cpu", "cuda"] | None = None
    """Device class."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Test images behind each evaluation."""
    network: NetworkName | None = None
    """Architecture."""
    attack: AttackName | None = None
    """Kind of attack."""
    eps: QueryText | None = None
    """Radius of the attack, as a number or a fraction."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of the attack."""
    label: list[QueryText] = []
    """Only these models; may be repeated."""
    seed: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = []
    """Only targets of these seeds; may be repeated."""
    pairing: Literal["all", "same", "independent"] | None = None
    """Which substitutes a target meets; left out, as the newest job said."""
    format: MatrixForm | None = None
    """Form of the answer; left out, what Accept asks for, else JSON."""

    @field_validator("eps")
    @classmethod
    def _exact(cls, value: str | None) -> str | None:
        return None if value is None else format_pixels(_pixels.validate_python(value))

    def filters(self) -> Filters:
        """Return the query as the store takes it."""
        return Filters(
            job=self.job, suite=self.suite, dataset=self.dataset, device=self.device, limit=self.images,
            network=self.network, attack=self.attack, eps=self.eps, steps=self.steps, labels=tuple(self.label),
            seeds=tuple(self.seed), pairing=self.pairing,
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


def _require(session: Session, query: MatrixQuery) -> None:
    require_job(session, query.job)
    require_suite(session, query.suite)
    require_labels(session, query.label)


def cautions_of(session: Session, found: Matrix) -> list[str]:
    """Return what is known against believing the table: of its models, and how they and it differ from the paper's."""
    asked = asked_of_matrix(session, found)
    return protocol.beside(asked) if asked else []


def _answer(
    name: str, make: Callable[[Session, MatrixQuery], MatrixReply], service: Service, query: MatrixQuery,
    accept: str | None, if_none_match: str | None,
) -> Response:  # fmt: skip
    """Return the table that `make` makes, or 304; where nothing has changed since it was last made, by one query."""
    question = (name, chosen(query.format, accept, {"json", *WRITERS}), query.model_dump_json())
    with service.database.read() as session:
        stamp = results.stamp(session)
        known = service.tags.of(question, stamp)
        if known is not None and if_none_match is not None and known in if_none_match:
            return unchanged(known)
        _require(session, query)
        reply = make(session, query)
    found = answer(reply, WRITERS, query.format, accept, if_none_match)
    service.tags.learn(question, stamp, found.headers["etag"])
    return found
