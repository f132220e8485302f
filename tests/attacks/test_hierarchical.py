"""One law of all examples: against full covariance matrices, integration and simulated laws."""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from lira_jax.attacks import hierarchical
from lira_jax.attacks.hierarchical import (
    Law,
    Side,
    fit,
    log_odds,
    posterior,
    predict,
    with_target,
)  # fmt: skip
from lira_jax.errors import InputError

pytestmark = pytest.mark.whole_fits

# A quiet kind and a loud one.
TWO = Law(
    share=np.array([0.7, 0.3]),
    mean_out=np.array([1.0, -2.0]),
    mean_in=np.array([3.0, 2.0]),
    level=np.array([4.0, 6.0]),
    contraction=np.array([0.8, 0.5]),
    rest=np.array([0.03, 0.25]),
    noise_out=np.array([0.5, 4.0]),
    noise_in=np.array([0.3, 1.0]),
)


def any_law(rng, kinds):
    return Law(
        share=rng.dirichlet(np.full(kinds, 3.0)),
        mean_out=2 * rng.normal(size=kinds),
        mean_in=2 * rng.normal(size=kinds) + 2,
        level=rng.gamma(2.0, size=kinds),
        contraction=rng.uniform(-0.2, 1.2, kinds),
        rest=rng.gamma(1.0, size=kinds) + 0.01,
        noise_out=rng.gamma(2.0, size=kinds) + 0.05,
        noise_in=rng.gamma(2.0, size=kinds) + 0.05,
    )


def side_of(lists):
    """Statistics of lists of references, one list per example, some without any."""
    return Side(
        np.array([float(len(one)) for one in lists]),
        np.array([np.mean(one) if len(one) else 0.0 for one in lists]),
        np.array([np.square(one - np.mean(one)).sum() if len(one) else 0.0 for one in lists]),
    )


def kind_of(law, k):
    return {name: getattr(law, name)[k] for name in list(Law.__dataclass_fields__)[:8]}


def log_joint(law, outs, insides):
    """Log p(k, these scores) of one example, by kind, from covariance matrices of all of them."""
    found = []
    member = np.array([False] * len(outs) + [True] * len(insides), bool)
    both = member[:, np.newaxis] & member
    neither = ~member[:, np.newaxis] & ~member
    for k in range(len(law.share)):
        p = kind_of(law, k)
        covariance = np.where(
            both, p["contraction"] ** 2 * p["level"] + p["rest"],
            np.where(neither, p["level"], p["contraction"] * p["level"]),
        ) + np.diag(np.where(member, p["noise_in"], p["noise_out"]))  # fmt: skip
        density = 0.0
        if member.size:
            mean = np.where(member, p["mean_in"], p["mean_out"])
            density = multivariate_normal(mean, covariance).logpdf([*outs, *insides])
        found.append(np.log(p["share"]) + density)
    return np.array(found)


def some_references(rng, pairs):
    return [rng.normal(size=n) for n, _ in pairs], [1 + rng.normal(size=m) for _, m in pairs]


PAIRS = list(itertools.product(range(6), range(6)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(deadline=None, max_examples=6)
def test_laws_of_one_more_score_are_those_of_full_covariance_matrices(seed, kinds):
    rng = np.random.default_rng(seed)
    law = any_law(rng, kinds)
    outs, insides = some_references(rng, PAIRS)
    x = 3 * rng.normal(size=len(PAIRS))
    of_out, of_in = predict(law, side_of(outs), side_of(insides))
    expected = np.empty((2, len(PAIRS)))
    for e, (out, inside) in enumerate(zip(outs, insides, strict=True)):
        before = logsumexp(log_joint(law, out, inside))
        expected[0, e] = logsumexp(log_joint(law, [*out, x[e]], inside)) - before
        expected[1, e] = logsumexp(log_joint(law, out, [*inside, x[e]])) - before
    np.testing.assert_allclose(of_out.log_density(x), expected[0], 1e-8, 1e-8)
    np.testing.assert_allclose(of_in.log_density(x), expected[1], 1e-8, 1e-8)
    odds = log_odds(law, side_of(outs), side_of(insides), x)
    np.testing.assert_allclose(odds, expected[1] - expected[0], 1e-8, 1e-8)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=6)
def test_evidence_of_references_is_that_of_full_covariance_matrices_but_for_a_constant(seed):
    rng = np.random.default_rng(seed)
    law = any_law(rng, 3)
    outs, insides = some_references(rng, PAIRS)
    got = posterior(law, side_of(outs), side_of(insides)).log_evidence
    count = np.array([n + m for n, m in PAIRS])
    expected = np.stack([log_joint(law, *both) for both in zip(outs, insides, strict=True)], axis=1)
    np.testing.assert_allclose(got, expected + count / 2 * np.log(2 * np.pi), 1e-8, 1e-8)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (3, 0), (1, 1), (5, 2)])
