"""BaVarIA, Bayesian variance inference (Brännvall, 2026, arXiv 2603.11799; docs/methods.md, 2).

LiRA, RMIA and BASE are log-likelihood ratios of one exponential family, which differ in how many
parameters they estimate per example. BaVarIA is the member in which an example's mean and variance,
per side (IN, OUT), have the conjugate prior that the side's scores on all examples suggest:

    σ² ~ inverse gamma(α₀, β₀),  μ | σ² ~ N(μ₀, σ²/κ₀),  φ ~ N(μ, σ²),

with μ₀ the side's mean over all examples and their references, κ₀ = 1, and β₀ = the variance of the
same scores times (α₀ − 1), or that variance itself if α₀ ≤ 1. With n references of mean x̄ and sum
of squared deviations S,

    κ_n = κ₀ + n,  μ_n = (κ₀ μ₀ + n x̄)/κ_n,  α_n = α₀ + n/2,
    β_n = β₀ + ½ S + ½ κ₀ n (x̄ − μ₀)²/κ_n.

- `bavaria-t` (α₀ = 2): the law of one more score, Student's t of 2 α_n degrees of freedom about
  μ_n, of squared scale β_n (κ_n + 1)/(α_n κ_n);
- `bavaria-n` (α₀ = 1): a Gaussian about x̄ of variance β_n/(α_n − 1).

`-online` scores are log p(φ | IN) − log p(φ | OUT). `-offline` knows no models that trained on the
example: its IN law is what the IN prior alone says, so that the score is a ratio still, and no
one-sided tail. Of `bavaria-n` that is a Gaussian of the prior's own variance, as β₀/(α₀ − 1) has no
value.

Left open there, and chosen here: views have a law each and their log-ratios are summed, as
in LiRA; the offline IN prior is taken from all other examples, so that no IN score of the example
itself is used; prior variances are at least MIN_STD². Priors are those of the target's fold, from
its references alone, as is all else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln

from lira_jax.attacks.references import (
    MIN_STD,
    Moments,
    References,
    base_and_dropped,
    map_chunks,
    moments,
)
from lira_jax.attacks.spread import Spread, merge, spread_of
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# α₀ of the two variants, and κ₀ of both.
ALPHA_T, ALPHA_N = 2.0, 1.0
KAPPA = 1.0

NAMES = ("bavaria-n-online", "bavaria-t-online", "bavaria-n-offline", "bavaria-t-offline")


@dataclass(frozen=True)
class NormalInverseGamma:
    """The law of an example's mean and variance on one side.

    Attributes:
        mean: μ, per fold, example (or one for all) and view.
        kappa: κ, how many observations the mean counts for.
        alpha: α of the variance.
        beta: β of the variance, shaped as the mean.
    """

    mean: Float[np.ndarray, "F #C Q"]
    kappa: float
    alpha: float
    beta: Float[np.ndarray, "F #C Q"]

    def given(self, side: Moments) -> NormalInverseGamma:
        """The law once the references' scores are known."""
        kappa = self.kappa + side.count
        away = side.mean - self.mean
        return NormalInverseGamma(
            mean=self.mean + (side.count / kappa) * away,
            kappa=kappa,
            alpha=self.alpha + side.count / 2,
            beta=self.beta + (side.squares + (self.kappa * side.count / kappa) * away * away) / 2,
        )

    def log_predictive(self, scores: Float[np.ndarray, "F B C Q"]) -> Float[np.ndarray, "F B C"]:
        """Log density of one more score, Student's t, summed over views."""
        freedom = 2 * self.alpha
        square = self.beta * (self.kappa + 1) / (self.alpha * self.kappa)
        constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - np.log(np.pi * freedom) / 2
        at_mean = (constant - np.log(square) / 2).sum(axis=-1)
        squared = scores - self.mean[:, np.newaxis]
        squared *= squared
        squared *= (1 / (freedom * square))[:, np.newaxis]
        tail = np.log1p(squared, out=squared).sum(axis=-1) * ((freedom + 1) / 2)
        return at_mean[:, np.newaxis] - tail


def prior(
    mean: Float[np.ndarray, "F #C Q"], variance: Float[np.ndarray, "F #C Q"], alpha: float
) -> NormalInverseGamma:
    """The prior of one side.

    Args:
        mean, variance: of the side's scores on all examples.
        alpha: α₀.
    """
    beta = variance * (alpha - 1) if alpha > 1 else variance
    return NormalInverseGamma(mean, KAPPA, alpha, beta)


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of the four NAMES, float64, higher = member."""
    models, examples, queries = score_set.scores.shape
    queries = config.queries or queries

    def sides(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> tuple[Moments, Moments]:
        inside, outside = (
            moments(scores, *base_and_dropped(references, score_set.keep, chunk, side))
            for side in ("in", "out")
        )
        return inside, outside

    def spreads_of(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> tuple[Spread, Spread]:
        inside, outside = sides(chunk, scores)
        return spread_of(inside), spread_of(outside)

    all_in, all_out = reduce(
        lambda a, b: (merge(a[0], b[0]), merge(a[1], b[1])),
        map_chunks(spreads_of, score_set.scores, queries, "bavaria: priors", progress),
    )
    result = {name: np.empty((models, examples)) for name in NAMES}

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        inside, outside = sides(chunk, scores)
        phi = scores.reshape(-1, references.fold, *scores.shape[1:])  # [F, B, C, Q]
        gaussian_in, student_in = _laws(phi, inside, all_in)
        gaussian_out, student_out = _laws(phi, outside, all_out)
        mean, variance = all_in.of_others(inside)
        variance = _with_floor(variance)
        gaussian_prior = _log_normal(phi, mean, variance)
        student_prior = prior(mean, variance, ALPHA_T).log_predictive(phi)
        found = {
            "bavaria-n-online": gaussian_in - gaussian_out,
            "bavaria-t-online": student_in - student_out,
            "bavaria-n-offline": gaussian_prior - gaussian_out,
            "bavaria-t-offline": student_prior - student_out,
        }
        for name, ratios in found.items():
            result[name][:, chunk] = ratios.reshape(models, -1)

    for _ in map_chunks(score_chunk, score_set.scores, queries, "bavaria", progress):
        pass
    return result


def _laws(
    phi: Float[np.ndarray, "F B C Q"], side: Moments, everyone: Spread
) -> tuple[Float[np.ndarray, "F B C"], Float[np.ndarray, "F B C"]]:
    """Log densities of the targets' scores on a side, of `bavaria-n` and of `bavaria-t`."""
    mean = everyone.mean[:, np.newaxis]
    variance = _with_floor(everyone.variance)[:, np.newaxis]
    stabilised = prior(mean, variance, ALPHA_N).given(side)
    gaussian = _log_normal(phi, side.mean, stabilised.beta / (stabilised.alpha - 1))
    return gaussian, prior(mean, variance, ALPHA_T).given(side).log_predictive(phi)


def _with_floor(variance: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    return np.maximum(variance, MIN_STD * MIN_STD)


def _log_normal(
    phi: Float[np.ndarray, "F B C Q"],
    mean: Float[np.ndarray, "F C Q"],
    variance: Float[np.ndarray, "F C Q"],
) -> Float[np.ndarray, "F B C"]:
    """Log density summed over views."""
    squared = phi - mean[:, np.newaxis]
    squared *= squared
    squared *= (1 / variance)[:, np.newaxis]
    return -(np.log(2 * np.pi * variance).sum(axis=-1)[:, np.newaxis] + squared.sum(axis=-1)) / 2
