"""Gradient-norm attacks against LiRA's densities, closed forms, and norms of zero."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import gradient_norm, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def run(norms, keep, **config):
    scores = np.zeros((*keep.shape, 3), dtype=np.float32)
    score_set = ScoreSet(scores, keep, 2, "test", gradient_norm=norms)
    return gradient_norm.attack(score_set, references.find(score_set), AttackConfig(**config))


def blocked(rng, models, examples):
    half = rng.random((models // 2, examples)) < 0.5
    return np.stack([half, ~half], axis=1).reshape(models, examples)


def test_lira_is_the_ratio_of_log_normal_densities():
    rng = np.random.default_rng(0)
    keep = blocked(rng, 8, 20)
    norms = np.exp(rng.normal(size=keep.shape) - keep)
    got = run(norms, keep)
    statistic = -np.log(norms)
    np.testing.assert_allclose(got["gradient-norm"], statistic)
    for target, e in np.ndindex(*keep.shape):
        others = np.arange(8) // 2 != target // 2
        inside, outside = (statistic[others & (keep[:, e] == side), e] for side in (True, False))
        laws = [norm(one.mean(), one.std(ddof=1)) for one in (inside, outside)]
        expected = laws[0].logpdf(statistic[target, e]) - laws[1].logpdf(statistic[target, e])
        floored = min(one.std(ddof=1) for one in (inside, outside)) < 0.02
        if not floored:
            assert got["lira-online-gradient-norm"][target, e] == pytest.approx(expected)


def test_log_normal_norms_give_the_closed_form():
    rng = np.random.default_rng(1)
    keep = blocked(rng, 16, 10_000)
    norms = np.exp(rng.normal(size=keep.shape) - 1.5 * keep)
    curve = evaluation.roc(run(norms, keep)["gradient-norm"], keep)
    assert evaluation.auc(curve) == pytest.approx(norm.cdf(1.5 / np.sqrt(2)), abs=0.005)


def test_norms_of_zero_are_members_at_their_most_likely_and_stay_finite():
    rng = np.random.default_rng(2)
    keep = blocked(rng, 12, 200)
    norms = np.exp(rng.normal(size=keep.shape) - keep).astype(np.float32)
    norms[keep & (rng.random(keep.shape) < 0.3)] = 0.0
    got = run(norms, keep)
    for name, values in got.items():
        assert np.isfinite(values).all(), name
        assert evaluation.auc(evaluation.roc(values, keep)) > 0.6, name
    top = got["gradient-norm"] == got["gradient-norm"].max()
    np.testing.assert_array_equal(top, norms == 0)


def test_only_norms_of_zero_tie_everywhere():
    keep = blocked(np.random.default_rng(3), 8, 30)
    for name, values in run(np.zeros(keep.shape, dtype=np.float32), keep).items():
        assert evaluation.auc(evaluation.roc(values, keep)) == 0.5, name


def test_the_number_of_views_does_not_matter():
    rng = np.random.default_rng(4)
    keep = blocked(rng, 8, 30)
    norms = np.exp(rng.normal(size=keep.shape))
    for name, values in run(norms, keep, queries=2).items():
        np.testing.assert_array_equal(values, run(norms, keep)[name])


def test_the_unit_of_norms_does_not_matter():
    rng = np.random.default_rng(5)
    keep = blocked(rng, 8, 30)
    norms = np.exp(rng.normal(size=keep.shape) - keep)
    before, after = run(norms, keep), run(1e-6 * norms, keep)
    np.testing.assert_allclose(
        after["lira-online-gradient-norm"], before["lira-online-gradient-norm"], rtol=1e-8
    )
