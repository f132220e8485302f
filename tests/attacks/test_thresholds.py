"""Threshold attacks against the loss computed from probabilities, and a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import thresholds
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import blocked_masks, halved_masks, uneven_scores, with_rule


def test_yeom_is_minus_the_cross_entropy_of_the_identity_view():
    rng = np.random.default_rng(0)
    keep = blocked_masks(rng, 6, 50)
    scores = uneven_scores(rng, keep, queries=3, shift=1)
    got = thresholds.yeom(*with_rule(scores, keep), AttackConfig())["yeom"]
    np.testing.assert_allclose(got, np.log(expit(scores[:, :, 0])))


def test_mean_score_averages_the_views_used():
    scores = np.random.default_rng(0).normal(size=(6, 50, 3))
    for queries, used in ((2, 2), (0, 3)):
        got = thresholds.mean_score(scores, queries)
        np.testing.assert_allclose(got, scores[:, :, :used].mean(axis=2))


def test_gaussian_scores_give_the_closed_form():
    rng = np.random.default_rng(1)
    models, examples, distance = 16, 10_000, 1.0
    keep = halved_masks(rng, models, examples)
    scores = (rng.normal(size=keep.shape) + distance * keep)[..., np.newaxis]
    got = thresholds.yeom(*with_rule(scores, keep), AttackConfig())["yeom"]
    curve = evaluation.roc(got, keep)
    assert evaluation.auc(curve) == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.005)
    tpr = norm.sf(norm.isf(0.01) - distance)
    assert evaluation.tpr_at_fpr(curve, 0.01) == pytest.approx(tpr, abs=0.006)
