"""The fit of the law: its gradient, laws that are found again, and scores that are odd."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp

from lira_jax.attacks import law_fit
from lira_jax.attacks.hierarchical import Law, Side, line_about, log_odds, posterior
from lira_jax.attacks.law_fit import evidence, fit
from lira_jax.errors import InputError
from tests.attacks.test_hierarchical import TYPICAL, any_law, side_of, simulate, some_references


def sides_of(out, inside):
    """[n, C] and [m, C] as sides."""
    return side_of(list(out.T)), side_of(list(inside.T))


def simulated(law, counts, examples, seed):
    out, inside, more_out, more_in = simulate(law, counts, examples, seed)
    return *sides_of(out, inside), more_out, more_in


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_evidence_is_that_of_differences(seed):
    rng = np.random.default_rng(seed)
    pairs = [(int(n), int(m)) for n, m in rng.integers(0, 6, size=(80, 2))]
    out, inside = map(side_of, some_references(rng, pairs))
    law, loud = any_law(rng), np.full(80, -40.0)
    place = line_about(law.kinds(), out, inside).place
    _, gradient = evidence(law, place, out, inside, loud)
    for number in range(11):
        step = np.zeros(11)
        step[number] = 1e-5
        high, low = (
            evidence(Law(*(law.numbers() + sign * step).tolist()), place, out, inside, loud)[0]
            for sign in (1, -1)
        )
        assert gradient[number] == pytest.approx((high - low) / 2e-5, rel=1e-5, abs=1e-5)


def test_the_evidence_is_the_sum_over_examples_of_that_of_their_kinds():
    out, inside, *_ = simulated(TYPICAL, (3, 3), 50, seed=1)
    kinds = TYPICAL.kinds()
    line = line_about(kinds, out, inside)
    each = logsumexp(posterior(kinds, line, out, inside).log_evidence, axis=0)
    total, _ = evidence(TYPICAL, line.place, out, inside, np.full(50, -np.inf))
    assert total == pytest.approx(each.sum())


def test_a_simulated_law_is_found_in_its_numbers():
    law = fit(*simulated(TYPICAL, (32, 32), 4_000, seed=3)[:2])
    assert law.converged
    # As far off as 4,000 examples leave it, and the lines in place of the curve.
    allowed = [0.04, 0.05, 0.15, 0.15, 0.25, 0.3, 0.1, 0.1, 0.12, 0.2, 0.25]
    away = np.abs(law.numbers() - TYPICAL.numbers())
    assert (away < allowed).all(), dict(zip(law_fit.NAMES, away, strict=True))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_fitted_law_scores_nearly_as_well_as_the_true_one(count):
    out, inside, x_out, x_in = simulated(TYPICAL, (count, count), 4_000, seed=4)
    fitted = fit(out, inside)

    def auc(law):
        low, high = (log_odds(law, out, inside, x) for x in (x_out, x_in))
        return np.searchsorted(np.sort(low), high).mean() / low.size

    assert auc(fitted) > auc(TYPICAL) - 0.003


def test_a_fit_is_the_greatest_evidence_that_its_neighbours_have():
    out, inside, *_ = simulated(TYPICAL, (3, 3), 1_000, seed=5)
    law = fit(out, inside)
    place = line_about(law.kinds(), out, inside).place
    loud = np.full(1_000, -np.inf)
    free = [number for number, name in enumerate(law_fit.NAMES) if name not in law_fit.PRIORS]
    assert len(free) == 3
    best = evidence(law, place, out, inside, loud)[0]
    for number in free:
        for step in (-0.03, 0.03):
            moved = law.numbers()
            moved[number] += step
            assert evidence(Law(*moved.tolist()), place, out, inside, loud)[0] < best


def test_runs_without_leakage_are_fitted_with_little_that_training_adds():
    rng = np.random.default_rng(6)
    scores = 2 * rng.normal(size=2_000) + rng.normal(size=(8, 2_000))
    out, inside = sides_of(scores[:4], scores[4:])
    law = fit(out, inside)
    assert np.abs(log_odds(law, out, inside, scores[0])).mean() < 0.1


def constant(examples, value=3.0):
    zero = np.zeros(examples)
    return Side(2.0, zero + value, zero)


@pytest.mark.parametrize("examples", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_examples_give_a_law_and_finite_scores_without_a_warning(examples, count):
    out, inside, x, _ = simulated(TYPICAL, (count, count), examples, seed=examples)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = fit(out, inside)
        assert np.isfinite(log_odds(law, out, inside, x)).all()
        assert np.isfinite(log_odds(law, out, inside.none(), x)).all()


@pytest.mark.parametrize("case", ["all equal", "equal by side", "equal on a side", "one absurd"])
def test_degenerate_scores_give_finite_scores_and_never_a_warning(case):
    out, inside, x, _ = simulated(TYPICAL, (2, 2), 60, seed=7)
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
        law = fit(out, inside)
        assert np.isfinite(log_odds(law, out, inside, x)).all()


@pytest.mark.parametrize("far", [50.0, 300.0, 1e6])
def test_one_absurd_example_leaves_the_others_as_they_were(far):
    out, inside, x, _ = simulated(TYPICAL, (4, 4), 800, seed=8)
    before = log_odds(fit(out, inside), out, inside, x)
    out.mean[0], inside.mean[0] = far, -far
    after = log_odds(fit(out, inside), out, inside, x)
    assert np.corrcoef(before[1:], after[1:])[0, 1] > 0.995


def test_scores_that_are_not_finite_are_named():
    out, inside, *_ = simulated(TYPICAL, (2, 2), 40, seed=9)
    out.mean[3] = np.nan
    with np.errstate(all="ignore"), pytest.raises(InputError, match="no law fits") as error:
        fit(out, inside)
    assert "\n" not in str(error.value)


def test_examples_with_references_of_one_side_alone_are_named():
    out, inside, *_ = simulated(TYPICAL, (2, 2), 40, seed=10)
    for sides in ((out, inside.none()), (out.none(), inside)):
        with pytest.raises(InputError, match="all IN or all OUT; give models"):
            fit(*sides)


def test_one_other_model_tells_what_training_does_in_the_mean():
    """No example has scores on both sides; what is noise and what level is as runs have it."""
    out, inside, *_ = simulate(TYPICAL, (1, 1), 2_000, seed=11)
    member = np.random.default_rng(0).random(2_000) < 0.5
    none = np.zeros(2_000)
    law = fit(
        Side((~member).astype(float), np.where(member, 0, out[0]), none),
        Side(member.astype(float), np.where(member, inside[0], 0), none),
    )
    assert law.mean == pytest.approx(TYPICAL.mean, abs=0.5)
    assert law.reach == pytest.approx(TYPICAL.reach, abs=0.5)
