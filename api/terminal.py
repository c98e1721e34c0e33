"""Matrices as text for a terminal, and every form a matrix has."""

from collections.abc import Callable, Mapping

from api.exports import footnotes, mark, remarks, to_csv, to_latex, to_markdown
from api.schemas import CellReply, MatrixReply

SHOWN = 3
"""Other groups of results that a table names."""


def to_text(matrix: MatrixReply) -> str:
    """Return the table aligned, under its caption and above what a reader has to know."""
    if matrix.scope is None:
        return f"{matrix.reason}\n"
    return "\n".join([_caption(matrix), _table(matrix), *remarks(matrix), *_others(matrix), ""])


def _others(matrix: MatrixReply) -> list[str]:
    said = [f"{scope.dataset}, first {scope.images} test images, {scope.device}" for scope in matrix.others]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return [f"other results, each a table of its own: {'; '.join(said[:SHOWN])}{more}"] if said else []


def _caption(matrix: MatrixReply) -> str:
    assert matrix.scope is not None  # noqa: S101 - asked before
    what = "attacks by targets" if matrix.matrix == "whitebox" else "substitutes by targets"
    return (
        f"{matrix.matrix} matrix, {what}: accuracy in % ± half-width of the 95 % interval; "
        f"{matrix.scope.dataset}, first {matrix.scope.images} test images, {matrix.scope.device}"
    )


def _table(matrix: MatrixReply) -> str:
    marks = footnotes(matrix)
    numbers = [[_number(cell) for cell in cells] for cells in matrix.cells]
    behind = [[mark(matrix, cell, marks) for cell in cells] for cells in matrix.cells]
    room = [max((len(text) for text in column), default=0) for column in zip(*behind, strict=True)]
    body = [
        [row.label, *(number + text.ljust(width) for number, text, width in zip(*shown, room, strict=True))]
        for row, *shown in zip(matrix.rows, numbers, behind, strict=True)
    ]
    head = ["", *(column.label for column in matrix.columns)]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [_aligned(line, widths) for line in (head, *body)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *others = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
    return "  ".join([first.strip().ljust(widths[0]), *others])


def _number(cell: CellReply) -> str:
    if cell.accuracy is None or cell.interval is None:
        return "--"
    low, high = cell.interval
    return f"{100 * cell.accuracy:5.1f} ±{50 * (high - low):4.1f}"


WRITERS: Mapping[str, Callable[[MatrixReply], str]] = {
    "csv": to_csv, "markdown": to_markdown, "latex": to_latex, "text": to_text,
}  # fmt: skip
