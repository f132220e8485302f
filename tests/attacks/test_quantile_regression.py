"""Quantile regression against brute force without a fit, and its calibration with one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from lira_jax.attacks import cross_fit, draws, quantile_regression, references
from tests.attacks.shadow_outputs import blocked_masks, halved_masks, outputs, run

NAME = "quantile-regression"


def with_scores(score_set, scores):
    return dataclasses.replace(score_set, scores=scores)


@pytest.mark.parametrize("masks", [blocked_masks, halved_masks])
def test_with_few_pairs_scores_are_standardised_by_shrunk_spreads(masks):
    rng = np.random.default_rng(0)
    score_set = outputs(rng, masks(rng, 8, 30))
    scores = rng.normal(size=(8, 30, 2)) * rng.gamma(2.0, size=(30, 1))
    score_set = with_scores(score_set, scores)
    rule = references.find(score_set)
    got = run(score_set, NAME)[NAME]
    phi = scores.mean(axis=-1)
    for target in range(8):
        out = []
        for e in range(30):
            base, dropped = references.base_and_dropped(
                rule, score_set.keep, slice(e, e + 1), "out"
            )
            out.append(phi[np.delete(base[:, 0], dropped[target // rule.fold, :, 0]), e])
        n = len(out[0])
        variances = [one.var(ddof=1) for one in out]
        within = np.minimum(variances, np.quantile(variances, 0.99)).mean()
        for e, one in enumerate(out):
            squares = (n - 1) * one.var(ddof=1)
            std = np.sqrt((squares + 4 * within) / (n - 1 + 4))
            u = (phi[target, e] - one.mean()) / (std * np.sqrt(1 + 1 / n))
            assert got[target, e] == pytest.approx(u / norm.ppf(0.95))


def skewed(rng, keep):
    """OUT scores whose law depends on where the example is: skewed up where φ is high."""
    location = rng.uniform(-4, 4, size=keep.shape[1])
    noise = rng.exponential(size=keep.shape) - 1
    return location + np.where(location > 0, noise, -noise)


def test_the_upper_quantile_is_reached_as_often_as_stated_wherever_the_example_is():
    rng = np.random.default_rng(1)
    keep = blocked_masks(rng, 16, 4_000)
    scores = skewed(rng, keep)
    score_set = with_scores(outputs(rng, keep), scores[..., np.newaxis])
    got = run(score_set, NAME)[NAME]
    high = scores.mean(axis=0) > 0
    for part in (high, ~high):
        values = got[:, part][~keep[:, part]]
        assert (values > 1).mean() == pytest.approx(0.05, abs=0.015)
        assert (values > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_members_play_no_part_in_the_fit(monkeypatch):
    # Raise all members' scores: what OUT pairs get does not change, once the same are drawn.
    rng = np.random.default_rng(2)
    keep = blocked_masks(rng, 16, 1_200)
    score_set = with_scores(outputs(rng, keep), rng.normal(size=(16, 1_200, 1)))
    before = run(score_set, NAME)[NAME]
    splits = cross_fit.splits(score_set, references.find(score_set), quantile_regression.GROUPS)
    noise = draws.noise(score_set)
    monkeypatch.setattr(cross_fit, "splits", lambda *_: splits)
    monkeypatch.setattr(draws, "noise", lambda _: noise)
    raised = with_scores(score_set, score_set.scores + 5 * keep[..., np.newaxis])
    after = run(raised, NAME)[NAME]
    np.testing.assert_allclose(after[~keep], before[~keep], rtol=1e-9)
    assert (after - before)[keep].min() > 1


def test_quantiles_that_all_but_coincide_do_not_explode():
    rng = np.random.default_rng(3)
    keep = blocked_masks(rng, 16, 2_000)
    scores = np.where(rng.random(keep.shape) < 0.001, 1.0, 0.0)[..., np.newaxis]
    got = run(with_scores(outputs(rng, keep), scores), NAME)[NAME]
    assert np.isfinite(got).all()
    assert quantile_regression.MIN_WIDTH > 0
