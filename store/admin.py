"""`python -m store.admin`: look after a service's database and artifacts, on a machine that reaches both.

The `gauntlet` command runs it for `data`, `doctor`, `gc`, `backup`, `restore`, `export` and `import`: nothing is
deleted over HTTP, and results that no worker of this service computed come in only here.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from core.datasets import DATASETS
from core.datasets.synth_digits import RenderedDigits
from core.errors import ArtifactCorrupt, DatasetMissing, GauntletError, SpecError, StoreAway
from core.execution import Execution
from store import lost, migrate, stages, tallies
from store.artifacts import ArtifactStore, open_store
from store.backup import backup, restore
from store.database import Database, unhurried
from store.garbage import collect, needed, referenced
from store.invariants import checked
from store.models import StageState
from store.settings import Settings, settings
from store.transfer import export, import_file

GRACE_HOURS = 24.0
LEAST_GRACE_HOURS = 1.0
"""Artifacts put within this time are never collected: a stage may be about to record them."""


def doctor(database: Database, store: ArtifactStore, *, artifacts: bool = True) -> list[str]:
    """Return what is wrong with a live service: invariants, stored bytes; empty where all is well."""
    wrong = checked(database)
    if not artifacts:
        return wrong
    with database.read() as session:
        unhurried(session)
        kept = referenced(session)
    return wrong + list(_unsound(database, store, sorted(kept)))


def _unsound(database: Database, store: ArtifactStore, kept: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the artifacts that cannot be had; where the store is away no more are asked for."""
    for number, sha256 in enumerate(kept):
        try:
            store.get(sha256)
        except ArtifactCorrupt as error:
            if needed(database, sha256):
                yield str(error)
        except StoreAway as error:
            try:
                store.require_ours()
            except StoreAway as away:
                yield f"{len(kept) - number} artifacts could not be checked: {away}"
                return
            yield f"artifact {sha256} could not be checked: {error}"


def repair(database: Database, store: ArtifactStore) -> list[str]:
    """Return what was done about every wrong sum, and every artifact missing or altered: what made it runs again."""
    done = _counted_anew(database)
    with database.read() as session:
        unhurried(session)
        kept = sorted(referenced(session))
    for sha256 in kept:
        try:
            store.get(sha256)
        except ArtifactCorrupt as error:
            if not needed(database, sha256):
                continue
            with database.write() as session:
                lost.withdraw_artifact(session, sha256, str(error))
            done.append(f"{error}: a result that had it runs again when a job wants it, a checkpoint is forgotten")
        except StoreAway as error:
            return [*done, f"artifact {sha256} and those after it could not be checked: {error}"]
    return done


def _counted_anew(database: Database) -> list[str]:
    with database.read() as session:
        unhurried(session)
        wrong = tallies.wrong_cells(session)
    for cell in wrong:
        with database.write() as session:
            tallies.recount_cells(session, [cell])
    return [f"the tally of cell {cell} was wrong and is counted anew" for cell in wrong]


def recompute(database: Database, key: str) -> list[str]:
    """Return what was done so that one succeeded stage runs again.

    Raises:
        SpecError: there is no such stage, or it has no result.
    """
    with database.write() as session:
        stage = stages.by_key(session, key)
        if stage is None or stage.state != StageState.SUCCEEDED:
            raise SpecError(f"--recompute {key}: there is no succeeded stage of that key", ("recompute",))
        lost.withdraw(session, [stage.id], "asked for by `gauntlet doctor --recompute`")
    return [f"the result of {stage.title} is withdrawn; it runs again when a job wants it"]