def test_posteriors_of_means_agree_with_a_dense_grid(n, m):
    rng = np.random.default_rng((n, m))
    law = any_law(rng, 1)
    p = kind_of(law, 0)
    (out,), (inside,) = some_references(rng, [(n, m)])
    width = 9 * np.sqrt(p["level"] + p["rest"])
    mu_out = p["mean_out"] + np.linspace(-width, width, 1_201)[:, np.newaxis]
    mu_in = p["mean_in"] + np.linspace(-width, width, 1_201)[np.newaxis]
    of_line = p["mean_in"] + p["contraction"] * (mu_out - p["mean_out"])
    log = norm.logpdf(mu_out, p["mean_out"], np.sqrt(p["level"]))
    log = log + norm.logpdf(mu_in, of_line, np.sqrt(p["rest"]))
    for score in out:
        log = log + norm.logpdf(score, mu_out, np.sqrt(p["noise_out"]))
    for score in inside:
        log = log + norm.logpdf(score, mu_in, np.sqrt(p["noise_in"]))
    weight = np.exp(log - logsumexp(log))
    mean_out, mean_in = (weight * mu_out).sum(), (weight * mu_in).sum()
    expected = [
        mean_out,
        mean_in,
        (weight * (mu_out - mean_out) ** 2).sum(),
        (weight * (mu_out - mean_out) * (mu_in - mean_in)).sum(),
        (weight * (mu_in - mean_in) ** 2).sum(),
    ]
    got = posterior(law, side_of([out]), side_of([inside]))
    found = [got.out, got.inside, got.var_out, got.cov, got.var_in]
    np.testing.assert_allclose(np.ravel(found), expected, 1e-6, 1e-6)


def test_densities_integrate_to_1_and_tails_to_what_lies_above():
    rng = np.random.default_rng(1)
    outs, insides = some_references(rng, [(2, 3)])
    for law in predict(TWO, side_of(outs), side_of(insides)):

        def density(x, law=law):
            return float(np.exp(law.log_density(np.array([x])))[0])

        assert quad(density, -60, 60, points=[0, 2], limit=200)[0] == pytest.approx(1, abs=1e-8)
        for x in (-3.0, 0.5, 4.0):
            above = quad(density, x, 60, limit=200, epsabs=1e-12)[0]
            assert law.log_tail(np.array([x]))[0] == pytest.approx(np.log(above), abs=1e-7)


def test_tails_are_exact_far_out_and_never_above_1():
    law, _ = predict(TWO, side_of([[]]), side_of([[]]))
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


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=5)
def test_the_order_of_references_does_not_matter_and_one_more_is_a_longer_list(seed):
    rng = np.random.default_rng(seed)
    outs, _ = some_references(rng, PAIRS)
    longer = side_of(outs).plus(x := rng.normal(size=len(PAIRS)))
    expected = side_of([[*reversed(out), one] for out, one in zip(outs, x, strict=True)])
    np.testing.assert_allclose(longer.count, expected.count)
    np.testing.assert_allclose(longer.mean, expected.mean, 1e-10, 1e-10)
    np.testing.assert_allclose(longer.squares, expected.squares, 1e-10, 1e-10)


