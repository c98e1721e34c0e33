"""The `gauntlet` command against a real API process: what it prints, and its exit status."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from client import api, cli
from client.api import AnswerLost, ApiRefused, Client
from store import stages, workers
from tests import factories
from tests.client.conftest import ROOT, Served
from tests.processes import wait_until
from tests.proxy import Network
from tests.s3 import Proxy

JOB: dict[str, Any] = {
    "dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": {"iterations": 10}, "limit": 100,
    "attacks": [{"kind": "fgsm"}], "substitutes": ["natural H", {"kind": "fgsm_adv"}],
    "transfer": [{"kind": "fgsm"}],
}  # fmt: skip
SEEDS = count(1000)
"""A seed for every job that has to be new, on a second try too."""


class Command:
    """Runs the command in this process."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str], folder: Path):
        self.url, self._capsys, self._folder = url, capsys, folder

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit status, output and errors."""
        self._capsys.readouterr()
        try:
            status: Any = cli.main(["--url", self.url, *arguments])
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        found = self._capsys.readouterr()
        return status, found.out, found.err

    def file(self, spec: Any, name: str = "job.yaml") -> str:
        """Return the path of a file that holds the job."""
        path = self._folder / name
        path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
        return str(path)


@pytest.fixture
def gauntlet(served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    return Command(served.url, capsys, tmp_path)


def submitted(output: str) -> str:
    """Return the number of the job that `gauntlet submit` printed."""
    return output.partition(":")[0].removeprefix("job ")


def finish_behind(served: Served, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job as it was, after all there is to do has been done."""
    factories.finish(served.database)
    return job


