"""One law of all examples: against full covariance matrices, and integrals where it is no line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from lira_jax.attacks.hierarchical import (
    KINDS,
    LEAST_REST,
    LOG_SHARE,
    Law,
    Side,
    line_about,
    line_at,
    log_odds,
    posterior,
    predict,
)

# As runs have it: most examples far above where training takes them, and noise that differs.
TYPICAL = Law(
    log_noise=0.4, log_spread=-0.6, level=1.2, level_slope=1.0, mean=2.0, mean_slope=-0.5,
    reach=-0.5, reach_slope=0.6, log_scale=1.2, log_varied=-1.3, floor=-1.6,
)  # fmt: skip


def any_law(rng):
    return Law(*(TYPICAL.numbers() + rng.normal(size=11) * 0.4).tolist())


def side_of(lists):
    """Statistics of lists of references, one list per example, some without any."""
    return Side(
        np.array([float(len(one)) for one in lists]),
        np.array([np.mean(one) if len(one) else 0.0 for one in lists]),
        np.array([np.square(one - np.mean(one)).sum() if len(one) else 0.0 for one in lists]),
    )


def line_of(law, out, inside):
    """The line of one example with these references."""
    return line_about(law.kinds(), side_of([out]), side_of([inside]))


def log_joint(law, outs, insides, line):
    """Log p(k, these scores) of one example, by kind, from covariance matrices of all of them."""
    kinds, found = law.kinds(), []
    member = np.array([False] * len(outs) + [True] * len(insides), bool)
    both = member[:, np.newaxis] & member
    neither = ~member[:, np.newaxis] & ~member
    for k in range(KINDS.size):
        level, b, rest = kinds.level[k, 0], line.b[k, 0], line.rest[k, 0]
        covariance = np.where(
            both, b * b * level + rest, np.where(neither, level, b * level)
        ) + np.diag(np.where(member, line.noise_in[k, 0], kinds.noise[k, 0]))
        density = 0.0
        if member.size:
            m_out, place = kinds.mean[k, 0], line.place[k, 0]
            m_in = place + line.added[k, 0] + b * (m_out - place)
            mean = np.where(member, m_in, m_out)
            density = multivariate_normal(mean, covariance).logpdf([*outs, *insides])
        found.append(LOG_SHARE[k] + density)
    return np.array(found)


def some_references(rng, pairs):
    return [rng.normal(size=n) for n, _ in pairs], [1 + rng.normal(size=m) for _, m in pairs]


PAIRS = list(itertools.product(range(6), range(6)))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=4)
def test_laws_of_one_more_score_are_those_of_full_covariance_matrices(seed):
    rng = np.random.default_rng(seed)
    law = any_law(rng)
    outs, insides = some_references(rng, PAIRS)
    x = 3 * rng.normal(size=len(PAIRS))
    of_out, of_in = predict(law, side_of(outs), side_of(insides))
    expected = np.empty((2, len(PAIRS)))
    for e, (out, inside) in enumerate(zip(outs, insides, strict=True)):
        line = line_of(law, out, inside)
        before = logsumexp(log_joint(law, out, inside, line))
        expected[0, e] = logsumexp(log_joint(law, [*out, x[e]], inside, line)) - before
        expected[1, e] = logsumexp(log_joint(law, out, [*inside, x[e]], line)) - before
    np.testing.assert_allclose(of_out.log_density(x), expected[0], 1e-7, 1e-7)
    np.testing.assert_allclose(of_in.log_density(x), expected[1], 1e-7, 1e-7)
    odds = log_odds(law, side_of(outs), side_of(insides), x)
    np.testing.assert_allclose(odds, expected[1] - expected[0], 1e-7, 1e-7)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=4)
def test_evidence_of_references_is_that_of_full_covariance_matrices_but_for_a_constant(seed):
    rng = np.random.default_rng(seed)
    law = any_law(rng)
    outs, insides = some_references(rng, PAIRS)
    sides = side_of(outs), side_of(insides)
    got = posterior(law.kinds(), line_about(law.kinds(), *sides), *sides).log_evidence
    count = np.array([n + m for n, m in PAIRS])
    expected = np.stack(
        [log_joint(law, *both, line_of(law, *both)) for both in zip(outs, insides, strict=True)],
        axis=1,
    )
    np.testing.assert_allclose(got, expected + count / 2 * np.log(2 * np.pi), 1e-7, 1e-7)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (3, 0), (1, 1), (5, 2)])
def test_posteriors_of_means_agree_with_a_dense_grid(n, m):
    rng = np.random.default_rng((n, m))
    law = any_law(rng)
    (out,), (inside,) = some_references(rng, [(n, m)])
    sides = side_of([out]), side_of([inside])
    kinds, line = law.kinds(), line_of(law, out, inside)
    got, k = posterior(kinds, line, *sides), 6
    level, noise, m_out = kinds.level[k, 0], kinds.noise[k, 0], kinds.mean[k, 0]
    place, b, rest = line.place[k, 0], line.b[k, 0], line.rest[k, 0]
    width = 9 * np.sqrt(got.var_out[k, 0])
    mu_out = got.out[k, 0] + np.linspace(-width, width, 801)[:, np.newaxis]
    width = 9 * np.sqrt(got.var_in[k, 0])
    mu_in = got.inside[k, 0] + np.linspace(-width, width, 801)
    log = norm.logpdf(mu_out, m_out, np.sqrt(level))
    log = log + norm.logpdf(mu_in, place + line.added[k, 0] + b * (mu_out - place), np.sqrt(rest))
    for one in out:
        log = log + norm.logpdf(one, mu_out, np.sqrt(noise))
    for one in inside:
        log = log + norm.logpdf(one, mu_in, np.sqrt(line.noise_in[k, 0]))
    weight = np.exp(log - logsumexp(log))
    mean_out, mean_in = (weight * mu_out).sum(), (weight * mu_in).sum()
    expected = [
        mean_out,
        mean_in,
        (weight * (mu_out - mean_out) ** 2).sum(),
        (weight * (mu_out - mean_out) * (mu_in - mean_in)).sum(),
        (weight * (mu_in - mean_in) ** 2).sum(),
    ]
    found = [getattr(got, name)[k, 0] for name in ("out", "inside", "var_out", "cov", "var_in")]
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


def test_lines_are_tangents_of_what_training_does():
    kinds = TYPICAL.kinds()
    place = np.tile(np.linspace(-30.0, 60.0, 400), (KINDS.size, 1))
    line = line_at(kinds, place)

    def after(mu):  # T log(e^(μ/T) + e^(a/T))
        return kinds.scale * np.logaddexp(mu / kinds.scale, kinds.reach)

    np.testing.assert_allclose(place + line.added, after(place), atol=1e-9)
    step = 1e-4
    slope = (after(place + step) - after(place - step)) / (2 * step)
    np.testing.assert_allclose(line.b, slope, atol=1e-7)
    # How far a moves the mean, too: what a varies by is what the mean varies by about the line.
    rest = line.rest - LEAST_REST * kinds.noise
    np.testing.assert_allclose(np.sqrt(np.abs(rest)), kinds.varied * (1 - line.b), atol=1e-5)
    assert (np.diff(line.added, axis=1) <= 0).all()


def reference_log_odds(law, out, inside, x, points=41):
    """Λ of one example under the law as it is, h not linear, by a grid over u, μ_out and a."""
    scale, floor = np.exp(law.log_scale), 1 / (1 + np.exp(-law.floor))
    z = np.linspace(-4, 4, 33)[:, np.newaxis, np.newaxis]
    u = np.exp(law.log_spread) * z
    noise, deep = np.exp(law.log_noise + u), norm.logpdf(z)
    level = np.exp(law.log_noise + law.level + law.level_slope * u)
    m_out = law.mean + law.mean_slope * u
    # About where OUT scores allow μ_out to be.
    precision = 1 / level + len(out) / noise
    centre = (m_out / level + np.sum(out) / noise) / precision
    step = np.linspace(-6, 6, 4 * points)[:, np.newaxis]
    mu_out = centre + step / np.sqrt(precision)
    log = deep + norm.logpdf(mu_out, m_out, np.sqrt(level)) - 0.5 * np.log(precision)
    deviate = np.linspace(-5, 5, points)
    reach = law.mean + scale * (law.reach + law.reach_slope * u)
    reach = reach + np.exp(law.log_varied) * scale * deviate
    log = log + norm.logpdf(deviate)
    mu_in = scale * np.logaddexp(mu_out / scale, reach / scale)
    b = np.exp((mu_out - mu_in) / scale)
    noise_in = noise * (floor + (1 - floor) * b * b)
    for one in out:
        log = log + norm.logpdf(one, mu_out, np.sqrt(noise))
    for one in inside:
        log = log + norm.logpdf(one, mu_in, np.sqrt(noise_in))
    as_in = logsumexp(log + norm.logpdf(x, mu_in, np.sqrt(noise_in)))
    return as_in - logsumexp(log + norm.logpdf(x, mu_out, np.sqrt(noise)))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (20, 0)])
def test_lines_in_place_of_the_curve_cost_little(n, m):
    """Log odds against those of the law as it is, by integration, over examples of that law."""
    out, inside, *more = simulate(TYPICAL, (n, m), 30, seed=n)
    sides = [side_of(list(each.T)) for each in (out, inside)]
    for x in more:
        got = log_odds(TYPICAL, *sides, x)
        exact = [reference_log_odds(TYPICAL, o, i, one) for o, i, one in
                 zip(out.T, inside.T, x, strict=True)]  # fmt: skip
        assert np.corrcoef(got, exact)[0, 1] > 0.99
        assert np.median(np.abs(got - exact) / (1 + np.abs(exact))) < 0.05


def examples_of(law, rng, examples):
    """μ_out, variance of OUT scores, μ_in and variance of IN scores of examples of a law."""
    u = np.exp(law.log_spread) * rng.normal(size=examples)
    noise, scale = np.exp(law.log_noise + u), np.exp(law.log_scale)
    level = np.exp(law.log_noise + law.level + law.level_slope * u)
    mu_out = law.mean + law.mean_slope * u + np.sqrt(level) * rng.normal(size=examples)
    reach = law.mean + scale * (law.reach + law.reach_slope * u)
    reach += np.exp(law.log_varied) * scale * rng.normal(size=examples)
    mu_in = scale * np.logaddexp(mu_out / scale, reach / scale)
    b, floor = np.exp((mu_out - mu_in) / scale), 1 / (1 + np.exp(-law.floor))
    return mu_out, noise, mu_in, noise * (floor + (1 - floor) * b * b)


def simulate(law, counts, examples, seed):
    """References [n, C] and [m, C] of examples of a law, and one more OUT and one more IN score."""
    rng = np.random.default_rng(seed)
    mu_out, noise, mu_in, noise_in = examples_of(law, rng, examples)
    out = mu_out + np.sqrt(noise) * rng.normal(size=(counts[0] + 1, examples))
    inside = mu_in + np.sqrt(noise_in) * rng.normal(size=(counts[1] + 1, examples))
    return out[:-1], inside[:-1], out[-1], inside[-1]


def test_densities_integrate_to_1_and_tails_to_what_lies_above():
    rng = np.random.default_rng(1)
    outs, insides = some_references(rng, [(2, 3)])
    for law in predict(TYPICAL, side_of(outs), side_of(insides)):

        def density(x, law=law):
            return float(np.exp(law.log_density(np.array([x])))[0])

        assert quad(density, -60, 60, points=[0, 2], limit=200)[0] == pytest.approx(1, abs=1e-8)
        for x in (-3.0, 0.5, 4.0):
            above = quad(density, x, 60, limit=200, epsabs=1e-12)[0]
            assert law.log_tail(np.array([x]))[0] == pytest.approx(np.log(above), abs=1e-7)


def test_tails_are_exact_far_out_and_never_above_1():
    law, _ = predict(TYPICAL, side_of([[]]), side_of([[]]))
    x = np.array([[50.0], [500.0], [1e4], [-1e4]])
    tails = [
        logsumexp(
            law.log_share[:, 0] + norm.logsf(one, law.mean[:, 0], np.sqrt(law.variance[:, 0]))
        )
        for one in x
    ]
    np.testing.assert_allclose(law.log_tail(x)[:, 0], tails, rtol=1e-10, atol=1e-12)
    assert (np.diff(law.log_tail(x[:3])[:, 0]) < 0).all()
    assert (law.log_tail(x) <= 0).all()


def test_lira_is_the_limit_of_examples_that_tell_nothing_of_each_other():
    # Examples of one noise that lie anywhere, and reaches that may be anywhere: what is left is
    # the means of either side, and the noise.
    rng = np.random.default_rng(2)
    law = Law(0.0, -20.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0, np.log(1e4), 12.0, 0.0)
    outs, insides = some_references(rng, [(40, 30)] * 5)
    x = rng.normal(size=5)
    line = line_about(law.kinds(), side_of(outs), side_of(insides))
    noise_in = line.noise_in[0]
    expected = [
        norm.logpdf(one, inside.mean(), np.sqrt(v * (1 + 1 / 30)))
        - norm.logpdf(one, out.mean(), np.sqrt(1 + 1 / 40))
        for one, out, inside, v in zip(x, outs, insides, noise_in, strict=True)
    ]
    got = log_odds(law, side_of(outs), side_of(insides), x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
