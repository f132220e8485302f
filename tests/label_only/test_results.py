"""The judged attacks: what metrics.json holds, its tables and figures, and the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from lira_jax import storage
from lira_jax.commands import attack
from lira_jax.evaluation import best_threshold, bootstrap, decisions
from lira_jax.evaluation.wording import percent
from lira_jax.figures import Drawing, Missing, label_only
from lira_jax.label_only import attacks, outliers, results
from lira_jax.label_only.attacks import ATTACKS
from lira_jax.report import files, label_only_tables, page, terminal
from tests import synthetic_findings
from tests.conftest import refusal
from tests.label_only import synthetic

FIGURES = ["label_only_roc", "label_only_distances", "label_only_queries"]
NAMES = ["lira-online", *ATTACKS]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few replicates, and attack networks that are soon fitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "REPLICATES", 40)
        patch.setattr(attacks, "HIDDEN", (4,))
        yield


@pytest.fixture(scope="module")
def found():
    """Answers, what is written of them, and findings that hold it."""
    held = synthetic.score_set(examples=300)
    given = synthetic.answers(held)
    online = {"lira-online": given.scores.astype(np.float64)}
    metrics, drawn = results.results(given, online)
    findings = synthetic_findings.findings(models=8, examples=60, names=["yeom", "lira-online"])
    whole = findings.metrics | {"label_only": metrics}
    return given, metrics, dataclasses.replace(findings, metrics=whole, label_only=drawn)


@pytest.fixture(scope="module")
def pictures(found):
    return label_only.every(found[2])


def entry(metrics, name):
    return next(one for one in metrics["attacks"] if one["name"] == name)


def test_every_attack_has_its_figures_and_json_holds_them(found):
    _, metrics, _ = found
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert (metrics["sources"], metrics["targets"]) == ([0], list(range(2, 10)))
    assert (metrics["blocks"], metrics["examples"]) == (4, 300)
    assert [one["name"] for one in metrics["attacks"]] == NAMES
    for one in metrics["attacks"]:
        assert one["over"] == "targets and examples"
        assert (one["targets"], one["examples"]) == (8, 300)
        low, high = one["decision"]["balanced_accuracy_ci"]
        assert low <= one["decision"]["balanced_accuracy"] <= high
        assert one["decision"]["balanced_accuracy"] <= one["balanced_accuracy"] + 1e-12
        assert set(one["expected_false_positives"]) == set(one["few_false_positives"])
    labels = [one for one in metrics["attacks"] if one["sees"] == "labels"]
    best = max(labels, key=lambda one: one["source_balanced_accuracy"])
    assert metrics["strongest"] == best["name"]


def test_decisions_are_by_the_threshold_of_the_source_model_and_blocks_are_drawn_together(found):
    given, metrics, _ = found
    distance = given.answers["boundary"].values[..., -1].astype(np.float64)
    threshold = best_threshold(distance[:1], given.keep[:1])
    expected = decisions(distance[1:] >= threshold, given.keep[1:], 2)
    assert entry(metrics, "boundary")["decision"] == {"threshold": threshold} | expected
    assert entry(metrics, "confidence-memguard")["decision"]["threshold"] is None
    assert entry(metrics, "confidence-memguard")["decision"]["precision"] is None
    last = metrics["by_budget"][-1]
    assert last["queries"] == 1000
    assert last["decision"] == entry(metrics, "boundary")["decision"]


def test_what_an_attack_adds_to_gap_is_counted_on_the_same_pairs(found):
    given, metrics, _ = found
    member = given.keep[1:, :300]
    for name in ("boundary", "confidence"):
        one = entry(metrics, name)
        gap = decisions(given.answers["correct"].values[1:] > 0.5, member, np.arange(8) // 2)
        expected = one["decision"]["balanced_accuracy"] - gap["balanced_accuracy"]
        assert one["over_gap"] == pytest.approx(expected)
        low, high = one["over_gap_ci"]
        assert low < one["over_gap"] < high
    assert (entry(metrics, "gap")["over_gap"], entry(metrics, "gap")["over_gap_ci"]) == (0, [0, 0])


def test_precision_on_outliers_is_that_of_the_same_decisions(found):
    given, metrics, _ = found
    examples = outliers.find(given.answers["features"].values).examples
    assert metrics["outliers"]["examples"] == examples.tolist()
    row = next(one for one in metrics["outliers"]["attacks"] if one["name"] == "gap")
    right, keep = given.answers["correct"].values[1:] == 1, given.keep[1:]
    tpr = right[:, examples][keep[:, examples]].mean()
    fpr = right[:, examples][~keep[:, examples]].mean()
    assert row["of_outliers"]["precision"] == pytest.approx(tpr / (tpr + fpr))
    assert row["of_all"]["tpr"] == pytest.approx(right[keep].mean())


def test_one_target_has_intervals_over_its_examples_alone():
    held = synthetic.score_set(models=4, examples=200)
    given = synthetic.answers(held, targets=(3,), without=("features", "combined", "rotation"))
    metrics, _ = results.results(given, {})
    assert {one["over"] for one in metrics["attacks"]} == {"examples"}
    assert metrics["outliers"] is None
    assert {one["name"] for one in metrics["not_run"]} == {
        "combined", "lira-label-only", "augmentation-rotation"
    }  # fmt: skip


def test_tables_say_what_was_judged(found):
    _, metrics, findings = found
    table = label_only_tables.label_only_table(findings.metrics)
    assert [row[0].code for row in table.rows] == NAMES
    gap = next(row for row in table.rows if row[0].code == "gap")
    assert (gap[1].text, gap[2].text) == ("labels", "1")
    value = entry(metrics, "gap")["decision"]["balanced_accuracy"]
    assert gap[3].text == percent(value)
    rows = list(csv.DictReader(io.StringIO(label_only_tables.label_only_csv(findings.metrics))))
    assert [row["name"] for row in rows] == [*NAMES, *["boundary-by-queries"] * 3]
    assert [row["label_queries"] for row in rows[-3:]] == ["100", "400", "1000"]
    assert float(rows[NAMES.index("gap")]["balanced_accuracy"]) == value
    assert rows[NAMES.index("confidence-memguard")]["precision"] == ""
    assert "label_only.md" in files.text_tables(findings.metrics)
    assert len(label_only_tables.outlier_table(findings.metrics).rows) == len(NAMES)
    assert "label_only.md" not in files.text_tables(findings.metrics | {"label_only": None})


def test_all_figures_are_drawn_a_column_wide(pictures):
    drawn = pictures
    assert [one.name for one in drawn] == FIGURES
    for one in drawn:
        assert isinstance(one, Drawing)
        width, height = Image.open(io.BytesIO(one.png)).size
        assert width == round(3.4 * 300)
        assert height < 1.5 * width
    assert "(0.500)" not in drawn[0].caption


@pytest.mark.usefixtures("sketched")
def test_figures_that_were_not_asked_for_have_a_reason():
    bare = synthetic_findings.findings(models=8, examples=60, names=["yeom", "lira-online"])
    for one in label_only.every(bare):
        assert isinstance(one, Missing)
        assert "score.py --run DIR --label-only" in one.reason
    held = synthetic.score_set(models=4, examples=200)
    given = synthetic.answers(held, without=("boundary", "combined", "features"))
    metrics, drawn = results.results(given, {})
    whole = bare.metrics | {"label_only": metrics}
    some = dataclasses.replace(bare, metrics=whole, label_only=drawn)
    kinds = [type(one) for one in label_only.every(some)]
    assert kinds == [Drawing, Missing, Missing]
    assert label_only.every(some)[1].reason.endswith("--label_only.budget 2500")


def test_report_and_terminal_name_the_strongest_and_what_memguard_leaves(found, pictures):
    _, metrics, findings = found
    html = page.write_report(findings, pictures)
    assert '<section id="label-only">' in html
    assert html.count('id="figure-label_only') == 3
    assert "Outliers" in html
    text = terminal._label_only(metrics)[0]
    assert text.startswith("Label-only, thresholds from 1 source model, 8 targets")
    assert f"{metrics['strongest']} " in text
    assert "confidence-memguard 50.0 (50.0–50.0)" in text


def test_the_report_says_how_to_ask_where_models_were_not():
    bare = synthetic_findings.findings(models=8, examples=60, names=["yeom", "lira-online"])
    assert "score.py --run DIR --label-only" in page.write_report(bare, [])


@pytest.mark.usefixtures("sketched")
def test_attack_includes_label_only_results_wherever_a_run_has_them(tmp_path, capsys):
    held = synthetic.score_set(models=4, examples=80)
    run = tmp_path / "run"
    synthetic.write_run(run, held)
    for flags in (["--label-only"], ["--label_only"], ["--label_only", "True"]):
        message = refusal(tmp_path, lambda flags=flags: attack.main(["--run", str(run), *flags]))
        assert message.endswith(f"run python score.py --run {run} --label-only")
    synthetic.write_answers(run, synthetic.answers(held))
    attack.main(["--label-only", "--run", str(run)])
    metrics = json.loads((run / "attack/metrics.json").read_text())
    assert [one["name"] for one in metrics["label_only"]["attacks"]] == NAMES[:-2] + NAMES[-1:]
    assert metrics["label_only"]["not_run"][0]["name"] == "lira-label-only"
    assert "Label-only" in capsys.readouterr().out
    assert "label_only.boundary.tpr" in np.load(run / "attack/roc.npz")
    names = {path.name for path in (run / "attack").iterdir()}
    assert {"label_only.csv", "label_only.md", "label_only.tex"} <= names
    for path in (run / "label_only").iterdir():
        storage.remove(path)
    attack.main(["--run", str(run)])
    assert not list((run / "attack").glob("label_only*"))


def test_label_only_is_of_a_runs_own_models(tmp_path):
    for flags in (
        ["--scores", "x.npz", "--out", "y"],
        ["--run", "r", "--protocol", "reference-code"],
    ):
        if "--run" in flags:
            synthetic.write_run(tmp_path / "r", synthetic.score_set(models=4, examples=40))
            flags[1] = str(tmp_path / "r")
        message = refusal(tmp_path, lambda flags=flags: attack.main([*flags, "--label-only"]))
        assert message.startswith("--label-only: these attacks need a run")
