"""Differences between attacks against resampling by repeated rows and columns, and identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lira_jax import evaluation
from lira_jax.evaluation import Resamples, paired_differences
from tests.evaluation.brute_force import resampled as lists_of_draws


def attacks(rng, targets, examples):
    """Masks in blocks of two, and the scores of two attacks that find the same examples hard."""
    half = rng.random((targets // 2, examples)) < 0.5
    member = np.stack([half, ~half], axis=1).reshape(targets, examples)
    noise = rng.normal(size=member.shape) + rng.normal(size=examples)
    return member, noise + member, noise + 0.7 * member + 0.3 * rng.normal(size=member.shape)


def numbers(found):
    """Every difference with its interval, the AUC's first: [1 + FPRS, 3]."""
    rates = [[found["tpr_at_fpr"][key], *found["tpr_at_fpr_ci"][key]] for key in evaluation.FPRS]
    return np.array([[found["auc"], *found["auc_ci"]], *rates])


def difference(first, second, member, fold=2, **drawing):
    resamples = Resamples(fold, member.shape, **drawing)
    both = (evaluation.resampled(scores, member, resamples) for scores in (first, second))
    return numbers(paired_differences(*both))


@pytest.mark.parametrize("folds", [4, 1])
def test_intervals_equal_a_bootstrap_by_repeating_rows_and_columns(folds):
    member, first, second = attacks(np.random.default_rng(1), 2 * folds, 60)
    first, second = first.round(1), second.round(1)  # with ties
    got = difference(first, second, member, seed=3, replicates=50)

    def figures(scores, truth):
        curve = evaluation.roc(scores, truth)
        rates = [evaluation.tpr_at_fpr(curve, fpr) for fpr in evaluation.FPRS.values()]
        return np.array([roc_auc_score(truth.ravel(), scores.ravel()), *rates])

    def expected(part):
        return figures(first[part], member[part]) - figures(second[part], member[part])

    drawn = []
    for units, columns in lists_of_draws(folds, 60, 3, 50):
        rows = np.arange(2 * folds).reshape(folds, 2)[units].ravel()
        drawn.append(expected(np.ix_(rows, columns)))
    np.testing.assert_allclose(got[:, 0], expected(np.ix_(range(2 * folds), range(60))), atol=1e-12)
    np.testing.assert_allclose(got[:, 1:].T, np.percentile(drawn, [2.5, 97.5], axis=0), atol=1e-12)
    assert got[0, 1] < got[0, 2]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.floats(0.1, 10))
def test_an_attack_is_level_with_itself_and_as_far_behind_as_the_other_is_ahead(seed, folds, scale):
    member, first, second = attacks(np.random.default_rng(seed), 2 * folds, 30)
    assert not difference(first, first, member, replicates=20).any()
    # The order alone counts, of which rounding takes nothing where scores are coarse.
    coarse = np.round(first * 2**10) / 2**10
    assert not difference(coarse, scale * coarse - 7, member, replicates=20).any()
    there = difference(first, second, member, replicates=20)
    back = difference(second, first, member, replicates=20)
    np.testing.assert_allclose(back, -there[:, [0, 2, 1]], atol=1e-12)


def test_what_two_attacks_share_is_no_doubt_about_which_is_ahead():
    member, first, second = attacks(np.random.default_rng(0), 20, 100)
    _, low, high = difference(first, second, member)[0]
    alone = [evaluation.intervals(scores, member, 2)["auc_ci"] for scores in (first, second)]
    assert low > 0
    assert alone[0][0] < alone[1][1]  # apart, the two intervals decide nothing
    assert high - low < 0.3 * np.ptp(alone[0])


def test_an_attacks_own_figures_are_those_of_its_curve_and_intervals():
    member, first, _ = attacks(np.random.default_rng(3), 8, 200)
    found = evaluation.resampled(first, member, Resamples(2, member.shape, replicates=40))
    summary = evaluation.summary(evaluation.roc(first, member))
    assert (found.auc, found.tpr_at_fpr) == (summary["auc"], summary["tpr_at_fpr"])
    interval = evaluation.intervals(first, member, 2, replicates=40)["auc_ci"]
    np.testing.assert_allclose(np.percentile(found.replicates[:, 0], [2.5, 97.5]), interval)


def test_replicates_without_members_or_without_others_do_not_count():
    member = np.array([[True, False, False, True]])
    found = difference(np.array([[3.0, 1, 2, 4]]), np.array([[1.0, 3, 2, 0]]), member, fold=1)
    assert found[0, 0] == 1
    assert np.isfinite(found).all()


def test_attacks_that_were_not_drawn_together_are_not_compared():
    member, first, second = attacks(np.random.default_rng(0), 4, 20)
    apart = [
        evaluation.resampled(scores, member, Resamples(2, member.shape, seed))
        for seed, scores in enumerate((first, second))
    ]
    with pytest.raises(ValueError, match="resamples of their own"):
        paired_differences(*apart)
