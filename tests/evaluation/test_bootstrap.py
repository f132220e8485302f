"""The bootstrap of targets and examples against repeated rows and columns, and known truths."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lira_jax import evaluation
from lira_jax.evaluation import bootstrap, judging
from tests.evaluation.brute_force import resampled


@pytest.mark.parametrize("folds", [4, 1])
def test_intervals_equal_a_bootstrap_by_repeating_rows_and_columns(monkeypatch, folds):
    monkeypatch.setattr(bootstrap, "REPLICATES", 60)
    rng = np.random.default_rng(2)
    member = rng.random((2 * folds, 80)) < 0.5
    scores = (rng.normal(size=member.shape) + member).round(1)  # with ties
    got = evaluation.intervals(scores, member, fold=2, seed=5)
    assert got["over"] == ("targets and examples" if folds > 1 else "examples")

    replicates = []
    for units, columns in resampled(folds, 80, 5, 60):
        rows = np.arange(2 * folds).reshape(folds, 2)[units].ravel()
        drawn, truth = scores[np.ix_(rows, columns)], member[np.ix_(rows, columns)]
        curve = evaluation.roc(drawn, truth)
        area = roc_auc_score(truth.ravel(), drawn.ravel())
        band = [evaluation.tpr_at_fpr(curve, fpr) for fpr in got["band"]["fpr"]]
        accuracy = evaluation.balanced_accuracy(curve)
        replicates.append((area, accuracy, evaluation.tpr_at_fpr(curve, 0.01), *band))
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    for place, interval in enumerate(
        (got["auc_ci"], got["balanced_accuracy_ci"], got["tpr_at_fpr_ci"]["0.01"])
    ):
        np.testing.assert_allclose(interval, [low[place], high[place]], atol=1e-12)
    np.testing.assert_allclose(got["band"]["lo"], low[3:], atol=1e-12)
    np.testing.assert_allclose(got["band"]["hi"], high[3:], atol=1e-12)
    assert got["band"]["fpr"][0] == pytest.approx(1 / (~member).sum())
    assert got["band"]["lo"][-1] == got["band"]["hi"][-1] == 1


def test_more_equal_scores_than_narrow_sums_hold_are_counted_right():
    member = np.zeros((16, 3_000), bool)
    member[::2] = True
    one_bin = 8 * 3_000 * int(bootstrap._weights(2, 3_000, 0, 100).examples.max())
    assert one_bin > 2**16 > 3_000
    for scores, area in ((np.zeros(member.shape), 0.5), (member.astype(float), 1.0)):
        found = evaluation.intervals(scores, member, fold=8, replicates=100)
        assert found["auc_ci"] == [area, area]


@pytest.mark.parametrize("folds", [2, np.array([0, 0, 1, 2, 2, 2, 3, 4])])
def test_folds_counted_together_give_what_each_by_itself_gives(monkeypatch, folds):
    rng = np.random.default_rng(3)
    member = rng.random((8, 40)) < 0.5
    scores = rng.normal(size=member.shape) + member
    found = []
    for rows in (1, 2 * 40, 2**15):
        monkeypatch.setattr(bootstrap, "ROWS", rows)
        found.append(evaluation.intervals(scores, member, folds, replicates=40))
    for other in found[1:]:
        np.testing.assert_equal(other, found[0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=200),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=60),
)
def test_thresholds_reached_are_those_that_a_search_finds(thresholds, values):
    grid = np.unique(thresholds)
    at = np.concatenate([values, grid, np.nextafter(grid, -np.inf)])
    expected = np.searchsorted(grid, at, side="right")
    np.testing.assert_array_equal(bootstrap._count_at_most(grid)(at), expected)


def test_resamples_draw_as_many_folds_and_examples_as_there_are():
    drawn = bootstrap._weights(5, 70, 0, 500)
    assert set(drawn.folds.sum(axis=0)) == {5}
    assert set(drawn.examples.sum(axis=0)) == {70}
    assert np.abs(drawn.examples.mean(axis=1) - 1).max() < 6 / np.sqrt(500)


def test_thinned_thresholds_change_intervals_little(monkeypatch):
    rng = np.random.default_rng(3)
    member = rng.random((8, 800)) < 0.5
    scores = rng.normal(size=member.shape) + member
    whole = evaluation.intervals(scores, member, fold=1)
    monkeypatch.setattr(bootstrap, "GRID", 2 * scores.size)
    exact = evaluation.intervals(scores, member, fold=1)
    np.testing.assert_allclose(whole["auc_ci"], exact["auc_ci"], atol=1e-4)
    for key in evaluation.FPRS:
        np.testing.assert_allclose(
            whole["tpr_at_fpr_ci"][key], exact["tpr_at_fpr_ci"][key], atol=2e-3
        )


@pytest.mark.parametrize(("of_targets", "of_examples"), [(0.6, 0.0), (0.0, 1.0), (0.4, 0.6)])
def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch, of_targets, of_examples):
    # Members score higher by an amount that differs between targets and between examples: a
    # bootstrap over one of them alone would miss the spread of the other.
    monkeypatch.setattr(bootstrap, "REPLICATES", 100)
    rng = np.random.default_rng(7)
    spread = np.sqrt(2 + of_targets**2 + of_examples**2)
    truth = float(norm.cdf(1 / spread))
    covered = widths = 0.0
    runs = 60
    for _ in range(runs):
        half = rng.random((12, 120)) < 0.5
        member = np.stack([half, ~half], axis=1).reshape(24, 120)
        gain = 1 + of_targets * rng.normal(size=(24, 1)) + of_examples * rng.normal(size=(1, 120))
        scores = rng.normal(size=member.shape) + gain * member
        low, high = evaluation.intervals(scores, member, fold=2)["auc_ci"]
        covered += low <= truth <= high
        widths += (high - low) / runs
    # Percentiles of 12 folds are a little narrow; 60 runs at 95 % have an error of 3 %.
    assert covered / runs > 0.85
    assert widths < 0.25


def test_one_fold_has_intervals_over_its_examples_alone():
    rng = np.random.default_rng(0)
    member = rng.random((1, 400)) < 0.5
    got = evaluation.intervals(rng.normal(size=(1, 400)) + member, member, fold=1)
    low, high = got["auc_ci"]
    assert 0.03 < high - low < 0.2
    assert got["over"] == "examples"


def test_a_handful_of_examples_still_has_intervals():
    # Many replicates draw no member at all, or no non-member.
    member = np.array([[True, False, False]])
    got = evaluation.intervals(np.array([[1.0, 0.5, 2.0]]), member, fold=1)
    low, high = got["auc_ci"]
    assert 0 <= low <= high <= 1


def test_figures_are_those_of_the_pooled_curve_and_fit_json():
    rng = np.random.default_rng(5)
    member = rng.random((4, 300)) < 0.5
    scores = rng.normal(size=member.shape) + member
    found = judging.headline(scores, member, fold=2)
    summary = evaluation.summary(evaluation.roc(scores, member))
    assert {key: found[key] for key in summary} == summary
    assert found["auc_ci"] == evaluation.intervals(scores, member, fold=2)["auc_ci"]
    assert json.loads(json.dumps(found)) == found


def test_folds_may_be_named_target_by_target_and_be_of_unequal_size():
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=(6, 80)), rng.random((6, 80)) < 0.5
    pairs = np.array([7, 7, 2, 2, 5, 5])
    in_order = np.argsort(pairs, kind="stable")
    for function in (evaluation.intervals, evaluation.shadow_thresholds):
        named = function(scores, member, pairs)
        for one in (named, expected := function(scores[in_order], member[in_order], 2)):
            one.pop("band", None)
        assert named == expected
    mixed = np.array([0, 0, 0, 1, 2, 2])
    assert evaluation.intervals(scores, member, mixed)["over"] == "targets and examples"
    assert evaluation.intervals(scores, member, np.zeros(6, int))["over"] == "examples"


def test_resamples_kept_for_the_next_call_cannot_be_changed_and_are_told_by_all_they_follow_from():
    first = bootstrap._weights(3, 20, 0, 10)
    assert bootstrap._weights(3, 20, 0, 10) is first
    with pytest.raises(ValueError, match="read-only"):
        first.examples[0, 0] = 7
    for other in ((4, 20, 0, 10), (3, 21, 0, 10), (3, 20, 0, 11)):
        assert bootstrap._weights(*other).examples.shape == (other[1], other[3])
    assert (bootstrap._weights(3, 20, 1, 10).examples != first.examples).any()


def test_folds_are_rows_in_a_row_or_as_named():
    assert [row.tolist() for row in bootstrap.fold_rows(2, 5)] == [[0, 1], [2, 3], [4]]
    named = bootstrap.fold_rows(np.array([7, 1, 7]), 3)
    assert [row.tolist() for row in named] == [[1], [0, 2]]
