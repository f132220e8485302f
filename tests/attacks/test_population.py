"""LiRA on a population of known Gaussian laws: measured figures against numerical integration.

An example has a place μ ~ N(0, PLACE²), a spread σ with σ² = S0² · D0 / χ²(D0), and a shift δ of
either SHIFTS, in units of σ. Its scores are N(μ, σ²) as OUT and N(μ + δσ, (NARROW σ)²) as IN.

References are few, so the estimates of means and variances are integrated over too: given σ and δ,
a target's attack score is a function of its own deviate and of four independent statistics of the
references, two Gaussian and two χ². The integral over these and σ is by Sobol points, that over the
target's deviate by a grid that resolves the tails.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import chi2, nct, norm, qmc, t

from lira_jax import evaluation
from lira_jax.attacks import lira, references, thresholds
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import auc_and_tpr, blocked_masks, uneven_scores
from tests.attacks.test_lira import run

PLACE, S0, D0, NARROW = 2.0, 1.3, 8.0, 0.8
SHIFTS = (0.5, 2.5)
MODELS, EXAMPLES, POPULATIONS = 24, 8_000, 8
COUNT = MODELS // 2 - 1  # references on each side
FPR = 1e-3

# E[σ²] and E[σ]² of the inverse χ² law.
MEAN_SQUARE = S0**2 * D0 / (D0 - 2)
SQUARE_MEAN = S0**2 * D0 / 2 * np.exp(2 * (gammaln((D0 - 1) / 2) - gammaln(D0 / 2)))


def draw(seed):
    rng = np.random.default_rng(seed)
    keep = blocked_masks(rng, MODELS, EXAMPLES)
    spread = S0 * np.sqrt(D0 / rng.chisquare(D0, EXAMPLES))
    shift = rng.choice(SHIFTS, EXAMPLES)
    noise = rng.normal(size=keep.shape)
    place = PLACE * rng.normal(size=EXAMPLES)
    scores = place + spread * np.where(keep, shift + NARROW * noise, noise)
    return ScoreSet(scores[..., np.newaxis], keep, 2, "population")


@cache
def measured():
    """By name, AUC and TPR of each population."""
    found = {}
    for seed in range(POPULATIONS):
        population = draw(seed)
        got = lira.attack(population, references.find(population), AttackConfig())
        for name, values in got.items():
            found.setdefault(name, []).append(auc_and_tpr(values, population.keep, FPR))
    return {name: np.array(values) for name, values in found.items()}


@cache
def nodes():
    """Score of a target, estimates and weights over the population, for IN and OUT targets."""
    points = qmc.Sobol(5, seed=0).random_base2(12)
    # A grid of targets' deviates, the OUT law's and wide enough for IN.
    deviate = np.linspace(-7, 7, 281)
    weight = norm.pdf(deviate) / norm.pdf(deviate).sum()
    spread = S0 * np.sqrt(D0 / chi2.ppf(points[:, 0], D0))
    freedom = COUNT - 1
    laws = {}
    for member in (True, False):
        parts = []
        for shift in SHIFTS:
            mean_in = spread * (shift + NARROW * norm.ppf(points[:, 1]) / np.sqrt(COUNT))
            mean_out = spread * norm.ppf(points[:, 2]) / np.sqrt(COUNT)
            std_in = NARROW * spread * np.sqrt(chi2.ppf(points[:, 3], freedom) / freedom)
            std_out = spread * np.sqrt(chi2.ppf(points[:, 4], freedom) / freedom)
            phi = spread[:, None] * (shift + NARROW * deviate if member else deviate)
            parts.append((phi, *(one[:, None] for one in (mean_in, std_in, mean_out, std_out))))
        laws[member] = (parts, np.tile(weight, (len(SHIFTS) * len(spread), 1)).ravel())
    return laws


def global_std(member):
    """Of all scores on a side: between examples and within."""
    if not member:
        return np.sqrt(PLACE**2 + MEAN_SQUARE)
    mean_shift, mean_squared = np.mean(SHIFTS), np.mean(np.square(SHIFTS))
    shifts = mean_squared * MEAN_SQUARE - mean_shift**2 * SQUARE_MEAN
    return np.sqrt(PLACE**2 + shifts + NARROW**2 * MEAN_SQUARE)


def laws_of(variance, std_in, std_out):
    if variance == "-shrinkage":
        freedom = COUNT - 1

        def student(std, s0):
            square = (D0 * s0**2 + freedom * std**2) / (D0 + freedom)
            return t(D0 + freedom, 0, np.sqrt(square * (1 + 1 / COUNT)))

        return student(std_in, NARROW * S0), student(std_out, S0)
    if variance == "-global":
        std_in, std_out = global_std(True), global_std(False)
    if variance == "-pooled":
        std_in, std_out = NARROW * np.sqrt(MEAN_SQUARE), np.sqrt(MEAN_SQUARE)
    return norm(0, std_in), norm(0, std_out)


@cache
def integrated(name):
    """AUC and TPR at FPR, of the weighted laws of IN and OUT targets' scores."""
    _, kind, *variance = name.split("-")
    variance = "-" + variance[0] if variance else ""
    scores, weights = [], []
    for member in (True, False):
        parts, weight = nodes()[member]
        for phi, mean_in, std_in, mean_out, std_out in parts:
            inside, outside = laws_of(variance, std_in, std_out)
            if kind == "online":
                value = inside.logpdf(phi - mean_in) - outside.logpdf(phi - mean_out)
            else:
                value = -outside.logsf(phi - mean_out)
            scores.append(value.ravel())
        weights.append(weight / weight.sum())
    scores = np.concatenate(scores)
    order = np.argsort(-scores, kind="stable")
    member = np.arange(scores.size) < weights[0].size
    weight = np.concatenate(weights)[order]
    tpr = np.cumsum(weight * member[order])
    fpr = np.cumsum(weight * ~member[order])
    return np.array([np.trapezoid(tpr, fpr), np.interp(FPR, fpr, tpr)])


