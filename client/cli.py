"""The `gauntlet` command."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import yaml

from client import paper, progress
from client.api import TIMEOUT, AnswerLost, ApiRefused, Client, NoAnswer, service_url

ADMIN = ("data", "doctor", "gc", "backup", "restore", "export", "import")
"""Commands that run on the service's own machine."""
FILTERS: dict[str, tuple[type, str]] = {
    "job": (int, "only what this job asked for"),
    "suite": (str, "only jobs posted as this suite"),
    "dataset": (str, "dataset"),
    "device": (str, "device class, cpu or cuda"),
    "images": (int, "test images behind each evaluation"),
    "network": (str, "architecture"),
    "attack": (str, "kind of attack"),
    "eps": (str, "radius of the attacks, 0.3 or 24/255"),
    "steps": (int, "steps of the attack"),
    "label": (str, "only targets of this label; may be repeated"),
    "seed": (int, "only targets of this seed; may be repeated"),
    "pairing": (str, "which substitutes a target meets: all, same or independent"),
    "reference": (str, "label of the model that the others are paired with (default: the first)"),
    "model": (str, "only figures that show this model, named by its key"),
}
"""What results are narrowed by: the API's parameters, which say what is wrong with a value."""
REPEATED = ("label", "seed")
SCOPE = ("job", "suite", "dataset", "device", "images", "label", "seed")
MATRIX = (*SCOPE, "network", "attack", "eps", "steps", "pairing")
ROBUSTNESS = (*SCOPE, "eps", "reference")
COST = ("job", "suite", "device")
FIGURES = ("job", "suite", "dataset", "model")
FORMS = ("table", "json", "csv", "markdown", "latex")
STATES = ("blocked", "ready", "running", "succeeded", "failed", "cancelled")
JOB = "its number, which `submit` and `jobs` print"
LIMIT = "how many at most (default: 20)"
FORM = "default: table"
CUT_OFF = 141
"""Exit status where nobody reads the output any more, as a shell gives it to a program that SIGPIPE ended."""
AddCommand = Callable[..., argparse.ArgumentParser]
PLAIN_SECONDS = 5.0
"""How often progress is printed where the output is no terminal."""


