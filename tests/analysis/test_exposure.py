"""Exposure of examples against loops, SciPy, and what it says of known populations."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from lira_jax.analysis import exposure
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def run(seed=0, models=16, examples=60, queries=3, leak=2.0, blocked=True, **config):
    rng = np.random.default_rng(seed)
    if blocked:
        half = rng.random((models // 2, examples)) < 0.5
        keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    else:
        keep = rng.random((models, 20 * examples)) < 0.5
        keep = keep[:, (keep.sum(axis=0) >= 4) & (keep.sum(axis=0) <= 12)][:, :examples]
    gain = leak * np.linspace(0, 1, examples)[:, np.newaxis]
    scores = rng.normal(size=(models, examples, queries)) + gain * keep[..., np.newaxis]
    score_set = ScoreSet(scores.astype(np.float32), keep, None, "test")
    rule, chosen = references.find(score_set), AttackConfig(**config)
    ratio = lira.attack(score_set, rule, chosen)["lira-online"]
    return score_set, ratio, exposure.exposure(score_set, "lira-online", ratio, chosen)


@pytest.mark.parametrize("blocked", [True, False])
def test_exposure_equals_a_loop_over_examples(blocked, monkeypatch):
    monkeypatch.setattr(references, "CHUNK_BYTES", 5_000)
    score_set, ratio, got = run(blocked=blocked, queries=2)
    for e in range(ratio.shape[1]):
        inside, phi = score_set.keep[:, e], score_set.scores[:, e].astype(np.float64)
        assert got.mean_score_in[e] == pytest.approx(ratio[inside, e].mean())
        assert got.mean_score_out[e] == pytest.approx(ratio[~inside, e].mean())
        called = ratio[:, e] >= got.threshold
        shares = called[inside].mean(), (~called[~inside]).mean()
        assert got.success[e] == pytest.approx(np.mean(shares))
        spread = phi[inside].std(axis=0, ddof=1) + phi[~inside].std(axis=0, ddof=1)
        gap = np.abs(phi[inside].mean(axis=0) - phi[~inside].mean(axis=0))
        assert got.d[e] == pytest.approx((gap / spread).mean(), rel=1e-9)


def test_interval_is_clopper_and_pearsons():
    _, _, got = run(models=16)
    for success, low, high in zip(got.success, got.success_lo, got.success_hi, strict=True):
        expected = binomtest(round(16 * success), 16).proportion_ci(method="exact")
        assert (low, high) == pytest.approx((expected.low, expected.high))
    # With unequal sides, of as many trials as give a mean of two shares its variance.
    score_set, _, got = run(blocked=False)
    count = score_set.keep.sum(axis=0)
    for e in np.flatnonzero(count == 4):
        trials = 4 / (1 / 4 + 1 / 12)
        assert beta.sf(
            got.success_lo[e], got.success[e] * trials, 1 + (1 - got.success[e]) * trials
        ) == pytest.approx(0.975)


@pytest.mark.parametrize(("true_in", "true_out"), [(0.5, 0.5), (0.9, 0.6), (0.98, 0.98)])
def test_interval_covers_the_true_success_as_often_as_it_says(true_in, true_out):
    # 4,000 examples alike are 4,000 repeats of one.
    rng = np.random.default_rng(0)
    half = rng.random((16, 4_000)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(32, 4_000)
    right = rng.random(keep.shape) < np.where(keep, true_in, true_out)
    calls = np.where(right == keep, 1.0, -1.0)
    score_set = ScoreSet(rng.normal(size=(*keep.shape, 1)), keep, None, "test")
    got = exposure.exposure(score_set, "calls", calls, AttackConfig())
    assert -1 < got.threshold <= 1
    truth = (true_in + true_out) / 2
    covered = ((got.success_lo <= truth) & (truth <= got.success_hi)).mean()
    assert 0.95 <= covered < 1


def test_more_exposed_examples_rank_higher_and_chance_is_one_half():
    # The gain of members rises from 0 to 4 spreads along the examples.
    _, _, got = run(models=32, examples=200, leak=4.0, queries=1)
    assert got.rank[-20:].mean() < 30
    assert got.rank[:20].mean() > 120
    np.testing.assert_array_equal(np.sort(got.rank), np.arange(1, 201))
    sorted_success = got.success[got.order]
    assert (np.diff(sorted_success) <= 0).all()
    _, _, nothing = run(models=32, examples=2_000, leak=0.0, queries=1)
    assert nothing.success.mean() == pytest.approx(0.5, abs=0.02)
    covered = ((nothing.success_lo <= 0.5) & (nothing.success_hi >= 0.5)).mean()
    assert covered > 0.85


def test_d_of_gaussian_scores_is_the_known_separation():
    rng = np.random.default_rng(0)
    half = rng.random((1_000, 5)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(2_000, 5)
    scores = np.where(keep, rng.normal(4, 2, keep.shape), rng.normal(1, 1, keep.shape))
    score_set = ScoreSet(scores[..., np.newaxis], keep, None, "test")
    np.testing.assert_allclose(exposure.privacy_score(score_set), 1.0, atol=0.12)


def test_examples_whose_scores_never_vary_have_a_finite_d():
    score_set, *_ = run()
    scores = score_set.scores.astype(np.float64)
    scores[:, 0] = 5.0  # the same as member and not
    scores[:, 1] = np.where(score_set.keep[:, 1], 9.0, 2.0)[:, np.newaxis]
    score_set = ScoreSet(scores, score_set.keep, None, "test")
    d = exposure.privacy_score(score_set)
    assert d[0] == 0
    sides = [scores[score_set.keep], scores[~score_set.keep]]
    floor = sum(0.01 * side.std(axis=0, ddof=1) for side in sides)
    assert d[1] == pytest.approx((7.0 / floor).mean(), rel=1e-9)
    everything = ScoreSet(np.full_like(scores, 0.1), score_set.keep, None, "test")
    assert (exposure.privacy_score(everything) == 0).all()


def test_ties_are_ranked_by_d_and_then_by_place():
    score_set, ratio, _ = run(examples=6)
    keep = score_set.keep.copy()
    keep[:] = keep[:, :1]
    scores = np.repeat(score_set.scores[:, :1], 6, axis=1).copy()
    scores[:, 4] += 3 * keep[:, 4, np.newaxis]
    same = ScoreSet(scores, keep, 2, "test")
    ratio = np.repeat(ratio[:, :1], 6, axis=1)
    got = exposure.exposure(same, "lira-online", ratio, AttackConfig())
    assert got.order.tolist() == [4, 0, 1, 2, 3, 5]


def test_only_the_views_asked_for_count():
    score_set, _, _ = run()
    alone = ScoreSet(score_set.scores[:, :, :1].copy(), score_set.keep, None, "test")
    np.testing.assert_array_equal(
        exposure.privacy_score(score_set, 1), exposure.privacy_score(alone)
    )


def test_csv_has_the_most_exposed_first():
    _, ratio, got = run()
    labels = np.arange(ratio.shape[1]) % 10
    canary = labels == 3
    rows = list(csv.DictReader(io.StringIO(exposure.as_csv(got, labels, canary))))
    assert list(rows[0]) == list(exposure.COLUMNS)
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    first = rows[0]
    assert int(first["example"]) == got.order[0]
    assert first["attack"] == "lira-online"
    assert int(first["label"]) == labels[got.order[0]]
    assert float(first["success_lo"]) == pytest.approx(got.success_lo[got.order[0]], rel=1e-5)
    assert sum(int(row["canary"]) for row in rows) == canary.sum()
    bare = next(csv.DictReader(io.StringIO(exposure.as_csv(got))))
    assert (bare["label"], bare["canary"]) == ("", "0")
