"""Figures: what was drawn, where its pictures are, and the values of loss surfaces."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy.orm import Session

from api.errors import RESPONSES, NotFound
from api.filters import JobQuery, require_models
from api.forms import json_answer
from api.schemas import FigureReply, ModelName, SurfaceReply
from api.service import Service, ServiceDep
from core.errors import ArtifactCorrupt
from core.figures import FIGURES
from core.jobs import DatasetName, Key
from core.stages.draw import VALUES
from store import stages
from store.figures import DrawnFigure, FigureFilters, figures
from store.models import StageState

router = APIRouter(prefix="/results", tags=["results"], responses=RESPONSES)

SURFACES = sorted(name for name, cls in FIGURES.items() if cls.surface)
LINKS = {"values": "values", "png": "png", "svg": "svg", "html": "page"}
"""Artifact of a draw stage -> its name among the links."""


class FigureQuery(JobQuery):
    """How a list of figures is narrowed."""

    dataset: DatasetName | None = None
    """Dataset."""
    model: Key | None = None
    """Only figures that show this model: the key of its train stage."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Figures at most, the newest ones."""
    cursor: Key | None = None
    """Key of the last figure of the page before: only older ones."""

    def require(self, session: Session) -> None:
        """Return where everything that is named is there.

        Raises:
            NotFound: there is no such job, model or figure.
            Invalid: there is no such suite.
        """
        super().require(session)
        if self.model is not None:
            require_models(session, [self.model])
        if self.cursor is not None:
            stage = stages.by_key(session, self.cursor)
            if stage is None or stage.kind != "draw":
                raise NotFound(f"there is no figure {self.cursor}")

    def filters(self, kinds: list[str] | None = None) -> FigureFilters:
        """Return the query as the store takes it."""
        return FigureFilters(
            job=self.job, suite=self.suite, dataset=self.dataset, model=self.model, kinds=kinds, before=self.cursor
        )  # fmt: skip


class SurfaceQuery(FigureQuery):
    """How a list of loss surfaces is narrowed."""

    limit: Annotated[int, Field(ge=1, le=10)] = 5
    """Surfaces at most, the newest ones: the values of one may take two megabytes."""


@router.get("/figures", response_model=list[FigureReply])
def list_figures(query: Annotated[FigureQuery, Query()], service: ServiceDep) -> Response:
    """List figures of every kind, newest first, with links to values, pictures and pages."""
    with service.database.read() as session:
        query.require(session)
        drawn = figures(session, query.filters(), query.limit)
        return json_answer([FigureReply(**_figure(found)) for found in drawn])


@router.get("/surfaces", response_model=list[SurfaceReply])
def list_surfaces(query: Annotated[SurfaceQuery, Query()], service: ServiceDep) -> Response:
    """List loss surfaces, newest first, with their values and with links to pictures and pages."""
    with service.database.read() as session:
        query.require(session)
        drawn = figures(session, query.filters(SURFACES), query.limit)
        replies = [(_figure(found), found.artifacts.get(VALUES)) for found in drawn]
    return json_answer([SurfaceReply(**reply, **_values(service, reply["state"], sha256)) for reply, sha256 in replies])


def _figure(found: DrawnFigure) -> dict[str, Any]:
    payload = found.payload or {}
    spec: dict[str, Any] = found.stage.spec
    links = [(name, sha256) for name, sha256 in sorted(found.artifacts.items()) if name in LINKS]
    return {
        "key": found.stage.key, "figure": spec["figure"], "state": found.stage.state, "dataset": found.stage.dataset,
        "title": payload.get("title", found.stage.title), "caption": payload.get("caption"),
        "models": [ModelName(key=key, label=label) for key, label in zip(found.models, spec["labels"], strict=True)],
        "links": {LINKS[name]: f"/artifacts/{sha256}" for name, sha256 in links},
    }  # fmt: skip


def _values(service: Service, state: str, sha256: str | None) -> dict[str, Any]:
    """Return the values of a surface, or null and the reason."""
    if sha256 is None:
        reason = "its result was imported without them" if state == StageState.SUCCEEDED else f"not drawn yet ({state})"
        return {"values": None, "reason": reason}
    try:
        return {"values": json.loads(service.store.get(sha256)), "reason": None}
    except ArtifactCorrupt as error:
        return {"values": None, "reason": str(error)}
    except ValueError:
        return {"values": None, "reason": f"the artifact {sha256} is no JSON"}
