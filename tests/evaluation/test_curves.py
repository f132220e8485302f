"""ROC curves and their figures against scikit-learn, closed forms and searches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from lira_jax import evaluation
from lira_jax.evaluation import curves
from tests.evaluation.brute_force import scores_and_members


@given(scores_and_members())
@settings(deadline=None, max_examples=40)
def test_curve_equals_scikit_learn_with_ties(case):
    scores, member = case
    curve = evaluation.roc(scores, member)
    for got, drop in ((curve, False), (curves.drop_intermediate(curve), True)):
        fpr, tpr, _ = roc_curve(member, scores, drop_intermediate=drop)
        np.testing.assert_array_equal(got.fpr, fpr)
        np.testing.assert_array_equal(got.tpr, tpr)
    assert evaluation.auc(curve) == pytest.approx(roc_auc_score(member, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 30, 10**9])
@pytest.mark.parametrize("size", [2, 3, 100])
def test_a_curve_merged_in_blocks_is_the_whole_curve(monkeypatch, levels, size):
    rng = np.random.default_rng(size)
    scores, member = rng.integers(levels, size=(5, size)) / 7, rng.random((5, size)) < 0.3
    member[0, :2] = [True, False]
    whole = evaluation.roc(scores, member)
    figures = evaluation.summary(whole)
    for block in (1, 7, 64):
        monkeypatch.setattr(curves, "BLOCK", block)
        curve = evaluation.roc(scores, member)
        np.testing.assert_array_equal(curve.false_positives, whole.false_positives)
        np.testing.assert_array_equal(curve.true_positives, whole.true_positives)
        assert evaluation.summary(curve) == figures
    assert figures["auc"] == float(np.trapezoid(whole.tpr, whole.fpr))
    assert figures["balanced_accuracy"] == float((1 - (whole.fpr + 1 - whole.tpr) / 2).max())


@given(scores_and_members(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
@settings(deadline=None, max_examples=40)
def test_tpr_and_accuracy_equal_a_search_over_thresholds(case, limit):
    scores, member = case
    rates = [
        ((scores[~member] >= level).mean(), (scores[member] >= level).mean())
        for level in (*np.unique(scores), np.inf)
    ]
    curve = evaluation.roc(scores, member)
    best = max(tpr for fpr, tpr in rates if fpr <= limit)
    assert evaluation.tpr_at_fpr(curve, limit) == best
    accuracy = max((tpr + 1 - fpr) / 2 for fpr, tpr in rates)
    assert evaluation.balanced_accuracy(curve) == pytest.approx(accuracy)


def test_equal_scores_are_a_coin_toss():
    member = np.arange(100) % 2 == 0
    figures = evaluation.summary(evaluation.roc(np.zeros(100), member))
    assert figures["auc"] == 0.5
    assert figures["balanced_accuracy"] == 0.5
    assert set(figures["tpr_at_fpr"].values()) == {0.0}


def test_false_positives_count_exactly_up_to_the_limit():
    # 1,000 non-members: 0.1 % allows one false positive, not two.
    scores = np.concatenate([np.arange(1000.0), [999.5, 998.5, 997.5]])
    member = np.arange(1003) >= 1000
    curve = evaluation.roc(scores, member)
    assert evaluation.tpr_at_fpr(curve, 1e-3) == 2 / 3
    assert evaluation.tpr_at_fpr(curve, 1e-4) == 1 / 3
    # The public code stops strictly below the limit.
    assert evaluation.reference_code_summary(curve)["tpr_at_fpr"]["0.001"] == 1 / 3


@pytest.mark.parametrize("distance", [0.5, 1.5])
def test_gaussian_scores_give_the_closed_form(distance):
    rng = np.random.default_rng(0)
    size = 200_000
    scores = np.concatenate([rng.normal(size=size), rng.normal(distance, size=size)])
    member = np.arange(2 * size) >= size
    figures = evaluation.summary(evaluation.roc(scores, member))
    area = float(norm.cdf(distance / np.sqrt(2)))
    assert figures["auc"] == pytest.approx(area, abs=4 * (area * (1 - area) / size) ** 0.5)
    accuracy = norm.cdf(distance / 2)
    assert figures["balanced_accuracy"] == pytest.approx(accuracy, abs=0.005)
    for key, fpr in (("0.001", 1e-3), ("0.01", 1e-2)):
        threshold = norm.isf(fpr)
        tpr = norm.sf(threshold - distance)
        # Noise of the members above the threshold, and of the threshold itself.
        slope = norm.pdf(threshold - distance) / norm.pdf(threshold)
        error = float(np.sqrt((tpr * (1 - tpr) + slope**2 * fpr * (1 - fpr)) / size))
        assert figures["tpr_at_fpr"][key] == pytest.approx(tpr, abs=4 * error)


def test_mean_over_targets_averages_each_targets_own_curve():
    rng = np.random.default_rng(1)
    member = rng.random((3, 50)) < 0.5
    scores = rng.normal(size=(3, 50)) + member + 10 * np.arange(3)[:, np.newaxis]
    expected = np.mean([roc_auc_score(*row) for row in zip(member, scores, strict=True)])
    assert evaluation.mean_over_targets(scores, member)["auc"] == pytest.approx(expected)


def test_fewer_than_ten_expected_false_positives_are_few():
    few = evaluation.few_false_positives(10_000)
    assert few == {"1e-05": True, "0.0001": True, "0.001": False, "0.01": False}
    assert evaluation.few_false_positives(9_999)["0.001"]


def test_thinning_keeps_points_of_the_curve_and_its_ends():
    rng = np.random.default_rng(4)
    member = rng.random(50_000) < 0.5
    curve = evaluation.roc(rng.normal(size=50_000) + member, member)
    thinned = evaluation.thin(curve)
    assert thinned.false_positives.size <= 2_000
    assert thinned.false_positives[0] == 0
    assert thinned.tpr[-1] == thinned.fpr[-1] == 1
    for fpr, tpr in zip(thinned.fpr, thinned.tpr, strict=True):
        assert evaluation.tpr_at_fpr(curve, fpr) == tpr


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize(
    ("scores", "member", "word"),
    [
        ([0.0, np.nan], [True, False], "NaN"),
        ([0.0, 1.0], [True, True], "non-members"),
        ([0.0, 1.0], [True, False, True], "shape"),
    ],
)
def test_senseless_arguments_are_refused(scores, member, word):
    with pytest.raises(ValueError, match=word):
        evaluation.roc(np.array(scores), np.array(member))
