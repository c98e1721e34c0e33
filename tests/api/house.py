"""What the API's tests do with a service: post, look, and play the worker."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from starlette.testclient import TestClient

from api.service import Service
from store import stages
from store.models import Base

E2SAD = {"defense": {"kind": "e2sad"}}
LITTLE: dict[str, Any] = {
    "dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": {"iterations": 10}, "limit": 100,
    "attacks": [{"kind": "none"}, {"kind": "fgsm"}], "substitutes": [{"kind": "fgsm_adv"}],
}  # fmt: skip
"""A benchmark of eight stages."""


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
        """Return the tables that hold anything, with their number of rows."""
        with self.service.database.read() as session:
            counted = {
                name: session.scalar(select(func.count()).select_from(table))
                for name, table in Base.metadata.tables.items()
            }
        return {name: number for name, number in counted.items() if number}

    def work(self, *, correct: int = 60, stages_at_most: int = 10_000) -> int:
        """Return the number of stages a worker without a device has finished: every evaluation counts `correct`."""
        done = 0
        while done < stages_at_most:
            with self.service.database.write() as session:
                claim = stages.claim(session, ["cpu"], "nobody", 60)
                if claim is None:
                    return done
                limit = claim.spec.get("limit") or 10_000
                found = {"n": limit, "n_correct": min(correct, limit)} if claim.kind == "evaluate" else {}
                artifacts = [self._stored(claim.key)] if claim.kind == "train" else []
                stages.succeed(session, claim.stage_id, claim.fence, found, {"device": "cpu"}, artifacts)
            done += 1
        return done

    def _stored(self, key: str) -> stages.StoredArtifact:
        data = f"weights of {key}".encode()
        return stages.StoredArtifact("weights", self.service.store.put(data), len(data), "application/x-safetensors")
