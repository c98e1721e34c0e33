"""Matrices and the paper's tables as CSV (one line per cell), Markdown and LaTeX (the table itself)."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from api.paper import PaperCell, PaperMeasurement, PaperReply
from api.schemas import CellReply, MatrixReply, ScopeReply

COLUMNS = (
    "matrix", "dataset", "device", "images", "pairing", "row", "attack", "column", "accuracy", "low", "high", "n",
    "n_correct", "seeds", "n_seeds", "spread", "whitebox", "reason", "row_key", "column_key", "note", "cautions",
    "others",
)  # fmt: skip


SHOWN = 3
"""Other groups of results that a table names."""


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
                    matrix.pairing, inert(row.label), inert(row.attack_label or ""), inert(column.label),
                    "" if cell.accuracy is None else cell.accuracy, low, high, cell.n, cell.n_correct,
                    " ".join(str(seed.seed) for seed in cell.seeds), cell.n_seeds,
                    "" if cell.spread is None else cell.spread, cell.whitebox, inert(cell.reason or ""), row.key,
                    column.key, inert(scope.note if scope else ""), inert("; ".join(matrix.cautions)),
                    "; ".join(map(scope_named, matrix.others)),
                ]
            )  # fmt: skip
    return text.getvalue()


def inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def to_markdown(matrix: MatrixReply, more: Sequence[str] = ()) -> str:
    """Return the table in per cent with the farther end of the 95 % interval, and what a reader has to know."""
    return markdown_table(_head(matrix), _lines(matrix), [_caption(matrix), *remarks(matrix), *more])


def to_latex(matrix: MatrixReply, more: Sequence[str] = ()) -> str:
    """Return a tabular environment (booktabs) with the scope, and what a reader has to know, as comments."""
    return latex_table(_head(matrix), _lines(matrix), [_caption(matrix), *remarks(matrix), *more])


def _head(matrix: MatrixReply) -> list[str]:
    return ["", *(column.label for column in matrix.columns)]


def _lines(matrix: MatrixReply) -> list[list[str]]:
    marks = footnotes(matrix)
    return [
        [row.label, *(_percent(cell) + mark(matrix, cell, marks) for cell in cells)]
        for row, cells in zip(matrix.rows, matrix.cells, strict=True)
    ]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a table, the first of the notes below it, and the others as a list."""
    caption, *said = [_md(" ".join(note.split())) for note in notes]
    return "\n".join([*_ruled(head, body), "", caption, *([""] if said else []), *(f"- {line}" for line in said), ""])


