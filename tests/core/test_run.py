"""A suite through core alone: repeatable, resumable, in a file that its reader can count again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from core import bundle, run
from core.bundle import BundleError, Manifest, StageEntry
from core.errors import ArtifactCorrupt
from core.stages import STAGE
from core.stages.train import Train
from tests.core.test_portions import memory_for

ARGUMENTS = ["--suite", "little", "--device", "cpu", "--threads", "1"]
LITTLE: dict[str, Any] = {
    "name": "little", "kind": "benchmark", "dataset": "mnist-mini", "training": {"iterations": 4, "batch_size": 4},
    "defenses": [{"kind": "natural"}, {"kind": "e2sad"}],
    "attacks": [{"kind": "none"}, {"kind": "fgsm"}], "substitutes": ["natural H"], "transfer": [{"kind": "fgsm"}],
    "limit": 13, "description": "Nine stages.",
}  # fmt: skip


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `little` be a suite."""
    from core.suites import suites

    monkeypatch.setitem(suites(), "little", LITTLE)


def run_to(out: Path, *more: str) -> int:
    return run.main([*ARGUMENTS, "--out", str(out), *more])


def results(out: Path) -> dict[str, Any]:
    """Return what a file says was found, without when and where."""
    found = bundle.read(out)
    return {
        key: (entry.payload, {name: file.sha256 for name, file in entry.artifacts.items()})
        for key, entry in found.manifest.stages.items()
    }


def rewritten(out: Path, target: Path, change: Any) -> Path:
    """Return a copy of the file after `change` has had its manifest and its artifacts."""
    with zipfile.ZipFile(out) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    manifest = json.loads(members[bundle.MANIFEST])
    change(manifest, members)
    members[bundle.MANIFEST] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return target


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.suites import suites

    path = tmp_path_factory.mktemp("run") / "little.zip"
    suites()["little"] = LITTLE
    try:
        assert run_to(path) == 0
    finally:
        del suites()["little"]
    return path


def test_the_file_holds_every_stage_and_no_weights(out: Path):
    found = bundle.read(out)
    kinds = [spec.kind for spec in found.specs.values()]
    assert (kinds.count("train"), kinds.count("craft"), kinds.count("evaluate")) == (2, 2, 5)
    (job,) = found.manifest.jobs
    assert (job.suite, job.dataset, job.device, job.pairing) == ("little", "mnist-mini", "cpu", "same")
    assert {(model.role, model.label) for model in job.models} == {
        ("target", "natural H"), ("target", "e2sad S"), ("substitute", "natural H")}  # fmt: skip
    for key, entry in found.manifest.stages.items():
        if isinstance(found.specs[key], Train):
            assert entry.artifacts["weights"].sha256 not in found.artifacts
            assert entry.device_seconds == entry.environment["seconds"] > 0
            assert entry.payload["passes_per_example"]
    assert out.stat().st_size < 50_000


def test_a_run_cut_short_goes_on_to_the_same_results(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cut = tmp_path / "cut.zip"
    assert run_to(cut, "--budget-seconds", "0") == run.CUT_SHORT
    assert bundle.read(cut).manifest.stages == {}
    statuses = [run_to(cut, "--budget-seconds", "0.4")]
    while statuses[-1] == run.CUT_SHORT and len(statuses) < 30:
        statuses.append(run_to(cut, "--budget-seconds", "1"))
    assert statuses[-1] == 0
    assert results(cut) == results(out)
    assert "13" not in capsys.readouterr().err


def test_some_columns_first_then_the_rest(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    part = tmp_path / "part.zip"
    assert run_to(part, "--only", "e2sad S") == 0
    whole, found = results(out), results(part)
    missing = {bundle.read(out).manifest.stages[key].title for key in whole.keys() - found.keys()}
    assert missing == {"evaluate natural H, seed 0, clean", "evaluate natural H, seed 0, FGSM eps=0.3"}
    assert "7 of the suite's 9 stages" in capsys.readouterr().out
    assert run_to(part) == 0
    assert results(part) == whole


def test_a_column_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_to(tmp_path / "none.zip", "--only", "e2sad") == run.FAILED
    assert capsys.readouterr().err == "core.run: --only: no target is called 'e2sad'; there are: natural H, e2sad S\n"
    assert run.main(["--suite", "figures-tiny", "--out", str(tmp_path / "none.zip"), "--only", "x"]) == run.FAILED
    assert "--only names columns of matrices" in capsys.readouterr().err


def test_without_graphs_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "require_device", lambda device: None)
    for more, captured in (((), True), (("--eager",), False)):
        options = run._parser().parse_args(["--suite", "little", "--out", "x", "--device", "cuda", *more])
        _, planned = run._planned(options)
        assert {stage.spec.execution.captured for stage in planned.ordered} == {captured}


def test_a_long_stage_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    assert run_to(tmp_path / "quick.zip") == 0
    assert " of 4" not in capsys.readouterr().out
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.0)
    assert run_to(tmp_path / "long.zip") == 0
    printed = capsys.readouterr().out
    assert "  train natural H, seed 0: 3 of 4\n" in printed
    assert "  train natural H, seed 0: 4 of 4, " in printed, "with its losses where they are at hand"