class TestSubmit:
    """gauntlet submit."""

    @pytest.mark.parametrize("form", [yaml.safe_dump, json.dumps])
    def test_a_file(self, gauntlet: Command, served: Served, form: Any):
        status, output, errors = gauntlet("submit", gauntlet.file(form({**JOB, "name": "from a file"})))
        assert (status, errors) == (0, "")
        number = submitted(output)
        first, estimate, *cautions = output.splitlines()
        assert first == f"job {number}: 9 stages, {served.url}/jobs/{number}"
        assert re.fullmatch(r"about \d+\.\d s of device time at .* floating-point operations per second .*", estimate)
        assert "caution: not the paper's protocol: iterations: 10 instead of 30000 (all models)" in cautions
        assert Client(served.url).job(int(number))["name"] == "from a file"

    def test_numbers_of_yaml_are_those_of_json(self, gauntlet: Command, served: Served):
        text = gauntlet.file(yaml.safe_dump(JOB).replace("iterations: 10", "iterations: 10\n  lr: 1e-3"))
        _, output, errors = gauntlet("submit", text)
        assert errors == ""
        assert Client(served.url).job(int(submitted(output)))["spec"]["training"]["lr"] == 0.001

    @pytest.mark.parametrize(
        ("seeds", "said"),
        [("[010]", [10]), ("[0x10, 0o10, +7]", [16, 8, 7]), ("[1:30]", "seeds.0"), ("[1_000]", "seeds.0"),
         ("[1e1]", "seeds.0"), ("[0b1]", "seeds.0")],
    )  # fmt: skip
    def test_a_number_of_yaml_1_1_alone_is_none(self, gauntlet: Command, seeds: str, said: Any):
        status, output, errors = gauntlet(
            "submit", gauntlet.file(yaml.safe_dump(JOB) + f"seeds: {seeds}\n"), "--dry-run", "--json"
        )
        if isinstance(said, str):
            assert (status, f"gauntlet: 422: {said}: " in errors) == (1, True)
        else:
            titles = {stage["title"] for stage in json.loads(output)["stages"] if stage["kind"] == "train"}
            assert titles == {f"train {model} H, seed {seed}" for seed in said for model in ("natural", "fgsm_adv")}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("defense: {kind: natural}\nlimit: 1\nlimit: 2\n", "is no job: 'limit' is given twice\n"),
            ("defense:\n  kind: fgsm_adv\n  kind: natural\n", "line 3, column 3"),
            (
                '{"defense": {"kind": "natural", "kind": "e2sad"}}',
                "422: the body cannot be read as JSON: the field 'kind'",
            ),
        ],
    )
    def test_a_name_given_twice(self, gauntlet: Command, text: str, said: str):
        status, output, errors = gauntlet("submit", gauntlet.file(text))
        assert (status, output) == (1, "")
        assert said in errors

    def test_what_is_merged_into_an_object_may_be_said_again(self, gauntlet: Command, served: Served):
        text = """
            defenses:
              - {defense: {kind: natural}, name: a, training: &short {iterations: 10, batch_size: 32}}
              - {defense: {kind: natural}, name: b, training: &large {<<: *short, batch_size: 64}}
              - {defense: {kind: natural}, name: c, training: {<<: *large, batch_size: 128}}
            kind: train
            dataset: mnist-mini
            """
        status, output, errors = gauntlet("submit", gauntlet.file(text))
        assert (status, errors) == (0, "")
        spec = Client(served.url).job(int(submitted(output)))["spec"]
        assert [entry["training"]["batch_size"] for entry in spec["defenses"]] == [32, 64, 128]

    def test_the_service_is_named_before_the_command_or_after_it(self, gauntlet: Command, served: Served):
        gauntlet.url = "http://127.0.0.1:9"
        assert gauntlet("jobs")[0] == 1
        assert gauntlet("jobs", "--url", served.url)[0] == 0

    def test_standard_input(self, gauntlet: Command, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(JOB)))
        assert gauntlet("submit", "-")[0] == 0

    def test_a_suite(self, gauntlet: Command, served: Served):
        status, output, _ = gauntlet("submit", "--suite", "quickstart")
        assert status == 0
        said, _, line = output.rpartition("\njob ")
        assert "Shortened on purpose" in " ".join(said.split())
        assert Client(served.url).job(int(submitted(f"job {line}")))["suite"] == "quickstart"

    def test_a_suite_on_another_dataset(self, gauntlet: Command, served: Served):
        status, _, errors = gauntlet("submit", "--suite", "e2sad-svhn-small", "--dataset", "mnist-mini")
        assert (status, "is of images of 3 x 32 x 32, those of mnist-mini are 1 x 28 x 28" in errors) == (1, True)
        status, output, _ = gauntlet("submit", "--suite", "e2sad-svhn-small", "--dataset", "synth-digits-mini")
        assert status == 0
        number = int(submitted("job " + output.rpartition("\njob ")[2]))
        assert Client(served.url).cancel(number)["spec"]["dataset"] == "synth-digits-mini"

    def test_a_file_says_its_own_dataset(self, gauntlet: Command):
        status, _, errors = gauntlet("submit", gauntlet.file(JOB), "--dataset", "mnist-mini")
        assert (status, "--dataset goes with --suite" in errors) == (2, True)

    def test_a_dry_run_prints_the_plan_and_makes_no_job(self, gauntlet: Command, served: Served):
        before = [job["id"] for job in Client(served.url).jobs()]
        spec = gauntlet.file({**JOB, "seeds": [77]})
        status, output, _ = gauntlet("submit", spec, "--dry-run")
        assert status == 0
        assert output.startswith("benchmark on mnist-mini, cpu, 100 test images: 9 stages (2 train, ")
        assert "0 have succeeded before, 9 have to run\n" in output
        assert output.endswith("nothing was stored\n")
        assert json.loads(gauntlet("submit", spec, "--dry-run", "--json")[1])["new"] == 9
        assert gauntlet("submit", spec, "--json")[0] == 2
        assert [job["id"] for job in Client(served.url).jobs()] == before

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ({**JOB, "defense": {"kind": "magic"}}, "allowed: e2sad, fgsm_adv, hamm_minimax, ifgsm_adv"),
            ({**JOB, "training": {"optimiser": "x"}}, "training.optimiser: allowed: adam, sgd"),
            ({**JOB, "dataset": "mnist"}, "dataset: allowed: mnist-mini"),
            ({"suite": "nope"}, "allowed: canary, e2sad-mnist, "),
            ({**JOB, "attacks": [{"kind": "fgsm", "eps": "24/0"}]}, "422: attacks.0.eps: the denominator is 0"),
            ([1, 2], "422: the body must be a JSON object"),
            ("null", "422: the body must be a JSON object"),
            ("# nothing\n", "422: the body must be a JSON object"),
        ],
    )
    def test_a_refusal_shows_where_and_what_would_be_right(self, gauntlet: Command, spec: Any, said: str):
        status, output, errors = gauntlet("submit", gauntlet.file(spec))
        assert (status, output) == (1, "")
        assert errors.startswith("gauntlet: 422: ")
        assert said in errors
        assert errors.count("allowed: ") <= 1

    @pytest.mark.parametrize(
        ("text", "said"),
        [("{", "is no job"), ("lr: .nan", "is no job"), ("when: 2026-01-01", "is no job"), ("\x00", "is no job"),
         ("[" * 3000, "is no job: it is nested too deeply"), ("a: " + "[" * 3000, "it is nested too deeply")],
    )  # fmt: skip
    def test_a_file_that_is_no_job(self, gauntlet: Command, text: str, said: str):
        status, _, errors = gauntlet("submit", gauntlet.file(text))
        assert (status, said in errors) == (1, True)

    def test_a_file_that_is_not_there(self, gauntlet: Command):
        status, _, errors = gauntlet("submit", "nowhere.yaml")
        assert status == 1
        assert "nowhere.yaml is no job: [Errno 2] No such file" in errors

    @pytest.mark.parametrize("arguments", [[], ["job.yaml", "--suite", "quickstart"]])
    def test_a_file_or_a_suite_but_one_of_them(self, gauntlet: Command, arguments: list[str]):
        status, _, errors = gauntlet("submit", *arguments)
        assert (status, "give a file or --suite NAME, not both" in errors) == (2, True)

    def test_waiting_ends_with_the_job_and_prints_the_matrices(self, gauntlet: Command, served: Served):
        spec = {**JOB, "seeds": [5]}
        gauntlet("submit", gauntlet.file(spec))
        factories.finish(served.database, lambda _: 60)
        status, output, errors = gauntlet("submit", gauntlet.file(spec), "--wait", "--matrices")
        assert (status, errors) == (0, "")
        assert "succeeded 100.0 %  9/9 stages" in output
        assert "whitebox matrix, attacks by targets" in output
        assert "* white-box: the substitute is the target" in output
        assert "60.0 ± 9.8*" in output


