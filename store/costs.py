"""What trainings cost and how they went: time and passes of each, and where its curve is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.canonical import canonical_json
from core.stages.train import CURVE, Train
from store.models import Job, JobModel, Result, Stage, StageArtifact
from store.stages import IS_TRAINED


@dataclass(frozen=True)
class Training:
    """A finished training."""

    key: str
    label: str
    stored: dict[str, Any]
    """Its spec as SQL holds it."""
    payload: dict[str, Any]
    environment: dict[str, Any]
    curve: str | None
    """sha256 of its curve."""

    @cached_property
    def spec(self) -> Train:
        """Its spec, validated when it is first asked for."""
        return Train.model_validate(self.stored)

    @property
    def seconds(self) -> float | None:
        """Seconds of the training itself, or None where its worker did not record them."""
        return self.environment.get("seconds")

    @property
    def examples(self) -> int:
        """Examples it was shown, with repetition."""
        return self.spec.training.iterations * self.spec.training.batch_size

    @property
    def run(self) -> dict[str, Any]:
        """What two trainings must share for their times to be compared: machine, software, dataset, network, batch."""
        imported = self.environment.get("imported") or {}
        return {
            "device": self.spec.execution.device,
            "device_name": self.environment.get("device"),
            "torch": self.environment.get("torch"),
            "host": self.environment.get("host") or imported.get("host"),
            "execution": self.spec.execution.model_dump(mode="json"),
            "dataset": self.spec.dataset,
            "network": self.spec.network.model_dump(mode="json"),
            "batch_size": self.spec.training.batch_size,
        }


def trainings(
    session: Session, *, most: int, suite: str | None = None, job: int | None = None, keys: Sequence[str] = (),
    device: str | None = None,
) -> list[Training]:  # fmt: skip
    """Return the finished trainings that were targets or substitutes of the jobs asked for, newest job first.

    Where they are more than `most`, any `most` + 1 of them.
    """
    asked = [column == value for column, value in ((Job.suite, suite), (Job.id, job)) if value is not None]
    models = select(JobModel.stage_id).join(Job, Job.id == JobModel.job_id).where(*asked)
    chosen = models.join(Stage, Stage.id == JobModel.stage_id).where(IS_TRAINED).distinct().limit(most + 1)
    if keys:
        chosen = chosen.where(Stage.key.in_(list(keys)))
    if device is not None:
        chosen = chosen.where(Stage.spec["execution"]["device"].as_string() == device)
    ids = session.scalars(chosen).all()
    newest = models.add_columns(JobModel.label).where(JobModel.stage_id.in_(ids))
    labels: dict[int, str] = {}
    for stage_id, label in session.execute(newest.order_by(Job.id.desc(), JobModel.role.desc(), JobModel.position)):
        labels.setdefault(stage_id, label)
    rows = session.execute(
        select(Stage.id, Stage.key, Stage.spec, Result.payload, Result.environment, StageArtifact.sha256)
        .join(Result, Result.stage_id == Stage.id)
        .outerjoin(StageArtifact, (StageArtifact.stage_id == Stage.id) & (StageArtifact.name == CURVE))
        .where(Stage.id.in_(ids))
    )
    found = {row.id: Training(row.key, labels[row.id], *row[2:]) for row in rows}
    return [found[stage_id] for stage_id in labels if stage_id in found]


def runs(every: Sequence[Training]) -> list[list[Training]]:
    """Return the timed trainings by the run they can be compared within, the one with most recipes first."""
    grouped: dict[str, list[Training]] = {}
    for training in every:
        if training.seconds:
            grouped.setdefault(canonical_json(training.run), []).append(training)
    return sorted(grouped.values(), key=lambda group: -len({one.spec.recipe for one in group}))
