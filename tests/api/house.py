"""What the API's tests do with a service: post, look, and play the worker."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from starlette.testclient import TestClient

from api.service import Service
from store.models import Base
from tests import factories

E2SAD = {"defense": {"kind": "e2sad"}}
LITTLE: dict[str, Any] = {
    "dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": {"iterations": 10}, "limit": 100,
    "attacks": [{"kind": "none"}, {"kind": "fgsm"}], "substitutes": [{"kind": "fgsm_adv"}],
    "transfer": [{"kind": "fgsm"}],
}  # fmt: skip
"""A benchmark of nine stages."""


@dataclass(frozen=True)
class House:
    """A client and the service behind it."""

    client: TestClient
    service: Service

    def post(self, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Return the new job."""
        answer = self.client.post("/jobs", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the plan of a job that is not posted."""
        answer = self.client.post("/jobs?dry_run=1", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON at `path`."""
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rows(self) -> dict[str, int]:
        """Return the tables that hold anything, with their number of rows; leases are no request's."""
        with self.service.database.read() as session:
            counted = {
                name: session.scalar(select(func.count()).select_from(table))
                for name, table in Base.metadata.tables.items()
                if name != "leases"
            }
        return {name: number for name, number in counted.items() if number}

    def work(self, *correct: int) -> None:
        """Finish every stage there is; the evaluations count `correct` in turn, again and again."""
        counted = 0

        def next_count(claim: Any) -> int:
            nonlocal counted
            if claim.kind != "evaluate":
                return 0
            counted += 1
            return correct[(counted - 1) % len(correct)]

        factories.finish(self.service.database, next_count)
