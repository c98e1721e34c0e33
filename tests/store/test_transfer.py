"""Results from another machine come in whole and verified, or not at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from core import bundle, run
from core.bundle import BundleError
from core.errors import ArtifactCorrupt, SpecError
from core.stages.base import Finished
from core.suites import suites
from store import admin, figures, jobs, lost, results, stages
from store.admin import doctor, recompute
from store.artifacts import ArtifactStore, open_store
from store.database import Database
from store.figures import FigureFilters
from store.models import Artifact, Attempt, Evaluation, Job, Result, Stage, StageArtifact
from store.results import Filters
from store.settings import Settings
from store.transfer import IMPORTED, ImportConflict, export, import_file
from tests import factories

SUITE: dict[str, Any] = {
    "name": "carried", "kind": "benchmark", "dataset": "mnist-mini", "training": {"iterations": 2, "batch_size": 4},
    "defenses": [{"kind": "natural"}, {"kind": "fgsm_adv"}], "attacks": [{"kind": "none"}, {"kind": "fgsm"}],
    "substitutes": ["natural H"], "transfer": [{"kind": "fgsm"}], "limit": 11,
}  # fmt: skip

FIGURES: dict[str, Any] = {
    "name": "carried", "kind": "figure", "dataset": "mnist-mini", "training": {"iterations": 2, "batch_size": 4},
    "defenses": [{"kind": "natural"}],
    "figures": [
        {"kind": "curves"}, {"kind": "accuracy", "attack": {"kind": "fgsm"}, "eps": [0, 0.3], "limit": 13},
    ],
}  # fmt: skip


def write_file(folder: Path, *more: str) -> Path:
    path = folder / "carried.zip"
    assert run.main(["--suite", "carried", "--device", "cpu", "--threads", "1", "--out", str(path), *more]) == 0
    return path


@pytest.fixture(scope="module", autouse=True)
def carried_suite() -> Iterator[None]:
    suites()["carried"] = SUITE
    yield
    del suites()["carried"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results without weights."""
    return write_file(tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same results with weights and examples."""
    return write_file(tmp_path_factory.mktemp("whole"), "--weights", "--examples")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store((tmp_path / "artifacts").as_uri())


def counts(database: Database) -> dict[str, tuple[int | None, int | None]]:
    with database.read() as session:
        query = select(Stage.key, Evaluation.n_correct, Evaluation.n).join(Evaluation, Evaluation.stage_id == Stage.id)
        return {row.key: (row.n_correct, row.n) for row in session.execute(query)}


def test_every_count_comes_in_with_its_origin(database: Database, store: ArtifactStore, file: Path):
    done = import_file(database, store, file)
    found = bundle.read(file)
    assert (done.stages, done.known) == (len(found.specs), 0)
    said = {
        key: (entry.payload["n_correct"], entry.payload["n"])
        for key, entry in found.manifest.stages.items()
        if "n_correct" in entry.payload
    }
    assert counts(database) == said
    with database.read() as session:
        job = jobs.by_id(session, done.jobs[0])
        assert job is not None
        assert (job.state, job.suite, job.tags) == ("succeeded", "carried", [IMPORTED])
        for key, entry in found.manifest.stages.items():
            detail = stages.details(session, key)
            assert detail is not None and detail.result is not None
            assert detail.result.payload == entry.payload
            written = "python -m core.run --suite carried --device cpu --threads 1 --out carried.zip"
            assert detail.result.environment[IMPORTED]["written_by"] == written, "no folder of the machine"
            assert detail.result.environment["device"] == entry.environment["device"]
            assert detail.stage.device_seconds == pytest.approx(entry.device_seconds)
            assert [attempt.worker for attempt in detail.attempts] == [f"{IMPORTED}:{found.sha256[:12]}"]
    assert doctor(database, store) == []


@pytest.mark.parametrize(("threads", "shared"), [(1, True), (2, False)])
def test_an_import_says_where_jobs_here_share_nothing_with_it(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path,
    threads: int, shared: bool,
):  # fmt: skip
    chosen = Settings(state_dir=tmp_path, database_url=sqlite_url, cpu_threads=threads)
    monkeypatch.setattr(admin, "settings", lambda: chosen)
    assert admin.main(["import", str(file)]) == 0
    said = "executed as device='cpu' threads=1 layout='channels_last' precision='float32' captured=False; a job here "
    assert (said in capsys.readouterr().out) != shared


def test_the_matrices_answer_from_it(database: Database, store: ArtifactStore, file: Path):
    import_file(database, store, file)
    with database.read() as session:
        white = results.whitebox(session, Filters(suite="carried"))
        black = results.blackbox(session, Filters(suite="carried"))
    assert [row.label for row in white.rows] == ["clean", "FGSM eps=0.3"]
    assert [column.label for column in white.columns] == ["natural H", "fgsm_adv H"]
    assert all(cell.n == 11 for cell in [*white.cells.values(), *black.cells.values()])
    assert [row.label for row in black.rows] == ["natural H"]


def test_repeating_it_changes_nothing(database: Database, store: ArtifactStore, file: Path):
    first = import_file(database, store, file)
    before = factories.everything(database)
    again = import_file(database, store, file)
    assert (again.stages, again.known, again.jobs) == (0, first.stages, first.jobs)
    assert factories.everything(database) == before


def test_what_is_known_here_is_shared(database: Database, store: ArtifactStore, file: Path):
    """A service that was asked for the same job finds it answered; nothing of it is computed again."""
    waiting = factories.post(database, SUITE)
    import_file(database, store, file)
    assert factories.try_claim(database) is None
    assert factories.job(database, waiting).state == "succeeded"
    later = factories.post(database, SUITE)
    assert factories.job(database, later).state == "succeeded"


def test_a_failed_stage_is_revived_by_its_result(database: Database, store: ArtifactStore, file: Path):
    failed = factories.post(database, SUITE)
    factories.fail(database, factories.claim(database))
    assert factories.job(database, failed).state != "succeeded"
    done = import_file(database, store, file)
    assert factories.job(database, done.jobs[0]).state == "succeeded"


@pytest.mark.parametrize("what", ["count", "weights", "running"])
def test_another_result_here_is_a_conflict_and_nothing_comes_in(
    database: Database, store: ArtifactStore, file: Path, what: str
):
    factories.post(database, SUITE)
    if what == "running":
        factories.claim(database)
        said = "is being computed here"
    elif what == "weights":
        factories.succeed(database, factories.claim(database))  # a training with made-up weights
        said = "the weights have the sha256"
    else:
        _finish_with_every_image_right(database, bundle.read(file))
        said = "n_correct is 11 here"
    before = factories.everything(database)
    with pytest.raises(ImportConflict, match=said):
        import_file(database, store, file)
    assert factories.everything(database) == before


def _finish_with_every_image_right(database: Database, found: bundle.Bundle) -> None:
    """Finish every stage with the file's artifacts but with another count."""
    while (claim := factories.try_claim(database)) is not None:
        entry = found.manifest.stages[claim.key]
        payload = {**entry.payload, **({"n_correct": 11} if "n_correct" in entry.payload else {})}
        stored = [factories.StoredArtifact(n, f.sha256, f.size, f.media_type) for n, f in entry.artifacts.items()]
        with database.write() as session:
            stages.succeed(session, claim.stage_id, claim.fence, payload, {}, stored)


def test_what_does_not_verify_leaves_nothing(database: Database, store: ArtifactStore, file: Path, tmp_path: Path):
    torn = tmp_path / "torn.zip"
    torn.write_bytes(file.read_bytes()[:-30])
    before = factories.everything(database)
    with pytest.raises(BundleError, match="damaged"):
        import_file(database, store, torn)
    assert factories.everything(database) == before
    assert not list((tmp_path / "artifacts").glob("??/??/*"))


def test_a_failure_half_way_leaves_nothing(
    database: Database, store: ArtifactStore, file: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = stages.succeed, []

    def breaks(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise RuntimeError("the machine went away")
        return real(*arguments)

    monkeypatch.setattr("store.transfer.stages.succeed", breaks)
    before = factories.everything(database)
    with pytest.raises(RuntimeError):
        import_file(database, store, file)
    assert factories.everything(database) == before


def test_weights_can_come_later(database: Database, store: ArtifactStore, file: Path, whole: Path):
    import_file(database, store, file)
    with database.read() as session:
        train = session.scalars(select(Stage).where(Stage.kind == "train")).first()
        assert train is not None
        result = stages.result_of(session, train.id)
    assert result is not None and "weights" not in result[1]
    lacking = Finished(bundle.read(file).specs[train.key], *result)
    with pytest.raises(SpecError, match="exported with --weights"):
        lacking.artifact("weights")
    done = import_file(database, store, whole)
    assert done.stages == 0
    with database.read() as session:
        result = stages.result_of(session, train.id)
    assert result is not None
    assert store.get(result[1]["weights"])
    assert Finished(lacking.spec, *result).artifact("weights") == result[1]["weights"]


def test_out_of_one_service_into_another(
    unchecked: Database, sqlite_url: str, store: ArtifactStore, whole: Path, tmp_path: Path
):
    import_file(unchecked, store, whole)
    carried = tmp_path / "carried.zip"
    written = export(unchecked, store, carried, suite="carried", job=None, weights=True)
    assert (written["jobs"], written["stages"]) == (1, len(bundle.read(whole).specs))
    with pytest.raises(BundleError, match="exists"):
        export(unchecked, store, carried, suite="carried", job=None)
    elsewhere = open_store((tmp_path / "elsewhere").as_uri())
    with factories.opened(sqlite_url) as other:
        done = import_file(other, elsewhere, carried)
        assert counts(other) == counts(unchecked)
        # what stayed behind is still named, so that the file can be carried on
        again = tmp_path / "again.zip"
        export(other, elsewhere, again, suite=None, job=done.jobs[0])
    first, last = bundle.read(carried).manifest.stages, bundle.read(again).manifest.stages
    assert {key: entry.artifacts for key, entry in first.items()} == {k: entry.artifacts for k, entry in last.items()}


def test_what_was_withdrawn_comes_in_again(database: Database, store: ArtifactStore, file: Path):
    """The natural way back after bytes are lost, where nobody here can compute them."""
    job = import_file(database, store, file).jobs
    key = next(key for key, spec in bundle.read(file).specs.items() if spec.kind == "evaluate")
    recompute(database, key)
    again = import_file(database, store, file)
    assert (again.stages, again.known) == (1, len(bundle.read(file).specs) - 1)
    with database.read() as session:
        found = stages.by_key(session, key)
        assert found is not None and found.state == "succeeded"
    assert import_file(database, store, file).jobs == job, "whose stages all stand again"
    assert doctor(database, store) == []


def test_what_stands_without_its_parent_stays_here(
    database: Database, store: ArtifactStore, file: Path, tmp_path: Path
):
    import_file(database, store, file)
    with database.write() as session:
        train = session.scalars(select(Stage.id).where(Stage.kind == "train").order_by(Stage.id)).first()
        lost.withdraw(session, [train or 0], "altered")
    written = export(database, store, tmp_path / "part.zip", suite="carried", job=None)
    kept = bundle.read(tmp_path / "part.zip").specs
    assert 0 < len(kept) == written["stages"] < len(bundle.read(file).specs) - 1


def test_weights_that_are_not_here_stay_behind(database: Database, store: ArtifactStore, file: Path, tmp_path: Path):
    import_file(database, store, file)
    counted = export(database, store, tmp_path / "whole.zip", suite="carried", job=None, weights=True)
    assert counted["left behind"] == 2
    again = bundle.read(tmp_path / "whole.zip")
    assert {key: entry.artifacts for key, entry in again.manifest.stages.items()} == {
        key: entry.artifacts for key, entry in bundle.read(file).manifest.stages.items()
    }


def test_a_file_of_nothing_is_no_job(database: Database, store: ArtifactStore, tmp_path: Path):
    nothing = tmp_path / "carried.zip"
    begun = ["--suite", "carried", "--device", "cpu", "--threads", "1", "--budget-seconds", "0", "--out", str(nothing)]
    assert run.main(begun) == run.CUT_SHORT
    with pytest.raises(BundleError, match="holds no finished stage"):
        import_file(database, store, nothing)


def test_figures_that_cuda_computed_are_carried(
    database: Database, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Drawn without a device, beside stages of one. Figure 2 has no other, so that no CUDA is needed to see it."""
    illustrated = {"name": "carried", "kind": "figure", "dataset": "mnist-mini", "figures": [{"kind": "illustration"}]}
    monkeypatch.setitem(suites(), "carried", illustrated)
    monkeypatch.setattr(run, "require_device", lambda device: None)
    out = tmp_path / "carried.zip"
    assert run.main(["--suite", "carried", "--device", "cuda", "--out", str(out)]) == 0
    done = import_file(database, store, out)
    assert (done.stages, done.executions) == (1, []), "no threads of a CPU, which would be said to differ from ours"
    with database.read() as session:
        job = jobs.by_id(session, done.jobs[0])
        assert job is not None and job.state == "succeeded"


def test_figures_are_carried(
    database: Database, sqlite_url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """With what they show; a picture that another matplotlib has drawn here is no other result."""
    monkeypatch.setitem(suites(), "carried", FIGURES)
    file = write_file(tmp_path)
    entries = bundle.read(file).manifest.stages
    done = import_file(database, store, file)
    with database.read() as session:
        drawn = figures.figures(session, FigureFilters(job=done.jobs[0]), 10)
        assert {one.stage.spec["figure"]["kind"] for one in drawn} == {"curves", "accuracy"}
        assert {one.stage.key for one in drawn} == {
            key for key, entry in entries.items() if entry.spec["kind"] == "draw"
        }
        assert [job.kind for job in session.scalars(select(Job))] == ["figure"]
    assert doctor(database, store) == []

    carried = tmp_path / "onward.zip"
    export(database, store, carried, suite="carried", job=None)
    with database.write() as session:
        otherwise = store.put(b"drawn otherwise")
        session.execute(insert(Artifact).values(sha256=otherwise, size=15, media_type="image/png", created_at=0.0))
        session.execute(update(StageArtifact).where(StageArtifact.name == "png").values(sha256=otherwise))
    assert import_file(database, store, carried).stages == 0
    elsewhere = open_store((tmp_path / "elsewhere").as_uri())
    with factories.opened(sqlite_url) as other:
        assert import_file(other, elsewhere, carried).stages == len(entries)
        assert doctor(other, elsewhere) == []


def test_what_cannot_be_finished_leaves_no_file(database: Database, store: ArtifactStore, tmp_path: Path):
    job_id = factories.post(database)
    factories.finish(database)  # and nobody has put what that refers to
    with pytest.raises(ArtifactCorrupt):
        export(database, store, tmp_path / "x.zip", suite=None, job=job_id)
    assert list(tmp_path.glob("x.zip*")) == []


def test_only_what_has_finished_goes_out(database: Database, store: ArtifactStore, tmp_path: Path):
    job = factories.post(database, SUITE)
    with pytest.raises(BundleError, match=f"nothing of job {job} has finished"):
        export(database, store, tmp_path / "x.zip", suite=None, job=job)
    assert not (tmp_path / "x.zip").exists()


def test_the_command(sqlite_url: str, tmp_path: Path, file: Path):
    environment = {**os.environ, "DATABASE_URL": sqlite_url, "STATE_DIR": str(tmp_path / "state")}

    def gauntlet(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "client.cli", *arguments]
        root = Path(__file__).parents[2]
        return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)

    first = gauntlet("import", str(file))
    assert first.returncode == 0, first.stderr
    assert "9 stages imported, 0 were known, as job 1" in first.stdout
    assert "0 stages imported, 9 were known, as job 1" in gauntlet("import", str(file)).stdout
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip")
    refused = gauntlet("import", str(broken))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "gauntlet import: " in refused.stderr
    assert "Traceback" not in refused.stderr
    out = gauntlet("export", str(tmp_path / "out.zip"), "--suite", "carried")
    assert out.returncode == 0, out.stderr
    # equal bits are one artifact, and which of them are equal depends on the processor
    distinct = len(bundle.read(tmp_path / "out.zip").artifacts)
    assert out.stdout.strip() == f"jobs: 1, stages: 9, artifacts: {distinct}"


def test_a_file_of_an_unfinished_job_says_what_it_lacks(
    database: Database, store: ArtifactStore, tmp_path: Path, file: Path
):
    found = bundle.read(file)
    (job,) = found.manifest.jobs
    assert job.planned == len(job.stages) == 9
    kept = {key: entry for key, entry in found.manifest.stages.items() if entry.spec["kind"] != "evaluate"}
    part = job.model_copy(update={"stages": list(kept)})
    manifest = found.manifest.model_copy(update={"jobs": [part], "stages": kept})
    bundle.write(tmp_path / "part.zip", manifest, found.artifacts.__getitem__, ["weights", "examples"])
    done = import_file(database, store, tmp_path / "part.zip")
    assert done.unfinished == {done.jobs[0]: 9 - len(kept)}
    assert export(database, store, tmp_path / "again.zip", suite=None, job=done.jobs[0])["stages"] == len(kept)


def test_jobs_of_several_files_stand_beside_each_other(database: Database, store: ArtifactStore, tmp_path: Path):
    """A second seed from another day: a job of its own, one matrix."""
    for seed in ("0", "1"):
        folder = tmp_path / seed
        folder.mkdir()
        import_file(database, store, write_file(folder, "--seeds", seed))
    with database.read() as session:
        assert len(session.scalars(select(Job.id)).all()) == 2
        matrix = results.whitebox(session, Filters(suite="carried"))
        assert session.scalars(select(Attempt)).all()
        assert session.scalars(select(Result)).all()
    assert {tuple(count.target_seed for count in cell.counts) for cell in matrix.cells.values()} == {(0, 1)}
