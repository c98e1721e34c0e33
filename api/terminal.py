"""Tables as text for a terminal, and every form that a matrix and a table of the paper have."""

from collections.abc import Callable, Mapping, Sequence

from api import exports
from api.exports import CHANCE, MARKS, footnotes, losses_run, mark, paper_notes, reach, remarks, transferred, whose
from api.paper import PaperReply
from api.schemas import CellReply, MatrixReply


def to_text(matrix: MatrixReply) -> str:
    """Return the table aligned, under its caption and above what a reader has to know."""
    if matrix.scope is None:
        return "\n".join([str(matrix.reason), *remarks(matrix), ""])
    return "\n".join([_caption(matrix), _table(matrix), *remarks(matrix), ""])


WHAT = {
    "whitebox": "attacks by targets", "blackbox": "substitutes by targets", "robustness": "models by attacks"
}  # fmt: skip
"""Matrix -> what its rows and columns are."""


def _caption(matrix: MatrixReply) -> str:
    assert matrix.scope is not None  # noqa: S101 - asked before
    return (
        f"{matrix.matrix} matrix, {WHAT[matrix.matrix]}{transferred(matrix)}: accuracy in % ± farther end of the 95 % "
        "interval; "
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
    return aligned(["", *(column.label for column in matrix.columns)], body)


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return lines of equally wide columns under a ruled head; the first `left` columns start at their left."""
    every = [head, *body]
    widths = [max(len(line[i]) for line in every) for i in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in every
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _number(cell: CellReply) -> str:
    if cell.accuracy is None or cell.interval is None:
        return "--"
    return f"{100 * cell.accuracy:5.1f} ±{reach(cell.accuracy, cell.interval):4.1f}"


def paper_text(table: PaperReply) -> str:
    """Return a block per loss that the attacks climb, our line below the paper's, and what a reader has to know."""
    scope = table.scope
    caption = (
        f"Table {table.table} of the paper beside {whose(table)}: accuracy in %, ours ± farther end of the 95 % "
        f"interval; {scope.dataset}, first {scope.images} test images, {scope.device}\n{MARKS}"
    )
    blocks = [_beside(table, loss) for loss in losses_run(table)]
    return "\n\n".join([caption, *blocks, "\n".join([*paper_notes(table), ""])])


def _beside(table: PaperReply, loss: str) -> str:
    body: list[list[str]] = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        ours = [next(one for one in cell.measured if one.loss in (None, loss)) for cell in cells]
        body.append([row, "paper", *(f"{100 * cell.published:.1f}       " for cell in cells)])
        body.append(["", "ours", *(f"{_number(one)}{CHANCE[one.explained_by_chance]:1}" for one in ours)])
    return aligned([f"loss: {loss}", "", *table.columns], body, left=2)


WRITERS: Mapping[str, Callable[[MatrixReply], str]] = {
    "csv": exports.to_csv, "markdown": exports.to_markdown, "latex": exports.to_latex, "text": to_text,
}  # fmt: skip
PAPER_WRITERS: Mapping[str, Callable[[PaperReply], str]] = {
    "csv": exports.paper_csv, "markdown": exports.paper_markdown, "latex": exports.paper_latex, "text": paper_text,
}  # fmt: skip
