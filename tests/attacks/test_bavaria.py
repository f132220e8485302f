"""BaVarIA against a plain loop with SciPy's laws, integrals of its prior, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import invgamma, norm, t

from lira_jax.attacks import bavaria, references
from lira_jax.attacks.bavaria import NAMES, NormalInverseGamma
from lira_jax.attacks.references import Moments
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import MASKS, blocked_masks, references_of, uneven_scores, with_rule


def run(scores, keep, **config):
    return bavaria.attack(*with_rule(scores, keep), AttackConfig(**config))


def prior_of(scores):
    """Mean and variance of all of these scores."""
    return scores.mean(), scores.var(ddof=1)


def log_laws(phi, refs, mean, variance):
    """Log densities of one more score, of BaVarIA-n and -t, as the paper writes them."""
    n, x = len(refs), refs.mean()
    squares = np.square(refs - x).sum()
    beta = variance + squares / 2 + n * (x - mean) ** 2 / (1 + n) / 2  # α₀ − 1 is 1, or α₀ is
    gaussian = norm.logpdf(phi, x, np.sqrt(beta / (1 + n / 2 - 1)))
    alpha, kappa = 2 + n / 2, 1 + n
    scale = np.sqrt(beta * (kappa + 1) / (alpha * kappa))
    return np.array([gaussian, t.logpdf(phi, 2 * alpha, (mean + n * x) / kappa, scale)])


def plain(scores, keep):
    """One target, example and view at a time."""
    _, rule = with_rule(scores, keep)
    models, examples, queries = scores.shape
    result = {name: np.zeros(keep.shape) for name in NAMES}
    for target, q in np.ndindex(models, queries):
        inside, outside = (
            np.stack(
                [scores[references_of(rule, keep, target, e, side), e, q] for e in range(examples)]
            )
            for side in (True, False)
        )
        for e in range(examples):
            phi = scores[target, e, q]
            log_in = log_laws(phi, inside[e], *prior_of(inside))
            log_out = log_laws(phi, outside[e], *prior_of(outside))
            mean, variance = prior_of(np.delete(inside, e, axis=0))
            std = np.sqrt(variance)
            log_prior = np.array([norm.logpdf(phi, mean, std), t.logpdf(phi, 4, mean, std)])
            ratios = [*(log_in - log_out), *(log_prior - log_out)]
            for name, ratio in zip(NAMES, ratios, strict=True):
                result[name][target, e] += ratio
    return result


@pytest.mark.parametrize("masks", MASKS)
def test_scores_equal_a_plain_loop(masks, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * len(keep) * 2 * 3)  # three examples
    expected, got = plain(scores, keep), run(scores, keep)
    for name in NAMES:
        np.testing.assert_allclose(got[name], expected[name], 1e-8, 1e-8, err_msg=name)


def array(value):
    return np.full((1, 1, 1), float(value))


def law_of(mean, kappa, alpha, beta):
    return NormalInverseGamma(array(mean), kappa, alpha, array(beta))


def side_of(refs):
    refs = np.asarray(refs, dtype=np.float64)
    squares = array(np.square(refs - refs.mean()).sum())
    return Moments(len(refs), array(refs.mean()), array(refs.mean()), squares)


def log_density(law, value):
    return law.log_predictive(np.full((1, 1, 1, 1), float(value))).item()


@pytest.mark.parametrize("refs", [[], [2.0, -1.0, 0.5]])
@pytest.mark.parametrize("value", [0.4, 7.0])
def test_the_predictive_law_is_the_integral_over_means_and_variances(refs, value):
    law = law_of(0.7, 1.5, 2.0, 3.0)
    if refs:
        law = law.given(side_of(refs))
    mean, beta = law.mean.item(), law.beta.item()

    def at(variance):
        # The integral over the mean is a Gaussian of both variances.
        spread = np.sqrt(variance * (1 + 1 / law.kappa))
        of_variance = invgamma.pdf(variance, law.alpha, scale=beta)
        return norm.pdf(value, mean, spread) * of_variance

    expected = quad(at, 0, 5)[0] + quad(at, 5, np.inf)[0]
    assert log_density(law, value) == pytest.approx(np.log(expected), abs=1e-6)


finite = st.floats(-50, 50)


@given(st.lists(finite, min_size=1, max_size=5), st.lists(finite, min_size=1, max_size=5), finite)
@settings(deadline=None, max_examples=30)
def test_references_one_after_another_tell_what_they_tell_together(first, second, value):
    prior = law_of(1.0, 1.0, 2.0, 0.5)
    together = prior.given(side_of(first + second))
    in_turn = prior.given(side_of(first)).given(side_of(second))
    assert (together.kappa, together.alpha) == (in_turn.kappa, in_turn.alpha)
    assert log_density(together, value) == pytest.approx(log_density(in_turn, value), abs=1e-6)


REFS = np.array([0.3, 1.1, -0.4, 2.5, 0.9, 1.4])


def test_a_prior_of_no_weight_leaves_the_references_to_themselves():
    nothing = law_of(100.0, 1e-12, 1e-12, 1e-12).given(side_of(REFS))
    scale = REFS.std() * np.sqrt(1 + 1 / REFS.size)
    expected = t(REFS.size, REFS.mean(), scale)
    for value in (-2.0, 1.0, 9.0):
        assert log_density(nothing, value) == pytest.approx(expected.logpdf(value), abs=1e-6)
    # BaVarIA-n's α₀ alone says no more than that a variance of n references is S/n.
    plain_variance = law_of(100.0, 1e-12, 1.0, 1e-12).given(side_of(REFS))
    assert plain_variance.beta.item() / (plain_variance.alpha - 1) == pytest.approx(REFS.var())


def test_a_prior_of_great_weight_leaves_the_references_no_say():
    weight = 1e9
    certain = law_of(4.0, weight, weight, 2.5 * (weight - 1)).given(side_of(REFS))
    for value in (-2.0, 4.0, 9.0):
        expected = norm(4.0, np.sqrt(2.5)).logpdf(value)
        assert log_density(certain, value) == pytest.approx(expected, abs=1e-5)


def test_with_many_references_all_variants_online_are_the_gaussian_log_ratio():
    rng = np.random.default_rng(1)
    count = 4_000
    inside, outside = 2 + rng.normal(size=count), 2 * rng.normal(size=count)
    expected = norm(2, 1).logpdf(1.2) - norm(0, 2).logpdf(1.2)
    sides = [side_of(refs) for refs in (inside, outside)]
    for alpha in (bavaria.ALPHA_N, bavaria.ALPHA_T):
        t_in, t_out = (bavaria.prior(array(9), array(30), alpha).given(side) for side in sides)
        ratio = log_density(t_in, 1.2) - log_density(t_out, 1.2)
        assert ratio == pytest.approx(expected, abs=0.05)


def test_offline_scores_use_no_in_score_of_the_example():
    rng = np.random.default_rng(2)
    keep = blocked_masks(rng, 8, 20)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    before, changed = run(scores, keep), scores.copy()
    changed[keep[:, 3], 3] += 40 * rng.normal(size=(4, 2))
    after = run(changed, keep)
    outside = ~keep[:, 3]
    for name in NAMES:
        same = np.allclose(after[name][outside, 3], before[name][outside, 3], 1e-9, 1e-9)
        assert same == name.endswith("offline"), name


@pytest.mark.parametrize("masks", ["blocks of 2", "2 of 4"])
def test_neither_example_nor_prior_knows_the_rest_of_the_targets_block(masks):
    rng = np.random.default_rng(3)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    _, rule = with_rule(scores, keep)
    before, changed = run(scores, keep), scores.copy()
    changed[1 : rule.fold] += 5
    for name, after in run(changed, keep).items():
        np.testing.assert_allclose(after[0], before[name][0], 1e-9, 1e-9)