def main(argv: list[str] | None = None) -> int:
    """Return 0 where all is well or done, 1 where something is wrong."""
    options = _parser().parse_args(argv)
    try:
        return _answered(options, settings())
    except (GauntletError, SQLAlchemyError, OSError, ImportError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
    print(f"gauntlet {options.command}: {why}", file=sys.stderr)
    return 1


def _answered(options: argparse.Namespace, chosen: Settings) -> int:
    if options.command == "data":
        return _data(options.name, (options.data_dir or chosen.data_dir).expanduser().absolute())
    _require_files(options, chosen)
    database = Database(chosen.sql_url)
    try:
        migrate.require(database)
        return _run(options, database, open_store(chosen.artifacts, chosen.s3, database))
    finally:
        database.close()


def _require_files(options: argparse.Namespace, chosen: Settings) -> None:
    """Return where what is to be read is there: nobody who looks makes an empty database."""
    path = make_url(chosen.sql_url).database or ""
    named = chosen.sql_url.startswith("sqlite") and not path.startswith((":memory:", "file:"))
    if named and not Path(path).is_file():
        said = f"there is no database at {path}; set STATE_DIR or DATABASE_URL to the service's, or make one"
        raise GauntletError(f"{said}: `alembic upgrade head`, or `make serve`")
    if options.command in ("restore", "import") and not options.file.is_file():
        raise GauntletError(f"there is no file {options.file}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gauntlet", description="Look after a service's database and artifacts.")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="download a dataset, or draw it, and check it; into DATA_DIR")
    data.add_argument("name", choices=list(DATASETS), help=f"one of {', '.join(DATASETS)}", metavar="NAME")
    data.add_argument("--data-dir", type=Path, help="another folder (default: DATA_DIR, also from .env)")
    check = commands.add_parser("doctor", help="check the invariants and every artifact; exit 1 where one is broken")
    check.add_argument("--no-artifacts", action="store_true", help="leave the stored bytes out")
    check.add_argument(
        "--repair", action="store_true", help="run again what made an artifact lost or altered; count wrong sums anew"
    )
    check.add_argument("--recompute", metavar="KEY", help="run one finished stage again, whatever its artifacts")
    clean = commands.add_parser("gc", help="delete artifacts that nothing refers to")
    clean.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    clean.add_argument(
        "--grace-hours", type=_grace, default=GRACE_HOURS, help="spare what was put lately (default: 24, at least 1)"
    )
    for name, says in (("backup", "write everything to a new tar file"), ("restore", "read it into an empty service")):
        commands.add_parser(name, help=says).add_argument("file", type=Path, help="the tar file")
    carry = commands.add_parser("export", help="write the finished stages of a job or a suite to a file")
    carry.add_argument("file", type=Path, help="the new file")
    whose = carry.add_mutually_exclusive_group(required=True)
    whose.add_argument("--job", type=int, help="the job's number")
    whose.add_argument("--suite", help="every job posted as this suite")
    carry.add_argument("--weights", action="store_true", help="the models too")
    carry.add_argument("--examples", action="store_true", help="the adversarial examples too: large")
    bring = commands.add_parser("import", help="bring results of another machine in, after verifying them")
    bring.add_argument("file", type=Path, help="what `core.run` or `gauntlet export` wrote")
    return parser


def _grace(text: str) -> float:
    """Return hours within which a worker may still record what it has stored."""
    hours = float(text)
    if not LEAST_GRACE_HOURS <= hours < math.inf:
        said = f"{text}: give at least {LEAST_GRACE_HOURS:g}; a worker may be about to record what it has just stored"
        raise argparse.ArgumentTypeError(said)
    return hours


def _data(name: str, folder: Path) -> int:
    """Return 0 when the dataset is in the folder."""
    dataset = DATASETS[name]()
    try:
        dataset.load(folder, download=True)
    except (DatasetMissing, OSError) as error:
        print(f"gauntlet data: {error}", file=sys.stderr)
        return 1
    if isinstance(dataset, RenderedDigits) and not dataset.cached(folder).is_file():
        print(f"gauntlet data: {dataset.cached(folder)} cannot be written", file=sys.stderr)
        return 1
    print(f"{name} is in {dataset.folder(folder)}")
    return 0


def _run(options: argparse.Namespace, database: Database, store: ArtifactStore) -> int:
    if options.command == "doctor":
        done = recompute(database, options.recompute) if options.recompute else []
        done += repair(database, store) if options.repair else []
        print("".join(f"{line}\n" for line in done), end="")
        wrong = doctor(database, store, artifacts=not options.no_artifacts)
        print("\n".join(wrong) or "every invariant holds")
        return 1 if wrong else 0
    if options.command == "gc":
        number, size = collect(database, store, options.grace_hours, dry_run=options.dry_run)
        print(f"{number} artifacts, {size} bytes {'would be' if options.dry_run else 'were'} deleted")
        return 0
    if options.command == "export":
        counts = export(
            database, store, options.file, suite=options.suite, job=options.job, weights=options.weights,
            examples=options.examples,
        )  # fmt: skip
        print(", ".join(f"{name}: {count}" for name, count in counts.items()))
        return 0
    if options.command == "import":
        done = import_file(database, store, options.file)
        numbers = ", ".join(map(str, done.jobs))
        print(f"{done.stages} stages imported, {done.known} were known, as job {numbers}")
        for number, lacking in done.unfinished.items():
            print(f"job {number} had {lacking} stages more, which the file lacks; post its spec or suite to run them")
        for execution in done.executions:
            ours = Execution.on(execution.device, settings().cpu_threads)
            if execution != ours:
                print(f"executed as {execution}; a job here is executed as {ours}, so it shares none of these stages")
        return 0
    counts = (backup if options.command == "backup" else restore)(database, store, options.file)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
