"""The FPR of an example against quadrature and simulation; flip rates against explicit pairs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from lira_jax.analysis import coin_flips, exposure, per_example_fpr, target
from lira_jax.attacks import lira_bayes, references
from lira_jax.attacks.hierarchical import Mixture
from lira_jax.config import AttackConfig
from tests.attacks.test_lira_bayes import leaky


def mixture(rng, examples, mean=0.0):
    share = rng.dirichlet(np.ones(2), examples).T
    spread = rng.uniform(0.3, 1.5, (2, examples))
    return Mixture(np.log(share), mean + rng.normal(size=(2, examples)), spread**2)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1.5, 3))
def test_fpr_of_an_example_is_the_integral_of_its_out_law_where_log_odds_are_high(seed, threshold):
    rng = np.random.default_rng(seed)
    of_out, of_in = mixture(rng, 3), mixture(rng, 3, 1.5)
    got = per_example_fpr.of_threshold(of_out, of_in, threshold)
    for example, rate in enumerate(got):
        own_out, own_in = of_out.of(np.array([example])), of_in.of(np.array([example]))

        x = np.linspace(-14, 14, 40_001)[:, np.newaxis]
        high = (own_in.log_density(x) - own_out.log_density(x))[:, 0] >= threshold
        ends = np.flatnonzero(np.diff(high, prepend=False, append=False))
        places = x[np.minimum(ends, x.size - 1), 0].reshape(-1, 2)

        def density(at, own_out=own_out):
            return float(np.exp(own_out.log_density(np.array([at]))[0]))

        expected = sum(quad(density, a, b, points=[a / 2 + b / 2], limit=200)[0] for a, b in places)
        assert rate == pytest.approx(expected, abs=1e-3)


def test_log_odds_that_fall_again_give_an_interval():
    """IN narrow, OUT wide: Λ is high in the middle alone."""
    of_out = Mixture(np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), 4.0))
    of_in = Mixture(np.zeros((1, 1)), np.ones((1, 1)), np.full((1, 1), 0.25))
    x = np.linspace(-15, 15, 600_001)
    odds = of_in.log_density(x[:, None])[:, 0] - of_out.log_density(x[:, None])[:, 0]
    expected = np.exp(of_out.log_density(x[:, None])[:, 0])[odds >= 0.5].sum() * (x[1] - x[0])
    got = per_example_fpr.of_threshold(of_out, of_in, 0.5)[0]
    assert got == pytest.approx(expected, abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_flip_rate_is_the_share_of_pairs_that_differ(seed, models):
    rng = np.random.default_rng(seed)
    called, chosen = rng.random((2, models, 4)) < 0.5
    got = coin_flips.flip_rates(called, chosen)
    for example in range(4):
        decided = called[chosen[:, example], example]
        pairs = [a != b for a, b in combinations(decided, 2)]
        assert got[example] == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def known(models=32, examples=1_500, seed=0):
    """Examples of the law that the attack takes them to be of."""
    rng = np.random.default_rng(seed)
    half = rng.random((models // 2, examples)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    return leaky(seed, keep, views=1)


@pytest.fixture(scope="module")
def found():
    score_set, config = known(), AttackConfig(fpr=0.01)
    rule = references.find(score_set)
    scores = lira_bayes.attack(score_set, rule, config)["lira-bayes"]
    exposed = exposure.exposure(score_set, "lira-bayes", scores, config)
    none = np.zeros(score_set.keep.shape[1], bool)
    return (
        score_set,
        scores,
        per_example_fpr.reliability(score_set, rule, config, scores, exposed, none),
    )


def test_predicted_rates_are_those_observed_on_a_known_law(found):
    _, _, (_, about, _) = found
    assert len(about["groups"]) >= 3
    assert sum(group["pairs"] for group in about["groups"]) == 32 * 1_500 // 2
    for group in about["groups"]:
        low, high = group["observed_ci"]
        slack = 0.2 * group["predicted"]
        assert low - slack <= group["predicted"] <= high + slack
    assert about["per-example"]["fpr"] == pytest.approx(0.01, abs=0.002)


def test_decisions_are_those_of_the_attack(found):
    score_set, scores, (exposed, about, flips) = found
    keep = score_set.keep
    called = scores >= about["pooled"]["threshold"]
    assert about["pooled"]["tpr"] == pytest.approx(called[keep].mean())
    assert about["pooled"]["fpr"] == pytest.approx(called[~keep].mean())
    assert exposed.flip_in == pytest.approx(coin_flips.flip_rates(called, keep))
    differ = [
        not called[other, example]
        for model, example in np.argwhere(called & keep)
        for other in np.flatnonzero(keep[:, example])
        if other != model
    ]
    # Every call has as many others, as every example has as many members.
    assert flips["unrepeated"] == pytest.approx(np.mean(differ))
    assert flips["called"] == (called & keep).sum()
    assert ((exposed.fpr >= 0) & (exposed.fpr <= 1)).all()
    assert exposed.fpr.mean() == pytest.approx(0.01, abs=0.004)


def test_tails_of_models_of_the_run_are_uniform_where_they_did_not_train():
    score_set = known(examples=600, seed=1)
    tails = np.exp(lira_bayes.log_tails(score_set, references.find(score_set), AttackConfig()))[
        ~score_set.keep
    ]
    for level in (0.01, 0.1, 0.5):
        assert (tails <= level).mean() == pytest.approx(level, abs=0.01 + 0.1 * level)


def test_a_target_is_decided_by_its_p_values_where_the_rate_is_kept_on_every_example():
    score_set = known(examples=300, seed=2)
    shadows = replace(score_set, scores=score_set.scores[:-2], keep=score_set.keep[:-2])
    other = target.Target(score_set.scores[-1], score_set.keep[-1], "other")
    config = AttackConfig(calibrate="per-example")
    got = target.audit(shadows, other, config, fpr=0.05, progress=False)
    assert np.array_equal(got.decision, got.p_value <= 0.05)
    assert got.shadow["fpr"] == pytest.approx(0.05, abs=0.015)
    assert "aimed at on every example" in target.summary(got)
    assert target.as_json(got)["threshold"] is None