class TestLooking:
    """gauntlet watch, jobs, cancel, matrix."""

    def test_watching_a_job_that_failed(self, gauntlet: Command, served: Served):
        spec = {"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}, "priority": 100, "seeds": [9]}
        number = submitted(gauntlet("submit", gauntlet.file(spec))[1])
        factories.fail(served.database, factories.claim(served.database), message="the loss is NaN")
        status, output, errors = gauntlet("watch", number)
        assert status == 1
        assert output.startswith("failed")
        key = Client(served.url).job(int(number))["stages"][0]["key"]
        assert errors == f"failed: train natural H, seed 9: the loss is NaN (gauntlet log {key[:12]})\n"
        status, output, errors = gauntlet("show", number)
        assert (status, errors) == (0, "")
        head, progress, times, device, stage = output.splitlines()[:5]
        assert head == f"job {number}: train on mnist-mini"
        assert progress == "failed      0.0 %  0/1 stages"
        assert re.fullmatch(r"posted 20\S+ \S+, started 20\S+ \S+, ended 20\S+ \S+", times)
        assert re.fullmatch(r"device time \d\.\d s", device)
        assert stage == f"{key[:12]}  failed     train natural H, seed 9: the loss is NaN"
        assert any(line.startswith("caution: ") for line in output.splitlines())
        assert key[:12] not in gauntlet("show", number, "--state", "running")[1]
        assert gauntlet("show", "999999") == (1, "", "gauntlet: 404: there is no job 999999\n")

    def test_a_job_that_no_worker_could_take_says_so(self, gauntlet: Command):
        spec = {"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}, "device": "cuda"}
        status, output, _ = gauntlet("submit", gauntlet.file(spec))
        assert status == 0
        assert output.splitlines()[2].startswith("it waits: no live worker serves the queue gpu")

    def test_an_output_that_is_read_no_further(self, gauntlet: Command, served: Served):
        gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)]}))
        command = f"{sys.executable} -m client.cli --url {served.url} show 1 | true; echo ${{PIPESTATUS[0]}}"
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        ended = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=buffered, capture_output=True, text=True, check=True
        )
        assert (ended.stderr, ended.stdout) == ("", "141\n")

    def test_a_line_of_a_terminal_does_not_wrap(
        self, gauntlet: Command, served: Served, monkeypatch: pytest.MonkeyPatch
    ):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)]}))[1])
        monkeypatch.setenv("COLUMNS", "30")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        shown = Client.watch
        monkeypatch.setattr(
            Client, "watch", lambda *_, **more: (finish_behind(served, job) for job in shown(*_, **more))
        )
        status, output, _ = gauntlet("watch", number)
        *lines, end = output.split("\r\033[K")[1:]
        assert (status, "succeeded 100.0 %  9/9 stages" in end) == (0, True)
        assert len(lines) >= 2
        assert all(line == line[:29] and line for line in lines)

    def test_jobs_newest_first(self, gauntlet: Command):
        numbers = [submitted(gauntlet("submit", gauntlet.file({**JOB, "name": name}))[1]) for name in ("a", "b", "c")]
        status, output, _ = gauntlet("jobs", "--limit", "2")
        assert status == 0
        assert [line.split()[0] for line in output.splitlines()] == numbers[:0:-1]
        assert output.splitlines()[0].endswith(" %  c")

    @pytest.mark.parametrize("command", ["jobs", "models", "figures"])
    @pytest.mark.parametrize("limit", ["-1", "0"])
    def test_a_list_of_nothing_is_refused(self, gauntlet: Command, command: str, limit: str):
        status, _, errors = gauntlet(command, "--limit", limit)
        assert (status, "must be at least 1" in errors) == (2, True)

    def test_cancel(self, gauntlet: Command):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)]}))[1])
        assert gauntlet("cancel", number) == (0, "cancelled\n", "")
        assert f"{number}  cancelled    0.0 %" in gauntlet("jobs")[1], "none of it was done"
        status, _, errors = gauntlet("cancel", "999999")
        assert (status, errors) == (1, "gauntlet: 404: there is no job 999999\n")

    def test_retry_makes_a_new_job(self, gauntlet: Command, served: Served):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)]}))[1])
        status, _, errors = gauntlet("retry", number)
        assert (status, "only a failed or cancelled job" in errors) == (1, True)
        gauntlet("cancel", number)
        status, output, _ = gauntlet("retry", number)
        again = submitted(output)
        assert (status, again != number) == (0, True)
        factories.finish(served.database)
        gauntlet("cancel", number)
        status, output, _ = gauntlet("retry", number, "--wait")
        assert (status, "succeeded 100.0 %  9/9 stages" in output) == (0, True)

    def test_the_log_of_a_stage(self, gauntlet: Command, served: Served):
        gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)], "priority": 100}))
        claim = factories.claim(served.database)
        with served.database.write() as session:
            stages.write_log(session, claim.stage_id, claim.fence, [(1.7e9 + n, f"line {n}") for n in range(3)])
        status, output, errors = gauntlet("log", claim.key)
        assert (status, errors) == (0, "")
        assert [line.partition("  ")[2] for line in output.splitlines()] == ["line 0", "line 1", "line 2"]
        assert output.startswith("2023-11-1")
        assert gauntlet("log", "0" * 64)[0] == 1
        assert gauntlet("log", claim.key[:12])[1] == output
        assert gauntlet("log", "0" * 8)[::2] == (1, "gauntlet: 404: there is no stage 00000000\n")
        assert gauntlet("log", claim.key[:7])[0] == 1

    def test_models_and_workers(self, gauntlet: Command, served: Served):
        gauntlet("submit", gauntlet.file({**JOB, "seeds": [next(SEEDS)]}))
        factories.finish(served.database, lambda _: 60)
        status, output, _ = gauntlet("models", "--dataset", "mnist-mini", "--limit", "2")
        assert (status, len(output.splitlines())) == (0, 2)
        listed = next(Client(served.url).models())
        assert output.split()[0] == listed["key"]
        assert f"{listed['label']}, seed {listed['seed']}" in output
        with served.database.write() as session:
            row = {"host": "h", "pid": 7, "device": "cpu", "device_name": "", "queues": ["cpu"], "versions": {}}
            workers.register(session, {"incarnation": uuid4().hex, **row})
        status, output, _ = gauntlet("workers")
        assert (status, output.split()[:4], output.split()[-1]) == (0, ["h:7", "cpu", "cpu", "alive"], "idle")

    def test_a_matrix_takes_the_filters_of_the_api(self, gauntlet: Command, served: Served):
        gauntlet("submit", gauntlet.file({**JOB, "seeds": [42, 43]}))
        factories.finish(served.database, lambda _: 60)
        narrowed = ("--dataset", "mnist-mini", "--device", "cpu", "--images", "100", "--attack", "fgsm", "--eps", "0.3")
        named = ("--label", "natural H", "--seed", "42", "--seed", "43", "--format", "json")
        status, output, errors = gauntlet("matrix", "whitebox", *narrowed, *named)
        assert (status, errors) == (0, "")
        found = json.loads(output)
        assert all(column["label"].startswith("natural H") for column in found["columns"])
        assert sorted(seed["seed"] for seed in found["cells"][0][0]["seeds"]) == [42, 43]
        for wrong in (("--pairing", "all of them"), ("--suite", "nope"), ("--network", "nope"), ("--steps", "0")):
            status, _, errors = gauntlet("matrix", "blackbox", *wrong)
            assert (status, wrong[0].removeprefix("--") in errors) == (1, True)

    @pytest.mark.parametrize(
        ("form", "said"),
        [("table", "blackbox matrix, substitutes by targets"), ("json", '"matrix": "blackbox"'),
         ("csv", "matrix,dataset,device,images"), ("markdown", "| --- | ---: |"), ("latex", r"\begin{tabular}{lr}")],
    )  # fmt: skip
    def test_a_matrix_in_every_form(self, gauntlet: Command, served: Served, form: str, said: str):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [41]}))[1])
        factories.finish(served.database, lambda _: 60)
        status, output, errors = gauntlet("matrix", "blackbox", "--job", number, "--format", form)
        assert (status, errors) == (0, "")
        assert said in output

    def test_robustness_cost_and_figures(self, gauntlet: Command, served: Served):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [42]}))[1])
        factories.finish(served.database, lambda _: 60)
        status, output, errors = gauntlet("robustness", "--job", number, "--reference", "natural H")
        assert (status, errors) == (0, "")
        assert output.startswith("robustness matrix, models by attacks: ")
        assert json.loads(gauntlet("robustness", "--job", number, "--format", "json")[1])["counted"] == 1
        assert gauntlet("cost", "--job", number)[1].startswith("no finished training recorded its time")
        assert gauntlet("figures", "--job", number)[1].startswith("no figures yet, or none that fit; ")
        spec = {"kind": "figure", "dataset": "mnist-mini", "defenses": [{"kind": "natural"}],
                "figures": [{"kind": "illustration"}]}  # fmt: skip
        drawing = submitted(gauntlet("submit", gauntlet.file(spec))[1])
        stage = next(stage for stage in Client(served.url).job(int(drawing))["stages"] if stage["kind"] == "draw")
        status, output, errors = gauntlet("figures", "--job", drawing)
        assert (status, errors) == (0, "")
        assert output.split()[:3] == [stage["key"][:12], "mnist-mini", stage["state"]]

    def test_a_matrix_that_is_not_there_yet_says_why(self, gauntlet: Command):
        number = submitted(gauntlet("submit", gauntlet.file({**JOB, "seeds": [51]}))[1])
        output = gauntlet("matrix", "whitebox", "--job", number)[1]
        assert "(1) seed 51: not finished (blocked)" in output
        assert gauntlet("matrix", "whitebox", "--job", "999999")[::2] == (1, "gauntlet: 404: there is no job 999999\n")


