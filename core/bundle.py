"""Finished stages in one file, to be carried from the machine that computed them to any other.

A zip of `manifest.json` (jobs, and per stage its spec, result, environment, and its artifacts' names and sha256) and of
`artifacts/<sha256>`. Weights and adversarial examples are large and may stay behind; the per-example bits never do, so
that every count in the file can be counted again by whoever reads it.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from core.attacks.none import NoAttack
from core.bits import Bits
from core.bundle_figures import BadFigure, Look, check_drawing, check_look, cost_of, images_of
from core.datasets import DATASETS
from core.errors import GauntletError, SpecError
from core.execution import Execution
from core.figures.base import Figure
from core.jobs import JOB, EvaluateJob, Key, Tags, Text
from core.kinds import Spec
from core.plan import Model, Plan, PlannedEvaluation, plan
from core.stages import DESCRIPTIONS, STAGE, Stage
from core.stages.base import Finished
from core.stages.craft import EXAMPLES, Craft
from core.stages.draw import MEDIA, VALUES, Draw
from core.stages.evaluate import CORRECT, PREDICTIONS, Evaluate
from core.stages.samples import IMAGES, Samples
from core.stages.surface import SURFACE, Surface
from core.stages.sweep import Sweep
from core.stages.train import CURVE, WEIGHTS, Train

LARGE = (WEIGHTS, EXAMPLES)
"""Artifacts that may stay behind."""
ORDER = (Train, Craft, Evaluate, Surface, Sweep, Samples, Draw)
"""The kinds of stage that can be carried, parents before children."""
NEEDED = {
    "train": WEIGHTS, "craft": EXAMPLES, "evaluate": CORRECT, "surface": SURFACE, "samples": IMAGES, "draw": VALUES,
}  # fmt: skip
"""What a stage's result names, whether or not the bytes are in the file; a sweep has its numbers alone."""
BESIDE: dict[str, Collection[str]] = {"train": (CURVE,), "evaluate": (PREDICTIONS,), "draw": MEDIA}
"""What it may name too."""
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 256 * 2**20
LARGEST_ARTIFACT = 4 * 2**30
LARGEST_SMALL = 64 * 2**20
"""Bytes that an artifact has at most which is none of LARGE."""


class BundleError(GauntletError):
    """A file of results cannot be written or believed; the message says why."""


TOLD: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("gauntlet", "commit", "python", "torch", "platform", "host", "device", "written_by"), str),
    "seconds": (int, float), "micro_batch": int,
}  # fmt: skip
"""What services show of an environment, and the type that it has where it is known."""


def _told(found: dict[str, Any]) -> dict[str, Any]:
    for name, kind in TOLD.items():
        if found.get(name) is not None and not isinstance(found[name], kind):
            raise ValueError(f"{name} is {str(found[name])[:40]!r}, which it cannot be")
    return found


class FileEntry(Spec):
    """An artifact of a stage."""

    sha256: Key
    """Its address."""
    size: Annotated[int, Field(ge=0, le=LARGEST_ARTIFACT)]
    """Its bytes."""
    media_type: Annotated[str, Field(max_length=100, pattern=r"^[a-z]+/[a-z0-9.+-]+(; charset=utf-8)?$")]
    """What the bytes are."""


class StageEntry(Spec):
    """A finished stage; its key is where it stands in the manifest."""

    title: Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f]*$")]
    """What it did, for people."""
    spec: dict[str, Any]
    """Its spec, whose canonical form hashes to the key."""
    payload: dict[str, Any]
    """What it found."""
    environment: Annotated[dict[str, Any], AfterValidator(_told)]
    """Versions and device it ran on."""
    artifacts: dict[Annotated[str, Field(max_length=60)], FileEntry]
    """Name -> artifact."""
    device_seconds: Annotated[float, Field(ge=0)]
    """How long it held its device."""


class CarriedModel(Spec):
    """A model of a job."""

    key: Key
    """Key of its train stage."""
    role: Literal["target", "substitute"]
    """Whether it was attacked or crafted on."""
    label: Text
    """Its name in tables."""