def main(argv: list[str] | None = None) -> int:
    """Return the exit status of `gauntlet ARGUMENTS`."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] and given[0] in ADMIN:
        # it needs settings, database or artifacts, which the client never touches: another program's business
        return subprocess.run([sys.executable, "-m", "store.admin", *given], check=False).returncode
    parser = _parser()
    _require_here(parser, given)
    options = parser.parse_args(given)
    try:
        status = _answered(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `gauntlet show 1 | head`: what is left would be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except KeyboardInterrupt:
        return 130


def _answered(options: argparse.Namespace) -> int:
    """Return the exit status of a command, having said what the service refused or that it does not answer."""
    url = service_url(options.url)
    try:
        return options.run(options)
    except ApiRefused as refusal:
        said = str(refusal)
        for field in refusal.fields:
            allowed = f"allowed: {', '.join(field['allowed'] or [])}"
            if field["allowed"] and allowed not in str(refusal):
                said += f"\n  {field['path']}: {allowed}"
    except AnswerLost as error:
        said = f"{error}; the job may have been made, and `gauntlet jobs` shows it if so"
    except NoAnswer as error:
        said = f"{error}; the job goes on without being watched, or waits, and `gauntlet watch` shows it again"
    except (httpx.ReadTimeout, httpx.WriteTimeout):
        said = f"{url} has not answered for {TIMEOUT:.0f} s; `gauntlet jobs` shows what was made once it does"
    except (httpx.TransportError, httpx.InvalidURL) as error:
        said = f"no service at {url}: {error}; start one with `make serve`, or name it with --url or GAUNTLET_URL"
    except (AttributeError, LookupError, TypeError, ValueError):
        if Client(options.url).is_gauntlet():
            raise
        said = f"{url} is no Gauntlet service"
    print(f"gauntlet: {said}", file=sys.stderr)
    return 1


def _require_here(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Return unless --url stands before a command that takes none: it would go to this machine's service instead."""
    command = given[1:] if given[:1] and given[0].startswith("--url=") else given[2:] if given[:1] == ["--url"] else []
    if command and command[0] in ADMIN:
        parser.error(f"`{command[0]}` runs on the service's own machine, on its settings, and takes no --url")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gauntlet",
        allow_abbrev=False,
        description="Benchmarks of adversarial defenses.",
        epilog=f"On the service's own machine also: gauntlet {' | '.join(ADMIN)} (each with --help).",
    )
    parser.add_argument("--url", help="the service (default: GAUNTLET_URL, else http://127.0.0.1:8000)")
    url = argparse.ArgumentParser(add_help=False)
    url.add_argument("--url", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # after the command, too
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = partial(commands.add_parser, parents=[url])
    _add_job_commands(add)
    _add_list_commands(add)
    _add_result_commands(add)
    for name in ADMIN:  # `main` takes them before: here they are only among the choices that a wrong name is told
        commands.add_parser(name, add_help=False)
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _add_job_commands(add: AddCommand) -> None:
    submit = add("submit", help="post a job: a file (YAML or JSON, - for stdin) or --suite NAME")
    submit.add_argument("file", nargs="?", help="the job: YAML or JSON, - for standard input")
    submit.add_argument("--suite", help="a named suite")
    submit.add_argument("--dataset", help="with --suite: instead of the suite's own, of images of the same form")
    submit.add_argument("--dry-run", action="store_true", help="say what it would take, store nothing")
    submit.add_argument("--json", action="store_true", help="with --dry-run: the whole plan, every stage of it")
    submit.add_argument("--wait", action="store_true", help="show progress until it has ended; exit 0 on success")
    submit.add_argument("--matrices", action="store_true", help="print both matrices at the end; implies --wait")
    submit.set_defaults(run=_submit)

    watch = add("watch", help="show a job's progress until it has ended")
    watch.add_argument("job", type=int, help=JOB)
    watch.set_defaults(run=_watch_job)

    show = add("show", help="print a job: its stages, what they wait for, its cautions")
    show.add_argument("job", type=int, help=JOB)
    show.add_argument("--state", choices=STATES, help="only stages in this state")
    show.set_defaults(run=_show)

    cancel = add("cancel", help="stop a job")
    cancel.add_argument("job", type=int, help=JOB)
    cancel.set_defaults(run=_cancel)

    retry = add("retry", help="make a new job of one that failed or was cancelled")
    retry.add_argument("job", type=int, help=JOB)
    retry.add_argument("--wait", action="store_true", help="show progress until it has ended; exit 0 on success")
    retry.set_defaults(run=_retry)

    log = add("log", help="print the log of a stage, named by its key")
    log.add_argument("stage", metavar="KEY", help="the key, or as many of its first digits as `show` prints")
    log.set_defaults(run=_log)


def _add_list_commands(add: AddCommand) -> None:
    jobs = add("jobs", help="list jobs, newest first")
    jobs.add_argument("--limit", type=_at_least_one, default=20, help=LIMIT)
    jobs.set_defaults(run=_jobs)

    models = add("models", help="list trained models, newest first")
    models.add_argument("--dataset", help="only those trained on it")
    models.add_argument("--limit", type=_at_least_one, default=20, help=LIMIT)
    models.set_defaults(run=_models)

    workers = add("workers", help="list worker processes, newest first")
    workers.set_defaults(run=_workers)

    figures = add("figures", help="list figures, newest first, and where they are")
    _narrowed(figures, FIGURES, forms=False)
    figures.add_argument("--limit", type=_at_least_one, default=20, help=LIMIT)
    figures.set_defaults(run=_figures)


def _add_result_commands(add: AddCommand) -> None:
    matrix = add("matrix", help="print a matrix")
    matrix.add_argument("name", choices=["whitebox", "blackbox"], help="attacks by targets, or substitutes by targets")
    _narrowed(matrix, MATRIX)
    matrix.set_defaults(run=_matrix)

    robustness = add("robustness", help="print each model's worst case over the attacks on it, example by example")
    _narrowed(robustness, ROBUSTNESS)
    robustness.set_defaults(run=partial(_result, "/results/robustness", ROBUSTNESS))

    cost = add("cost", help="print what trainings cost, counted and measured")
    _narrowed(cost, COST)
    cost.set_defaults(run=partial(_result, "/results/cost", COST))

    published = add("paper", help="print a table of the paper, published beside measured")
    published.add_argument("table", nargs="?", type=int, choices=paper.TABLES, help="its number")
    published.add_argument("--suite", help="whose cells stand there (default: the one at the paper's own protocol)")
    published.add_argument("--job", type=int, help="the job whose cells stand there, instead of a suite")
    published.add_argument("--dataset", help="what the suite was posted with, where that is not its own dataset")
    published.add_argument("--device", choices=["cpu", "cuda"], help="device class (default: the one with most cells)")
    published.add_argument("--format", choices=FORMS, help=FORM)
    published.add_argument(
        "--write", metavar="FOLDER", help="write all tables and counts of the newest job of --suite there instead"
    )
    published.set_defaults(run=_paper)


def _narrowed(command: argparse.ArgumentParser, filters: Sequence[str], *, forms: bool = True) -> None:
    for name in filters:
        kind, what = FILTERS[name]
        command.add_argument(f"--{name}", type=kind, action="append" if name in REPEATED else "store", help=what)
    if forms:
        command.add_argument("--format", choices=FORMS, default="table", help=FORM)


def _submit(options: argparse.Namespace) -> int:
    client = Client(options.url)
    if options.json and not options.dry_run:
        raise _misuse("gauntlet submit: --json goes with --dry-run")
    answer = client.post_job(_spec(options), dry_run=options.dry_run)
    if options.dry_run:
        print(json.dumps(answer, indent=2) if options.json else progress.plan(answer))
        return 0
    if options.suite:
        print(_description(client, options.suite))
    print(f"job {answer['id']}: {answer['progress']['stages']} stages, {client.url}/jobs/{answer['id']}")
    watched = options.wait or options.matrices
    waits = [] if watched else [f"it waits: {reason}" for reason in progress.nobody(answer)]
    print("\n".join(progress.expected(answer, waits)), flush=True)
    if not watched:
        return 0
    status = _watch(client, answer["id"])
    if options.matrices:
        for name in ("whitebox", "blackbox"):
            print()
            print(client.text(f"/results/{name}-matrix", format="text", job=answer["id"]), end="")
    return status


def _misuse(said: str) -> SystemExit:
    """Return the end of a command that was given arguments which do not go together."""
    print(said, file=sys.stderr)
    return SystemExit(2)


def _description(client: Client, suite: str) -> str:
    """Return what the suite says of itself, shortenings included, wrapped for a terminal."""
    said = next(found["description"] for found in client.get("/suites") if found["name"] == suite)
    return textwrap.fill(f"{suite}: {said}", width=100)


class Yaml(yaml.SafeLoader):
    """YAML 1.1 but for numbers, which are those of 1.2 and JSON, and for names given twice, which are refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return the node. Once aliases are merged into it, a name may well be there twice."""
        node = super().compose_mapping_node(anchor)
        given: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in given:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                given.add(key.value)
        return node


NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)",
}
"""1e-3 and 010, which is ten, are numbers; 1:30 and 1_000 are none."""
Yaml.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag not in NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for number, written in NUMBERS.items():
    Yaml.add_implicit_resolver(number, re.compile(f"({written})$"), list("-+.0123456789"))


