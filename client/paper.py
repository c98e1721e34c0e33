"""The paper's tables and figures from the service, written to a folder of results."""

import json
import re
from pathlib import Path
from typing import Any, cast

from client.api import ApiRefused, Client

TABLES = (1, 2, 3)
REFUSED = 422
LOSSES = ("label", "training")
PICTURES = {"svg": "svg", "page": "html", "values": "json"}
"""Link of a figure -> ending of the file that it is written to."""


def _runs(table: dict[str, Any], loss: str) -> bool:
    """Return whether any attack climbed that loss; clean images climb none."""
    return any(
        ours["accuracy"] is not None and ours["loss"] == loss
        for cells in table["cells"] for cell in cells for ours in cell["measured"]
    )  # fmt: skip


class NothingToWrite(Exception):
    """There is no job whose results could be written, or they are not of one execution."""


def write(
    client: Client, suite: str, folder: Path, dataset: str | None = None, device: str | None = None
) -> list[Path]:
    """Return the files written: every count of one job with where it comes from, tables beside the paper's, figures.

    The job is the newest of the suite, on `dataset` and `device` where they are given; everything in the files is that
    job's. A job on another dataset than the suite's own has it in the files' names.

    Raises:
        NothingToWrite: the suite has no such job.
    """
    job, execution = _newest(client, suite, dataset, device)
    said = next(found for found in client.get("/suites") if found["name"] == suite)
    other = job["spec"]["dataset"] if job["spec"]["dataset"] != said["spec"]["dataset"] else None
    only = {"job": job["id"]}
    matrices = {name: client.matrix(name, **only) for name in ("whitebox", "blackbox")}
    tables, apart = _tables(client, only)
    robustness = client.get("/results/robustness", **only)
    _require_one_execution(execution, tables, {**matrices, "robustness": robustness})
    found = {
        "suite": suite,
        "dataset": job["spec"]["dataset"],
        "description": said["description"],
        "command": f"make paper SUITE={suite}" + (f" DATASET={other}" if other else ""),
        "device": execution["device"],
        "execution": execution,
        "origins": _origins(tables) or [_environment(client, job)],
        "job": {name: job[name] for name in
                ("id", "state", "started_at", "finished_at", "spec", "cost", "progress", "cautions")},
        "wall_seconds": _seconds(job),
        "tables": tables,
        "not_beside": apart,
        "matrices": matrices,
        "robustness": robustness,
    }  # fmt: skip
    name = "-".join([suite, *([other] if other else []), execution["device"]])
    folder.mkdir(parents=True, exist_ok=True)
    drawn, pictures = _figures(client, job, folder / name)
    found["figures"] = drawn
    data, page = (folder / f"{name}.{form}" for form in ("json", "md"))
    data.write_text(json.dumps(_without_hosts(found), indent=1) + "\n", encoding="utf-8")
    page.write_text(_page(client, found, data.name), encoding="utf-8")
    return [data, page, *pictures]


