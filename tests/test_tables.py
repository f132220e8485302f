"""Tables: the figures they show, and that no name breaks out of its cell."""

from __future__ import annotations

import csv
import io
import re

import pytest

from lira_jax.tables import (
    Cell,
    Table,
    ablation_table,
    files,
    latex_text,
    main_table,
    percent,
    share_cell,
    to_csv,
    to_latex,
    to_markdown,
)
from tests.synthetic_findings import usual

NASTY = [
    "a | b",
    "$x$ & 50 %",
    "back\\slash",
    "`tick``s`",
    "<script>",
    "[link](x)",
    "new\nline",
    "_*_",
]


def unescaped(row, mark):
    """Cells of a row between marks that no backslash escapes."""
    return re.split(rf"(?<!\\)(?:\\\\)*{re.escape(mark)}", row)


def test_files_hold_every_attack_and_every_rung():
    found = files(usual().metrics)
    assert set(found) == {"table.md", "table.tex", "ablation.md", "ablation.tex"}
    for entry in usual().metrics["attacks"]:
        assert f"`{entry['name']}`" in found["table.md"]
        assert latex_text(entry["title"]) in found["table.tex"]
    for name, step in (("ablation.md", "LOSS"), ("ablation.tex", r"IN \& OUT threshold")):
        assert step in found[name]


def test_cells_are_the_figures_of_the_metrics_in_percent():
    table = main_table(usual().metrics)
    entry = usual().metrics["attacks"][0]
    _, auc, accuracy, *rates = table.rows[0]
    low, high = entry["auc_ci"]
    assert auc.text == f"{100 * entry['auc']:.1f}"
    assert auc.interval == f"{100 * low:.1f}–{100 * high:.1f}"
    assert accuracy.text == percent(entry["balanced_accuracy"])
    for key, cell in zip(("1e-05", "0.0001", "0.001", "0.01"), rates, strict=True):
        assert cell.text == percent(entry["tpr_at_fpr"][key])
        assert cell.few == entry["few_false_positives"][key]


def test_rates_with_few_false_positives_are_marked_and_the_mark_explained():
    found = files(usual().metrics)
    assert re.search(r"\d\\\* \(", found["table.md"])
    assert r"\* fewer than 10 expected false positives" in found["table.md"]
    assert r"\textsuperscript{*}" in found["table.tex"]
    plain = Table("c", ("a", "b"), ((Cell("x"), Cell("1")),))
    assert "fewer" not in to_markdown(plain)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.00"),
        (0.00123, "0.12"),
        (0.0999, "9.99"),
        (0.09999, "10.0"),
        (0.5, "50.0"),
        (1, "100.0"),
    ],
)
def test_percent_keeps_three_digits_or_so(share, text):
    assert percent(share) == text


def test_what_is_not_known_is_a_dash():
    assert share_cell(None, None) == Cell("–")
    assert share_cell(0.5, None).whole == "50.0"
    assert share_cell(0.5, [0.4, 0.6], True).whole == "50.0* (40.0–60.0)"


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_out_of_its_cell(name):
    table = Table(
        name, ("attack", name), ((Cell(name, code=name), Cell("1.0", "0.9–1.1")),), 1, (name,)
    )
    head, rule, row, *_ = to_markdown(table).splitlines()
    assert len(unescaped(head, "|")) == len(unescaped(rule, "|")) == len(unescaped(row, "|")) == 4
    outside = re.sub(r"(`+).*?\1(?!`)", "", row)
    assert "<" not in re.sub(r"\\.", "", outside)
    body = to_latex(table).split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    assert body.endswith(r" \\")
    assert len(body.splitlines()) == 1
    assert len(unescaped(body, "&")) == 2


def test_latex_text_escapes_every_special_letter():
    text = latex_text("\\{}$&#%_^~[*")
    bare = re.sub(r"\\(textbackslash|textasciicircum|textasciitilde)\{\}|\\.|\{[\[*]\}", "", text)
    assert bare == ""


def test_ladders_are_parted_by_rules_and_named_once():
    table = ablation_table(usual().metrics)
    assert table is not None
    assert [row[0].text for row in table.rows if row[0].text] == [
        "one threshold", "OUT models", "IN and OUT models"
    ]  # fmt: skip
    assert to_latex(table).count(r"\midrule") == 3
    assert ablation_table({"ablation": []}) is None
    assert set(files(dict(usual().metrics) | {"ablation": None})) == {"table.md", "table.tex"}


def test_csv_reads_back():
    text = to_csv(["a", "b"], [["x, y", 0.1], ['"', ""]])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], ["x, y", "0.1"], ['"', ""]]
