"""Matrices and progress as text for a terminal."""

from typing import Any


def table(matrix: dict[str, Any]) -> str:
    """Return the matrix with accuracies in per cent and the half-width of each 95 % interval."""
    head = ["", *(column["label"] for column in matrix["columns"])]
    body = [
        [row["label"], *(_cell(cell, mark=matrix["matrix"] == "blackbox") for cell in cells)]
        for row, cells in zip(matrix["rows"], matrix["cells"], strict=True)
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [_aligned(line, widths) for line in [head, *body]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *others = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
    return "  ".join([first.strip().ljust(widths[0]), *others])


def _cell(cell: dict[str, Any], *, mark: bool) -> str:
    if cell["accuracy"] is None:
        return "--"
    low, high = cell["interval"]
    star = ("*" if cell["whitebox"] else " ") if mark else ""
    return f"{100 * cell['accuracy']:5.1f} ±{50 * (high - low):4.1f}{star}"


def caption(matrix: dict[str, Any]) -> str:
    """Return what the matrix is about, in a sentence."""
    scope = matrix["scope"]
    if scope is None:
        return str(matrix["reason"])
    what = "attacks by targets" if matrix["matrix"] == "whitebox" else "substitutes by targets"
    return (
        f"{matrix['matrix']} matrix, {what}: accuracy in % ± half-width of the 95 % interval; "
        f"{scope['dataset']}, first {scope['images']} test images, {scope['device']}"
    )


def reasons(matrix: dict[str, Any]) -> list[str]:
    """Return a line for every cell that is null or incomplete."""
    lines: list[str] = []
    for row, cells in zip(matrix["rows"], matrix["cells"], strict=True):
        for column, cell in zip(matrix["columns"], cells, strict=True):
            if cell["reason"]:
                lines.append(f"{row['label']} / {column['label']}: {cell['reason']}")
    return lines


def progress_line(job: dict[str, Any]) -> str:
    """Return one line: how far the job is, and what runs now."""
    states = job["progress"]["by_state"]
    done, total = states.get("succeeded", 0), job["progress"]["stages"]
    running = [stage for stage in job["stages"] if stage["state"] == "running"]
    now = "; ".join(_running(stage) for stage in running[:2])
    if not running:
        waits = [stage["waits_for"] for stage in job["stages"] if stage["state"] == "ready"]
        now = waits[0] if waits else ""
    return f"{job['state']:9} {100 * job['progress']['fraction']:5.1f} %  {done}/{total} stages  {now}"


def _running(stage: dict[str, Any]) -> str:
    found = stage["progress"]
    return stage["title"] + (f" ({found['done']}/{found['total']})" if found and found.get("total") else "")