def _ruled(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [map(_md, head), ["---", *("---:" for _ in head[1:])], *([_md(label), *cells] for label, *cells in body)]
    return ["| " + " | ".join(line) + " |" for line in lines]


_MARKUP = re.compile(r"[\\*<|\[\]`]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown would take for its own; an underscore between letters, as in batch_size, it does not."""


def _md(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)


def latex_table(head: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a tabular environment (booktabs) below the notes as comments."""
    return "\n".join([*map(_comment, notes), *_tabular(head, body), ""])


def _comment(line: str) -> str:
    return "% " + " ".join(line.split())


def _tabular(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    top, *lines = [" & ".join(map(_tex, line)) + r" \\" for line in (head, *body)]
    lines = ["{}" + line if line.startswith(("[", "*")) else line for line in lines]  # else options of the \\ before
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return [begin, r"\toprule", top, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]


def footnotes(matrix: MatrixReply) -> dict[str, int]:
    """Return reason -> its number, in reading order, of every cell that is null or incomplete."""
    reasons = [cell.reason for cells in matrix.cells for cell in cells if cell.reason]
    return {reason: number for number, reason in enumerate(dict.fromkeys(reasons), 1)}


def remarks(matrix: MatrixReply) -> list[str]:
    """Return what is to be known beside a table: images, marks, cautions, why cells are missing, what else there is."""
    note = [f"{matrix.scope.dataset}: {matrix.scope.note}"] if matrix.scope and matrix.scope.note else []
    reasons = [f"({number}) {reason}" for reason, number in footnotes(matrix).items()]
    legend = ["* white-box: the substitute is the target"] if _stars(matrix) else []
    return [" ".join(line.split()) for line in (*legend, *note, *matrix.cautions, *reasons, *_others(matrix.others))]


def _others(others: Sequence[ScopeReply]) -> list[str]:
    said = [scope_named(scope) for scope in others]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return [f"other results, each a table of its own: {'; '.join(said[:SHOWN])}{more}"] if said else []


def scope_named(scope: ScopeReply) -> str:
    """Return what the results of a scope are of."""
    return f"{scope.dataset}, first {scope.images} test images, {scope.device}"


def _stars(matrix: MatrixReply) -> bool:
    return matrix.matrix == "blackbox" and any(cell.whitebox for cells in matrix.cells for cell in cells)


def mark(matrix: MatrixReply, cell: CellReply, marks: Mapping[str, int]) -> str:
    """Return what stands behind a cell's number: a star on black-box tables' white-box cells, its reason's number."""
    star = "*" if cell.whitebox and matrix.matrix == "blackbox" else ""
    return star + (f" ({marks[cell.reason]})" if cell.reason else "")


def _percent(cell: CellReply) -> str:
    if cell.accuracy is None or cell.interval is None:
        return "--"
    return f"{100 * cell.accuracy:.2f} ± {reach(cell.accuracy, cell.interval):.2f}"


def reach(accuracy: float, interval: tuple[float, float]) -> float:
    """Return how far the interval's farther end is, in per cent: near 0 and 100 % an interval has a short side."""
    return 100 * max(accuracy - interval[0], interval[1] - accuracy)


def transferred(matrix: MatrixReply) -> str:
    """Return for a caption which examples a black-box table is of, where one attack crafted all and no row names it."""
    attacks = {row.attack_label for row in matrix.rows if row.attack_label}
    return f", examples of {attacks.pop()}" if matrix.matrix == "blackbox" and len(attacks) == 1 else ""


def _caption(matrix: MatrixReply) -> str:
    if matrix.scope is None:
        return matrix.reason or "no evaluations that fit"
    scope = matrix.scope
    pairing = f", pairing {matrix.pairing}" if matrix.pairing else ""
    return (
        f"Accuracy in per cent ± the farther end of its 95 % interval: {scope.dataset}, first {scope.images} "
        f"test images, {scope.device}{pairing}{transferred(matrix)}."
        + (f" Empty: {matrix.reason}." if matrix.reason else "")
    )


_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


PAPER_COLUMNS = (
    "table", "suite", "protocol", "dataset", "device", "images", "row", "column", "published", "loss", "accuracy",
    "low", "high", "n", "n_correct", "seeds", "n_seeds", "spread", "difference", "prediction_low", "prediction_high",
    "explained_by_chance", "whitebox", "reason", "command", "note", "reductions", "choices", "cautions",
)  # fmt: skip


def paper_csv(table: PaperReply) -> str:
    """Return one line per published cell and loss; accuracies are shares, a missing one is empty and has its reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PAPER_COLUMNS)
    scope = table.scope
    head = [table.table, table.suite, table.protocol, scope.dataset, scope.device, scope.images]
    said = (table.reductions, table.choices, table.cautions)
    tail = [inert(text) for text in (scope.note, *map("; ".join, said))]
    for row, cells in zip(table.rows, table.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            for ours in cell.measured:
                writer.writerow([*head, row, column, cell.published, *_paper_line(ours), *tail])
    return text.getvalue()


def _paper_line(ours: PaperMeasurement) -> list[object]:
    low, high = ours.interval or ("", "")
    seeds = " ".join(str(seed.seed) for seed in ours.seeds)
    return [
        ours.loss or "", _empty(ours.accuracy), low, high, ours.n, ours.n_correct, seeds,
        ours.n_seeds, _empty(ours.spread),
        _empty(ours.difference), *(ours.prediction or ("", "")), ours.explained_by_chance, ours.whitebox,
        ours.reason or "", ours.command or "",
    ]  # fmt: skip


def _empty(value: float | None) -> float | str:
    return "" if value is None else value


def paper_markdown(table: PaperReply) -> str:
    """Return a table per loss with published and measured side by side, per cent, and what its protocol leaves out."""
    lines = [f"### Table {table.table} of the paper beside {whose(table)}", "", _paper_caption(table), ""]
    for loss in losses_run(table):
        said = f"Attacks climb the loss of the {loss} targets." if loss == "training" else LABEL
        lines += [said, "", *_ruled(["", *table.columns], _paper_rows(table, loss)), ""]
    lines += [f"- {line}" for line in paper_notes(table, _md)]
    return "\n".join([*lines, ""])


LABEL = "Attacks climb the loss of the true label."


def whose(table: PaperReply) -> str:
    """Return the suite or job whose cells stand beside the paper's."""
    job = [f"job {table.job}" if table.suite is None else f"(job {table.job})"] if table.job else []
    return " ".join([*([table.suite] if table.suite else []), *job])


def paper_latex(table: PaperReply) -> str:
    """Return a tabular environment (booktabs) per loss, with what its protocol leaves out as comments."""
    lines = [_comment(line) for line in (_paper_caption(table), *paper_notes(table))]
    for loss in losses_run(table):
        lines += [f"% loss: {loss}", *_tabular(["", *table.columns], _paper_rows(table, loss))]
    return "\n".join([*lines, ""])


def losses_run(table: PaperReply) -> list[str]:
    """Return the losses that attacks with a result climbed; where there is no result, all that they could climb."""
    every = [ours for ours in _measurements(table) if ours.loss]
    return sorted({str(ours.loss) for ours in every if ours.accuracy is not None} or {str(o.loss) for o in every})


def _paper_rows(table: PaperReply, loss: str) -> list[list[str]]:
    """Return per row its name and "published / ours ± farther end", with a mark for what chance allows."""
    return [[row, *(_beside(cell, loss) for cell in cells)] for row, cells in zip(table.rows, table.cells, strict=True)]


CHANCE = {"no": "!", "yes": "~", "unknown": ""}
"""Mark of a cell, by whether chance explains its distance from the published one."""


def _beside(cell: PaperCell, loss: str) -> str:
    ours = next(one for one in cell.measured if one.loss in (None, loss))
    mark = CHANCE[ours.explained_by_chance]
    return f"{100 * cell.published:.2f} / {_percent(ours)}{' ' if mark else ''}{mark}"


def _paper_caption(table: PaperReply) -> str:
    scope = table.scope
    return (
        f"Accuracy in per cent, published / ours ± the farther end of its 95 % interval: {scope.dataset}, first "
        f"{scope.images} test images, {scope.device}. {MARKS}."
    )


MARKS = "~ the published value is within our seeds' spread, ! it is not, no mark: too few seeds to say; -- not run"


def paper_notes(table: PaperReply, written: Callable[[str], str] = str) -> list[str]:
    """Return what a reader has to know: reductions, choices, where cells were computed, what is missing, cautions.

    What a file of results says of its machine is another's text, and is `written` so that it is text.
    """
    protocol = [f"Not the paper's protocol: {line}" for line in table.reductions] or ["The paper's protocol."]
    seeds = sorted({seed.seed for ours in _measurements(table) for seed in ours.seeds})
    # nothing that is run later adds a cell to one job's table
    missing = Counter(ours.command for ours in _measurements(table) if ours.command and table.job is None)
    note = table.scope.note
    return [
        *protocol,
        *(f"Open in the paper: {line}" for line in table.choices),
        *([f"{table.scope.dataset}: {note}"] if note else []),
        f"Seeds: {', '.join(map(str, seeds)) or 'none'}.",
        *(f"{origin.evaluations} evaluations on {written(_where(origin.environment))}." for origin in table.origins),
        *(f"{number} cells are missing or incomplete; `{command}` runs them." for command, number in missing.items()),
        *table.cautions,
    ]


def _measurements(table: PaperReply) -> list[PaperMeasurement]:
    return [ours for cells in table.cells for cell in cells for ours in cell.measured]


def _where(environment: Mapping[str, object]) -> str:
    shown = ", ".join(
        f"{name} {environment[name]}" for name in ("torch", "gauntlet", "commit") if environment.get(name)
    )
    origin = ", imported" if environment.get("imported") else ""
    return f"{environment.get('device', 'an unnamed device')} ({shown}{origin})"
