"""Figures: which are drawn, by what rule examples are chosen, and the same bytes twice."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from lira_jax import evaluation, figures
from lira_jax.analysis.exposure import four_examples, mean_loss_out, with_spread
from lira_jax.analysis.statistics import statistic_curves
from lira_jax.attacks import TITLES, lira, references
from lira_jax.config import AttackConfig
from lira_jax.evaluation.judging import Band, Curve
from lira_jax.evaluation.wording import telling_fpr
from lira_jax.figures import Drawing, Missing, budgets, histograms, roc, style
from lira_jax.figures.style import STYLES, plain, style_of
from lira_jax.label_only.attacks import ATTACKS
from lira_jax.trust import results
from tests import synthetic_findings
from tests.synthetic_findings import NAMES, drawn, usual


def curve(size=400, distance=1.0):
    rng = np.random.default_rng(0)
    member = np.arange(size) % 2 == 0
    return evaluation.roc(rng.normal(size=size) + distance * member, member)


@pytest.fixture
def in_one_form(monkeypatch):
    """Figures are laid out and drawn once, and not in each form of file."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"drawn"))


def by_name(drawings):
    return {drawing.name: drawing for drawing in drawings}


def test_every_figure_of_the_paper_is_drawn_or_has_a_reason():
    numbers = {int(n) for one in drawn() for n in re.findall(r"\d+", one.paper)}
    assert numbers >= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 21}
    assert len({one.name for one in drawn()}) == len(drawn())
    missing = {one.name for one in drawn() if isinstance(one, Missing)}
    label_only = {"label_only_roc", "label_only_distances", "label_only_queries"}
    trust = {"trust_inputs", "trust_fpr", "trust_reliability", "trust_trade_off"}
    assert missing == {"compare", "shifted", "dp_sgd", "other_data"} | label_only | trust
    assert all(one.reason for one in drawn() if isinstance(one, Missing))


def test_every_figure_is_a_column_wide_in_all_three_forms():
    for one in drawn():
        if isinstance(one, Drawing):
            assert one.pdf.startswith(b"%PDF")
            assert b"</svg>" in one.svg
            width, height = Image.open(io.BytesIO(one.png)).size
            assert width == round(3.4 * 300)
            assert height < 1.5 * width
            assert one.caption


def test_draws_the_same_bytes_twice():
    d = usual().vulnerability.d
    again = by_name([
        roc._linear_and_log(usual()),
        histograms._privacy_scores(usual(), d),
        budgets._accuracy(usual()),
    ])  # fmt: skip
    first = by_name(drawn())
    assert len(again) == 3
    for name, drawing in again.items():
        assert drawing == first[name]


def test_writes_pdf_and_png_of_what_is_drawn(tmp_path):
    written = figures.write(drawn(), tmp_path)
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    assert {"roc.pdf", "roc.png", "histograms_loss.pdf"} <= set(written)
    assert not any("dp_sgd" in name for name in written)


@pytest.mark.usefixtures("sketched")
def test_figure_1_names_the_rows_of_table_1_that_were_not_run():
    findings = synthetic_findings.findings(models=8, examples=60, names=["yeom", "lira-online"])
    drawing = roc._attacks(findings, "roc", "Figure 1", "", roc.TABLE_1, "")
    assert isinstance(drawing, Drawing)
    assert "Not run: shokri, merlin, morgan" in drawing.caption
    nothing = roc._attacks(findings, "roc", "", "", roc.OFFLINE, "")
    assert isinstance(nothing, Missing)


def test_the_reason_for_a_figure_is_the_reason_for_its_attack():
    findings = synthetic_findings.findings(models=8, examples=60, names=["yeom", "lira-online"])
    not_run = [
        {"name": "gradient-norm", "title": "", "reason": "score with --score.gradients True"}
    ]
    findings = dataclasses.replace(findings, metrics=findings.metrics | {"not_run": not_run})
    assert (
        roc._why(findings, roc.GRADIENT)
        == "gradient-norm was not run: score with --score.gradients True"
    )


def test_draws_whatever_attacks_are_called():
    names = ["my $attack$", "_hidden", "图 attack", "a\nb\t\0", "x" * 200, "$"]
    lines = [roc.Labelled(plain(name), style_of(name), Curve(curve())) for name in names]
    assert roc.log_log(lines, "attack")["svg"]


