"""Tables: the figures they show, and that no name breaks out of its cell."""

from __future__ import annotations

import csv
import io
import re

import pytest

from lira_jax import figures
from lira_jax.csv_text import csv_text
from lira_jax.evaluation.wording import percent
from lira_jax.report import files
from lira_jax.report.files import text_tables
from lira_jax.report.formats import latex_text, to_latex, to_markdown
from lira_jax.report.tables import Cell, Table, ablation_table, main_table, share_cell
from lira_jax.report.trust_tables import (
    calibrated_attacks_table,
    calibration_table,
    trust_calibration_csv,
    trust_fpr_table,
    trust_inputs_csv,
    trust_inputs_table,
)
from tests.synthetic_findings import usual
from tests.trust import synthetic

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
    found = text_tables(usual().metrics)
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
    found = text_tables(usual().metrics)
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
    assert set(text_tables(dict(usual().metrics) | {"ablation": None})) == {"table.md", "table.tex"}


def test_csv_reads_back():
    text = csv_text([{"a": "x, y", "b": 0.1}, {"a": '"', "b": None}])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], ["x, y", "0.1"], ['"', ""]]
    assert text.count("\n") == text.count("\r\n") == 3


# On trust.


@pytest.fixture(scope="module")
def trust():
    """Metrics with a part on trust, and that part."""
    found = synthetic.findings().metrics
    return found, found["trust"]


def of_attack(calibration, name):
    return next(one for one in calibration["attacks"] if one["name"] == name)


def test_false_positive_rates_have_a_row_for_each_kind_and_a_column_for_each_attack(trust):
    metrics, found = trust
    for threshold in ("decision", "0.001"):
        table = trust_fpr_table(metrics, threshold)
        assert [row[0].text for row in table.rows] == [
            "other examples", "test, in words", "uniform, in words", "digits, in words"
        ]  # fmt: skip
        assert "LiRA online" not in table.heads
        for name, column in (("max-score", 2), ("gap", 4)):
            entry = of_attack(found["calibrations"][0], name)
            judged = {one["kind"]: one for one in entry["inputs"]} | {"": entry}
            cells = [row[column] for row in table.rows]
            for kind, cell in zip(("", "test", "uniform", "digits"), cells, strict=True):
                if kind not in judged:  # it has no labels
                    assert cell == Cell("–")
                    continue
                one = judged[kind]
                decided = one["decision"] if threshold == "decision" else one["low"][threshold]
                assert cell == share_cell(decided["fpr"], decided["fpr_ci"])


def test_the_table_of_inputs_tells_of_members_once_for_each_attack(trust):
    metrics, found = trust
    table = trust_inputs_table(metrics)
    # Seven attacks on examples, five on three kinds, one on a kind with labels.
    assert len(table.rows) == 7 + 5 * 3 + 1
    places = {name: table.heads.index(name) for name in ("recall", "FNR", "MMPS of TP")}
    for row in table.rows:
        of_members = row[1].text == "other examples"
        assert bool(row[0].text) == of_members
        for place in places.values():
            assert bool(row[place].text) == of_members
    entry = of_attack(found["calibrations"][0], "max-score")
    row = next(row for row in table.rows if row[0].code == "max-score")
    assert row[places["recall"]].text == percent(entry["decision"]["tpr"])
    assert row[places["FNR"]].text == percent(1 - entry["decision"]["tpr"])
    assert row[places["MMPS of TP"]].text == percent(entry["mmps"]["tp"]["mean"])


def test_tables_of_calibration_are_the_figures_of_the_metrics(trust):
    metrics, found = trust
    errors, attacks = calibration_table(metrics), calibrated_attacks_table(metrics)
    for place, one in enumerate(found["calibrations"]):
        row = dict(zip(errors.heads, errors.rows[place], strict=True))
        others = one["nonmembers"]
        assert row["ECE"] == share_cell(others["ece"], others["ece_ci"])
        assert row["Brier score"].text == f"{others['brier']:.3f}"
        assert row["ECE, members"].text == percent(one["members"]["ece"])
        online = attacks.rows[7 * place + 6]
        assert online[1].text == "LiRA online"
        entry = of_attack(one, "lira-online")
        assert online[attacks.heads.index("AUROC")].text == percent(entry["auc"])
        assert online[attacks.heads.index("TPR @ 0.1 % FPR")].few
    fitted = found["calibrations"][1]["temperature"]["mean"]
    assert errors.rows[1][0].text == f"T fitted, mean {fitted:.3g}"
    assert [row[0].text for row in attacks.rows if row[0].text] == [
        row[0].text for row in errors.rows
    ]


