"""BaVarIA and PMIA on a population of known Gaussian laws: measured against integrated figures.

An example has a place μ ~ N(0, PLACE²) and the spread 1. Its scores are N(μ, 1) as OUT, and
N(μ + SHIFT, NARROW²) as IN, so what the attacks have from all examples is known: the mean is 0 or
SHIFT, and the variance is PLACE² + 1 or PLACE² + NARROW². A target's score is then a function of
its own deviate, its place, and the references' means (Gaussian) and sums of squares (χ²), over
which it is integrated by Sobol points.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import chi2, norm, qmc, t

from lira_jax.attacks import bavaria, pmia, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import auc_and_tpr, blocked_masks

PLACE, SHIFT, NARROW = 2.0, 1.5, 0.7
MODELS, EXAMPLES, POPULATIONS = 12, 12_000, 4
COUNT = MODELS // 2 - 1  # references on each side
FPR = 1e-2


@cache
def measured():
    """By name, AUC and TPR of each population."""
    found = {}
    for seed in range(POPULATIONS):
        rng = np.random.default_rng(seed)
        keep = blocked_masks(rng, MODELS, EXAMPLES)
        noise = rng.normal(size=keep.shape)
        place = PLACE * rng.normal(size=EXAMPLES)
        scores = place + np.where(keep, SHIFT + NARROW * noise, noise)
        score_set = ScoreSet(scores[..., np.newaxis], keep, 2, "population")
        arguments = score_set, references.find(score_set), AttackConfig()
        for name, values in (bavaria.attack(*arguments) | pmia.all_examples(*arguments)).items():
            found.setdefault(name, []).append(auc_and_tpr(values, keep, FPR))
    return {name: np.array(values) for name, values in found.items()}


def bavaria_laws(mean, squares, prior_mean, prior_variance):
    """Of one more score, BaVarIA-n's and -t's."""
    beta = prior_variance + squares / 2 + COUNT * (mean - prior_mean) ** 2 / (1 + COUNT) / 2
    alpha, kappa = 2 + COUNT / 2, 1 + COUNT
    place = (prior_mean + COUNT * mean) / kappa
    student = t(2 * alpha, place, np.sqrt(beta * (kappa + 1) / (alpha * kappa)))
    return norm(mean, np.sqrt(beta / (COUNT / 2))), student


@cache
def integrated():
    """By name, AUC and TPR over the population."""
    prior_in = SHIFT, PLACE**2 + NARROW**2
    prior_out = 0.0, PLACE**2 + 1
    std_in = np.sqrt(prior_in[1])
    scores = {}
    for member in (True, False):
        points = qmc.Sobol(6, seed=0).random_base2(15)
        place, deviate, in_mean, out_mean = norm.ppf(points[:, :4]).T
        in_squares, out_squares = chi2.ppf(points[:, 4:], COUNT - 1).T
        place = PLACE * place
        phi = place + (SHIFT + NARROW * deviate if member else deviate)
        in_mean = place + SHIFT + NARROW * in_mean / np.sqrt(COUNT)
        out_mean = place + out_mean / np.sqrt(COUNT)
        laws_in = bavaria_laws(in_mean, NARROW**2 * in_squares, *prior_in)
        laws_out = bavaria_laws(out_mean, out_squares, *prior_out)
        priors = norm(SHIFT, std_in), t(4, SHIFT, std_in)
        for kind, law_in, prior, law_out in zip("nt", laws_in, priors, laws_out, strict=True):
            outside = law_out.logpdf(phi)
            scores[f"bavaria-{kind}-online", member] = law_in.logpdf(phi) - outside
            scores[f"bavaria-{kind}-offline", member] = prior.logpdf(phi) - outside
        own = norm(out_mean, np.sqrt(out_squares / (COUNT - 1)))
        scores["pmia-all", member] = priors[0].logpdf(phi) - own.logpdf(phi)
    return {
        name: auc_and_tpr(
            np.stack([scores[name, True], scores[name, False]]),
            np.stack([np.ones(phi.size, bool), np.zeros(phi.size, bool)]),
            FPR,
        )
        for name, member in scores
        if member
    }


@pytest.mark.parametrize("name", [*bavaria.NAMES, "pmia-all"])
def test_auc_and_tpr_agree_with_numerical_integration(name):
    found, expected = measured()[name], integrated()[name]
    error = found.std(axis=0, ddof=1) / np.sqrt(POPULATIONS)
    allowed = 4 * error + expected * [0.001, 0.015]
    assert (np.abs(found.mean(axis=0) - expected) < allowed).all(), (found, expected)
    assert (error < expected * [0.003, 0.05]).all()
