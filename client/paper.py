"""The paper's tables from the service: printed, or written to a folder of results."""

import json
from pathlib import Path
from typing import Any

from client.api import ApiRefused, Client

TABLES = (1, 2, 3)
REFUSED = 422
LOSSES = ("label", "training")


def text(table: dict[str, Any]) -> str:
    """Return the table for a terminal: published / ours in per cent, one block per loss that the attacks climb."""
    blocks = [_block(table, loss) for loss in LOSSES if _runs(table, loss)] or [_block(table, LOSSES[0])]
    return "\n\n".join([_caption(table), *blocks, "\n".join(_notes(table))])


def _runs(table: dict[str, Any], loss: str) -> bool:
    return any(
        ours["accuracy"] is not None for cells in table["cells"] for cell in cells for ours in _of(cell, loss)
    )  # fmt: skip


def _of(cell: dict[str, Any], loss: str) -> list[dict[str, Any]]:
    return [ours for ours in cell["measured"] if ours["loss"] in (None, loss)]


def _caption(table: dict[str, Any]) -> str:
    scope = table["scope"]
    return (
        f"Table {table['table']} beside {table['suite']}: published / ours in %; {scope['dataset']}, first "
        f"{scope['images']} test images, {scope['device']}; ~ the seeds' spread explains the difference, ! it does not"
    )


def _block(table: dict[str, Any], loss: str) -> str:
    head = [f"loss: {loss}", *table["columns"]]
    body = [
        [row, *(_cell(cell, loss) for cell in cells)] for row, cells in zip(table["rows"], table["cells"], strict=True)
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(part.rjust(width) if i else part.ljust(width) for i, (part, width) in enumerate(pairs))
        for pairs in ([*zip(line, widths, strict=True)] for line in [head, *body])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(cell: dict[str, Any], loss: str) -> str:
    (ours,) = _of(cell, loss)
    mark = {"no": "!", "yes": "~", "unknown": " "}[ours["explained_by_chance"]]
    measured = "--" if ours["accuracy"] is None else f"{100 * ours['accuracy']:.1f}"
    return f"{100 * cell['published']:5.1f} / {measured:>5}{mark}"


def _notes(table: dict[str, Any]) -> list[str]:
    every = [ours for cells in table["cells"] for cell in cells for ours in cell["measured"]]
    commands = list(dict.fromkeys(ours["command"] for ours in every if ours["command"]))
    notes = [f"not the paper's protocol: {line}" for line in table["reductions"]]
    notes += [f"missing cells: `{command}`" for command in commands]
    return [*notes, *table["cautions"]]


def write(client: Client, suite: str, folder: Path) -> list[Path]:
    """Return the files written: every count of a suite with where it comes from, and the tables beside the paper's."""
    job = next(iter(client.jobs(suite=suite)))
    job = client.job(job["id"])
    matrices = {name: client.matrix(name, suite=suite) for name in ("whitebox", "blackbox")}
    tables = _tables(client, suite)
    device = _device(matrices, tables)
    found = {
        "suite": suite,
        "description": next(said["description"] for said in client.get("/suites") if said["name"] == suite),
        "command": f"make paper SUITE={suite}",
        "device": device,
        "origins": _origins(tables),
        "job": {name: job[name] for name in ("id", "state", "started_at", "finished_at", "spec", "cost", "progress")},
        "wall_seconds": _seconds(job),
        "tables": tables,
        "matrices": matrices,
    }
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{suite}-{device}.json", folder / f"{suite}-{device}.md"
    data.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page.write_text(_page(client, found), encoding="utf-8")
    return [data, page]


def _tables(client: Client, suite: str) -> dict[str, Any]:
    """Return the tables beside which the suite can stand."""
    found: dict[str, Any] = {}
    for number in TABLES:
        try:
            found[str(number)] = client.get(f"/results/paper/{number}", suite=suite)
        except ApiRefused as refusal:
            if refusal.status != REFUSED:
                raise
    return found


def _device(matrices: dict[str, Any], tables: dict[str, Any]) -> str:
    scopes = [found["scope"] for found in [*tables.values(), *matrices.values()] if found["scope"]]
    return scopes[0]["device"] if scopes else "unknown"


def _origins(tables: dict[str, Any]) -> list[dict[str, Any]]:
    every = [origin["environment"] for table in tables.values() for origin in table["origins"]]
    return [origin for i, origin in enumerate(every) if origin not in every[:i]]


def _seconds(job: dict[str, Any]) -> float | None:
    """Return how long the job took from its first stage to its end, work that it found done left out."""
    return None if job["finished_at"] is None else job["finished_at"] - (job["started_at"] or job["created_at"])


def _page(client: Client, found: dict[str, Any]) -> str:
    suite, cost = found["suite"], found["job"]["cost"]
    seconds = "not finished" if found["wall_seconds"] is None else f"{found['wall_seconds']:.0f} s"
    head = [
        f"# {suite} on {found['device']}", "", " ".join(found["description"].split()), "",
        f"Made by `{found['command']}`; job {found['job']['state']}, wall time of this run {seconds}, device time of "
        f"all its stages {cost['used_seconds']:.0f} s. Every count is in {suite}-{found['device']}.json.", "",
    ]  # fmt: skip
    tables = [client.text(f"/results/paper/{number}", suite=suite, format="markdown") for number in found["tables"]]
    matrices = [
        f"### {name} matrix\n\n{client.matrix_as(name, 'markdown', suite=suite)}"
        for name, matrix in found["matrices"].items()
        if matrix["scope"]
    ]
    return "\n".join([*head, *tables, *matrices])
