"""`python -m core.run --suite NAME --out FILE`: a suite through core alone, into a file for `gauntlet import`.

For a machine that has an accelerator and little else: torch, torchvision, numpy, pydantic, PyYAML and safetensors; no
database, no broker, nothing installed. Finished stages stay in a folder, so that the same command goes on where it was
stopped: by its budget of seconds, by a signal, or by the machine. The order of the stages is always the same: after
each training everything that it makes possible, so that a run cut short has whole columns.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.bundle import LARGE, NEEDED, FileEntry, JobEntry, Manifest, StageEntry, difference, read, write
from core.compute import computes, keep_freed_memory
from core.datasets import DATASETS
from core.datasets.base import Data
from core.errors import ArtifactCorrupt, GauntletError, Interrupted, SpecError
from core.execution import Execution
from core.jobs import JOB, BenchmarkJob, FigureJob
from core.plan import Plan, PlannedStage, plan
from core.provenance import device_class, environment, made_in, require_device
from core.stages import STAGE
from core.stages.base import Finished
from core.stages.train import Train
from core.suites import expand_suite
from core.understood import understood

CHECKPOINT_SECONDS = 60.0
PROGRESS_SECONDS = 30.0
FAILED = 1
"""Exit status of a run that cannot begin, or some of whose stages failed; they are tried again when it is started."""
CUT_SHORT = 75
"""Exit status of a run that stopped before its end and goes on when it is started again."""


class Folder:
    """Finished stages, artifacts and checkpoints as files; each appears whole or not at all.

    Raises:
        SpecError: another run works in it.
    """

    def __init__(self, path: Path):
        self._path = path
        for name in ("stages", "artifacts", "checkpoints"):
            (path / name).mkdir(parents=True, exist_ok=True)
        self._lock = (path / "lock").open("w")  # held as long as this object lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"another run works in {path}; wait for it, or name another --folder") from None

    def entry(self, key: str) -> StageEntry | None:
        """Return the finished stage of that key; one whose file cannot be read has not finished."""
        file = self._path / "stages" / f"{key}.json"
        if not file.exists():
            return None
        try:
            return StageEntry.model_validate_json(file.read_bytes())
        except ValidationError:
            print(f"{file} cannot be read; the stage is computed again", flush=True)
            file.unlink()
            return None

    def finish(self, key: str, entry: StageEntry) -> None:
        """Keep a finished stage, whose artifacts have been put, and forget its checkpoint."""
        self._write(f"stages/{key}.json", json.dumps(entry.model_dump(mode="json")).encode())
        self._checkpoint(key).unlink(missing_ok=True)

    def put(self, data: bytes) -> str:
        """Return the sha256 under which `data` is kept."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._write(f"artifacts/{sha256}", data)
        return sha256

    def holds(self, sha256: str) -> bool:
        """Return whether these bytes are kept."""
        return (self._path / "artifacts" / sha256).exists()

    def take(self, path: Path) -> set[str]:
        """Return the keys of what has finished in an earlier file of results, after taking it over.

        Raises:
            ArtifactCorrupt: a stage that has finished here has another result there; nothing was taken over.
        """
        found = read(path)
        before = {key: entry for key in found.manifest.stages if (entry := self.entry(key)) is not None}
        for key, mine in before.items():
            here = {name: file.sha256 for name, file in mine.artifacts.items()}
            if said := difference(mine.payload, here, found.manifest.stages[key]):
                raise ArtifactCorrupt(f"{path} is of another run: {mine.title} has finished here, and {said}")
        for data in found.artifacts.values():
            self.put(data)
        for key, entry in found.manifest.stages.items():
            if key not in before:
                self.finish(key, entry)
        return set(found.manifest.stages)

    def artifact(self, sha256: str) -> bytes:
        """Return kept bytes.

        Raises:
            ArtifactCorrupt: they are missing or are not those that were kept.
        """
        file = self._path / "artifacts" / sha256
        data = file.read_bytes() if file.exists() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ArtifactCorrupt(f"{file} is missing or altered; remove {self._path / 'stages'} to compute it again")
        return data

    def checkpoint(self, key: str) -> bytes | None:
        """Return the newest checkpoint of an unfinished training."""
        file = self._checkpoint(key)
        return file.read_bytes() if file.exists() else None

    def keep_checkpoint(self, key: str, data: bytes) -> None:
        """Replace a training's checkpoint."""
        self._write(f"checkpoints/{key}", data)

    def _checkpoint(self, key: str) -> Path:
        return self._path / "checkpoints" / key

    def _write(self, name: str, data: bytes) -> None:
        partial = self._path / f"{name}.partial"
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path / name)