def _whole_number(loader: Yaml, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0 if text[:2] in ("0o", "0x") else 10)


Yaml.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _spec(options: argparse.Namespace) -> Any:
    """Return the job; a file of JSON as it stands, so that the service reads what the user wrote."""
    if (options.file is None) == (options.suite is None):
        raise _misuse("gauntlet submit: give a file or --suite NAME, not both")
    if options.suite is not None:
        return {"suite": options.suite, **({} if options.dataset is None else {"dataset": options.dataset})}
    if options.dataset is not None:
        raise _misuse("gauntlet submit: --dataset goes with --suite; a file has a dataset of its own")
    try:
        text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text(encoding="utf-8")
        return _json_or_yaml(text)
    except RecursionError:
        error = "it is nested too deeply"
    except (OSError, ValueError, TypeError, yaml.YAMLError) as found:
        error = found
    raise SystemExit(f"gauntlet submit: {options.file} is no job: {error}")


def _json_or_yaml(text: str) -> Any:
    with suppress(json.JSONDecodeError):
        json.loads(text)
        return text.encode()
    spec = yaml.load(text, Yaml)  # noqa: S506 - a safe loader
    json.dumps(spec, allow_nan=False)
    return spec


def _watch(client: Client, job_id: int) -> int:
    live = sys.stdout.isatty()
    shown, last = "", 0.0
    job: dict[str, Any] = {}

    def tell(said: str) -> None:
        print("\n" * live + f"gauntlet: {said}", file=sys.stderr)

    for job in client.watch(job_id, tell=tell):
        line = progress.line(job)
        if live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps would stay where it is
            print(f"\r\033[K{line[:width]}", end="", flush=True)
        elif line != shown and time.monotonic() - last > PLAIN_SECONDS:
            print(line, flush=True)
            shown, last = line, time.monotonic()
    line = progress.line(job)
    if live:
        print(f"\r\033[K{line}")
    elif line != shown:
        print(line)
    for stage in job["stages"]:
        if stage["state"] == "failed":
            print(
                f"failed: {stage['title']}: {stage['reason']} (gauntlet log {stage['key'][: progress.SHOWN]})",
                file=sys.stderr,
            )
    return 0 if job["state"] == "succeeded" else 1


def _watch_job(options: argparse.Namespace) -> int:
    return _watch(Client(options.url), options.job)