class JobEntry(Spec):
    """What was asked for on the machine that computed the stages."""

    kind: Literal["benchmark", "train", "evaluate", "figure"]
    """Kind of the job."""
    name: Text
    """Its name."""
    suite: Text | None
    """The suite it was posted as."""
    tags: Tags
    """Words to find it by."""
    spec: dict[str, Any]
    """The job as it was posted, with defaults."""
    pairing: Literal["all", "same", "independent"]
    """Which substitutes a target met."""
    dataset: Text
    """What it ran on."""
    device: Literal["cpu", "cuda"]
    """Device class."""
    models: list[CarriedModel]
    """Its models that are in the file."""
    stages: list[Key]
    """Its finished stages, parents before children."""
    planned: Annotated[int, Field(ge=1)] | None = None
    """Stages that it had, finished or not; null where that is not known."""


class Manifest(Spec):
    """The table of contents."""

    format: Literal[1] = 1
    """Version of this file format."""
    origin: Annotated[dict[str, Any], AfterValidator(_told)]
    """Where the file was written: host, command, versions, and what the writer wants known."""
    jobs: list[JobEntry]
    """What was asked for."""
    stages: dict[Key, StageEntry]
    """Key -> finished stage."""


@dataclass(frozen=True)
class Bundle:
    """A verified file: every key, count and hash in it has been computed again."""

    sha256: str
    """Of the manifest: the file's name for programs."""
    manifest: Manifest
    specs: dict[str, Stage]
    """Key -> spec."""
    artifacts: dict[str, bytes]
    """sha256 -> bytes; what stayed behind is missing."""

    def plan(self, job: JobEntry) -> Plan:
        """Return the job's finished part as a plan, derived from the stages' own specs."""
        plan = Plan(job.dataset, job.device, job.pairing)
        drawn = [spec for key in job.stages if isinstance(spec := self.specs[key], Draw)]
        figures = {key: draw.figure for draw in drawn for key in draw.parts}
        for key in sorted(job.stages, key=lambda key: ORDER.index(type(self.specs[key]))):
            _add(plan, self.specs, key, self.manifest.stages[key].title, figures)
        for entry in job.models:
            train = self.specs[entry.key]
            assert isinstance(train, Train)  # noqa: S101 - `_check_job` has looked
            (plan.targets if entry.role == "target" else plan.substitutes).append(Model(train, entry.label))
        return plan