@pytest.mark.parametrize("variance", lira.VARIANCES)
@pytest.mark.parametrize("kind", ["online", "offline"])
def test_auc_and_tpr_agree_with_numerical_integration(kind, variance):
    name = f"lira-{kind}{variance}"
    found, expected = measured()[name], integrated(name)
    error = found.std(axis=0, ddof=1) / np.sqrt(POPULATIONS)
    # The tests below find integration good to 1.5 % of the TPR.
    allowed = 4 * error + expected * [0.001, 0.015]
    assert (np.abs(found.mean(axis=0) - expected) < allowed).all(), (found, expected)
    assert (error < expected * [0.002, 0.05]).all()


def test_the_integral_of_offline_scores_is_the_closed_form():
    # As OUT, (φ − μ̂)/σ̂ is √(1 + 1/n) times Student's t; as IN, times a non-central t, of numerator
    # N(δ, NARROW² + 1/n). With shrinkage t has D0 degrees of freedom more, for s̃²/σ² is χ² too.
    width = np.sqrt(NARROW**2 + 1 / COUNT)
    for name, freedom in (("", COUNT - 1), ("-shrinkage", COUNT - 1 + D0)):
        threshold = t(freedom).isf(FPR) * np.sqrt(1 + 1 / COUNT)
        expected = np.mean([nct(freedom, d / width).sf(threshold / width) for d in SHIFTS])
        assert integrated(f"lira-offline{name}")[1] == pytest.approx(expected, rel=0.015)


def test_the_integral_of_known_laws_is_the_closed_form():
    # Pooled σ, offline: φ − μ̂ is Gaussian given the example's σ, averaged over its quantiles.
    spread = S0 * np.sqrt(D0 / chi2(D0).ppf((np.arange(20_000) + 0.5) / 20_000))
    out = spread * np.sqrt(1 + 1 / COUNT)
    threshold = brentq(lambda c: norm.sf(c / out).mean() - FPR, 0, 50)
    width = spread * np.sqrt(NARROW**2 + 1 / COUNT)
    expected = np.mean([norm.sf((threshold - d * spread) / width).mean() for d in SHIFTS])
    assert integrated("lira-offline-pooled")[1] == pytest.approx(expected, rel=0.015)


# What scores are multiplied by, and what is added.
SCALES = st.floats(0.01, 100)
SHIFTS_OF_ALL = st.floats(-1e3, 1e3)


def case(seed):
    rng = np.random.default_rng(seed)
    keep = blocked_masks(rng, 12, 40)
    return rng, keep, uneven_scores(rng, keep, queries=2, shift=1)


@given(st.integers(0, 2**32 - 1), SCALES, SHIFTS_OF_ALL)
@settings(deadline=None, max_examples=10)
def test_the_unit_and_origin_of_scores_do_not_matter_to_lira(seed, scale, shift):
    _, keep, scores = case(seed)
    before, after = run(scores, keep), run(scale * scores + shift, keep)
    for name in before:
        # Shrinkage keeps log variances in float32.
        tolerance = 1e-4 if name.endswith("-shrinkage") else 1e-7
        np.testing.assert_allclose(after[name], before[name], tolerance, tolerance, err_msg=name)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=8)
def test_each_examples_own_origin_does_not_matter_but_to_a_global_variance(seed):
    rng, keep, scores = case(seed)
    before, after = run(scores, keep), run(scores + 10 * rng.normal(size=(40, 1)), keep)
    for name in before:
        close = np.allclose(after[name], before[name], 1e-4, 1e-4)
        if name.endswith("-global"):
            assert not close
        elif not name.endswith(("-online", "-offline")):
            assert close, name
        else:  # their floor is a share of the global σ
            assert np.isclose(after[name], before[name], 1e-4, 1e-4).mean() > 0.75, name


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=8)
def test_each_examples_own_unit_does_not_matter_to_a_variance_per_example(seed):
    rng, keep, scores = case(seed)
    units = np.exp(0.5 * rng.normal(size=(40, 1)))
    before, after = run(scores, keep), run(scores * units, keep)
    for name in before:
        same = np.isclose(after[name], before[name], 1e-6, 1e-6).mean()
        assert (same > 0.9) == name.endswith(("-online", "-offline")), name


@given(st.integers(0, 2**32 - 1), SCALES, st.floats(-20, 20))
@settings(deadline=None, max_examples=8)
def test_any_unit_and_origin_rank_a_loss_threshold_alike(seed, scale, shift):
    _, keep, scores = case(seed)
    got = []
    for phi in (scores, np.clip(scale, 0.1, 10) * scores + shift):
        score_set = ScoreSet(phi, keep, None, "test")
        loss = thresholds.yeom(score_set, references.find(score_set), AttackConfig())["yeom"]
        got.append(evaluation.summary(evaluation.roc(loss, keep)))
    assert got[0] == got[1]