def test_a_suite_on_another_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As the suites of SVHN run where SVHN cannot be had."""
    suite = ["--suite", "e2sad-svhn-tiny", "--device", "cpu", "--threads", "1", "--budget-seconds", "0"]
    out = tmp_path / "svhn.zip"
    assert run.main([*suite, "--out", str(out), "--dataset", "svhn"]) == 1
    assert "take the dataset synth-digits" in capsys.readouterr().err
    assert run.main([*suite, "--out", str(out), "--dataset", "synth-digits"]) == run.CUT_SHORT
    (job,) = bundle.read(out).manifest.jobs
    assert (job.suite, job.dataset, job.spec["dataset"]) == ("e2sad-svhn-tiny", "synth-digits", "synth-digits")


def test_the_order_gives_whole_columns_early():
    _, planned = run._planned(run._parser().parse_args([*ARGUMENTS, "--out", "x"]))
    stages = run.ordered(planned)
    kinds = [stage.spec.kind for stage in stages]
    assert kinds == ["train", "evaluate", "craft", "evaluate", "train", "evaluate", "craft", "evaluate", "evaluate"]
    assert [stage.key for stage in stages] == [stage.key for stage in run.ordered(planned)]


def test_a_file_without_weights_is_taken_over_and_what_it_lacks_is_computed_again(out: Path, tmp_path: Path):
    """The evaluation of one attack is forgotten: its examples and their model come again, and nothing else."""

    def forget(manifest: Any, members: Any) -> None:
        key = next(k for k, e in manifest["stages"].items() if e["title"] == "evaluate e2sad S, seed 0, FGSM eps=0.3")
        entry = manifest["stages"].pop(key)
        manifest["jobs"][0]["stages"].remove(key)
        kept = {file["sha256"] for other in manifest["stages"].values() for file in other["artifacts"].values()}
        for file in entry["artifacts"].values():
            if file["sha256"] not in kept:
                del members[f"artifacts/{file['sha256']}"]

    fewer, again = rewritten(out, tmp_path / "fewer.zip", forget), tmp_path / "again.zip"
    assert len(results(fewer)) == 8
    assert run_to(again, "--resume", str(fewer)) == 0
    assert results(again) == results(out)
    made = {file.name for file in (tmp_path / "again.zip.folder" / "artifacts").iterdir()}
    weights = {
        entry.title: entry.artifacts["weights"].sha256
        for entry in bundle.read(out).manifest.stages.values()
        if "weights" in entry.artifacts
    }
    assert weights["train e2sad S, seed 0"] in made
    assert weights["train natural H, seed 0"] not in made


def test_bytes_that_do_not_come_again_are_no_continuation(out: Path, tmp_path: Path):
    def other(manifest: Any, members: Any) -> None:
        for key, entry in list(manifest["stages"].items()):
            if entry["title"].startswith("evaluate natural H, seed 0, FGSM"):
                del manifest["stages"][key]
                manifest["jobs"][0]["stages"].remove(key)
            if "weights" in entry["artifacts"]:
                entry["artifacts"]["weights"]["sha256"] = "0" * 64
        kept = {file["sha256"] for entry in manifest["stages"].values() for file in entry["artifacts"].values()}
        for name in list(members):
            if name != bundle.MANIFEST and name.removeprefix("artifacts/") not in kept:
                del members[name]

    changed = rewritten(out, tmp_path / "changed.zip", other)
    assert run_to(tmp_path / "again.zip", "--resume", str(changed)) == 1


def test_files_of_two_machines_are_not_mixed(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same stages, computed there to other bits: what came first stays, and nothing of the other comes in."""

    def elsewhere(manifest: Any, _: Any) -> None:
        for entry in manifest["stages"].values():
            if entry["spec"]["kind"] == "train":
                entry["artifacts"]["weights"]["sha256"] = "0" * 64

    other = rewritten(out, tmp_path / "other.zip", elsewhere)
    assert run_to(tmp_path / "both.zip", "--resume", str(out), str(other)) == 1
    said = capsys.readouterr().err
    assert f"{other} is of another run: train natural H" in said and "the weights have the sha256" in said
    assert not (tmp_path / "both.zip").exists()


