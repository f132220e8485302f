"""Intervals in closed form against SciPy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from lira_jax import evaluation


def test_the_interval_of_a_mean_is_students_over_means_of_folds():
    values = np.random.default_rng(0).normal(size=12)
    mean, interval = evaluation.mean_and_interval(values, 3)
    folds = values.reshape(4, 3).mean(axis=1)
    assert mean == pytest.approx(values.mean())
    assert interval == pytest.approx(student.interval(0.95, 3, folds.mean(), folds.std(ddof=1) / 2))
    assert evaluation.mean_and_interval(values, 12) == (mean, None)
    assert evaluation.mean_and_interval(np.full(4, 0.25), 2) == (0.25, [0.25, 0.25])
    order = np.random.default_rng(1).permutation(12)
    named = evaluation.mean_and_interval(values[order], np.arange(12)[order] // 3)[1]
    assert named == pytest.approx(interval)


def test_the_interval_of_a_mean_covers_it_with_folds_of_unequal_size():
    rng = np.random.default_rng(2)
    fold = np.repeat(np.arange(8), [1, 2, 3, 4, 1, 2, 3, 4])
    covered = 0
    for _ in range(400):
        values = rng.normal(size=8)[fold] + rng.normal(size=fold.size)
        low, high = evaluation.mean_and_interval(values, fold)[1]
        covered += low < 0 < high
    assert 0.88 < covered / 400 < 0.99


def test_the_auc_and_its_interval_are_those_of_scikit_learn_and_simulation():
    rng = np.random.default_rng(6)
    areas, covered = [], 0
    for _ in range(200):
        members, nonmembers = rng.normal(1.0, 1, 60), rng.normal(0, 2, 90)
        area, (low, high) = evaluation.delong(members, nonmembers)
        areas.append(area)
        # AUC of N(1, 1) against N(0, 4): Φ(1/√5)
        covered += low <= 0.6726 <= high
    truth = np.concatenate([np.ones(60), np.zeros(90)])
    assert area == pytest.approx(roc_auc_score(truth, np.concatenate([members, nonmembers])))
    assert np.mean(areas) == pytest.approx(0.6726, abs=0.01)
    assert covered >= binom(200, 0.95).ppf(0.001)
    ties, interval = evaluation.delong(np.ones(5), np.ones(7))
    assert ties == 0.5
    assert interval == [0.5, 0.5]
    assert evaluation.delong(np.ones(5), np.zeros(7))[1] == [pytest.approx(0.025**0.2), 1.0]
    assert evaluation.delong(np.ones(1), np.zeros(7)) == (1.0, None)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_the_interval_of_a_share_is_scipys_exact_one(right, wrong):
    trials = max(right + wrong, 1)
    right = min(right, trials)
    expected = binomtest(right, trials).proportion_ci(method="exact")
    low, high = evaluation.clopper_pearson(np.array([right, right]), trials)
    np.testing.assert_allclose(low, expected.low, rtol=1e-9)
    np.testing.assert_allclose(high, expected.high, rtol=1e-9)
