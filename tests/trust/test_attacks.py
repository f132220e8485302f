"""Attacks on prediction scores against their formulas in more digits than float64 has."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lira_jax.trust import attacks

STATISTICS = [attacks.minus_entropy, attacks.max_score, attacks.top_scores]


def exact(logits):
    """Minus entropy, log-odds of the largest score, and log-probabilities, descending, by their
    formulas in 600 digits."""
    with localcontext() as context:
        context.prec = 600
        weights = [Decimal(float(z)).exp() for z in logits]
        p = sorted((weight / sum(weights) for weight in weights), reverse=True)
        logs = [share.ln() for share in p]
        entropy = sum(share * log for share, log in zip(p, logs, strict=True))
        return float(entropy), float((p[0] / (1 - p[0])).ln()), [float(log) for log in logs]


LOGITS = arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(2, 6)),
    elements=st.one_of(st.floats(-8, 8, width=32), st.sampled_from([-300, -60, 0, 60, 300])),
)


@settings(max_examples=20, deadline=None)
@given(logits=LOGITS)
def test_scores_are_those_of_the_formulas_even_where_float64_rounds_the_largest_score_to_1(logits):
    entropy, odds, logs = exact(logits[0])
    assert attacks.minus_entropy(logits)[0] == pytest.approx(entropy, rel=1e-12, abs=0)
    assert attacks.max_score(logits)[0] == pytest.approx(odds, rel=1e-12, abs=1e-14)
    found = attacks.top_scores(logits)[0]
    assert found == pytest.approx([odds, *logs[1:3]], rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("classes", [2, 3])
def test_surer_predictions_score_strictly_higher_up_to_differences_of_300(classes):
    margins = np.array([0, 1e-3, 1, 20, 36, 37, 38, 60, 60.5, 299, 300])
    logits = np.zeros((len(margins), classes), np.float32)
    logits[:, 1] = margins
    for statistic in (
        attacks.minus_entropy,
        attacks.max_score,
        lambda z: attacks.top_scores(z)[:, 0],
    ):
        scores = statistic(logits)
        assert np.isfinite(scores).all()
        assert (np.diff(scores) > 0).all()


def test_equal_logits_are_the_least_sure():
    for classes in (2, 3, 10):
        logits = np.full((1, classes), 7.0, np.float32)
        assert attacks.minus_entropy(logits)[0] == pytest.approx(-np.log(classes))
        assert attacks.max_score(logits)[0] == pytest.approx(-np.log(classes - 1))


@settings(max_examples=15, deadline=None)
@given(logits=LOGITS, shift=st.sampled_from([-64, 3, 128]), seed=st.integers(0, 9))
def test_neither_the_order_of_classes_nor_a_shift_of_all_logits_matters(logits, shift, seed):
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    moved = logits[:, order].astype(np.float64) + shift
    for statistic in STATISTICS:
        np.testing.assert_allclose(statistic(moved), statistic(logits), rtol=1e-10, atol=1e-10)


def test_leading_axes_are_kept_and_two_classes_give_two_scores():
    logits = np.random.default_rng(0).normal(size=(2, 5, 2))
    assert attacks.minus_entropy(logits).shape == attacks.max_score(logits).shape == (2, 5)
    assert attacks.top_scores(logits).shape == (2, 5, 2)
    np.testing.assert_array_equal(attacks.top_scores(logits)[1], attacks.top_scores(logits[1]))


def test_the_network_on_the_top_three_finds_what_the_largest_score_alone_does_not_tell():
    rng = np.random.default_rng(0)
    member = rng.random(2000) < 0.5
    second = np.where(member, 0.38, 0.25) + rng.uniform(-0.05, 0.05, 2000)
    p = np.stack([np.full(2000, 0.5), second, 0.5 - second], axis=1)
    logits = rng.permuted(np.log(p), axis=1)  # classes tell nothing
    network = attacks.fit_top_3(logits, member)
    odds = attacks.top_3(network, logits)
    assert odds.shape == (2000,)
    assert ((odds > 0) == member).mean() > 0.95
    assert np.ptp(attacks.max_score(logits)) < 1e-9
    np.testing.assert_allclose(attacks.top_3(network, logits.reshape(4, 500, 3)).ravel(), odds)
