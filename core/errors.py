"""The errors a user can meet.

GauntletError
├── SpecError            the request is wrong: says which field and what would be right
│   ├── Diverged         the training itself failed: loss is NaN or infinite
│   └── ModelMissing     a job names a model that does not exist
├── WorkerUnfit          this worker cannot run the stage, which is no fault of the stage: another may
│   ├── DatasetMissing   the files are not in DATA_DIR, or are not the published ones
│   ├── OtherCode        the stage was planned by another version of the code
│   └── DeviceMissing    the stage is for a device that is not here
├── ArtifactCorrupt      stored bytes do not match their sha256
├── StoreAway            the artifact store cannot be reached, refuses, or has no room
├── OutOfMemory          the device has too little memory, however few examples it is given at once
└── Interrupted          the stage was asked to stop: cancelled, drained, or its lease was lost
"""


class GauntletError(Exception):
    """Base of every error this project raises on purpose."""


class SpecError(GauntletError):
    """A spec cannot be carried out; retrying the same spec fails the same way.

    `path` names the field (``("defenses", 0, "eps")``), `allowed` lists what would be accepted.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = (), allowed: list[str] | None = None):
        super().__init__(message)
        self.path = path
        self.allowed = allowed


class Diverged(SpecError):
    """Training produced a loss that is NaN or infinite."""


class ModelMissing(SpecError):
    """A job names a model that does not exist."""


class WorkerUnfit(GauntletError):
    """This worker cannot run the stage, which is no fault of the stage: another worker may."""


class DatasetMissing(WorkerUnfit):
    """A dataset's files are absent or differ from the published ones."""


class OtherCode(WorkerUnfit):
    """A stage was planned by another version of the code, whose results are not those of this one."""


class DeviceMissing(WorkerUnfit):
    """A stage is for a device that is not here."""


class ArtifactCorrupt(GauntletError):
    """Stored bytes are missing or do not match their sha256, which is `sha256` where the store itself says so."""

    def __init__(self, message: str, sha256: str | None = None):
        super().__init__(message)
        self.sha256 = sha256


class StoreAway(GauntletError):
    """The artifact store cannot be reached, refuses, or has no room: no fault of what was to be stored or read."""


class OutOfMemory(GauntletError):
    """The device has too little memory for a single example; the message says how much was asked for."""


class Interrupted(GauntletError):
    """A stage stopped before its end because it was told to."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
