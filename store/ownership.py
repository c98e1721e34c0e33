"""Whose an artifact store is: it bears the name of the one database that refers to its artifacts.

Else a database that is new or another's would take everything in it for garbage, and a prefix that is mistyped or a
disk that is not mounted would be taken for the loss of everything.
"""

import uuid
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from core.errors import StoreAway
from store.database import Database, insert_for
from store.models import Checkpoint, Lease, StageArtifact

NAMED = "artifact store"
"""Name of the lease that is held for good: by the database itself, under a name that no other has."""
PROBED = 20
_NAME = select(Lease.owner).where(Lease.name == NAMED)


class Owner:
    """What a store asks of its database.

    Raises:
        StoreAway: the database does not answer.
    """

    def __init__(self, database: Database):
        self._database = database
        self._name: str | None = None

    def name(self) -> str:
        """Return the database's name, given to it the first time anyone asks. No backup carries it to another."""
        if self._name is None:
            with _asking():
                self._name = self._known() or self._given()
        return self._name

    def referred(self) -> list[str]:
        """Return the sha256 of the newest artifacts that rows refer to, a few."""
        results = select(StageArtifact.sha256).order_by(StageArtifact.stage_id.desc()).limit(PROBED)
        checkpoints = select(Checkpoint.sha256).order_by(Checkpoint.created_at.desc()).limit(PROBED)
        with _asking(), self._database.read() as session:
            return [*session.scalars(results), *session.scalars(checkpoints)]

    def _known(self) -> str | None:
        with self._database.read() as session:
            return session.scalar(_NAME)

    def _given(self) -> str:
        with self._database.write() as session:
            new = insert_for(session, Lease).values(name=NAMED, owner=uuid.uuid4().hex, expires=0.0)
            session.execute(new.on_conflict_do_nothing())
            return session.scalars(_NAME).one()


@contextmanager
def _asking() -> Generator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        why = str(error).splitlines()[0]
        raise StoreAway(f"the database does not say whose the artifact store is: {why}") from error