class TestNoService:
    """Nobody there, or somebody else."""

    @pytest.fixture
    def nobody(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Command(f"http://127.0.0.1:{probe.getsockname()[1]}", capsys, tmp_path)

    @pytest.mark.parametrize(
        "arguments", [["jobs"], ["watch", "1"], ["matrix", "whitebox"], ["submit", "--suite", "x"]]
    )
    def test_it_says_where_it_looked_and_how_to_start_one(self, nobody: Command, arguments: list[str]):
        status, output, errors = nobody(*arguments)
        assert (status, output) == (1, "")
        assert errors.startswith(f"gauntlet: no service at {nobody.url}: ")
        assert errors.endswith("start one with `make serve`, or name it with --url or GAUNTLET_URL\n")

    def test_the_address_comes_from_the_environment(
        self, nobody: Command, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ):
        monkeypatch.setenv("GAUNTLET_URL", nobody.url)
        assert cli.main(["jobs"]) == 1
        assert f"no service at {nobody.url}:" in capsys.readouterr().err

    def test_an_address_without_http(self, nobody: Command, served: Served):
        nobody.url = served.url.removeprefix("http://")
        assert nobody("jobs")[0] == 0

    def test_one_that_takes_the_request_and_says_nothing(self, nobody: Command, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Client.__init__, "__defaults__", (None, 0.2))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            nobody.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            status, _, errors = nobody("jobs")
        assert (status, f"{nobody.url} has not answered" in errors, "no service" in errors) == (1, True, False)

    def test_a_command_that_is_none_is_told_all_that_there_are(self, capsys: Any):
        with pytest.raises(SystemExit) as end:
            cli.main(["docter"])
        said = capsys.readouterr().err
        assert (end.value.code, all(f"'{name}'" in said for name in ("submit", *cli.ADMIN))) == (2, True)

    def test_lists_of_nothing_say_so(self, gauntlet: Command, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Client, "jobs", lambda _: iter(()))
        assert gauntlet("jobs")[1].startswith("no jobs yet; ")
        assert gauntlet("models", "--dataset", "svhn")[1].startswith("no trained models yet, or none on that dataset")

    @pytest.mark.parametrize("url", [["--url", "http://127.0.0.1:9"], ["--url=http://127.0.0.1:9"]])
    def test_commands_of_the_services_own_machine_take_no_address(self, capsys: Any, url: list[str]):
        with pytest.raises(SystemExit) as end:
            cli.main([*url, "doctor"])
        assert end.value.code == 2
        assert "`doctor` runs on the service's own machine" in capsys.readouterr().err

    @pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1"])
    def test_an_address_that_is_none(self, nobody: Command, url: str):
        nobody.url = url
        status, _, errors = nobody("jobs")
        assert (status, f"no service at {url}" in errors) == (1, True)

    @pytest.mark.parametrize(
        ("code", "body", "said"),
        [
            (200, b"<html>another program</html>", "is no Gauntlet service"),
            (500, b"<html>another program</html>", "500: <html>another program</html>"),
            (200, b'{"hello": 1}', "is no Gauntlet service"),
            (200, b"[1, 2]", "is no Gauntlet service"),
            (200, b'{"jobs": [{"id": {}}], "cursor": null}', "is no Gauntlet service"),
            (502, b'{"error": "bad gateway"}', "gauntlet: 502: bad gateway"),
            (502, b'"bad gateway"', "gauntlet: 502: bad gateway"),
            (502, b'{"detail": "bad gateway"}', "bad gateway"),
        ],
    )
    def test_somebody_else(self, nobody: Command, code: int, body: bytes, said: str):
        class Other(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Other)
        Thread(target=server.serve_forever, daemon=True).start()
        nobody.url = f"http://127.0.0.1:{server.server_port}"
        status, _, errors = nobody("jobs")
        server.shutdown()
        server.server_close()
        assert (status, said in errors) == (1, True)


class TestClient:
    """The client as a library."""

    def test_it_pages_filters_and_repeats_safely(self, served: Served):
        client = Client(served.url)
        key, tag = uuid4().hex, uuid4().hex
        first = client.post_job({**JOB, "tags": [tag]}, key=key)
        assert client.post_job({**JOB, "tags": [tag]}, key=key)["id"] == first["id"]
        others = [client.post_job({**JOB, "tags": [tag]})["id"] for _ in range(2)]
        assert [job["id"] for job in client.jobs(tag=tag, limit=1)] == [*others[::-1], first["id"]]
        assert client.ready()

    def test_it_does_what_the_service_can(self, served: Served):
        client = Client(served.url)
        job = client.post_job({**JOB, "seeds": [next(SEEDS)]})
        client.cancel(job["id"])
        key = uuid4().hex
        assert client.retry(job["id"], key=key)["id"] == client.retry(job["id"], key=key)["id"] != job["id"]
        assert [event["kind"] for event in client.history(job["id"])] == [
            "job.queued",
            "job.cancelling",
            "job.cancelled",
        ]
        factories.finish(served.database)
        every = [model["key"] for model in client.models()]
        assert every == [model["key"] for model in client.models(limit=1, dataset="mnist-mini")]
        assert every
        assert client.paper(1, suite="e2sad-mnist-tiny")["table"] == 1
        assert client.cost(suite="quickstart")["rows"] == client.figures(suite="quickstart") == []

    def test_a_refusal_keeps_status_and_fields(self, served: Served):
        with pytest.raises(ApiRefused) as refused:
            Client(served.url).post_job({**JOB, "limit": 0})
        assert refused.value.status == 422
        assert refused.value.fields[0]["path"] == "limit"

    def test_watching_lasts_until_the_end(self, served: Served):
        client = Client(served.url)
        job = client.post_job({**JOB, "seeds": [next(SEEDS)]})
        seen = client.watch(job["id"], every=0.01)
        assert next(seen)["state"] == "queued"
        factories.finish(served.database)
        assert [found["state"] for found in seen][-1] == "succeeded"

    def test_a_large_job_is_asked_for_less_often_but_its_end_is_seen(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(api, "SHARE", 10_000)

        class Slow(Client):
            asked = 0

            def job(self, job_id: int) -> dict[str, Any]:
                self.asked += 1
                time.sleep(0.1)
                return super().job(job_id)

        client = Slow(served.url)
        job = client.post_job({**JOB, "seeds": [next(SEEDS)]})
        later = Timer(0.5, lambda: factories.finish(served.database))
        later.start()
        assert [found["state"] for found in client.watch(job["id"], every=0.01)] == ["queued", "succeeded"]
        assert client.asked == 2
        later.join()

    def test_watching_waits_for_a_service_that_is_away_but_not_for_a_refusal(self, served: Served):
        with Proxy(served) as proxy:
            client = Client(proxy.url)
            job = client.post_job({**JOB, "seeds": [next(SEEDS)]})
            seen = client.watch(job["id"], every=0.01)
            assert next(seen)["state"] == "queued"
            proxy.refusing = 503
            later = Timer(0.3, lambda: setattr(proxy, "refusing", None))
            later.start()
            assert next(seen)["state"] == "queued"
            assert proxy.refused > 1
            proxy.refusing = 404
            with pytest.raises(ApiRefused):
                next(seen)

    @pytest.mark.parametrize("refusing", [503, Proxy.HANG])
    def test_watching_says_that_it_waits_and_does_not_wait_forever(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refusing: int
    ):
        monkeypatch.setattr(api, "SAID_AFTER", 0.2)
        monkeypatch.setattr(api, "REPEAT_SECONDS", 2.0)
        monkeypatch.setattr(Client.__init__, "__defaults__", (None, 1.0))
        number = Client(served.url, 30).post_job({**JOB, "seeds": [next(SEEDS)]})["id"]
        with Proxy(served) as proxy:
            Timer(0.5, lambda: setattr(proxy, "refusing", refusing)).start()
            assert cli.main(["--url", proxy.url, "watch", str(number)]) == 1
        said, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("gauntlet: "))
        assert re.fullmatch(rf"gauntlet: no answer from {proxy.url} for \d s \(.+\), still trying", said)
        assert re.match(rf"gauntlet: no answer from {proxy.url} for \d s \(.+\); the job goes on", last)

    @pytest.mark.parametrize("retries", [False, True])
    def test_a_post_whose_answer_is_lost_is_repeated_and_makes_one_job(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, retries: bool
    ):
        monkeypatch.setattr(api, "REPEAT_AFTER", 0.05)
        tag = uuid4().hex
        with Network() as network:
            client = Client(f"http://127.0.0.1:{network.to(served.port)}", timeout=0.5)
            spec = {**JOB, "seeds": [next(SEEDS)], "tags": [tag]}
            old = client.post_job({**spec, "seeds": [next(SEEDS)]})["id"] if retries else None
            if old is not None:
                Client(served.url).cancel(old)
            network.cut()
            later = Timer(1.0, network.restore)
            later.start()
            job = client.post_job(spec) if old is None else client.retry(old)
        assert [found["id"] for found in Client(served.url).jobs(tag=tag)] == [job["id"]] + [old] * retries

    def test_a_service_that_dies_with_a_request_and_comes_back_is_asked_again(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ):
        """It took the request; then nothing listens there for a while; then it cannot write yet."""
        monkeypatch.setattr(api, "REPEAT_AFTER", 0.05)
        heard = socket.create_server(("127.0.0.1", 0))
        port = heard.getsockname()[1]
        phases: list[str] = []

        def die_and_come_back() -> None:
            connection, _ = heard.accept()
            connection.recv(1 << 16)
            connection.close()
            heard.close()
            phases.append("dead")
            time.sleep(0.3)
            with Proxy(served, port, refusing=503) as proxy:
                wait_until("asked again", lambda: proxy.refused)
                phases.append("unavailable")
                proxy.refusing = None
                over.wait(30)

        over = Event()
        service = Thread(target=die_and_come_back)
        service.start()
        tag = uuid4().hex
        job = Client(f"http://127.0.0.1:{port}").post_job({**JOB, "seeds": [next(SEEDS)], "tags": [tag]})
        over.set()
        service.join()
        assert phases == ["dead", "unavailable"]
        assert [found["id"] for found in Client(served.url).jobs(tag=tag)] == [job["id"]]

    def test_where_no_service_ever_listened_nothing_is_repeated(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        with pytest.raises(httpx.ConnectError):
            Client(f"http://127.0.0.1:{port}").post_job(JOB)

    def test_a_post_that_is_never_answered_ends(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(api, "REPEAT_AFTER", 0.01)
        monkeypatch.setattr(api, "REPEAT_SECONDS", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.05)
            with pytest.raises(AnswerLost, match="has not said what became of the request"):
                client.post_job(JOB)
            monkeypatch.setattr(api, "REPEAT_SECONDS", 1e9)
            with pytest.raises(httpx.ReadTimeout):
                client.post_job(JOB, key="whoever gives one repeats it")


def test_the_command_is_a_program_with_help_and_an_exit_status(served: Served):
    program = [sys.executable, "-m", "client.cli"]
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(command in shown.stdout for command in ("submit", "watch", "retry", "log", "matrix", "data"))
    refused = subprocess.run(
        [*program, "--url", served.url, "submit", "--suite", "nope"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no suite 'nope'" in refused.stderr
    assert subprocess.run(program, capture_output=True, check=False, cwd=ROOT).returncode == 2
