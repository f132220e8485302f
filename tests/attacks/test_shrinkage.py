"""The prior against SciPy's laws, its limits, and the tail against SciPy's Student t."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import f, norm, t

from lira_jax.attacks import shrinkage
from lira_jax.attacks.references import Moments
from lira_jax.attacks.shrinkage import Prior


def drawn_logs(rng, freedom, prior_freedom, variance, size):
    return np.log(variance * f(freedom, prior_freedom).rvs(size, random_state=rng))


@pytest.mark.parametrize("freedom", [1, 3, 31])
@pytest.mark.parametrize("prior_freedom", [2.0, 6.0, 40.0])
def test_the_prior_of_drawn_variances_is_found(freedom, prior_freedom):
    rng = np.random.default_rng(0)
    logs = drawn_logs(rng, freedom, prior_freedom, 2.5, (1, 40, 4_000)).astype(np.float32)
    prior = shrinkage.fit(logs, freedom)
    # In 1/d₀, on which s̃² depends about linearly; the mean of 40 fits.
    error = np.std(1 / prior.freedom, ddof=1) / np.sqrt(40)
    assert abs(np.mean(1 / prior.freedom) - 1 / prior_freedom) < 4 * error + 1e-3
    assert np.mean(prior.variance) == pytest.approx(2.5, rel=0.03)


def test_equal_variances_are_pooled():
    rng = np.random.default_rng(1)
    squares = 3.0 * rng.chisquare(15, (1, 4_000, 1))
    logs = np.log(squares / 15).transpose(0, 2, 1).astype(np.float32)
    prior = shrinkage.fit(logs, 15)
    assert prior.freedom[0, 0] > 100
    np.testing.assert_allclose(prior.posterior(squares, 15), 3.0, rtol=0.3)


def test_the_limits_are_the_pooled_and_the_per_example_variance():
    squares = np.array([[[1.0], [30.0]]])

    def posterior(d0):
        return Prior(np.array([[d0]]), np.array([[2.0]])).posterior(squares, 5)[0, :, 0]

    np.testing.assert_allclose(posterior(1e12), 2.0, rtol=1e-10)
    np.testing.assert_allclose(posterior(1e-12), [0.2, 6.0], rtol=1e-10)
    np.testing.assert_allclose(posterior(5.0), [1.1, 4.0])  # half way
    # No reference speaks of variance.
    assert Prior(np.array([[4.0]]), np.array([[2.0]])).posterior(0 * squares, 0)[0, 0, 0] == 2.0


def test_one_absurd_variance_in_a_hundred_hardly_moves_the_prior():
    rng = np.random.default_rng(2)
    logs = drawn_logs(rng, 7, 8.0, 1.0, (1, 1, 4_000)).astype(np.float32)
    for absurd in (25.0, np.log(shrinkage.MIN_VARIANCE)):
        spoilt = logs.copy()
        spoilt[0, 0, :40] = absurd
        clean, prior = shrinkage.fit(logs.copy(), 7), shrinkage.fit(spoilt, 7)
        assert prior.freedom[0, 0] == pytest.approx(clean.freedom[0, 0], rel=0.2)
        assert prior.variance[0, 0] == pytest.approx(clean.variance[0, 0], rel=0.05)


def test_the_predictive_scale_counts_the_error_of_the_mean():
    side = Moments(4, *(np.zeros((1, 1, 1)) for _ in range(2)), np.full((1, 1, 1), 6.0))
    prior = Prior(np.array([[5.0]]), np.array([[2.0]]))
    np.testing.assert_allclose(prior.predictive_scale(side), np.sqrt(2.0 * 1.25))


def test_the_predictive_law_is_the_integral_over_means_and_variances():
    # Density at φ given 3 scores, by brute integration over σ² of prior × likelihood, the flat mean
    # integrated in closed form.
    scores, phi, d0, s02 = np.array([0.3, 1.7, -0.4]), 2.2, 4.0, 1.5

    def weight(log_variance, values):
        variance = np.exp(log_variance)
        n = len(values)
        spread = ((values - values.mean()) ** 2).sum()
        prior = variance ** (-d0 / 2 - 1) * np.exp(-d0 * s02 / (2 * variance)) * variance
        likelihood = (2 * np.pi * variance) ** (-(n - 1) / 2) * np.exp(-spread / (2 * variance))
        return prior * likelihood / np.sqrt(n)

    def evidence(values):
        return quad(weight, -12, 12, args=(values,), limit=400)[0]

    expected = np.log(evidence(np.append(scores, phi)) / evidence(scores))
    squares = np.array([[[((scores - scores.mean()) ** 2).sum()]]])
    mean = np.full((1, 1, 1), scores.mean())
    scale = Prior(np.array([[d0]]), np.array([[s02]])).predictive_scale(
        Moments(3, mean, mean, squares)
    )
    nu = d0 + 2
    z = (phi - scores.mean()) / scale[0, 0, 0]
    got = shrinkage.log_constant(np.array(nu)) + norm.logpdf(0) - np.log(scale[0, 0, 0])
    got -= (nu + 1) / 2 * np.log1p(z * z / nu)
    assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("nu", [1.0, 2.0, 3.7, 10.0, 64.5, 299.0, 301.0, 1_000.0])
def test_the_tail_is_scipys(nu):
    points = np.concatenate([-np.geomspace(1e8, 1e-3, 300), np.linspace(0, 40, 300)])
    got = shrinkage.minus_log_tail(points, np.array(nu), shrinkage.tail_coefficients(np.array(nu)))
    np.testing.assert_allclose(got, -t(nu).logsf(points), rtol=1e-5, atol=1e-12)


@given(st.floats(1, 1200), st.floats(-1e3, 1e30), st.floats(1e-3, 1))
@settings(deadline=None, max_examples=40)
def test_the_tail_rises_and_stays_finite_where_probabilities_underflow(nu, point, step):
    points = np.array([point, point + step * max(1.0, abs(point))])
    coefficients = shrinkage.tail_coefficients(np.array(nu))
    low, high = shrinkage.minus_log_tail(points, np.array(nu), coefficients)
    assert np.isfinite([low, high]).all()
    assert 0 <= low <= high
    assert low < high or point < -10


def test_the_density_constant_is_scipys():
    for nu in (1.0, 2.5, 30.0, 1_000.0):
        expected = t(nu).logpdf(0) - norm.logpdf(0)
        assert shrinkage.log_constant(np.array(nu)) == pytest.approx(expected, abs=1e-12)