@pytest.mark.usefixtures("sketched")
def test_draws_what_one_target_without_labels_or_images_allows():
    findings = synthetic_findings.findings(
        models=8, examples=60, images=False, classes=None, names=["lira-online"]
    )
    bare = dataclasses.replace(findings.score_set, labels=None, logits=None)
    kept = {key: findings.metrics[key] for key in ("attacks", "models", "examples", "queries")}
    findings = dataclasses.replace(
        findings, metrics=kept, score_set=bare, vulnerability=None, statistics={}
    )
    found = by_name([*histograms.every(findings), *budgets.every(findings), *roc.every(findings)])
    reasons = {name for name, one in found.items() if isinstance(one, Missing)}
    assert reasons == {
        "roc_loss", "roc_offline", "roc_gradient_norm", "roc_newer", "roc_newer_offline",
        "roc_statistics",
        "by_models", "by_queries", "accuracy",
    }  # fmt: skip


@pytest.mark.usefixtures("in_one_form")
def test_draws_scores_that_are_all_equal():
    findings = synthetic_findings.findings(models=8, examples=60)
    scores = np.zeros_like(findings.score_set.scores)
    same = dataclasses.replace(findings.score_set, scores=scores)
    found = histograms.every(dataclasses.replace(findings, score_set=same, vulnerability=None))
    assert all(isinstance(one, Drawing) for one in found)


def test_draws_no_histogram_where_no_example_has_two_models_a_side():
    findings = synthetic_findings.findings(models=8, examples=60)
    held = findings.score_set
    two = dataclasses.replace(held, scores=held.scores[:2], keep=held.keep[:2])
    found = histograms.every(dataclasses.replace(findings, score_set=two, vulnerability=None))
    assert {one.reason for one in found} == {"no example has two models on each side"}


@pytest.mark.usefixtures("in_one_form")
def test_draws_a_curve_that_finds_nothing_and_one_of_few_points():
    member = np.array([True, False, False])
    hopeless = Curve(evaluation.roc(np.array([0.0, 1.0, 2.0]), member))
    lines = [roc.Labelled("hopeless", style_of("yeom"), hopeless)]
    assert roc.log_log(lines, "attack")["pdf"]


def test_drawn_corners_are_the_largest_tpr_at_each_fpr():
    whole = curve()
    left = 1 / whole.false_positives[-1]
    fpr, tpr = roc._corners(whole, left)
    assert fpr[0] == left
    assert fpr[-1] == tpr[-1] == 1
    assert (np.diff(fpr) > 0).all()
    for x, y in zip(fpr, tpr, strict=True):
        assert y == evaluation.tpr_at_fpr(whole, x)


def test_a_band_begins_at_the_axis_with_what_holds_there():
    band = Band(np.array([0.0, 0.001, 0.1, 1.0]), np.array([0, 0.1, 0.2, 1.0]),
                np.array([0.05, 0.3, 0.4, 1.0]))  # fmt: skip
    fpr, low, high = roc._band_corners(band, 0.01)
    np.testing.assert_array_equal(fpr, [0.01, 0.1, 1])
    np.testing.assert_array_equal(low, [0.1, 0.2, 1])
    np.testing.assert_array_equal(high, [0.3, 0.4, 1])


@pytest.mark.parametrize("count", [2, 8])
def test_the_axis_label_and_the_legend_lie_apart(monkeypatch, count):
    drawn = {}
    monkeypatch.setattr(roc, "rendered", lambda made, square: drawn.update(made=made) or
                        {"svg": style.rendered(made, square)["svg"]})  # fmt: skip
    line = roc.Labelled("an attack with a long name (0.987)", style_of("yeom"), Curve(curve()))
    roc.log_log([line] * count, "attack (AUC)")
    made = drawn["made"]
    made.draw_without_rendering()
    label = made.axes[0].xaxis.label.get_window_extent()
    gap = label.y0 - made.legends[0].get_window_extent().y1
    assert gap > 0.04 * made.dpi
    assert made.axes[0].bbox.width == pytest.approx(made.axes[0].bbox.height)


