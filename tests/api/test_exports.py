"""Every form of a matrix says what the JSON says: notes, cautions, why a cell is empty."""

import csv
import io
from typing import Any

import pytest

from api.exports import to_csv, to_latex, to_markdown
from api.schemas import AxisReply, CellReply, MatrixReply, ScopeReply
from api.terminal import WRITERS, to_text
from store import results
from tests.api.house import LITTLE, House

PENDING = "seed 0: not finished (ready)"


def cell(accuracy: float | None, low: float = 0.5, high: float = 0.7, **more: Any) -> CellReply:
    counted: dict[str, Any] = {"n": 10, "n_correct": 6, "n_seeds": 1, "seeds": [], "spread": None, "reason": None}
    interval = None if accuracy is None else (low, high)
    return CellReply(**{**counted, "accuracy": accuracy, "interval": interval, "whitebox": False, **more})


MATRIX = MatrixReply(
    matrix="blackbox", pairing="same", others=[],
    scope=ScopeReply(dataset="mnist-mini", device="cpu", images=300, note="every 5th image"),
    rows=[
        AxisReply(key="n", label="Natural H", attack_label="IFGSM eps=0.3 k=30"),
        AxisReply(key="i", label="IFGSM-10 H", attack_label="IFGSM eps=0.3 k=30"),
    ],
    columns=[AxisReply(key="n", label="Natural H"), AxisReply(key="e", label="e2SAD S")],
    cells=[
        [cell(0.6, whitebox=True), cell(1.0, 0.98, 1.0)],
        [cell(0.0, 0.0, 0.02, reason="seed 1: failed: a\n| b"), cell(None, reason=PENDING)],
    ],
    cautions=["e2sad: ill-conditioned", "shortened: iterations: 2 instead of 30000"],
)  # fmt: skip
SAID = [
    "mnist-mini: every 5th image", "e2sad: ill-conditioned", "shortened: iterations: 2 instead of 30000",
    "(1) seed 1: failed: a | b", f"(2) {PENDING}",
]  # fmt: skip


def test_text_is_aligned_marks_what_is_white_box_and_says_the_rest():
    head, *table = to_text(MATRIX).splitlines()
    assert head == (
        "blackbox matrix, substitutes by targets, examples of IFGSM eps=0.3 k=30: accuracy in % ± farther end of the "
        "95 % interval; mnist-mini, first 300 test images, cpu"
    )
    assert table == [
        "                  Natural H          e2SAD S",
        "--------------------------------------------",
        "Natural H    60.0 ±10.0*     100.0 ± 2.0    ",
        "IFGSM-10 H    0.0 ± 2.0 (1)           -- (2)",
        "* white-box: the substitute is the target",
        *SAID,
    ]


def test_labels_that_would_be_markup_are_text():
    rows = [AxisReply(key="n", label="[a] *b* <i>|"), AxisReply(key="i", label="*")]
    odd = MATRIX.model_copy(update={"rows": rows, "cautions": ["two\nlines of *one*"]})
    text = to_markdown(odd)
    assert r"| \[a\] \*b\* \<i>\| | 60.00 ± 10.00* |" in text
    assert "\n- two lines of \\*one\\*\n" in text
    text = to_latex(odd)
    assert r"{}[a] *b* \textless{}i\textgreater{}\textbar{} & 60.00 $\pm$ 10.00* &" in text
    assert "\n{}* & 0.00" in text
    assert "% two lines of *one*\n" in text


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("![p](http://evil/p.png)", r"!\[p\](http://evil/p.png)"),
        ("`code`", r"\`code\`"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("fgsm_adv batch_size", "fgsm_adv batch_size"),
    ],
)
def test_markdown_shows_a_label_as_it_is(label: str, written: str):
    columns = [AxisReply(key="n", label=label), AxisReply(key="e", label="e2SAD S")]
    text = to_markdown(MATRIX.model_copy(update={"columns": columns, "cautions": [f"ill-conditioned ({label})"]}))
    assert f"|  | {written} | e2SAD S |" in text
    assert f"\n- ill-conditioned ({written})\n" in text


