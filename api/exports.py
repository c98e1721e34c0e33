"""Matrices as CSV (one line per cell), Markdown and LaTeX (the table itself)."""

import csv
import io
from collections.abc import Callable, Mapping

from api.schemas import CellReply, MatrixReply

COLUMNS = (
    "matrix", "dataset", "device", "images", "pairing", "row", "column", "accuracy", "low", "high", "n", "n_correct",
    "seeds", "spread", "whitebox", "reason", "row_key", "column_key",
)  # fmt: skip


def to_csv(matrix: MatrixReply) -> str:
    """Return one line per cell; accuracies are shares, a missing one is empty and has its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    scope = matrix.scope
    for row, cells in zip(matrix.rows, matrix.cells, strict=True):
        for column, cell in zip(matrix.columns, cells, strict=True):
            low, high = cell.interval or ("", "")
            writer.writerow(
                [
                    matrix.matrix, scope and scope.dataset, scope and scope.device, scope and scope.images,
                    matrix.pairing, _inert(row.label), _inert(column.label),
                    "" if cell.accuracy is None else cell.accuracy, low, high, cell.n, cell.n_correct,
                    " ".join(str(seed.seed) for seed in cell.seeds), "" if cell.spread is None else cell.spread,
                    cell.whitebox, _inert(cell.reason or ""), row.key, column.key,
                ]
            )  # fmt: skip
    return text.getvalue()


def _inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def to_markdown(matrix: MatrixReply) -> str:
    """Return the table with accuracies in per cent and half-widths of the 95 % interval."""
    head = ["", *(column.label.replace("|", "\\|") for column in matrix.columns)]
    lines = [_line(head), _line(["---", *("---:" for _ in matrix.columns)])]
    for row, cells in zip(matrix.rows, matrix.cells, strict=True):
        lines.append(_line([row.label.replace("|", "\\|"), *(_percent(cell, " ±") for cell in cells)]))
    return "\n".join([*lines, "", _caption(matrix), ""])


def to_latex(matrix: MatrixReply) -> str:
    """Return a tabular environment (booktabs) with the scope as a comment."""
    head = " & ".join(["", *(_tex(column.label) for column in matrix.columns)])
    body = [
        " & ".join([_tex(row.label), *(_percent(cell, " $\\pm$ ") for cell in cells)]) + r" \\"
        for row, cells in zip(matrix.rows, matrix.cells, strict=True)
    ]
    begin = rf"\begin{{tabular}}{{l{'r' * len(matrix.columns)}}}"
    rules = [begin, r"\toprule", head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {_caption(matrix)}", *rules, ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(cell: CellReply, between: str) -> str:
    if cell.accuracy is None or cell.interval is None:
        return "--"
    half = 50 * (cell.interval[1] - cell.interval[0])
    return f"{100 * cell.accuracy:.2f}{between}{half:.2f}"


def _caption(matrix: MatrixReply) -> str:
    if matrix.scope is None:
        return "no evaluations"
    scope = matrix.scope
    pairing = f", pairing {matrix.pairing}" if matrix.pairing else ""
    return (
        f"Accuracy in per cent with the half-width of its 95 % interval: {scope.dataset}, first {scope.images} "
        f"test images, {scope.device}{pairing}."
    )


_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


WRITERS: Mapping[str, Callable[[MatrixReply], str]] = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}
