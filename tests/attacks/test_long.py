"""Vulnerable examples against loops over all pairs, and Student's t against SciPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import t as student

from lira_jax.attacks import cross_fit, long, references
from tests.attacks.shadow_outputs import blocked_masks, halved_masks, outputs, run


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 200 * 7, 2**25])
def test_vulnerable_are_the_tenth_farthest_from_their_nearest(chunk_bytes, monkeypatch):
    monkeypatch.setattr(long, "CHUNK_BYTES", chunk_bytes)
    features = np.random.default_rng(0).normal(size=(200, 4))
    nearest = [
        max(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for j, b in enumerate(features) if j != i)
        for i, a in enumerate(features)
    ]
    expected = np.zeros(200, dtype=bool)
    expected[np.argsort(nearest)[:20]] = True
    np.testing.assert_array_equal(long.vulnerable(features), expected)


def test_an_example_like_no_other_is_vulnerable():
    rng = np.random.default_rng(1)
    features = np.array([[3.0, 0, 0, 0], [0, 3.0, 0, 0]])[rng.integers(0, 2, 50)]
    features += 0.01 * rng.normal(size=features.shape)
    features[7] = [0, 0, 5.0, 0]
    assert long.vulnerable(features)[7]


def mean_features(score_set, group, out_only):
    """Mean logits under the models outside the group, by loops."""
    models = np.flatnonzero(~group)
    features = []
    for e in range(score_set.keep.shape[1]):
        chosen = [n for n in models if not (out_only and score_set.keep[n, e])]
        mean = score_set.logits[chosen, e].mean(axis=0)
        features.append(mean - mean.mean())
    return np.array(features)


@pytest.mark.parametrize("masks", [blocked_masks, halved_masks])
def test_scores_are_one_sided_student_tails_on_vulnerable_examples_only(masks, monkeypatch):
    monkeypatch.setattr(references, "MIN_RELATIVE_STD", 0.0)
    rng = np.random.default_rng(2)
    score_set = outputs(rng, masks(rng, 8, 60), classes=4, shift=1.0)
    rule = references.find(score_set)
    got = run(score_set, "long")["long"]
    p_values = np.full(got.shape, np.nan)
    for target, e in np.ndindex(*got.shape):
        base, dropped = references.base_and_dropped(rule, score_set.keep, slice(e, e + 1), "out")
        left = np.delete(base[:, 0], dropped[target // rule.fold, :, 0])
        out = score_set.scores[left, e, 0]
        n = len(out)
        z = (score_set.scores[target, e, 0] - out.mean()) / (out.std(ddof=1) * np.sqrt(1 + 1 / n))
        p_values[target, e] = student.sf(z, n - 1)
        if got[target, e] > got.min():
            assert got[target, e] == pytest.approx(z)
    guessed = got > got.min()
    for group in cross_fit.groups_of(score_set, rule):
        found = long.vulnerable(mean_features(score_set, group, rule.order is None))
        assert found.sum() in (6, 7)  # the last may tie with its nearest
        np.testing.assert_array_equal(guessed[group], np.tile(found, (group.sum(), 1)))
    # The smaller the p-value, the higher the score.
    order = np.argsort(got[guessed])
    assert (np.diff(p_values[guessed][order]) <= 0).all()


def test_p_values_are_calibrated_with_few_references():
    rng = np.random.default_rng(3)
    score_set = outputs(rng, blocked_masks(rng, 8, 4_000))
    spread = rng.gamma(1.0, size=(4_000, 1))
    scores = 3 + spread * rng.normal(size=score_set.scores.shape)
    score_set = dataclasses.replace(score_set, scores=scores)
    got = run(score_set, "long")["long"]
    p_values = student.sf(got[got > got.min()], 2)  # three OUT references
    for level in (0.01, 0.1, 0.5):
        share = (p_values < level).mean()
        # Targets of a block share references, and share one in two with others.
        assert share == pytest.approx(level, abs=0.25 * level + 0.01)


def test_adding_a_constant_to_a_models_logits_changes_nothing():
    rng = np.random.default_rng(4)
    score_set = outputs(rng, blocked_masks(rng, 8, 80), shift=1.0)
    moved = dataclasses.replace(
        score_set, logits=score_set.logits + 5 * rng.normal(size=(8, 80, 1))
    )
    np.testing.assert_array_equal(run(moved, "long")["long"], run(score_set, "long")["long"])
