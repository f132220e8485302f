"""Threshold attacks against the loss computed from probabilities, and a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import references, thresholds
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def example(models=6, examples=50, queries=3):
    rng = np.random.default_rng(0)
    half = rng.random((models // 2, examples)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    score_set = ScoreSet(3 * rng.normal(size=(models, examples, queries)), keep, 2, "test")
    return score_set, references.find(score_set)


def test_yeom_is_minus_the_cross_entropy_of_the_identity_view():
    score_set, rule = example()
    got = thresholds.yeom(score_set, rule, AttackConfig())["yeom"]
    np.testing.assert_allclose(got, np.log(expit(score_set.scores[:, :, 0])))


def test_mean_score_averages_the_views_used():
    score_set, _ = example()
    two = thresholds.mean_score(score_set.scores, 2)
    np.testing.assert_allclose(two, score_set.scores[:, :, :2].mean(axis=2))


def test_watson_is_the_out_mean_less_the_loss():
    score_set, rule = example()
    got = thresholds.watson(score_set, rule, AttackConfig())["watson"]
    losses = -np.log(expit(score_set.scores[:, :, 0]))
    for target, e in np.ndindex(*losses.shape):
        out = ~score_set.keep[:, e] & (np.arange(6) // 2 != target // 2)
        assert got[target, e] == pytest.approx(losses[out, e].mean() - losses[target, e])


def test_gaussian_scores_give_the_closed_form():
    rng = np.random.default_rng(1)
    models, examples, distance = 16, 10_000, 1.0
    keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    scores = (rng.normal(size=keep.shape) + distance * keep)[..., np.newaxis]
    score_set = ScoreSet(scores, keep, None, "test")
    got = thresholds.yeom(score_set, references.find(score_set), AttackConfig())["yeom"]
    curve = evaluation.roc(got, keep)
    assert evaluation.auc(curve) == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.005)
    tpr = norm.sf(norm.isf(0.01) - distance)
    assert evaluation.tpr_at_fpr(curve, 0.01) == pytest.approx(tpr, abs=0.006)