def test_every_attack_has_a_style_of_its_own():
    names = {*TITLES, *NAMES, *ATTACKS, *results.TITLES}
    assert names <= set(STYLES)
    assert len({style_of(name) for name in STYLES}) == len(STYLES)


def test_an_attack_of_ones_own_has_a_stable_style_that_no_known_one_has():
    assert style_of("my attack") == style_of("my attack")
    assert not {style_of(f"attack {n}") for n in range(200)} & set(STYLES.values())
    assert len({style_of(f"attack {n}") for n in range(200)}) > 10


def test_text_is_shown_as_it_is():
    assert plain("a $x$ \n b") == r"a \$x\$ b"
    assert not plain("_a").startswith("_")


def test_the_mean_loss_is_that_of_the_models_out():
    held = usual().score_set
    loss = mean_loss_out(held)
    for example in (0, 17, 199):
        phi = np.asarray(held.scores[:, example, 0], dtype=np.float64)
        outside = phi[~held.keep[:, example]]
        assert loss[example] == pytest.approx(-np.log(expit(outside)).mean())


def test_an_example_has_a_spread_with_two_models_on_each_side():
    held = usual().score_set
    few = dataclasses.replace(held, scores=held.scores[:2], keep=held.keep[:2])
    assert not with_spread(few).any()
    assert with_spread(held).all()
    everyone = dataclasses.replace(few, keep=np.ones_like(few.keep))
    assert np.isnan(mean_loss_out(everyone)).all()


def test_the_four_examples_lie_in_the_four_corners():
    loss = np.array([0, 9, 0, 9, 5, 4, 5, 4], dtype=np.float64)
    d = np.array([0, 0, 9, 9, 4, 5, 4, 5], dtype=np.float64)
    assert four_examples(loss, d) == {
        "easy inlier": 0, "hard inlier": 1, "easy outlier": 2, "hard outlier": 3
    }  # fmt: skip


def test_no_example_is_chosen_twice_and_none_without_a_score():
    picks = four_examples(np.zeros(4), np.zeros(4))
    assert sorted(picks.values()) == [0, 1, 2, 3]
    assert len(four_examples(np.zeros(2), np.zeros(2))) == 2
    assert four_examples(np.zeros(4), np.full(4, np.nan)) == {}


def test_the_curve_of_phi_is_that_of_online_lira_and_others_come_from_their_formulas():
    held = usual().score_set
    rule, config = references.find(held), AttackConfig()
    found = statistic_curves(held, rule, config)
    assert len(found) == 6

    def online(statistic):
        shaped = dataclasses.replace(held, scores=statistic[..., np.newaxis])
        return evaluation.roc(lira.attack(shaped, rule, config)["lira-online"], held.keep)

    phi = held.scores[:, :, 0].astype(np.float64)
    assert held.labels is not None
    assert held.logits is not None
    own = np.take_along_axis(held.logits, held.labels[np.newaxis, :, np.newaxis], axis=2)[..., 0]
    runner_up = np.sort(np.where(held.logits == own[..., np.newaxis], -np.inf, held.logits))
    expected = {
        "φ = log p/(1−p), stable": phi,
        "cross-entropy −log p": np.log(expit(phi)),
        "confidence p": 1 / (1 + np.exp(-phi)),
        "hinge z_y − max z_k": own.astype(np.float64) - runner_up[..., -1],
        "logit z_y": own.astype(np.float64),
    }
    for title, statistic in expected.items():
        assert evaluation.auc(online(statistic)) == pytest.approx(
            evaluation.auc(found[title]), abs=2e-3
        )


def test_without_logits_the_curves_are_those_of_four_statistics():
    held = dataclasses.replace(usual().score_set, logits=None)
    assert len(statistic_curves(held, references.find(held), AttackConfig())) == 4


def test_the_rate_to_judge_by_has_ten_false_positives_behind_it():
    def metrics(**few):
        return {"attacks": [{"few_false_positives": few}]}

    assert telling_fpr(metrics(**{"0.001": False, "0.01": False})) == "0.001"
    assert telling_fpr(metrics(**{"0.001": True, "0.01": False})) == "0.01"
    assert telling_fpr(metrics(**{"0.001": True, "0.01": True})) is None
