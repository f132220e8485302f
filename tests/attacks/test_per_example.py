"""Per-example thresholds against plain loops, closed forms, and scores without leakage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import per_example, references
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import (
    MASKS,
    blocked_masks,
    free_masks,
    halved_masks,
    references_of,
    uneven_scores,
    with_rule,
)

ATTACKS = {
    "sablayrolles": per_example.sablayrolles,
    "watson": per_example.watson,
    "ye": per_example.ye,
}


def run(name, scores, keep, **config):
    return ATTACKS[name](*with_rule(scores, keep), AttackConfig(**config))[name]


def plain(name, scores, keep):
    """One target and one example at a time."""
    _, rule = with_rule(scores, keep)
    losses = -np.log(expit(scores[:, :, 0]))
    result = np.empty(keep.shape)
    for target, e in np.ndindex(*keep.shape):
        inside = losses[references_of(rule, keep, target, e, True), e]
        outside = losses[references_of(rule, keep, target, e, False), e]
        loss = losses[target, e]
        result[target, e] = {
            "sablayrolles": (inside.mean() + outside.mean()) / 2 - loss,
            "watson": outside.mean() - loss,
            "ye": (outside > loss).mean(),
        }[name]
    return result


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("masks", MASKS)
def test_scores_equal_a_plain_loop(name, masks, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=2, shift=1).round()  # with ties
    expected = plain(name, scores, keep)
    for chunk in (2**20, 8 * len(keep) * 3):  # all at once, and three examples at a time
        monkeypatch.setattr(references, "CHUNK_BYTES", chunk)
        np.testing.assert_allclose(run(name, scores, keep), expected, atol=1e-13)


@pytest.mark.parametrize("name", ATTACKS)
def test_only_the_identity_view_is_used(name):
    rng = np.random.default_rng(1)
    keep = blocked_masks(rng, 8, 30)
    scores = uneven_scores(rng, keep, queries=3, shift=1)
    alone = run(name, scores[:, :, :1], keep)
    np.testing.assert_array_equal(run(name, scores, keep, queries=2), alone)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("masks", MASKS)
def test_the_rest_of_the_targets_block_does_not_matter(name, masks):
    rng = np.random.default_rng(2)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    _, rule = with_rule(scores, keep)
    before = run(name, scores, keep)
    for target in range(len(keep)):
        others = np.arange(len(keep)) // rule.fold == target // rule.fold
        others[target] = False
        changed = scores.copy()
        changed[others] += 5
        np.testing.assert_allclose(run(name, changed, keep)[target], before[target], atol=1e-12)


def test_gaussian_losses_give_the_closed_form():
    # Far below 0, ℓ = −φ. The target's φ and the mean of R references of variance 1 are
    # independent: differences have variance 1 + 1/R, or 1 + 1/(2R) with two sides.
    rng = np.random.default_rng(4)
    distance, count = 1.0, 7
    keep = blocked_masks(rng, 16, 10_000)
    scores = 10 * rng.normal(size=(1, 10_000, 1)) - 200
    scores = scores + rng.normal(size=(*keep.shape, 1)) + distance * keep[..., np.newaxis]
    for name, variance in (("watson", 1 + 1 / count), ("sablayrolles", 1 + 1 / (2 * count))):
        area = evaluation.auc(evaluation.roc(run(name, scores, keep), keep))
        assert area == pytest.approx(norm.cdf(distance / np.sqrt(2 * variance)), abs=0.004)


def test_ye_is_uniform_over_its_levels_for_nonmembers_and_its_mean_known_for_members():
    # A non-member and its R references are R + 1 draws of one law: every rank is as likely. A
    # member exceeds any one reference with probability Φ(d/√2).
    rng = np.random.default_rng(5)
    distance, count = 1.0, 7
    keep = blocked_masks(rng, 16, 10_000)
    scores = (rng.normal(size=keep.shape) + distance * keep)[..., np.newaxis]
    got = run("ye", scores, keep)
    levels, times = np.unique(got[~keep], return_counts=True)
    np.testing.assert_allclose(levels, np.arange(count + 1) / count)
    np.testing.assert_allclose(times / times.sum(), 1 / (count + 1), rtol=0.03)
    assert got[keep].mean() == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.005)


def test_ye_finds_nothing_at_rates_finer_than_its_references():
    rng = np.random.default_rng(6)
    keep = blocked_masks(rng, 16, 2_000)
    scores = uneven_scores(rng, keep, queries=1, shift=3)
    curve = evaluation.roc(run("ye", scores, keep), keep)
    assert evaluation.tpr_at_fpr(curve, 0.1) == 0.0  # its finest step is 1/8
    assert evaluation.tpr_at_fpr(curve, 0.15) > 0.9


def test_ye_only_knows_order_even_where_the_loss_is_zero_in_float64():
    rng = np.random.default_rng(7)
    keep = blocked_masks(rng, 8, 50)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    before = run("ye", scores, keep)
    for transform in (lambda phi: phi + 1000, np.arctan, lambda phi: phi**3):
        np.testing.assert_array_equal(run("ye", transform(scores), keep), before)


@pytest.mark.parametrize("name", ATTACKS)
def test_half_precision_memory_maps_are_read_as_they_are(name, tmp_path):
    rng = np.random.default_rng(8)
    keep = blocked_masks(rng, 8, 50)
    scores = uneven_scores(rng, keep, queries=2, shift=1).astype(np.float16)
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    got = run(name, mapped, keep)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, run(name, scores.astype(np.float64), keep))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_constant_scores_tell_nothing(name, masks):
    keep = masks(np.random.default_rng(9), 64, 100)
    for value in (0.1, 40.0, -1e4):
        got = run(name, np.full((*keep.shape, 2), np.float32(value)), keep)
        assert np.isfinite(got).all()
        assert evaluation.auc(evaluation.roc(got, keep)) == 0.5
