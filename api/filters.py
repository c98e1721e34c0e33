"""What filters of lists and tables may name: what is registered or in SQL. What is misspelt is refused."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.errors import FieldError, Invalid, NotFound, QueryText
from core.attacks import ATTACKS
from core.fields import MAX_SEED
from core.jobs import DatasetName
from core.kinds import known_name, names_of
from core.networks import NETWORKS
from core.suites import suites
from store import jobs, labels, stages
from store.results import Filters

MANY = 50
"""Labels that a refusal lists at most."""


AttackName = Annotated[str, AfterValidator(known_name(ATTACKS, "attack")), names_of(ATTACKS)]
NetworkName = Annotated[str, AfterValidator(known_name(NETWORKS, "network")), names_of(NETWORKS)]


class JobQuery(BaseModel):
    """Whose results are shown; without filters everybody's."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    job: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """Only what this job asked for."""
    suite: QueryText | None = None
    """Only jobs posted as this suite."""

    def require(self, session: Session) -> None:
        """Return where everything that is named is there.

        Raises:
            NotFound: there is no such job.
            Invalid: nobody has ever heard of the suite.
        """
        if self.job is not None and jobs.by_id(session, self.job) is None:
            raise NotFound(f"there is no job {self.job}")
        require_suite(session, self.suite)


class ScopeQuery(JobQuery):
    """Which results are shown; without filters the newest comparable group."""

    dataset: DatasetName | None = None
    """Dataset."""
    device: Literal["cpu", "cuda"] | None = None
    """Device class."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Test images behind each evaluation."""
    label: list[QueryText] = []
    """Only these models, by label, as a table shows it, or by recipe; may be repeated."""
    seed: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = []
    """Only targets of these seeds; may be repeated."""

    def filters(self) -> Filters:
        """Return the query as the store takes it."""
        return Filters(
            job=self.job, suite=self.suite, dataset=self.dataset, device=self.device, limit=self.images,
            labels=tuple(self.label), seeds=tuple(self.seed),
        )  # fmt: skip

    def require(self, session: Session) -> None:
        """Return where everything that is named is there.

        Raises:
            NotFound: there is no such job.
            Invalid: there is no such suite, or no model of such a label.
        """
        super().require(session)
        for i, label in enumerate(self.label):
            if not labels.has_label(session, label):
                raise _unknown(f"label.{i}", f"no model is called {label!r}", labels.labels(session, MANY))


def require_suite(session: Session, suite: str | None) -> None:
    """Return where the suite ships with this version or some job was posted as it.

    Raises:
        Invalid: nobody has ever heard of it.
    """
    if suite is not None and suite not in suites() and not jobs.posted_as(session, suite):
        raise _unknown("suite", f"there is no suite {suite!r}, and no job was posted as one", sorted(suites()))


def require_models(session: Session, keys: Sequence[str]) -> None:
    """Return where each of the keys is a train stage's.

    Raises:
        NotFound: one is not.
    """
    there = stages.trainings_among(session, keys)
    missing = next((key for key in keys if key not in there), None)
    if missing is not None:
        raise NotFound(f"there is no model {missing}; GET /models lists them")


def _unknown(path: str, message: str, allowed: list[str]) -> Invalid:
    return Invalid(
        f"{message}; there are {', '.join(allowed)}", [FieldError(path=path, message=message, allowed=allowed)]
    )