def write(
    path: Path,
    manifest: Manifest,
    artifact: Callable[[str], bytes],
    leave_out: Sequence[str] = LARGE,
    absent: Collection[str] = (),
) -> int:
    """Return the number of artifacts written to `path` beside the manifest; equal contents give equal bytes.

    Artifacts named in `leave_out` stay behind, and those whose sha256 is in `absent`.
    """
    wanted = {
        file.sha256
        for stage in manifest.stages.values()
        for name, file in stage.artifacts.items()
        if name not in leave_out and file.sha256 not in absent
    }
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
                text = json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=1)
                zipped.writestr(_member(MANIFEST), text)
                for sha256 in sorted(wanted):
                    zipped.writestr(_member(f"artifacts/{sha256}"), artifact(sha256))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return len(wanted)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # of 1980, so that the bytes do not depend on when they were written
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def read(path: Path) -> Bundle:
    """Return the content of a file of results, after checking everything that can be checked without its makers.

    Raises:
        BundleError: it is no such file, is damaged, was computed by another version of the code, or does not add up.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            return _read(zipped)
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path} is no file of results, or is damaged: {error}") from error
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        raise BundleError(f"{path}: {MANIFEST}: {where}: {found['msg']}") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def _read(zipped: zipfile.ZipFile) -> Bundle:
    text = _bytes(zipped, MANIFEST, LARGEST_MANIFEST)
    manifest = Manifest.model_validate_json(text)
    specs = {key: _spec(key, entry) for key, entry in manifest.stages.items()}
    for key, spec in specs.items():
        _check_names(key, spec, manifest.stages[key])
    sizes = {file.sha256: file.size for entry in manifest.stages.values() for file in entry.artifacts.values()}
    artifacts: dict[str, bytes] = {}
    for name in zipped.namelist():
        if name == MANIFEST:
            continue
        sha256 = name.removeprefix("artifacts/")
        if sha256 not in sizes:
            raise BundleError(f"holds {name!r}, which no stage of it refers to")
        data = _bytes(zipped, name, sizes[sha256])
        if len(data) != sizes[sha256] or hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"artifact {sha256} is not what its name says")
        artifacts[sha256] = data
    for key, spec in specs.items():
        _check_stage(key, spec, manifest.stages[key], specs, artifacts)
    _check_figures(manifest, specs, artifacts)
    for job in manifest.jobs:
        _check_job(job, specs)
    claimed = {key for job in manifest.jobs for key in job.stages}
    for key in specs.keys() - claimed:
        raise BundleError(f"stage {key} belongs to no job of the file")
    return Bundle(hashlib.sha256(text).hexdigest(), manifest, specs, artifacts)


def _bytes(zipped: zipfile.ZipFile, name: str, largest: int) -> bytes:
    try:
        size = zipped.getinfo(name).file_size
    except KeyError:
        raise BundleError(f"lacks {name}") from None
    if size > largest:
        raise BundleError(f"{name} holds {size} bytes where at most {largest} belong")
    try:
        return zipped.read(name)
    except Exception as error:  # zlib's own errors among them
        raise BundleError(f"{name} cannot be read: {error}") from error


def _spec(key: str, entry: StageEntry) -> Stage:
    try:
        spec = STAGE.validate_python(entry.spec)
    except ValidationError as error:
        raise BundleError(f"stage {key}: {error.errors()[0]['msg']}; this code knows no such stage") from error
    if type(spec) not in ORDER:
        raise BundleError(f"stage {key} ({entry.title}) is of the kind {spec.kind!r}, which cannot be carried")
    if spec.identity() != key:
        raise BundleError(
            f"stage {key} ({entry.title}) does not have this key here: its spec was altered, or another version of the "
            f"code computed it (gauntlet {entry.environment.get('gauntlet', 'unknown')})"
        )
    if isinstance(spec, Train) and spec.dataset not in DATASETS:
        raise BundleError(f"stage {key} ({entry.title}) is on the dataset {spec.dataset!r}, which is not known here")
    if isinstance(spec, Train) and spec.dataset_sha256 != DATASETS[spec.dataset]().sha256:
        raise BundleError(f"stage {key} ({entry.title}) is on other files of {spec.dataset} than are published")
    return spec


def _check_names(key: str, spec: Stage, entry: StageEntry) -> None:
    """Raise unless the artifacts, which have not been read, are those that a result of its kind has."""
    needed = NEEDED.get(spec.kind)
    if needed is not None and needed not in entry.artifacts:
        raise BundleError(f"stage {key} ({entry.title}) names no {needed}")
    for name, file in entry.artifacts.items():
        if name != needed and name not in BESIDE.get(spec.kind, ()):
            raise BundleError(f"stage {key} ({entry.title}) has a {name!r}, which no result of its kind has")
        if name not in LARGE and file.size > LARGEST_SMALL:
            raise BundleError(f"stage {key} ({entry.title}): {file.size} bytes are too many for its {name}")


def _check_stage(
    key: str, spec: Stage, entry: StageEntry, specs: Mapping[str, Stage], artifacts: Mapping[str, bytes]
) -> None:
    for parent in spec.parents():
        if parent not in specs:
            raise BundleError(f"stage {key} ({entry.title}) needs stage {parent}, which the file lacks")
    for name, file in entry.artifacts.items():
        if name not in LARGE and file.sha256 not in artifacts:
            raise BundleError(f"stage {key} ({entry.title}): the artifact {name} is missing")
    if isinstance(spec, Craft) and not isinstance(specs[spec.substitute], Train):
        raise BundleError(f"stage {key} ({entry.title}) crafts on {spec.substitute}, which is no model")
    if isinstance(spec, Train):
        for name, expected in spec.counted.items():
            if entry.payload.get(name) != expected:
                raise BundleError(f"stage {key} ({entry.title}): its result's {name} are not those of its spec")
    if isinstance(spec, Evaluate):
        _check_counts(key, spec, entry, specs, artifacts)


def _check_figures(manifest: Manifest, specs: Mapping[str, Stage], artifacts: Mapping[str, bytes]) -> None:
    found = {
        key: Finished(spec, entry.payload, {name: file.sha256 for name, file in entry.artifacts.items()})
        for key, spec in specs.items()
        for entry in [manifest.stages[key]]
    }
    for key, spec in sorted(specs.items(), key=lambda pair: isinstance(pair[1], Draw)):  # what looks before what shows
        try:
            if isinstance(spec, Look):
                check_look(spec, found[key], specs[spec.target], artifacts)
            if isinstance(spec, Draw):
                check_drawing(spec, found[key], found, artifacts)
        except BadFigure as error:
            raise BundleError(f"stage {key} ({manifest.stages[key].title}) {error}") from error


def _check_counts(
    key: str, spec: Evaluate, entry: StageEntry, specs: Mapping[str, Stage], artifacts: Mapping[str, bytes]
) -> None:
    """Raise unless the evaluation is of a model on the images its spec names, and its bits sum to its counts."""
    said = f"stage {key} ({entry.title})"
    target, examples = specs[spec.target], specs[spec.examples] if spec.examples else None
    if not isinstance(target, Train) or not (examples is None or isinstance(examples, Craft)):
        raise BundleError(f"{said} does not show examples to a model")
    if examples is not None and examples.limit != spec.limit:
        raise BundleError(f"{said} counts other images than its examples were crafted from")
    n, bits = _images(target, spec.limit), artifacts[entry.artifacts[CORRECT].sha256]
    if type(entry.payload.get("n")) is not int or entry.payload["n"] != n:
        raise BundleError(f"{said} is over {n} images, but its result says {entry.payload.get('n')}")
    try:
        counted = Bits.unpacked(bits, n).n_right
    except ValueError as error:
        raise BundleError(f"{said}: {error}") from None
    if type(entry.payload.get("n_correct")) is not int or entry.payload["n_correct"] != counted:
        raise BundleError(f"{said}: its bits sum to {counted}, but its result says {entry.payload.get('n_correct')}")
    if PREDICTIONS in entry.artifacts and entry.artifacts[PREDICTIONS].size != n:
        raise BundleError(f"{said}: not one prediction for each of {n} images")


def _images(target: Train, limit: int | None) -> int:
    test_size = DATASETS[target.dataset].test_size
    return test_size if limit is None else min(limit, test_size)


def _check_job(job: JobEntry, specs: Mapping[str, Stage]) -> None:
    stages = set(job.stages)
    said = f"the job {job.name or job.suite or job.kind!r}"
    try:
        asked = JOB.validate_python(job.spec)
    except ValidationError as error:
        raise BundleError(f"{said} was posted with a spec that is none here: {error.errors()[0]['msg']}") from error
    if getattr(asked, "kind", None) != job.kind:
        raise BundleError(f"{said} is called a {job.kind} job, but its spec is of another kind")
    if job.dataset not in DATASETS:
        raise BundleError(f"{said} is on the dataset {job.dataset!r}, which is not known here")
    for key in job.stages:
        if key not in specs:
            raise BundleError(f"{said} refers to stage {key}, which the file lacks")
        spec = specs[key]
        if not set(spec.parents()) <= stages:
            raise BundleError(f"{said} has stage {key} without what that needs")
        if spec.execution.device != job.device and not isinstance(spec, Draw):  # which draws on no device
            raise BundleError(f"{said} ran on {job.device}, but its stage {key} on {spec.execution.device}")
        if isinstance(spec, Train) and spec.dataset != job.dataset:
            raise BundleError(f"{said} is on {job.dataset}, but trains on {spec.dataset}")
    _check_asked(said, job, asked, specs)
    for model in job.models:
        if model.key not in stages or not isinstance(specs[model.key], Train):
            raise BundleError(f"{said} names the model {model.label!r}, which is none of its train stages")
    named = {model.key for model in job.models}
    for key in job.stages:
        if isinstance(specs[key], Train) and key not in named:
            raise BundleError(f"{said} does not name its model {key}")


def _check_asked(said: str, job: JobEntry, asked: Any, specs: Mapping[str, Stage]) -> None:
    """Raise where the job's spec would not have asked for its stages; one that names trained models is believed."""
    executed = executions(specs[key] for key in job.stages)
    if not executed or isinstance(asked, EvaluateJob) or getattr(asked, "models", None):
        return
    if len(executed) > 1:
        raise BundleError(f"{said} was executed in several ways; a job has one")
    nobody: Any = None
    try:
        planned = plan(asked, executed[0], nobody).stages
    except SpecError as error:
        raise BundleError(f"{said} was posted with a spec that cannot be planned here: {error}") from error
    for key in job.stages:
        if key not in planned:
            raise BundleError(f"{said} has stage {key} ({specs[key].kind}), which its spec does not ask for")