@dataclass
class Budget:
    """When to stop: at a moment on the monotonic clock, or when a signal came."""

    ends: float
    told: bool = False

    def tell(self, *_: Any) -> None:
        """Note that a signal came; Ctrl-C once more ends the process at once."""
        self.told = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Return while there is time left.

        Raises:
            Interrupted: there is none.
        """
        if self.told or time.monotonic() > self.ends:
            raise Interrupted("drain")


class Running:
    """One stage at work: `core.stages.base.Context` over a folder, and the monitor of its computation."""

    def __init__(self, folder: Folder, budget: Budget, planned: PlannedStage, data_dir: Path):
        self._folder, self._budget, self._planned, self._data_dir = folder, budget, planned, data_dir
        self._kept = self._said = time.monotonic()

    @property
    def monitor(self) -> "Running":
        """Where progress goes, and where the order to stop comes from."""
        return self

    def parent(self, key: str) -> Finished:
        """Return the finished parent stage `key`."""
        entry = self._folder.entry(key)
        if entry is None:
            raise ArtifactCorrupt(f"the parent stage {key} has no result")
        return Finished(
            STAGE.validate_python(entry.spec),
            entry.payload,
            {name: file.sha256 for name, file in entry.artifacts.items()},
        )

    def artifact(self, sha256: str) -> bytes:
        """Return stored bytes, verified."""
        return self._folder.artifact(sha256)

    def dataset(self, name: str) -> Data:
        """Return a dataset, verified against its published checksums."""
        return _dataset(name, self._data_dir)

    def checkpoints(self) -> Iterator[bytes]:
        """Yield the checkpoint of this stage, where there is one."""
        data = self._folder.checkpoint(self._planned.key)
        if data is not None:
            yield data

    def log(self, line: str) -> None:
        """Print a line."""
        print(f"  {line}", flush=True)

    def check(self) -> None:
        """Raise `Interrupted` where the time is over."""
        self._budget.check()

    def progress(self, done: int, total: int, **figures: float) -> None:
        """Print now and then how far a long stage is."""
        if time.monotonic() - self._said >= PROGRESS_SECONDS:
            self._said = time.monotonic()
            seen = "".join(f", {name} {value:.3g}" for name, value in figures.items())
            self.log(f"{self._planned.title}: {done} of {total}{seen}")

    def wants_checkpoint(self) -> bool:
        """Return whether the time between checkpoints has passed."""
        return time.monotonic() - self._kept >= CHECKPOINT_SECONDS

    def save_checkpoint(self, data: bytes) -> None:
        """Keep a checkpoint."""
        self._folder.keep_checkpoint(self._planned.key, data)
        self._kept = time.monotonic()

    def clock(self) -> float:
        """Return seconds that only go forward."""
        return time.monotonic()


@cache
def _dataset(name: str, data_dir: Path) -> Data:
    return DATASETS[name]().load(data_dir)


def ordered(planned: Plan) -> list[PlannedStage]:
    """Return the stages so that each training is followed by all that it makes possible."""
    waiting = planned.ordered
    done: set[str] = set()
    order: list[PlannedStage] = []
    while waiting:
        ready = [stage for stage in waiting if done.issuperset(stage.spec.parents())]
        chosen = next((stage for stage in ready if not isinstance(stage.spec, Train)), ready[0])
        waiting.remove(chosen)
        done.add(chosen.key)
        order.append(chosen)
    return order


def columns(planned: Plan, labels: Sequence[str]) -> list[PlannedStage]:
    """Return the stages, in order, that the columns of the targets so labelled need, of all seeds; all where none is.

    Raises:
        SpecError: no target has one of the labels.
    """
    known = list(dict.fromkeys(model.label for model in planned.targets))
    for label in labels:
        if label not in known:
            raise SpecError(f"--only: no target is called {label!r}; there are: {', '.join(known)}")
    order = ordered(planned)
    targets = {model.key for model in planned.targets if model.label in labels}
    needed: set[str] = set()
    for stage in reversed(order):
        if stage.key in needed | targets or (stage.evaluation and stage.evaluation.target in targets):
            needed |= {stage.key, *stage.spec.parents()}
    return [stage for stage in order if stage.key in needed] if labels else order


def run(stages: list[PlannedStage], folder: Folder, budget: Budget, data_dir: Path) -> int:
    """Return 0 when all stages have finished, 75 when the budget or the device ended first, 1 where some failed.

    A stage that fails is printed, and takes with it those that need it, no other.
    """
    by_key = {stage.key: stage for stage in stages}
    failed: set[str] = set()
    for number, planned in enumerate(stages, 1):
        if folder.entry(planned.key) is not None:
            continue
        place, wanted = f"[{number}/{len(stages)}]", planned
        if failed.intersection(planned.spec.parents()):
            failed.add(planned.key)
            print(f"{place} {planned.title}: left out, for a stage it needs failed", flush=True)
            continue
        try:
            for wanted in [*_left_behind(planned, by_key, folder), planned]:
                entry = _finished(wanted, folder, budget, data_dir)
                print(f"{place} {wanted.title}: {_said(entry)}", flush=True)
        except Interrupted:
            print(f"{place} stopped at: {wanted.title}", flush=True)
            return CUT_SHORT
        except Exception as error:  # torch's errors of a device are plain RuntimeErrors
            failed |= {wanted.key, planned.key}
            print(f"{place} {wanted.title}: FAILED: {type(error).__name__}: {error}", flush=True)
            if not isinstance(error, GauntletError):
                traceback.print_exc()
                if not computes():
                    print("the device computes nothing more in this process; run again to go on", flush=True)
                    return CUT_SHORT
    return FAILED if failed else 0


def _finished(planned: PlannedStage, folder: Folder, budget: Budget, data_dir: Path) -> StageEntry:
    """Return what the stage found, kept in the folder.

    Raises:
        ArtifactCorrupt: bytes that an earlier file had left behind are others when the stage is run again.
        Interrupted: the budget has ended.
    """
    budget.check()
    entry = _compute(planned, folder, Running(folder, budget, planned, data_dir))
    _require_same(planned, folder.entry(planned.key), entry)
    folder.finish(planned.key, entry)
    return entry


def _left_behind(planned: PlannedStage, by_key: dict[str, PlannedStage], folder: Folder) -> list[PlannedStage]:
    """Return the finished stages, parents first, whose bytes this one needs and an earlier file did not bring."""
    again: list[PlannedStage] = []
    for key in planned.spec.parents() if planned.spec.kind != "draw" else ():  # it needs no weights
        entry = folder.entry(key)
        needed = NEEDED.get(by_key[key].spec.kind)
        if entry is not None and needed in LARGE and not folder.holds(entry.artifacts[needed].sha256):
            again += [*_left_behind(by_key[key], by_key, folder), by_key[key]]
    return list({stage.key: stage for stage in again}.values())


def _require_same(planned: PlannedStage, before: StageEntry | None, entry: StageEntry) -> None:
    needed = NEEDED.get(planned.spec.kind)
    if before is not None and needed is not None and before.artifacts[needed].sha256 != entry.artifacts[needed].sha256:
        raise ArtifactCorrupt(f"{planned.title} gives other {needed} than in the file that is resumed")


def _compute(planned: PlannedStage, folder: Folder, running: Running) -> StageEntry:
    began = time.monotonic()
    outcome = planned.spec.run(running)
    held = time.monotonic() - began
    files = {
        name: FileEntry(sha256=folder.put(data), size=len(data), media_type=media_type)
        for name, (media_type, data) in outcome.artifacts.items()
    }
    return StageEntry(
        title=planned.title[:300], spec=planned.spec.model_dump(mode="json"), payload=outcome.payload,
        environment=made_in(outcome, planned.spec.execution.device), artifacts=files,
        device_seconds=held if outcome.seconds is None else outcome.seconds,
    )  # fmt: skip


def _said(entry: StageEntry) -> str:
    counts = f", {entry.payload['n_correct']}/{entry.payload['n']} correct" if "n_correct" in entry.payload else ""
    return f"{entry.device_seconds:.1f} s{counts}"


def manifest(
    asked: BenchmarkJob | FigureJob, suite: str, planned: Plan, folder: Folder, origin: dict[str, Any]
) -> Manifest:
    """Return the table of contents of what has finished."""
    found = {stage.key: entry for stage in ordered(planned) if (entry := folder.entry(stage.key)) is not None}
    models = [
        {"key": model.key, "role": role, "label": model.label}
        for role, group in (("target", planned.targets), ("substitute", planned.substitutes))
        for model in group
        if model.key in found
    ]
    job = JobEntry.model_validate(
        {
            "kind": asked.kind, "name": asked.name, "suite": suite, "tags": asked.tags,
            "spec": understood(asked, planned).model_dump(mode="json", exclude_none=True),
            "pairing": planned.pairing, "dataset": planned.dataset, "device": planned.device, "models": models,
            "stages": list(found), "planned": len(planned.ordered),
        }
    )  # fmt: skip
    return Manifest(origin=origin, jobs=[job], stages=found)


def table(planned: Plan, found: dict[str, StageEntry]) -> str:
    """Return the white-box cells and the transfers that have finished, in per cent, one column per model."""
    labels = list(dict.fromkeys(model.label for model in planned.targets))
    names = {model.key: model.label for model in [*planned.substitutes, *planned.targets]}
    targets = {model.key for model in planned.targets}
    cells: dict[str, dict[str, list[float]]] = {}
    for stage in planned.ordered:
        seen, entry = stage.evaluation, found.get(stage.key)
        if seen is None or entry is None or seen.target not in targets:
            continue
        row = seen.attack.label() + ("" if seen.whitebox else f" from {names[str(seen.substitute)]}")
        share = 100 * entry.payload["n_correct"] / entry.payload["n"]
        cells.setdefault(row, {}).setdefault(names[seen.target], []).append(share)
    width = max((len(row) for row in cells), default=0)
    lines = [" ".join([" " * width, *(f"{label:>12}" for label in labels)])]
    for row, shares in cells.items():
        lines.append(" ".join([row.ljust(width), *(_mean(shares.get(label)) for label in labels)]))
    return "\n".join(lines)


def _mean(shares: list[float] | None) -> str:
    return f"{sum(shares) / len(shares):12.2f}" if shares else " " * 10 + "--"


def main(argv: list[str] | None = None) -> int:
    """Return 0 when all stages have finished, 75 when the budget ended first, 1 where some failed or none can run."""
    options = _parser().parse_args(argv)
    began = time.monotonic()
    budget = Budget(began + options.budget_seconds)
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, budget.tell)
    try:
        asked, planned = _planned(options)
        stages = columns(planned, options.only)
        lacking = DATASETS[planned.dataset]()
        missing = lacking.missing(options.data_dir)
        if missing:
            remedies = ["name another folder with --data-dir", lacking.source, lacking.instead]
            remedy = ", or ".join(remedy for remedy in remedies if remedy)
            raise SpecError(f"{options.data_dir} lacks {missing[0]}: {remedy}")
        _require_place(options.out)
        folder = Folder(options.folder or options.out.with_name(options.out.name + ".folder"))
        for earlier in options.resume:
            _take(earlier, folder, planned)
    except (GauntletError, ValidationError) as error:
        faults = error.errors() if isinstance(error, ValidationError) else []
        said = (
            "; ".join(f"{'.'.join(map(str, fault['loc'][1:] or fault['loc']))}: {fault['msg']}" for fault in faults)
            or error
        )
        print(f"core.run: {said}", file=sys.stderr)
        return FAILED
    try:
        return run(stages, folder, budget, options.data_dir)
    finally:
        contents = manifest(asked, options.suite, planned, folder, _origin(options, argv))
        _write(options, contents, folder)
        if isinstance(asked, BenchmarkJob):
            print(f"\n{table(planned, contents.stages)}\n")
        seconds = time.monotonic() - began
        print(f"{len(contents.stages)} of the suite's {len(planned.ordered)} stages, {seconds:.0f} s, in {options.out}")


def _take(earlier: Path, folder: Folder, planned: Plan) -> None:
    """Take over what an earlier file has of this run, and say how much that is.

    Raises:
        SpecError: nothing, though the file has results.
    """
    taken = folder.take(earlier)
    mine = taken & planned.stages.keys()
    if taken and not mine:
        execution = planned.ordered[0].spec.execution.model_dump_json()
        raise SpecError(
            f"--resume {earlier}: none of its {len(taken)} stages is of this run, which has another suite, dataset, "
            f"seeds or execution; this run's is {execution}"
        )
    print(f"{len(mine)} of the {len(taken)} stages of {earlier} are of this run", flush=True)


def _require_place(out: Path) -> None:
    """Return where the file of results can be written in the end; its folder is made.

    Raises:
        SpecError: it cannot.
    """
    if out.is_dir():
        raise SpecError(f"--out {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--out {out}: its folder cannot be made: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise SpecError(f"--out {out}: its folder cannot be written")


def _write(options: argparse.Namespace, contents: Manifest, folder: Folder) -> None:
    """Write the file of results, without large artifacts that nobody asked for or an earlier file had left behind."""
    asked_for = {name for name in LARGE if getattr(options, name)}
    files = [entry.artifacts[name] for entry in contents.stages.values() for name in asked_for & entry.artifacts.keys()]
    absent = {file.sha256 for file in files if not folder.holds(file.sha256)}
    write(options.out, contents, folder.artifact, [name for name in LARGE if name not in asked_for], absent)
    if absent:
        print(f"left out: {len(absent)} {' and '.join(sorted(asked_for))}, which the resumed file had left behind")


def _planned(options: argparse.Namespace) -> tuple[BenchmarkJob | FigureJob, Plan]:
    given = {"dataset": options.dataset, "seeds": options.seeds}
    override = {name: value for name, value in given.items() if value is not None}
    asked = JOB.validate_python(expand_suite({"suite": options.suite, **override}))
    if not isinstance(asked, BenchmarkJob | FigureJob):
        raise SpecError(f"the suite {options.suite} is neither a benchmark nor one of figures")
    if isinstance(asked, FigureJob) and options.only:
        raise SpecError(f"--only names columns of matrices, and the suite {options.suite} draws figures")
    if isinstance(asked, FigureJob) and find_spec("matplotlib") is None:
        raise SpecError(f"the suite {options.suite} draws figures, which needs matplotlib: pip install matplotlib")
    device = device_class() if options.device == "auto" else options.device
    require_device(device)
    nobody: Any = None  # a suite names no trained models
    execution = Execution.on(device, options.threads)
    return asked, plan(
        asked, execution.model_copy(update={"captured": execution.captured and not options.eager}), nobody
    )


def _origin(options: argparse.Namespace, argv: list[str] | None) -> dict[str, Any]:
    given = sys.argv[1:] if argv is None else argv
    elsewhere = [re.sub(r"^(--[a-z-]+=)?.*/", r"\1", text) for text in given]  # a folder of this machine says nothing
    return {
        "written_by": f"python -m core.run {shlex.join(elsewhere)}",
        "host": platform.node(),
        "commit": options.commit or environment()["commit"],
        "device": environment()["device"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.run", description="Run a suite through core alone.")
    parser.add_argument("--suite", required=True, help="the suite")
    parser.add_argument("--out", required=True, type=Path, help="the file that `gauntlet import` reads")
    parser.add_argument("--folder", type=Path, help="finished stages and checkpoints (default: OUT.folder)")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="stop after this long, to go on later"
    )
    parser.add_argument("--resume", type=Path, nargs="+", default=[], help="files of earlier runs, taken as done")
    parser.add_argument("--dataset", help="instead of the suite's, of images of the same form")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the suite's")
    parser.add_argument("--only", nargs="+", default=[], help="the columns of these targets; the rest stays to be run")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda where it is")
    parser.add_argument("--eager", action="store_true", help="record no CUDA graphs: slower, and stages of other keys")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of a CPU stage")
    parser.add_argument(
        "--data-dir", type=Path, default=Path(os.environ.get("DATA_DIR") or "data"),
        help="folder of the datasets (default: DATA_DIR, else data)",
    )  # fmt: skip
    parser.add_argument("--commit", help="of this code, where it is no git checkout")
    parser.add_argument("--weights", action="store_true", help="put the models into the file too")
    parser.add_argument("--examples", action="store_true", help="put the adversarial examples into the file too: large")
    return parser


if __name__ == "__main__":
    sys.exit(main())
