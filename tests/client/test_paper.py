"""`gauntlet paper` against a real API process: printed, in every form, and written to a folder."""

import json
from pathlib import Path

import pytest

from client import cli
from core.jobs import JOB
from core.stages.draw import MEDIA
from core.understood import understood
from store import jobs, stages
from store.artifacts import FolderStore
from store.stages import StoredArtifact
from tests import factories
from tests.client.conftest import Served

SUITE = "e2sad-mnist-tiny"


@pytest.fixture(scope="module")
def tiny(served: Served) -> Served:
    from core.suites import expand_suite

    factories.post(served.database, expand_suite({"suite": SUITE}), suite=SUITE, execution=factories.EXECUTION)
    store = FolderStore(Path(str(served.database.url.database)).parent / "artifacts")
    while (claim := factories.try_claim(served.database)) is not None:
        if claim.kind != "evaluate":
            factories.succeed(served.database, claim)
            continue
        right = (2**15 - 1) << int(claim.spec["target"], 16) % 6 << 4  # 15 of 20 images, others for other models
        bits = StoredArtifact("correct", store.put(right.to_bytes(3, "big")), 3, "application/octet-stream")
        with served.database.write() as session:
            stages.succeed(session, claim.stage_id, claim.fence, {"n": 20, "n_correct": 15}, {"test": True}, [bits])
    return served


def paper(served: Served, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["--url", served.url, "paper", *arguments])
    found = capsys.readouterr()
    return status, found.out, found.err


def test_a_table_for_a_terminal(tiny: Served, capsys: pytest.CaptureFixture[str]):
    status, out, _ = paper(tiny, capsys, "1", "--suite", SUITE)
    assert status == 0
    for loss in ("label", "training"):
        head, _, published, ours = out[out.index(f"loss: {loss}") :].splitlines()[:4]
        assert len(head) == len(published) == len(ours)
        assert published.split()[:4] == ["clean", "paper", "99.4", "99.4"]
        assert ours.split()[:4] == ["ours", "75.0", "±21.9", "75.0"]
    assert "\nNot the paper's protocol: iterations: 2 instead of 30000 (all models)\n" in out


def test_missing_cells_say_what_runs_them(tiny: Served, capsys: pytest.CaptureFixture[str]):
    _, out, _ = paper(tiny, capsys, "2")
    assert out.splitlines()[6].split()[:3] == ["ours", "--", "--"]
    assert "cells are missing or incomplete; `gauntlet submit --suite e2sad-mnist --wait` runs them." in out


@pytest.mark.parametrize(("form", "said"), [("csv", "published"), ("markdown", "| --- |"), ("latex", r"\toprule")])
def test_other_forms(tiny: Served, capsys: pytest.CaptureFixture[str], form: str, said: str):
    assert said in paper(tiny, capsys, "1", "--suite", SUITE, "--format", form)[1]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--job", "0", "422: job: "),
        ("--suite", "", "the suite '' does not exist"),
        ("--dataset", "", "unknown dataset ''"),
    ],
)
def test_an_option_that_is_empty_shows_no_other_table(
    tiny: Served, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
):
    status, out, error = paper(tiny, capsys, "1", option, value)
    assert (status, out, said in error) == (1, "", True)
    if option == "--dataset":
        assert cli.main(["--url", tiny.url, "models", option, value]) == 1


def test_a_folder_that_cannot_be_written(tiny: Served, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="gauntlet paper: cannot write to /proc/x: "):
        paper(tiny, capsys, "--suite", SUITE, "--write", "/proc/x")
    for nothing in (["1", "--write", ""], ["--suite", SUITE, "--write", ""]):
        with pytest.raises(SystemExit) as end:
            paper(tiny, capsys, *nothing)
        assert end.value.code == 2


def test_a_suite_on_other_images_is_refused_with_those_that_fit(tiny: Served, capsys: pytest.CaptureFixture[str]):
    status, _, error = paper(tiny, capsys, "3", "--suite", SUITE)
    assert status == 1
    assert "is on other images" in error


