"""What routes share: settings, database, bells, artifact store; one per API process."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.tags import Tags
from core.datasets import DATASETS
from core.errors import SpecError
from core.execution import Execution
from core.jobs import EvaluateJob, FigureJob, Job
from store import workers
from store.artifacts import ArtifactStore, open_store
from store.broker import Ringer, celery_app
from store.database import Database
from store.settings import Settings

BUSY_SECONDS = 5.0
"""How long a request waits for other writers of an embedded database before it is told to come again."""


@dataclass
class Service:
    """The process's connections."""

    settings: Settings
    database: Database
    store: ArtifactStore
    ringer: Ringer
    tags: Tags = field(default_factory=Tags)
    stopping: bool = False
    """Set when the process is told to stop, so that open streams end. No event: its lock may be held in a handler."""

    @classmethod
    def open(cls, settings: Settings) -> "Service":
        """Return a service on what the settings name."""
        ringer = Ringer(celery_app(settings))
        database = Database(settings.sql_url, BUSY_SECONDS)
        return cls(settings, database, open_store(settings.artifacts, settings.s3, database), ringer)

    def close(self) -> None:
        """Send the last bells and close the database."""
        self.ringer.close()
        self.database.close()

    def execution(self, session: Session, job: Job) -> Execution:
        """Return how the job's stages are executed, resolved now and part of their keys."""
        device = job.device if job.device != "auto" else self.settings.device
        if device == "auto":
            device = "cuda" if workers.has_live_cuda(session, self.settings.alive_seconds) else "cpu"
        return Execution.on(device, self.settings.cpu_threads)

    def require_dataset(self, job: Job, name: str) -> None:
        """Return where the dataset that the job names, or its models were trained on, can be had.

        Raises:
            SpecError: its files are absent and may not be downloaded.
        """
        by_models = "targets" if isinstance(job, EvaluateJob) else "models"
        named = not isinstance(job, EvaluateJob) and (not isinstance(job, FigureJob) or job.trains)
        dataset = DATASETS[name]()
        missing = dataset.missing(self.settings.data_dir)
        if missing and not self.settings.data_download:
            installed = [kind for kind, cls in DATASETS.items() if not cls().missing(self.settings.data_dir)]
            raise SpecError(
                f"the dataset {name} is not installed ({missing[0]} is missing): {dataset.remedy}",
                ("dataset" if named else by_models,), installed,
            )  # fmt: skip


async def _service(request: Request) -> Service:
    return request.app.state.service


ServiceDep = Annotated[Service, Depends(_service)]