def test_lira_is_the_limit_of_examples_that_tell_nothing_of_each_other():
    rng = np.random.default_rng(2)
    law = Law(*(np.array([v]) for v in (1.0, 0.0, 0.0, 1e12, 0.0, 1e12, 0.7, 0.2)))
    outs, insides = some_references(rng, [(40, 30)] * 5)
    x = rng.normal(size=5)
    expected = [
        norm.logpdf(one, inside.mean(), np.sqrt(0.2 * (1 + 1 / 30)))
        - norm.logpdf(one, out.mean(), np.sqrt(0.7 * (1 + 1 / 40)))
        for one, out, inside in zip(x, outs, insides, strict=True)
    ]
    got = log_odds(law, side_of(outs), side_of(insides), x)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def simulate(law, counts, examples, seed):
    """References of examples of a law, and one more OUT and one more IN score."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(law.share), size=examples, p=law.share)
    p = {name: getattr(law, name)[kind] for name in list(Law.__dataclass_fields__)[:8]}
    from_mean = np.sqrt(p["level"]) * rng.normal(size=examples)
    mu_out = p["mean_out"] + from_mean
    mu_in = p["mean_in"] + p["contraction"] * from_mean
    mu_in += np.sqrt(p["rest"]) * rng.normal(size=examples)

    def scores(mu, noise, count):
        return mu + np.sqrt(noise) * rng.normal(size=(count, examples))

    out, inside = scores(mu_out, p["noise_out"], counts[0] + 1), scores(
        mu_in, p["noise_in"], counts[1] + 1
    )  # fmt: skip
    sides = [
        Side(float(n), s[:-1].mean(axis=0), np.square(s[:-1] - s[:-1].mean(axis=0)).sum(axis=0))
        for n, s in zip(counts, (out, inside), strict=True)
    ]
    return *sides, out[-1], inside[-1]


@cache
def fitted_to_many():
    out, inside, *_ = simulate(TWO, (32, 32), 4_000, seed=3)
    return fit(out, inside)


def test_a_simulated_law_of_two_kinds_is_found_by_the_number_and_in_its_parameters():
    law = fitted_to_many()
    assert law.converged
    assert len(law.share) == 2
    order = np.argsort(law.noise_out)
    # Errors are those of about 1,200 examples of the rarer kind, at three standard errors and more;
    # the priors of r and v_in have 20 examples' weight.
    allowed = {
        "share": 0.03, "mean_out": 0.25, "mean_in": 0.2, "level": 0.8, "contraction": 0.05,
        "rest": 0.06, "noise_out": 0.12, "noise_in": 0.06,
    }  # fmt: skip
    for name, error in allowed.items():
        found = getattr(law, name)[order]
        np.testing.assert_allclose(found, getattr(TWO, name), rtol=0, atol=error, err_msg=name)


def test_examples_all_of_a_kind_are_fitted_with_one():
    one = Law(*(np.array([v]) for v in (1.0, 0.0, 2.0, 4.0, 0.7, 0.06, 1.0, 0.5)))
    for count, seed in itertools.product((1, 3, 24), range(2)):
        out, inside, *_ = simulate(one, (count, count), 1_500, seed)
        assert len(fit(out, inside).share) == 1, (count, seed)


def test_each_round_of_em_raises_the_likelihood_of_references():
    # Up to the priors, which have the weight of 22 among 3,000 examples.
    out, inside, *_ = simulate(TWO, (3, 3), 3_000, seed=5)
    evidence = []
    for rounds in range(25):
        law = fit(out, inside, kinds=(2,), rounds=rounds, tolerance=-np.inf)
        evidence.append(logsumexp(posterior(law, out, inside).log_evidence, axis=0).mean())
    assert (np.diff(evidence) > -1e-4).all()
    assert evidence[-1] > evidence[0] + 0.01


def test_a_target_of_unknown_side_is_evidence_once_of_either_side():
    # One round from the start, K = 1: statistics are means over both answers, by their odds.
    out, inside, more, _ = simulate(TWO, (1, 1), 400, seed=6)
    without = fit(out, inside, kinds=(1,))
    fitted = with_target(without, out, inside, more)
    far = with_target(without, out, inside, more + 5)
    for law in (fitted, far):
        assert all(np.isfinite(column).all() for column in law.columns())
    assert abs(fitted.noise_out - without.noise_out) < abs(far.noise_out - without.noise_out)


def constant(examples, value=3.0):
    zero = np.zeros(examples)
    return Side(2.0, zero + value, zero)


@pytest.mark.parametrize("examples", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_examples_give_a_law_and_finite_scores_without_a_warning(examples, count):
    out, inside, x, _ = simulate(TWO, (count, count), examples, seed=examples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = fit(out, inside)
        law = with_target(law, out, inside, x) if count == 1 else law
        assert np.isfinite(log_odds(law, out, inside, x)).all()
        assert np.isfinite(log_odds(law, out, inside.none(), x)).all()


@pytest.mark.parametrize("case", ["all equal", "equal by side", "equal on a side", "one absurd"])
def test_degenerate_scores_give_finite_scores_or_one_line_and_never_a_warning(case):
    out, inside, x, _ = simulate(TWO, (2, 2), 60, seed=7)
    if case == "all equal":
        out, inside, x = constant(60), constant(60), np.full(60, 3.0)
    elif case == "equal by side":
        out, inside, x = constant(60), constant(60, 4.0), np.full(60, 3.0)
    elif case == "equal on a side":
        inside = constant(60)
    else:
        out.mean[0], x[0] = 1e8, -1e8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = with_target(fit(out, inside), out, inside, x)
        assert np.isfinite(log_odds(law, out, inside, x)).all()


def test_one_absurd_example_leaves_the_others_as_they_were():
    out, inside, x, _ = simulate(TWO, (4, 4), 800, seed=8)
    before = log_odds(fit(out, inside), out, inside, x)
    out.mean[0], inside.mean[0] = 300.0, -300.0
    after = log_odds(fit(out, inside), out, inside, x)
    assert np.corrcoef(before[1:], after[1:])[0, 1] > 0.97


def test_scores_that_are_not_finite_are_named():
    out, inside, *_ = simulate(TWO, (2, 2), 40, seed=9)
    out.mean[3] = np.nan
    with np.errstate(all="ignore"), pytest.raises(InputError, match="no law fits") as error:
        fit(out, inside)
    assert "\n" not in str(error.value)


def test_examples_with_references_of_one_side_alone_are_named():
    out, inside, *_ = simulate(TWO, (2, 2), 40, seed=10)
    for sides in ((out, inside.none()), (out.none(), inside)):
        with pytest.raises(InputError, match="all IN or all OUT; give models"):
            fit(*sides)


def test_kinds_are_at_most_as_many_as_examples_bear_out():
    out, inside, *_ = simulate(TWO, (24, 24), 15, seed=11)
    assert len(fit(out, inside).share) == 1
    assert hierarchical.LEAST_OF_A_KIND == 8