def test_csv_of_inputs_holds_every_figure_with_its_interval(trust):
    metrics, found = trust
    rows = list(csv.DictReader(io.StringIO(trust_inputs_csv(metrics))))
    assert len(rows) == 2 * (7 + 5 * 3 + 1)
    judged = [
        (one, entry, against)
        for one in found["calibrations"]
        for entry in one["attacks"]
        for against in (entry, *entry["inputs"])
    ]
    for row, (one, entry, against) in zip(rows, judged, strict=True):
        assert row["calibration"] == one["name"]
        assert row["attack"] == entry["name"]
        assert row["against"] == against.get("kind", "nonmembers")
        assert float(row["auc"]) == against["auc"]
        for before, decided in (
            ("", against["decision"]),
            ("low_0.01_", against["low"]["0.01"]),
            ("low_0.001_", against["low"]["0.001"]),
        ):
            for key in ("fpr", "fnr", "tpr", "precision"):
                value, interval = decided[key], decided[f"{key}_ci"] or ("", "")
                assert row[f"{before}{key}"] == ("" if value is None else str(value))
                assert row[f"{before}{key}_lo"] == str(interval[0])
                assert row[f"{before}{key}_hi"] == str(interval[1])
        for key, of in (("tp", entry), ("fn", entry), ("fp", against), ("tn", against)):
            mean = of["mmps"][key]
            assert row[f"mmps_{key}"] == ("" if mean is None else str(mean["mean"]))


def test_csv_of_calibration_holds_a_line_for_each_calibration_and_attack(trust):
    metrics, found = trust
    rows = list(csv.DictReader(io.StringIO(trust_calibration_csv(metrics))))
    assert len(rows) == 2 * 7
    for row, one in zip(rows[::7], found["calibrations"], strict=True):
        for side in ("nonmembers", "members"):
            for key in ("accuracy", "ece", "adaptive_ece", "overconfidence_error", "brier", "loss"):
                assert float(row[f"{side}_{key}"]) == one[side][key]
                assert float(row[f"{side}_{key}_hi"]) == one[side][f"{key}_ci"][1]
        entry = of_attack(one, row["attack"])
        assert float(row["tpr_at_fpr_0.001"]) == entry["tpr_at_fpr"]["0.001"]
        assert row["few_false_positives_0.001"] == "True"
        assert float(row["mmps_fp_less_tp"]) == entry["mmps"]["fp_less_tp"]["mean"]
    assert rows[0]["temperature_mean"] == ""
    assert float(rows[7]["temperature_mean"]) == found["calibrations"][1]["temperature"]["mean"]


def test_without_predictions_elsewhere_there_is_no_table_of_them(trust):
    for table in (
        trust_fpr_table, trust_inputs_table, calibration_table, calibrated_attacks_table
    ):  # fmt: skip
        assert table(usual().metrics) is None
    no_kinds = trust[0] | {"trust": trust[1] | {"kinds": []}}
    assert trust_inputs_table(no_kinds) is None
    assert trust_fpr_table(no_kinds) is None
    assert set(text_tables(no_kinds)) - set(text_tables(usual().metrics)) == {
        "trust_calibration.md", "trust_calibration.tex"
    }  # fmt: skip


def test_files_on_trust_are_written_and_go_with_what_they_tell_of(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda findings: [])
    expected = {
        f"trust_{name}.{ending}"
        for name in ("inputs", "calibration")
        for ending in ("csv", "md", "tex")
    }
    assert expected <= set(files.write(synthetic.findings(), tmp_path))
    assert expected <= {path.name for path in tmp_path.iterdir()}
    # Both tables of calibration are in one file.
    assert (tmp_path / "trust_calibration.md").read_text().count("95 % interval") == 2
    files.write(usual(), tmp_path)
    assert not list(tmp_path.glob("trust_*"))
