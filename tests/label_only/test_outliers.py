"""The most isolated examples, by plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lira_jax.label_only import outliers


def features(examples=300, seed=0):
    """Three tight directions, and the first five examples in directions of their own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 12))
    made = centres[rng.integers(3, size=examples)] + 0.2 * rng.normal(size=(examples, 12))
    made[:5] = rng.normal(size=(5, 12))
    return made * rng.gamma(2.0, size=(examples, 1))  # lengths tell nothing


def test_finds_the_examples_in_directions_of_their_own():
    found = outliers.find(features()[np.newaxis])
    assert len(found.examples) == outliers.LEAST
    assert set(range(5)) <= set(found.examples[:8].tolist())


def test_neighbours_are_those_within_delta_under_each_model(monkeypatch):
    monkeypatch.setattr(outliers, "CHUNK", 37)
    both = np.stack([features(), features(seed=1)])
    found = outliers.find(both)
    counts, nearest = np.zeros(300), np.zeros(300)
    for one, delta in zip(both, found.delta, strict=True):
        distance = cdist(one, one, "cosine") + np.diag(np.full(300, np.inf))
        pairs = distance[np.triu_indices(300, 1)]
        assert delta == pytest.approx(np.quantile(pairs, outliers.NEAR), rel=0.05)
        counts += (distance <= delta).sum(axis=1) / 2
        nearest += distance.min(axis=1) / 2
    np.testing.assert_allclose(found.neighbours, counts)
    keys = [(counts[e], -nearest[e]) for e in found.examples]
    rest = np.setdiff1d(np.arange(300), found.examples)
    assert all(a[0] < b[0] or a[1] <= b[1] + 1e-6 for a, b in itertools.pairwise(keys))
    assert counts[found.examples].max() <= counts[rest].min()


def test_lengths_of_features_tell_nothing_and_no_features_are_far_from_all():
    made = features().astype(np.float32)
    longer = made * np.float32(4.0)
    np.testing.assert_array_equal(
        outliers.find(made[np.newaxis]).examples, outliers.find(longer[np.newaxis]).examples
    )
    made[200] = 0
    assert 200 in outliers.find(made[np.newaxis]).examples[:7]


def test_few_examples_are_all_outliers():
    assert sorted(outliers.find(features(12)[np.newaxis]).examples) == list(range(12))