def executions(stages: Iterable[Stage]) -> list[Execution]:
    """Return how stages were executed, each way once; a drawing is made on no device, and says nothing of one."""
    return list(dict.fromkeys(stage.execution for stage in stages if not isinstance(stage, Draw)))


def difference(payload: Mapping[str, Any], here: Mapping[str, str], entry: StageEntry) -> str | None:
    """Return in what a file's result differs from one with that payload, and these sha256 of its artifacts by name.

    Descriptions and pictures are no difference.
    """
    for name in ("n", "n_correct"):
        if payload.get(name) != entry.payload.get(name):
            return f"{name} is {payload.get(name)} here and {entry.payload.get(name)} in the file"
    for name, file in entry.artifacts.items():
        if name not in DESCRIPTIONS and here.get(name, file.sha256) != file.sha256:
            return f"the {name} have the sha256 {here[name][:12]} here and {file.sha256[:12]} in the file"
    return None


def _add(plan: Plan, specs: Mapping[str, Stage], key: str, title: str, figures: Mapping[str, Figure]) -> None:
    """Add a stage to the plan; what SQL keeps beside it is computed from the specs, not taken from the file."""
    spec = specs[key]
    if isinstance(spec, Train):
        plan.add(spec, title, spec.flop, 0)
    if isinstance(spec, Craft):
        substitute = specs[spec.substitute]
        assert isinstance(substitute, Train)  # noqa: S101 - `_check_stage` has looked
        images = _images(substitute, spec.limit)
        plan.add(spec, title, spec.attack.passes().units * substitute.network.flop * images, images)
    if isinstance(spec, Evaluate):
        _add_evaluation(plan, specs, spec, title)
    if isinstance(spec, Look):
        train = specs[spec.target]
        assert isinstance(train, Train)  # noqa: S101 - `check_look` has looked
        plan.add(spec, title, cost_of(key, spec, train, figures), images_of(spec, train))
    if isinstance(spec, Draw):
        plan.add(spec, title, 0.0, 0)


def _add_evaluation(plan: Plan, specs: Mapping[str, Stage], spec: Evaluate, title: str) -> None:
    target, crafted = specs[spec.target], specs[spec.examples] if spec.examples else None
    assert isinstance(target, Train)  # noqa: S101 - `_check_counts` has looked
    images = _images(target, spec.limit)
    if isinstance(crafted, Craft):
        seen = PlannedEvaluation(spec.target, crafted.substitute, crafted.attack)
    else:
        seen = PlannedEvaluation(spec.target, None, NoAttack())
    plan.add(spec, title, target.network.flop * images, images, evaluation=seen)