def _show(options: argparse.Namespace) -> int:
    job = Client(options.url).job(options.job)
    for line in progress.whole(job, options.state):
        print(line)
    return 0


def _jobs(options: argparse.Namespace) -> int:
    found = list(islice(Client(options.url).jobs(), options.limit))
    if not found:
        print("no jobs yet; `gauntlet submit --suite quickstart --wait` runs one")
    for job in found:
        print(f"{job['id']:6}  {job['state']:10} {100 * job['progress']['fraction']:5.1f} %  {job['name']}")
    return 0


def _cancel(options: argparse.Namespace) -> int:
    print(Client(options.url).cancel(options.job)["state"])
    return 0


def _retry(options: argparse.Namespace) -> int:
    client = Client(options.url)
    job = client.retry(options.job)
    print(f"job {job['id']}: {job['progress']['stages']} stages, {client.url}/jobs/{job['id']}")
    return _watch(client, job["id"]) if options.wait else 0


def _log(options: argparse.Namespace) -> int:
    for line in Client(options.url).log(options.stage):
        print(f"{datetime.fromtimestamp(line['at']):%Y-%m-%d %H:%M:%S}  {line['line']}")
    return 0


def _models(options: argparse.Namespace) -> int:
    filters = {} if options.dataset is None else {"dataset": options.dataset}
    found = list(islice(Client(options.url).models(**filters), options.limit))
    if not found:
        print("no trained models yet, or none on that dataset; `gauntlet submit --suite quickstart --wait` trains some")
    for model in found:
        clean = "--" if model["clean_accuracy"] is None else f"{100 * model['clean_accuracy']:.1f} %"
        print(f"{model['key']}  {model['dataset']:17}  {clean:>7}  {model['label']}, seed {model['seed']}")
    return 0


def _workers(options: argparse.Namespace) -> int:
    for worker in Client(options.url).workers():
        state = "draining" if worker["draining"] else "alive" if worker["alive"] else "silent"
        doing = f"works on {worker['stage'][: progress.SHOWN]}" if worker["stage"] else "idle"
        print(
            f"{worker['host']}:{worker['pid']}  {worker['device']:4}  {','.join(worker['queues']):7}  {state:8} "
            f"{worker['seconds_since_seen']:8.0f} s ago  {doing}"
        )
    return 0


def _matrix(options: argparse.Namespace) -> int:
    return _result(f"/results/{options.name}-matrix", MATRIX, options)


def _result(address: str, filters: Sequence[str], options: argparse.Namespace) -> int:
    client = Client(options.url)
    chosen = {name: value for name in filters if (value := getattr(options, name)) is not None}
    _print(client, address, options.format, **chosen)
    return 0


def _print(client: Client, address: str, form: str, **chosen: Any) -> None:
    if form == "json":
        print(json.dumps(client.get(address, **chosen), indent=2))
    else:
        print(client.text(address, format="text" if form == "table" else form, **chosen), end="")


def _figures(options: argparse.Namespace) -> int:
    client = Client(options.url)
    chosen = {name: value for name in FIGURES if (value := getattr(options, name)) is not None}
    found = client.figures(limit=options.limit, **chosen)
    if not found:
        print("no figures yet, or none that fit; `gauntlet submit --suite figures-small --wait` draws some")
    for figure in found:
        print(f"{figure['key'][: progress.SHOWN]}  {figure['dataset']:17}  {figure['state']:9}  {figure['title']}")
        for name, path in figure["links"].items():
            print(f"{'':14}{name:6}  {client.url}{path}")
    return 0


def _paper(options: argparse.Namespace) -> int:
    client = Client(options.url)
    if options.write is not None:
        return _write(client, options)
    if options.table is None:
        raise _misuse("gauntlet paper: which table, 1, 2 or 3?")
    names = ("suite", "job", "dataset", "device")
    chosen = {name: value for name in names if (value := getattr(options, name)) is not None}
    _print(client, f"/results/paper/{options.table}", options.format or "table", **chosen)
    return 0


def _write(client: Client, options: argparse.Namespace) -> int:
    if not options.suite or not options.write:
        raise _misuse("gauntlet paper: --write needs --suite, and the name of a folder")
    unused = [name for name in ("table", "format", "job") if getattr(options, name) is not None]
    if unused:
        raise _misuse(f"gauntlet paper: --write writes every table, in one form; leave {unused[0]} out")
    try:
        for path in paper.write(client, options.suite, Path(options.write), options.dataset, options.device):
            print(f"wrote {path}")
    except paper.NothingToWrite as error:
        raise SystemExit(f"gauntlet paper: {error}") from None
    except OSError as error:
        raise SystemExit(f"gauntlet paper: cannot write to {options.write}: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