def test_every_form_names_the_attack_that_no_row_names():
    for form, write in WRITERS.items():
        assert "IFGSM eps=0.3 k=30" in write(MATRIX), form
    several = [row.model_copy(update={"attack_label": row.label}) for row in MATRIX.rows]
    assert "examples of" not in to_text(MATRIX.model_copy(update={"rows": several}))
    assert next(iter(csv.DictReader(io.StringIO(WRITERS["csv"](MATRIX)))))["attack"] == "IFGSM eps=0.3 k=30"


def test_a_white_box_table_needs_no_star():
    whitebox = MATRIX.model_copy(update={"matrix": "whitebox"})
    for form, write in WRITERS.items():
        assert "*" not in write(whitebox), form


def test_markdown_says_it_below_the_table():
    text = to_markdown(MATRIX)
    assert "| Natural H | 60.00 ± 10.00* | 100.00 ± 2.00 |" in text
    assert "| IFGSM-10 H | 0.00 ± 2.00 (1) | -- (2) |" in text
    assert text.splitlines()[-6:] == [
        "- " + line.replace("|", r"\|") for line in (r"\* white-box: the substitute is the target", *SAID)
    ]


def test_latex_says_it_in_comments_of_one_line_each():
    text = to_latex(MATRIX)
    assert r"IFGSM-10 H & 0.00 $\pm$ 2.00 (1) & -- (2) \\" in text
    assert [line for line in text.splitlines() if line.startswith("% ")][2:] == [f"% {line}" for line in SAID]


def test_csv_says_it_in_columns():
    rows = list(csv.DictReader(io.StringIO(to_csv(MATRIX))))
    assert {row["note"] for row in rows} == {"every 5th image"}
    assert {row["cautions"] for row in rows} == {"; ".join(MATRIX.cautions)}
    assert [row["reason"] for row in rows] == ["", "", "seed 1: failed: a\n| b", PENDING]


def test_every_form_says_what_other_results_there_are():
    others = [ScopeReply(dataset="mnist", device="cuda", images=n) for n in (1, 2, 3, 4)]
    several = MATRIX.model_copy(update={"others": others})
    first = "mnist, first 1 test images, cuda; mnist, first 2 test images, cuda; mnist, first 3 test images, cuda"
    for form in ("text", "markdown", "latex"):
        said = [line.lstrip("-% ") for line in WRITERS[form](several).splitlines()]
        assert f"other results, each a table of its own: {first}; and 1 more" in said, form
    (found,) = {row["others"] for row in csv.DictReader(io.StringIO(to_csv(several)))}
    assert found == f"{first}; mnist, first 4 test images, cuda"
    empty = {"scope": None, "rows": [], "columns": [], "cells": [], "reason": "none fit", "cautions": []}
    nothing = several.model_copy(update=empty)
    assert to_text(nothing).splitlines() == ["none fit", f"other results, each a table of its own: {first}; and 1 more"]


def test_without_seeds_their_number_is_there(small_house: House, monkeypatch: pytest.MonkeyPatch):
    small_house.post({**LITTLE, "seeds": [0, 1]})
    small_house.work(60)
    monkeypatch.setattr(results, "LISTED", 0)
    text = small_house.client.get("/results/whitebox-matrix", params={"format": "csv"}).text
    assert {(row["seeds"], row["n_seeds"]) for row in csv.DictReader(io.StringIO(text))} == {("", "2")}


@pytest.mark.parametrize("form", list(WRITERS))
def test_a_lossy_copy_says_so_in_every_form(small_house: House, form: str):
    small_house.post({**LITTLE, "dataset": "cifar10-jpeg"})
    text = small_house.client.get("/results/whitebox-matrix", params={"format": form}).text
    assert "lossy JPEG copy" in text