def _figures(client: Client, job: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return the job's figures as they were asked for, with the names of their files, and those files."""
    asked = job["spec"].get("figures", [])
    every = client.figures(job=job["id"], limit=100) if asked else []
    found = sorted(every, key=lambda drawn: next((i for i, one in enumerate(asked) if _is(drawn, one)), len(asked)))
    for old in folder.glob("[0-9][0-9]-*"):  # of a job before
        old.unlink()
    figures: list[dict[str, Any]] = []
    written: list[Path] = []
    for number, drawn in enumerate(found, 1):
        names: dict[str, str] = {}
        for link, ending in PICTURES.items():
            if link in drawn["links"]:
                path = folder / f"{number:02}-{drawn['figure']['kind']}.{ending}"
                folder.mkdir(exist_ok=True)
                path.write_text(client.text(drawn["links"][link]), encoding="utf-8")
                names[link] = f"{folder.name}/{path.name}"
                written.append(path)
        said = {name: drawn[name] for name in ("key", "title", "caption", "figure", "models", "state")}
        figures.append({**said, "files": names})
    return figures, written


def _newest(
    client: Client, suite: str, dataset: str | None, device: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the newest job of the suite, on `dataset` and `device` where they are given, and how it was executed."""
    for summary in client.jobs(suite=suite):
        job = client.job(summary["id"])
        execution = _execution(client, job)
        if dataset in (None, job["spec"]["dataset"]) and device in (None, execution["device"]):
            return job, execution
    where = "".join(f" on {name}" for name in (dataset, device) if name)
    option = f" --dataset {dataset}" if dataset else ""
    raise NothingToWrite(
        f"there is no job of the suite {suite}{where}; `gauntlet submit --suite {suite}{option} --wait` makes one"
    )


def _execution(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Return how the job's stages are executed; drawing is the same everywhere."""
    computed = [stage for stage in job["stages"] if stage["kind"] != "draw"] or job["stages"]
    return client.get(f"/stages/{computed[0]['key']}")["spec"]["execution"]


def _environment(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Return where the job's last finished stage was computed."""
    done = [stage["key"] for stage in job["stages"] if stage["state"] == "succeeded"]
    return client.get(f"/stages/{done[-1]}")["environment"] if done else {}


def _tables(client: Client, only: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tables in which an attack of the job has a result, and why the others have none."""
    found: dict[str, Any] = {}
    apart: dict[str, str] = {}
    for number in TABLES:
        try:
            table = client.get(f"/results/paper/{number}", **only)
        except ApiRefused as refusal:
            if refusal.status != REFUSED or [field["path"] for field in refusal.fields] != ["job"]:
                raise
            apart[str(number)] = refusal.fields[0]["message"]
            continue
        if any(_runs(table, loss) for loss in LOSSES):
            found[str(number)] = table
        else:
            apart[str(number)] = "no attack of it has a result"
    return found, apart


def _require_one_execution(execution: dict[str, Any], tables: dict[str, Any], matrices: dict[str, Any]) -> None:
    devices = {found["scope"]["device"] for found in [*tables.values(), *matrices.values()] if found["scope"]}
    if devices - {execution["device"]} or any(table["execution"] != execution for table in tables.values()):
        raise NothingToWrite(f"the job ran as {execution}, but tables are of {sorted(devices)}; nothing was written")


def _origins(tables: dict[str, Any]) -> list[dict[str, Any]]:
    every = [origin["environment"] for table in tables.values() for origin in table["origins"]]
    return [origin for i, origin in enumerate(every) if origin not in every[:i]]


def _without_hosts(found: Any) -> Any:
    """Return what was found without the names of machines: they tell a reader elsewhere nothing."""
    if isinstance(found, list):
        return [_without_hosts(one) for one in cast("list[Any]", found)]
    if isinstance(found, dict):
        entries = cast("dict[str, Any]", found)
        return {name: _without_hosts(value) for name, value in entries.items() if name != "host"}
    return found


def _seconds(job: dict[str, Any]) -> float | None:
    """Return how long the job took from its first stage to its end, work that it found done left out."""
    return None if job["finished_at"] is None else job["finished_at"] - (job["started_at"] or job["created_at"])


def _page(client: Client, found: dict[str, Any], counts: str) -> str:
    """Return the page for people; `counts` is the file that holds all of it."""
    cost = found["job"]["cost"]
    seconds = "not finished" if found["wall_seconds"] is None else f"{found['wall_seconds']:.0f} s"
    imported = found["job"]["started_at"] is None and all(origin.get("imported") for origin in found["origins"])
    when = "its results were imported" if imported else f"wall time of this run {seconds}"
    head = [
        f"# {found['suite']} on {found['dataset']}, {found['device']}", "", " ".join(found["description"].split()), "",
        f"Made by `{found['command']}`; job {found['job']['id']} {found['job']['state']}, {when}, "
        f"device time of all its stages {cost['used_seconds']:.0f} s. "
        f"{_of_what(found['matrices']['whitebox'])}Every count is in {counts}.", "",
    ]  # fmt: skip
    only = {"job": found["job"]["id"]}
    tables = [client.text(f"/results/paper/{number}", format="markdown", **only) for number in found["tables"]]
    matrices = [
        f"### {name} matrix\n\n{client.text(f'/results/{name}-matrix', format='markdown', **only)}"
        for name, matrix in found["matrices"].items()
        if matrix["scope"]
    ]
    robust = (
        [f"### Worst case, image by image\n\n{client.text('/results/robustness', format='markdown', **only)}"]
        if found["robustness"]["scope"]
        else []
    )
    return "\n".join([*head, *tables, *matrices, *robust, *(_shown(figure) for figure in found["figures"])])


def _of_what(matrix: dict[str, Any]) -> str:
    """Return which models and seeds have results: a job may have other seeds than its suite, and may lack models."""
    models = [
        column["label"] for column, cells in zip(matrix["columns"], zip(*matrix["cells"], strict=True), strict=True)
        if any(cell["accuracy"] is not None for cell in cells)
    ]  # fmt: skip
    seeds = {seed["seed"] for cells in matrix["cells"] for cell in cells for seed in cell["seeds"]}
    named = re.sub(r"[\\*<|\[\]`]", r"\\\g<0>", ", ".join(models))  # a label is no markup
    return f"Results of {named}; seeds {', '.join(map(str, sorted(seeds)))}. " if models else ""


def _is(drawn: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Return whether a figure is the one that was asked for; a job names its models, a stage has them by their keys."""
    labels = [model["label"] for model in drawn["models"]]
    fields = {name: value for name, value in asked.items() if name != "models"}
    same = all(drawn["figure"].get(name) == value for name, value in fields.items())
    return same and asked.get("models") in (None, labels)


def _shown(figure: dict[str, Any]) -> str:
    files = figure["files"]
    if "svg" not in files:
        return f"### {figure['title']}\n\nNot drawn ({figure['state']}).\n"
    turn = f" [A page on which it can be turned]({files['page']})." if "page" in files else ""
    values = f" [Its values]({files['values']})." if "values" in files else ""
    return f"### {figure['title']}\n\n![{figure['title']}]({files['svg']})\n\n{figure['caption']}{turn}{values}\n"