def test_the_folder_of_results(tiny: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert paper(tiny, capsys, "--suite", SUITE, "--write", str(tmp_path))[0] == 0
    found = json.loads((tmp_path / f"{SUITE}-cpu.json").read_text())
    assert (found["suite"], found["device"], list(found["tables"])) == (SUITE, "cpu", ["1", "2"])
    assert found["command"] == f"make paper SUITE={SUITE}"
    seed = found["tables"]["1"]["cells"][0][0]["measured"][0]["seeds"][0]
    assert (seed["n"], seed["n_correct"], seed["seed"]) == (20, 15, 0)
    assert found["job"]["state"] == "succeeded"
    worst = {model["label"]: model for model in found["robustness"]["models"]}
    assert worst["e2SAD S"]["worst"]["n_correct"] == 15
    pair = worst["e2SAD S"]["paired"][0]
    assert (pair["only_this"], pair["p_value"]) == (pair["only_reference"], 1)
    page = (tmp_path / f"{SUITE}-cpu.md").read_text()
    assert "### Table 1 of the paper" in page
    assert "### Table 2 of the paper" in page
    assert "### whitebox matrix" in page
    assert "### Worst case, image by image" in page
    assert "FGSM .4 S, IFGSM .3 H, IFGSM .3 S, e2SAD S; seeds 0. Every count is in" in page
    assert "e2SAD S and Natural H, images only one of them gets right at its worst: seed 0: " in page


def test_everything_written_is_of_one_job(tiny: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A newer job on another device, of which nothing has finished, gets files of its own and mixes nothing in."""
    from core.suites import expand_suite

    cuda = factories.EXECUTION.model_copy(update={"device": "cuda"})
    newer = factories.post(tiny.database, expand_suite({"suite": SUITE}), suite=SUITE, execution=cuda)
    try:
        for device in ("cpu", "cuda"):
            assert paper(tiny, capsys, "--suite", SUITE, "--write", str(tmp_path), "--device", device)[0] == 0
            text = (tmp_path / f"{SUITE}-{device}.json").read_text()
            assert '"host"' not in text, "files that are published name no machine"
            found = json.loads(text)
            every = [*found["tables"].values(), *found["matrices"].values(), found["robustness"]]
            scopes = [table["scope"] for table in every]
            assert {scope["device"] for scope in scopes} == {device} == {found["execution"]["device"]}
            assert (found["job"]["id"] == newer) == (device == "cuda")
            if device == "cuda":
                assert found["tables"] == {}
                assert found["not_beside"]["1"] == found["not_beside"]["2"] == "no attack of it has a result"
                continue
            assert {table["job"] for table in found["tables"].values()} == {found["job"]["id"]}
            assert found["tables"]["1"]["cells"][0][0]["measured"][0]["n"] == 20
            assert list(found["not_beside"]) == ["3"]
        assert paper(tiny, capsys, "--suite", SUITE, "--write", str(tmp_path))[0] == 0
        assert json.loads((tmp_path / f"{SUITE}-cuda.json").read_text())["job"]["id"] == newer, "the newest"
    finally:
        with tiny.database.write() as session:
            jobs.cancel(session, newer)


def test_a_suite_on_another_dataset_has_it_in_the_name(
    tiny: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
):  # fmt: skip
    from core.suites import expand_suite

    suite, arguments = "e2sad-svhn-tiny", ("--suite", "e2sad-svhn-tiny", "--write", str(tmp_path))
    own, other = (
        factories.post(
            tiny.database, expand_suite({"suite": suite, **over}), suite=suite, execution=factories.EXECUTION
        )
        for over in ({}, {"dataset": "synth-digits"})
    )
    try:
        assert paper(tiny, capsys, *arguments)[0] == 0, "the newest"
        name = f"{suite}-synth-digits-cpu"
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert (found["job"]["id"], found["dataset"]) == (other, "synth-digits")
        assert found["command"] == f"make paper SUITE={suite} DATASET=synth-digits"
        page = (tmp_path / f"{name}.md").read_text()
        assert page.startswith(f"# {suite} on synth-digits, cpu\n")
        assert f"Every count is in {name}.json." in page
        assert paper(tiny, capsys, *arguments, "--dataset", "synth-digits-mini")[0] == 0
        found = json.loads((tmp_path / f"{suite}-cpu.json").read_text())
        assert (found["job"]["id"], found["command"]) == (own, f"make paper SUITE={suite}")
        with pytest.raises(SystemExit, match=r"no job of the suite .* on svhn; `gauntlet submit .* --dataset svhn"):
            paper(tiny, capsys, *arguments, "--dataset", "svhn")
    finally:
        for job in (own, other):
            with tiny.database.write() as session:
                jobs.cancel(session, job)


def test_a_job_stands_for_itself(tiny: Served, capsys: pytest.CaptureFixture[str]):
    status, out, _ = paper(tiny, capsys, "1", "--job", "1")
    assert status == 0
    assert f"Table 1 of the paper beside {SUITE} (job 1)" in out
    assert "75.0 ±21.9" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which table"),
        (("--write", "x"), "--write needs --suite"),
        (("--write", "x", "--suite", SUITE, "--format", "csv"), "leave format out"),
        (("1", "--write", "x", "--suite", SUITE), "leave table out"),
    ],
)
def test_what_is_missing_or_too_much_is_said(
    tiny: Served, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
):
    with pytest.raises(SystemExit) as end:
        cli.main(["--url", tiny.url, "paper", *arguments])
    assert (end.value.code, said in capsys.readouterr().err) == (2, True)


def test_a_suite_of_no_job(tiny: Served):
    with pytest.raises(SystemExit, match=r"gauntlet paper: .*no job of the suite e2sad-svhn; `gauntlet submit"):
        cli.main(["--url", tiny.url, "paper", "--write", "x", "--suite", "e2sad-svhn"])


def test_a_suite_that_does_not_exist(tiny: Served, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--url", tiny.url, "paper", "--write", "x", "--suite", "nope"]) == 1
    assert "there is no suite 'nope'" in capsys.readouterr().err


def test_figures_are_written_as_they_were_asked_for(
    served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
):  # fmt: skip
    """Each as a picture, its values, and where it can be turned a page; the page of results shows and links them."""
    from core.suites import expand_suite

    suite = "figures-tiny"
    spec = expand_suite({"suite": suite})
    asked = JOB.validate_python(spec)
    spec = understood(asked, factories.planned(spec)).model_dump(mode="json", exclude_none=True)  # as the API stores it
    job = factories.post(served.database, spec, suite=suite, execution=factories.EXECUTION)
    store = FolderStore(Path(str(served.database.url.database)).parent / "artifacts")
    while (claim := factories.try_claim(served.database)) is not None:
        if claim.kind != "draw":
            factories.succeed(served.database, claim)
            continue
        names = [name for name in MEDIA if name != "html" or claim.spec["figure"]["kind"] == "surfaces"]
        stored = [StoredArtifact(name, store.put(f"{name} of {claim.key}".encode()), 1, MEDIA[name]) for name in names]
        with served.database.write() as session:
            payload = {"title": claim.title, "caption": "C"}
            stages.succeed(session, claim.stage_id, claim.fence, payload, {}, stored)
    assert paper(served, capsys, "--suite", suite, "--write", str(tmp_path))[0] == 0
    found = json.loads((tmp_path / f"{suite}-cpu.json").read_text())
    assert found["job"]["id"] == job
    assert [figure["figure"]["kind"] for figure in found["figures"]] == [asked["kind"] for asked in spec["figures"]]
    page = (tmp_path / f"{suite}-cpu.md").read_text()
    for figure in found["figures"]:
        assert (tmp_path / figure["files"]["svg"]).read_text() == f"svg of {figure['key']}"
        assert (tmp_path / figure["files"]["values"]).read_text() == f"values of {figure['key']}"
        assert f"![{figure['title']}]({figure['files']['svg']})" in page
        assert ("page" in figure["files"]) == (figure["figure"]["kind"] == "surfaces")
    assert "A page on which it can be turned" in page
