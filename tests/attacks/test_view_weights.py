"""Weights of views: against scikit-learn's discriminant, and where there is nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lira_jax.attacks import view_weights


def views_of(rng, covariance, difference, models=8, examples=3_000):
    keep = np.stack([rng.permutation(models) < models // 2 for _ in range(examples)], axis=1)
    noise = rng.multivariate_normal(np.zeros(len(covariance)), covariance, size=keep.shape)
    place = 3 * rng.normal(size=(1, examples, len(covariance)))
    return place + noise + keep[..., np.newaxis] * np.asarray(difference), keep


@pytest.mark.parametrize("models", [2, 8])
def test_weights_are_those_of_a_discriminant_analysis_of_scores_about_their_means(models):
    rng = np.random.default_rng(models)
    covariance = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, 0.1], [0.2, 0.1, 2.0]])
    views, keep = views_of(rng, covariance, [1.0, 0.4, 0.8], models)
    found = view_weights.find(views, keep)
    assert found.sum() == pytest.approx(1)
    # Any common place left out: scores about the middle of an example's two means.
    count = keep.sum(axis=0)[:, np.newaxis]
    means = [
        np.einsum("nc,ncq->cq", side, views) / n
        for side, n in ((keep, count), (~keep, models - count))
    ]
    about = (views - sum(means) / 2).reshape(-1, 3)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(
        about + 1e-9 * rng.normal(size=about.shape), keep.ravel()
    )
    if models > 2:  # of two models scores about the middle are their difference
        np.testing.assert_allclose(found, lda.coef_[0] / lda.coef_.sum(), atol=0.07)
    exact = np.linalg.solve(
        covariance + view_weights.RIDGES[0] * np.trace(covariance) / 3 * np.eye(3), [1.0, 0.4, 0.8]
    )
    np.testing.assert_allclose(found, exact / exact.sum(), atol=0.13)


def test_a_view_that_tells_nothing_but_noise_shared_with_another_is_taken_off():
    rng = np.random.default_rng(1)
    views, keep = views_of(rng, [[1.0, 0.8], [0.8, 1.0]], [1.0, 0.0])
    first, second = view_weights.find(views, keep)
    assert first > 1
    assert second < 0


def test_without_leakage_weights_are_bounded_and_read_no_mask():
    rng = np.random.default_rng(2)
    for _ in range(8):
        views, keep = views_of(rng, np.diag([1.0, 2.0, 4.0]), [0.0, 0.0, 0.0], examples=300)
        found = view_weights.find(views, keep)
        assert np.abs(found).max() <= view_weights.LIMIT
        assert found.sum() == pytest.approx(1)
    # Members lower than non-members on every view: least variance, as if masks were unknown.
    views, keep = views_of(rng, np.diag([1.0, 2.0, 4.0]), [-1.0, -1.0, -1.0])
    expected = 1 / (np.array([1.0, 2.0, 4.0]) + view_weights.RIDGES[0] * 7 / 3)
    np.testing.assert_allclose(view_weights.find(views, keep), expected / expected.sum(), atol=0.02)


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.floats(0.1, 10))
@settings(deadline=None, max_examples=5)
def test_place_and_unit_of_scores_change_no_weight(seed, place, unit):
    rng = np.random.default_rng(seed)
    views, keep = views_of(rng, np.diag([1.0, 2.0]), [1.0, 1.0], examples=200)
    before = view_weights.find(views, keep)
    np.testing.assert_allclose(view_weights.find(place + unit * views, keep), before, atol=1e-6)


@pytest.mark.parametrize("case", ["one view", "few examples", "one side", "constant"])
def test_where_nothing_can_be_learnt_views_count_alike(case):
    rng = np.random.default_rng(3)
    views, keep = views_of(rng, np.diag([1.0, 2.0]), [1.0, 1.0], examples=100)
    if case == "one view":
        views = views[..., :1]
    elif case == "few examples":
        views, keep = views[:, :3], keep[:, :3]
    elif case == "one side":
        keep = np.zeros_like(keep)
    else:
        views = np.full_like(views, 2.0)
    found = view_weights.find(views, keep)
    np.testing.assert_array_equal(found, np.full(views.shape[2], 1 / views.shape[2]))