def test_a_file_of_another_run_is_refused(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_to(tmp_path / "new.zip", "--resume", str(out), "--threads", "2") == 1
    said = capsys.readouterr().err
    assert "none of its 9 stages is of this run" in said and '"threads":2' in said


def test_two_runs_in_one_folder_take_turns(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held = run.Folder(tmp_path / "folder")
    assert run_to(tmp_path / "new.zip", "--folder", str(tmp_path / "folder"), "--resume", str(out)) == 1
    assert "another run works in" in capsys.readouterr().err
    del held
    assert run_to(tmp_path / "new.zip", "--folder", str(tmp_path / "folder"), "--resume", str(out)) == 0
    assert "9 of the 9 stages" in capsys.readouterr().out


def test_a_stage_whose_file_cannot_be_read_is_computed_again(out: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    assert run_to(tmp_path / "new.zip", "--folder", str(folder), "--resume", str(out)) == 0
    next(folder.glob("stages/*.json")).write_bytes(b"{")
    assert run_to(tmp_path / "again.zip", "--folder", str(folder)) == 0
    assert results(tmp_path / "again.zip") == results(out)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_keeps_what_there_is(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None):
    """The first is an order to stop, as SIGTERM is; the second ends the process."""
    finish = run._finished

    def interrupted(planned: Any, *more: Any) -> StageEntry:
        if planned.spec.kind == "craft":
            os.kill(os.getpid(), signal.SIGINT)
        return finish(planned, *more)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_finished", interrupted)
        assert run_to(tmp_path / "new.zip") == run.CUT_SHORT
        assert 0 < len(results(tmp_path / "new.zip")) < len(results(out))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert run_to(tmp_path / "new.zip") == 0
    assert results(tmp_path / "new.zip") == results(out)


class TestFailures:
    """One stage that cannot be computed costs what needs it, and nothing else."""

    @pytest.fixture(autouse=True)
    def wild(self, little: None, monkeypatch: pytest.MonkeyPatch) -> None:
        from core.suites import suites

        diverging = {"iterations": 60, "optimiser": "sgd", "lr": 10, "weight_decay": 1}
        wild = {"defense": {"kind": "fgsm_adv"}, "name": "wild", "training": diverging}
        monkeypatch.setitem(suites(), "little", {**LITTLE, "defenses": [wild, *LITTLE["defenses"]]})

    def test_the_others_are_computed_and_written(
        self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_to(tmp_path / "x.zip") == run.FAILED
        said = capsys.readouterr().out
        assert "train wild, seed 0: FAILED: Diverged: training diverged" in said
        assert said.count("left out, for a stage it needs failed") == 4
        assert results(tmp_path / "x.zip") == results(out)

    def test_a_device_that_breaks_ends_the_run_to_go_on_in_another_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = torch.nn.ReLU.forward

        def broken(self: torch.nn.ReLU, images: torch.Tensor) -> torch.Tensor:
            if images.is_meta:  # no device computes there
                return whole(self, images)
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.ReLU, "forward", broken)
            assert run_to(tmp_path / "x.zip") == run.CUT_SHORT
        assert "the device computes nothing more in this process" in capsys.readouterr().out
        assert results(tmp_path / "x.zip") == {}

    def test_what_failed_is_tried_again(self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_to(tmp_path / "x.zip", "--resume", str(out)) == run.FAILED
        assert run_to(tmp_path / "x.zip") == run.FAILED
        assert capsys.readouterr().out.count("FAILED") == 2


def test_a_run_that_is_torn_down_leaves_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Folder, "keep_checkpoint", ctrl_c)
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_to(tmp_path / "x.zip")
    assert bundle.read(tmp_path / "x.zip").manifest.stages == {}


def test_weights_that_an_earlier_file_left_behind_stay_there(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_to(tmp_path / "x.zip", "--resume", str(out), "--weights") == 0
    assert results(tmp_path / "x.zip") == results(out)
    assert "left out: 2 weights" in capsys.readouterr().out


@pytest.mark.slow
def test_what_memory_allowed_is_recorded(tmp_path: Path):
    with memory_for(3):
        assert run_to(tmp_path / "x.zip") == 0
    found = bundle.read(tmp_path / "x.zip")
    trained = [
        found.manifest.stages[key].environment["micro_batch"]
        for key, spec in found.specs.items()
        if isinstance(spec, Train)
    ]
    assert trained == [2, 2]


def test_the_table_is_of_targets_only(monkeypatch: pytest.MonkeyPatch):
    """The attacker's own models have the targets' labels, but are other models, of other seeds."""
    from core.suites import suites

    bare = {name: value for name, value in LITTLE.items() if name not in {"substitutes", "transfer"}}
    monkeypatch.setitem(suites(), "little", {**bare, "attacks": [{"kind": "none"}]})
    _, planned = run._planned(run._parser().parse_args([*ARGUMENTS, "--out", "x"]))
    targets = {model.key for model in planned.targets}
    entries = {
        stage.key: StageEntry(
            title="", spec={}, environment={}, artifacts={}, device_seconds=0,
            payload={"n": 100, "n_correct": 80 if stage.evaluation.target in targets else 0},
        )
        for stage in planned.ordered
        if stage.evaluation is not None
    }  # fmt: skip
    lines = run.table(planned, entries).splitlines()[1:]
    assert len(lines) == 4
    assert all(line.split()[-2:] == ["80.00", "80.00"] for line in lines)


def test_equal_contents_give_equal_bytes(out: Path, tmp_path: Path):
    found = bundle.read(out)
    for name in ("a", "b"):
        bundle.write(tmp_path / name, found.manifest, lambda sha256: found.artifacts[sha256])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert results(tmp_path / "a") == results(out)


def test_altered_bytes_in_the_folder_are_noticed(tmp_path: Path):
    folder = run.Folder(tmp_path)
    sha256 = folder.put(b"bytes")
    assert folder.artifact(sha256) == b"bytes"
    (tmp_path / "artifacts" / sha256).write_bytes(b"other")
    with pytest.raises(ArtifactCorrupt, match="altered"):
        folder.artifact(sha256)


def test_core_alone_needs_no_service():
    """Nothing of the service is imported, not even where it is installed."""
    code = (
        "import sys; import core.run; bad = [m for m in ('sqlalchemy', 'fastapi', 'celery', 'alembic', 'httpx', "
        "'pydantic_settings', 'redis', 'store', 'api', 'worker') if m in sys.modules]; assert not bad, bad; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "nope"], "no suite 'nope'"), (["--dataset", "nope"], "core.run: dataset: "),
        (["--suite", "e2sad-svhn-tiny", "--dataset", "mnist-mini"], "is of images of 3 x 32 x 32"),
        (["--data-dir", "/nowhere", "--suite", "e2sad-mnist"], ": name another folder with --data-dir, or "),
        pytest.param(
            ["--device", "cuda"], "device: torch finds no CUDA device here; take cpu or auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    assert run.main([*ARGUMENTS, "--out", str(tmp_path / "x.zip"), *arguments]) == 1
    assert said in capsys.readouterr().err


class TestRefusals:
    """Whatever is changed in a file, reading it says so."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("count", "its bits sum to"),
            ("n", "is over 13 images"),
            ("bits", "is not what its name says"),
            ("more bits", "are not one bit for each"),
            ("spec", "does not have this key here"),
            ("missing bits", "the artifact correct is missing"),
            ("parent", "needs stage"),
            ("stray", "which no stage of it refers to"),
            ("field", "Extra inputs"),
            ("format", "format"),
            ("dataset", "not known here"),
            ("no job", "belongs to no job"),
            ("model", "which is none of its train stages"),
            ("unnamed", "does not name its model"),
            ("device", "ran on cuda"),
            ("job", "spec that is none here"),
            ("weights", "names no weights"),
            ("kind", "this code knows no such stage"),
            ("media type", "artifacts.correct.media_type: String should match pattern"),
            ("whole number", "is over 13 images"),
            ("iterations", "its result's iterations are not those of its spec"),
            ("passes", "its result's passes_per_example are not those of its spec"),
            ("environment", "environment: Value error, seconds is 'soon'"),
            ("origin", "origin: Value error, host is"),
            ("stranger", "has a 'extra', which no result of its kind has"),
            ("bomb", "bytes are too many for its curve"),
            ("longer", "which its spec does not ask for"),
            ("two ways", "was executed in several ways"),
        ],
    )
    def test_altered(self, out: Path, tmp_path: Path, change: str, said: str):
        with pytest.raises(BundleError, match=said):
            bundle.read(rewritten(out, tmp_path / "altered.zip", ALTERATIONS[change]))

    @pytest.mark.parametrize("keep", [0, 1, 100, -1, -40])
    def test_torn(self, out: Path, tmp_path: Path, keep: int):
        torn = tmp_path / "torn.zip"
        torn.write_bytes(out.read_bytes()[:keep])
        with pytest.raises(BundleError, match="is damaged"):
            bundle.read(torn)

    def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing(self, out: Path, tmp_path: Path):
        whole, expected = out.read_bytes(), results(out)
        for position in range(0, len(whole), 97):
            changed = bytearray(whole)
            changed[position] ^= 0x40
            (tmp_path / "x").write_bytes(changed)
            with suppress(BundleError):
                assert results(tmp_path / "x") == expected

    def test_no_file(self, tmp_path: Path):
        with pytest.raises(BundleError, match="no file of results"):
            bundle.read(tmp_path / "missing.zip")


def first(manifest: Any, kind: str) -> tuple[str, Any]:
    return next((key, entry) for key, entry in manifest["stages"].items() if entry["spec"]["kind"] == kind)


def alter_payload(name: str, by: int) -> Any:
    def change(manifest: Any, _: Any) -> None:
        first(manifest, "evaluate")[1]["payload"][name] += by

    return change


def other_bits(data: bytes) -> Any:
    """Return a change that puts other bits, hashed and sized as they should be."""

    def change(manifest: Any, members: Any) -> None:
        _, entry = first(manifest, "evaluate")
        file = entry["artifacts"]["correct"]
        for other in manifest["stages"].values():
            if other is not entry and other["artifacts"].get("correct", {}).get("sha256") == file["sha256"]:
                break
        else:
            del members[f"artifacts/{file['sha256']}"]
        sha256 = hashlib.sha256(data).hexdigest()
        members[f"artifacts/{sha256}"] = data
        file |= {"sha256": sha256, "size": len(data)}

    return change


def overwrite_bits(manifest: Any, members: Any) -> None:
    members[f"artifacts/{first(manifest, 'evaluate')[1]['artifacts']['correct']['sha256']}"] = b"\xff\xff"


def alter_spec(manifest: Any, _: Any) -> None:
    first(manifest, "train")[1]["spec"]["training"]["lr"] = 0.5


def drop_bits(manifest: Any, members: Any) -> None:
    del members[f"artifacts/{first(manifest, 'evaluate')[1]['artifacts']['correct']['sha256']}"]


def drop_parent(manifest: Any, members: Any) -> None:
    key, entry = first(manifest, "train")
    del manifest["stages"][key], members[f"artifacts/{entry['artifacts']['curve']['sha256']}"]


def set_in_job(name: str, value: Any) -> Any:
    def change(manifest: Any, _: Any) -> None:
        manifest["jobs"][0][name] = value

    return change


def rename_model(manifest: Any, _: Any) -> None:
    manifest["jobs"][0]["models"][0]["key"] = first(manifest, "evaluate")[0]


def drop_weights(manifest: Any, _: Any) -> None:
    del first(manifest, "train")[1]["artifacts"]["weights"]


def unknown_kind(manifest: Any, _: Any) -> None:
    first(manifest, "craft")[1]["spec"]["kind"] = "dream"


def in_training(where: str, **values: Any) -> Any:
    return lambda manifest, _: first(manifest, "train")[1][where].update(values)


def ask_for_more(manifest: Any, _: Any) -> None:
    manifest["jobs"][0]["spec"]["training"]["iterations"] = 30_000


def in_two_ways(manifest: Any, _: Any) -> None:
    """Let the evaluations be those of another number of threads."""
    for key in [key for key, entry in manifest["stages"].items() if entry["spec"]["kind"] == "evaluate"]:
        entry = manifest["stages"].pop(key)
        entry["spec"]["execution"]["threads"] = 7
        other = STAGE.validate_python(entry["spec"]).identity()
        manifest["stages"][other] = entry
        manifest["jobs"][0]["stages"] = [other if one == key else one for one in manifest["jobs"][0]["stages"]]


ALTERATIONS: dict[str, Any] = {
    "count": alter_payload("n_correct", 1),
    "n": alter_payload("n", 1),
    "bits": overwrite_bits,
    "more bits": other_bits(b"\xff\xff"),
    "spec": alter_spec,
    "missing bits": drop_bits,
    "parent": drop_parent,
    "stray": lambda _, members: members.update({"artifacts/stray": b"x"}),
    "field": lambda manifest, _: manifest.update(extra=1),
    "format": lambda manifest, _: manifest.update(format=2),
    "dataset": set_in_job("dataset", "nothing"),
    "no job": lambda manifest, _: manifest["jobs"][0].update(stages=[], models=[]),
    "model": rename_model,
    "unnamed": set_in_job("models", []),
    "device": set_in_job("device", "cuda"),
    "job": set_in_job("spec", {"kind": "benchmark", "nonsense": 1}),
    "weights": drop_weights,
    "kind": unknown_kind,
    "media type": lambda manifest, _: first(manifest, "evaluate")[1]["artifacts"]["correct"].update(
        media_type="text/html\r\nSet-Cookie: a=b"
    ),
    "whole number": lambda manifest, _: first(manifest, "evaluate")[1]["payload"].update(n=13.0),
    "iterations": in_training("payload", iterations=30_000),
    "passes": in_training("payload", passes_per_example={"forward": 1, "input_backward": 0, "full_backward": 0}),
    "environment": in_training("environment", seconds="soon"),
    "origin": lambda manifest, _: manifest["origin"].update(host=["x"]),
    "stranger": lambda manifest, _: first(manifest, "train")[1]["artifacts"].update(
        extra=first(manifest, "train")[1]["artifacts"]["curve"]
    ),
    "bomb": lambda manifest, _: first(manifest, "train")[1]["artifacts"]["curve"].update(size=2**29),
    "longer": ask_for_more,
    "two ways": in_two_ways,
}


def test_the_manifest_is_read_as_it_was_written(out: Path):
    found = bundle.read(out).manifest
    assert Manifest.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--out", "."], "--out . is a folder; name a file in it"),
     (["--threads", "0"], "threads: Input should be greater"),
     (["--out", "file/a.zip"], "--out file/a.zip: its folder cannot be made: ")],
    ids=["folder", "threads", "file for a folder"],
)  # fmt: skip
def test_what_cannot_be_written_or_executed_is_refused_before_the_first_stage(
    more: list[str], said: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run_to(Path("a.zip"), "--folder", "kept", *more) == run.FAILED
    assert capsys.readouterr().err.startswith(f"core.run: {said}")


def test_the_files_folder_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_to(Path("new/sub/a.zip"), "--folder", "kept", "--budget-seconds", "0") == run.CUT_SHORT
    assert Path("new/sub/a.zip").exists()
