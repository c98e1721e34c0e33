"""Figures through core alone, in a file whose reader computes their values again."""

import hashlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from core import bundle, run
from core.bundle import BundleError
from core.bundle_figures import alike
from tests.core.test_run import results, rewritten

DRAWN: dict[str, Any] = {
    "name": "drawn", "kind": "figure", "dataset": "mnist-mini", "training": {"iterations": 2, "batch_size": 4},
    "defenses": [{"kind": "natural"}], "description": "Eight stages.",
    "figures": [
        {"kind": "illustration"}, {"kind": "curves"}, {"kind": "samples"},
        {"kind": "surfaces", "points": 3, "limit": 13},
        {"kind": "accuracy", "attack": {"kind": "fgsm"}, "eps": [0, 0.3], "limit": 13},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.suites import suites

    suites()["drawn"] = DRAWN
    try:
        file = tmp_path_factory.mktemp("drawn") / "drawn.zip"
        assert run_to(file) == 0
    finally:
        del suites()["drawn"]
    return file


def run_to(out: Path, *more: str) -> int:
    return run.main(["--suite", "drawn", "--device", "cpu", "--threads", "1", "--out", str(out), *more])


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.suites import suites

    monkeypatch.setitem(suites(), "drawn", DRAWN)


def entry(manifest: dict[str, Any], kind: str, of: str = "") -> dict[str, Any]:
    """Return the file's stage of a kind, and of a kind of figure."""
    found = manifest["stages"].values()
    return next(one for one in found if one["spec"]["kind"] == kind and (not of or one["spec"]["figure"]["kind"] == of))


def replaced(manifest: dict[str, Any], members: dict[str, bytes], stage: dict[str, Any], name: str, change: Any):
    """Let the JSON artifact of a stage be another, under the sha256 that belongs to it."""
    file = stage["artifacts"][name]
    values = change(json.loads(members[f"artifacts/{file['sha256']}"]))
    data = json.dumps(values).encode()
    shared = [other for one in manifest["stages"].values() for other in one["artifacts"].values()]
    if sum(other["sha256"] == file["sha256"] for other in shared) == 1:
        del members[f"artifacts/{file['sha256']}"]
    file.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    members[f"artifacts/{file['sha256']}"] = data


def _counts(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    entry(manifest, "sweep")["payload"]["n_correct"][1] = 14


def _other_counts(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    payload = entry(manifest, "sweep")["payload"]
    payload["n_correct"] = [13 - count for count in payload["n_correct"]]


def _radii(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    entry(manifest, "sweep")["payload"]["eps"] = ["0", "2/5"]


def _images(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    entry(manifest, "surface")["payload"]["n"] = 1300


def _grid(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    replaced(manifest, members, entry(manifest, "surface"), "surface", lambda old: {**old, "loss": old["loss"][:2]})


def _nan(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    worse = [[float("nan")] * 3] * 3
    replaced(manifest, members, entry(manifest, "surface"), "surface", lambda old: {**old, "accuracy": worse})


def _other_grid(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    better = [[0.0] * 3] * 3
    replaced(manifest, members, entry(manifest, "surface"), "surface", lambda old: {**old, "loss": better})


def _axis(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    further = lambda old: {**old, "t": [10 * t for t in old["t"]]}  # noqa: E731
    replaced(manifest, members, entry(manifest, "surface"), "surface", further)


def _curve(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    replaced(manifest, members, entry(manifest, "train"), "curve", lambda old: [{k: 2 * v for k, v in old[0].items()}])


def _caption(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    drawing = entry(manifest, "draw", "accuracy")
    replaced(manifest, members, drawing, "values", lambda old: {**old, "caption": "Nothing withstands it."})


def _form(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    artifacts = entry(manifest, "draw", "curves")["artifacts"]
    artifacts["exe"] = artifacts["png"]


def _predictions(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    del entry(manifest, "samples")["payload"]["predictions"]


def _values(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    file = entry(manifest, "draw", "curves")["artifacts"].pop("values")
    del members[f"artifacts/{file['sha256']}"]


def test_the_file_holds_figures_and_what_they_show(out: Path) -> None:
    found = bundle.read(out)
    kinds = sorted(spec.kind for spec in found.specs.values())
    assert kinds == ["draw"] * 5 + ["samples", "surface", "sweep", "train"]
    assert found.manifest.jobs[0].kind == "figure"
    plan = found.plan(found.manifest.jobs[0])
    assert [model.label for model in plan.targets] == ["natural H"]
    assert {stage.images for stage in plan.ordered if stage.spec.kind in ("surface", "sweep")} == {13}
    assert all(stage.flop > 0 for stage in plan.ordered if stage.spec.kind in ("surface", "sweep"))


def test_it_goes_on_from_a_file_without_weights(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drawing that is missing needs no training again."""
    folder = run.Folder(tmp_path / "folder")
    folder.take(out)
    drawn = [key for key, spec in bundle.read(out).specs.items() if spec.kind == "draw"]
    for key in drawn:
        (tmp_path / "folder" / "stages" / f"{key}.json").unlink()
    del folder  # and with it its lock
    assert run_to(tmp_path / "again.zip", "--folder", str(tmp_path / "folder")) == 0
    assert "train" not in capsys.readouterr().out
    values = lambda file: {key: found[1]["values"] for key, found in results(file).items() if key in drawn}  # noqa: E731
    assert values(tmp_path / "again.zip") == values(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_counts, "does not count, of 13 images, those classified correctly at each of 2 radii"),
        (_radii, "does not count, of 13 images"),
        (_other_counts, "draw accuracy of natural H.* shows other values than its parts found"),
        (_images, "is over 13 images, but its result says 1300"),
        (_grid, "has not 3 x 3 finite losses and accuracies"),
        (_nan, "has not 3 x 3 finite losses and accuracies"),
        (_other_grid, "draw surfaces of natural H.* shows other values than its parts found"),
        (_axis, r"says t \[0.0, 2.0, 4.0\] where its spec says \[0.0, 0.2, 0.4\]"),
        (_curve, "draw curves of natural H.* shows other values than its parts found"),
        (_caption, "shows other values than its parts found"),
        (_form, "has a 'exe', which no result of its kind has"),
        (_predictions, "cannot be made of what its parts found: KeyError"),
        (_values, "names no values"),
    ],
)
def test_altered(out: Path, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None], said: str):
    with pytest.raises(BundleError, match=said):
        bundle.read(rewritten(out, tmp_path / "altered.zip", change))


def test_a_figure_of_parts_that_are_not_its_own(out: Path, tmp_path: Path) -> None:
    """As a surface that is drawn where an accuracy was asked for, under the key that belongs to it."""

    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        from core.stages.draw import Draw

        key = next(key for key, one in manifest["stages"].items() if one["spec"]["kind"] == "surface")
        old, drawing = next(
            (key, one) for key, one in manifest["stages"].items()
            if one["spec"]["kind"] == "draw" and one["spec"]["figure"]["kind"] == "accuracy"
        )  # fmt: skip
        drawing["spec"]["parts"] = [key]
        new = Draw.model_validate(drawing["spec"]).identity()
        manifest["stages"][new] = manifest["stages"].pop(old)
        stages = manifest["jobs"][0]["stages"]
        stages[stages.index(old)] = new

    with pytest.raises(BundleError, match="which is not what a figure of the kind 'accuracy' is made of"):
        bundle.read(rewritten(out, tmp_path / "altered.zip", change))


def test_numbers_of_another_machine() -> None:
    """They may differ in their last digits, and in nothing else."""
    assert alike({"a": [1, 0.1 + 0.2, "x", None]}, {"a": [1, 0.3, "x", None]})
    for other in (
        {"a": [1, 0.31, "x", None]},
        {"a": [1, 0.3, "y", None]},
        {"a": [1, 0.3, "x"]},
        {"b": []},
        [],
        1,
        None,
    ):
        assert not alike({"a": [1, 0.3, "x", None]}, other)
    assert not alike(True, 1)
    assert not alike(float("nan"), float("nan"))


def test_without_matplotlib_it_says_so_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert run_to(tmp_path / "x.zip") == 1
    assert "needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "x.zip").exists()
