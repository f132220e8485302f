"""The spread over examples against NumPy on all scores at once."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.attacks.references import Moments
from lira_jax.attacks.spread import merge, spread_of


def side_of(scores):
    """Moments of reference scores [n, E], as of one fold and view."""
    mean = scores.mean(axis=0)[np.newaxis, :, np.newaxis]
    squares = np.square(scores - scores.mean(axis=0)).sum(axis=0)[np.newaxis, :, np.newaxis]
    return Moments(len(scores), mean, mean, squares)


def drawn(seed, examples, count):
    rng = np.random.default_rng(seed)
    return 5 + rng.normal(size=(count, examples)) * rng.gamma(2.0, size=examples)


cases = given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 4))


@cases
@settings(deadline=None, max_examples=20)
def test_merged_chunks_are_the_whole_and_its_variance_that_of_all_scores(seed, examples, count):
    scores = drawn(seed, examples, count)
    cut = 1 + seed % (examples - 1)
    parts = [spread_of(side_of(part)) for part in (scores[:, :cut], scores[:, cut:])]
    got = reduce(merge, parts)
    assert (got.examples, got.count) == (examples, count)
    np.testing.assert_allclose(got.mean[0, 0], scores.mean())
    np.testing.assert_allclose(got.variance[0, 0], scores.var(ddof=1))


@cases
@settings(deadline=None, max_examples=20)
def test_what_others_have_is_computed_without_the_example(seed, examples, count):
    scores = drawn(seed, examples, count)
    side = side_of(scores)
    mean, variance = spread_of(side).of_others(side)
    for e in range(examples):
        others = np.delete(scores, e, axis=1)
        np.testing.assert_allclose(mean[0, e, 0], others.mean())
        expected = others.var(ddof=1) if others.size > 1 else 0.0
        np.testing.assert_allclose(variance[0, e, 0], expected, rtol=1e-9, atol=1e-9)
