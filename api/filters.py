"""What filters of lists and tables may name: what is registered or in SQL. What is misspelt is refused."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from api.errors import FieldError, Invalid, NotFound
from core.attacks import ATTACKS
from core.networks import NETWORKS
from core.suites import suites
from store import jobs

MANY = 50
"""Labels that a refusal lists at most."""


def _kind_of(registry: Mapping[str, Any], what: str) -> Callable[[str], str]:
    """Return the validator that refuses a name the registry does not have."""

    def known(name: str) -> str:
        if name not in registry:
            allowed = sorted(registry)
            said = {"said": f"unknown {what} {name!r}; allowed: {', '.join(allowed)}", "allowed": allowed}
            raise PydanticCustomError("unknown_kind", "{said}", said)
        return name

    return known


def _enum(registry: Mapping[str, Any]) -> Any:
    return Field(json_schema_extra={"enum": list[JsonValue](sorted(registry))})


AttackName = Annotated[str, AfterValidator(_kind_of(ATTACKS, "attack")), _enum(ATTACKS)]
NetworkName = Annotated[str, AfterValidator(_kind_of(NETWORKS, "network")), _enum(NETWORKS)]


def require_job(session: Session, job: int | None) -> None:
    """Return where the job is there, or none was named.

    Raises:
        NotFound: there is none of that number.
    """
    if job is not None and jobs.by_id(session, job) is None:
        raise NotFound(f"there is no job {job}")


def require_suite(session: Session, suite: str | None) -> None:
    """Return where the suite ships with this version or some job was posted as it.

    Raises:
        Invalid: nobody has ever heard of it.
    """
    if suite is not None and suite not in suites() and not jobs.posted_as(session, suite):
        raise _unknown("suite", f"there is no suite {suite!r}, and no job was posted as one", sorted(suites()))


def require_labels(session: Session, labels: Sequence[str]) -> None:
    """Return where some job has a model of each label.

    Raises:
        Invalid: one is no model's.
    """
    for i, label in enumerate(labels):
        if not jobs.has_label(session, label):
            raise _unknown(f"label.{i}", f"no model is called {label!r}", jobs.labels(session, MANY))


def _unknown(path: str, message: str, allowed: list[str]) -> Invalid:
    return Invalid(
        f"{message}; there are {', '.join(allowed)}", [FieldError(path=path, message=message, allowed=allowed)]
    )
