"""Variances shrunk towards what examples have in common, and Student's t as predictive law.

Per side (IN, OUT), view and fold, an example's n reference scores are Gaussian with a mean of which
nothing is known beforehand and a variance σ² drawn from the scaled inverse χ² law of d₀ degrees of
freedom and scale s₀²: the normal-inverse-gamma prior with a flat mean. With d = n − 1 and sample
variance s², conjugacy gives

- the variance s̃² = (d₀ s₀² + d s²) / (d₀ + d), and
- the law of one more score: Student's t of d₀ + d degrees of freedom about the references' mean, of
  scale s̃ √(1 + 1/n).

d₀ = ∞ pools the variances of all examples, d₀ → 0 leaves each its own (with Student's tails). d₀
and s₀² are estimated from the references of the fold alone (empirical Bayes): s²/s₀² follows
Snedecor's F(d, d₀) over examples, and the two are those at which the median and the interquartile
range of log s² are F's. The moments of log s² (Smyth, 2004, "Linear models and empirical Bayes
methods", section 6.2) say the same, but a single absurd score moves them, and variances of zero are
beyond them; quartiles bear both in up to a quarter of the examples.

NumPy and SciPy only. d₀ is held to MIN_FREEDOM … MAX_FREEDOM.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import betaln, erfcx, fdtri, gammaln, hyp2f1

from lira_jax.attacks.references import Moments

# The prior counts for at least one observation, so that scores that are equal by chance, or by
# saturation, do not make a variance of nothing.
MIN_FREEDOM = 1.0
# At so many, s̃ is the pooled σ to a few per cent. With more, an example of absurd spread would be
# given the usual σ, and absurd scores.
MAX_FREEDOM = 1e3
# The least variance, in units of φ²: about float32's resolution of φ. Only for equal scores.
MIN_VARIANCE = 1e-12

# Of the tail's polynomial: its degree, and the distance that is mapped to the middle.
DEGREE = 8
MIDDLE = 2 * np.sqrt(2)
# Degrees of freedom beyond which a tail's difference to the Gaussian's is taken as 1/ν of what it
# is at so many (within 1e-5).
NEARLY_GAUSSIAN = 300.0


@dataclass(frozen=True)
class Prior:
    """The law of variances over examples, for every fold and view.

    Attributes:
        freedom: d₀, [F, Q].
        variance: s₀², [F, Q].
    """

    freedom: Float[np.ndarray, "F Q"]
    variance: Float[np.ndarray, "F Q"]

    def posterior(
        self, squares: Float[np.ndarray, "F C Q"], freedom: int
    ) -> Float[np.ndarray, "F C Q"]:
        """s̃², from the sums of squared deviations from the examples' means, d s²."""
        prior = self.freedom[:, np.newaxis]
        shrunk = (prior * self.variance[:, np.newaxis] + squares) / (prior + freedom)
        return np.maximum(shrunk, MIN_VARIANCE)

    def predictive_scale(self, side: Moments) -> Float[np.ndarray, "F C Q"]:
        """s̃ √(1 + 1/n), of one more score about the references' centre."""
        return np.sqrt(self.posterior(side.squares, side.count - 1) * (1 + 1 / side.count))


class Evidence:
    """What the priors of both sides are fitted to, gathered by chunks of examples."""

    def __init__(self, folds: int, queries: int, examples: int) -> None:
        self._shape = (folds, queries, examples)
        self._lock = threading.Lock()
        self._counts = (0, 0)
        # float32 [F, Q, E]: log variances of a side, or if no side has any, IN less OUT.
        self._values: dict[str, Float[np.ndarray, "F Q E"]] = {}

    def add(self, chunk: slice, inside: Moments, outside: Moments) -> None:
        """Take in a chunk of examples; chunks may come from several threads."""
        values = {
            name: np.log(np.maximum(side.squares / (side.count - 1), MIN_VARIANCE))
            for name, side in (("in", inside), ("out", outside))
            if side.count > 1
        } or {"difference": inside.mean - outside.mean}
        with self._lock:
            self._counts = (inside.count, outside.count)
            for name in values:
                if name not in self._values:
                    self._values[name] = np.empty(self._shape, dtype=np.float32)
        for name, value in values.items():
            self._values[name][:, :, chunk] = value.transpose(0, 2, 1)

    def priors(self) -> tuple[Prior, Prior]:
        """The priors of IN and OUT; uses up the evidence.

        Where one reference makes a side's variances unknown, it takes the other side's prior, and
        where both have one, `fit_differences`.
        """
        if "difference" in self._values:
            prior = fit_differences(self._values.pop("difference"))
            return prior, prior
        priors = [
            fit(self._values.pop(name), count - 1)
            for name, count in zip(("in", "out"), self._counts, strict=True)
            if name in self._values
        ]
        return priors[0], priors[-1]


def fit(logs: Float[np.ndarray, "F Q E"], freedom: int) -> Prior:
    """The prior at which log F(d, d₀) + log s₀² has the quartiles of the log variances.

    Args:
        logs: log s² of all examples; sorted in place.
        freedom: d, at least 1.
    """
    lower, median, upper = _quartiles(logs)
    # Quartiles are nearly linear in 1/d₀ where F is nearly χ².
    inverse = np.geomspace(1 / MAX_FREEDOM, 1 / MIN_FREEDOM, 400)
    quartiles = np.array([0.25, 0.5, 0.75])[:, np.newaxis]
    table = np.log(fdtri(freedom, 1 / inverse, quartiles))
    matched = np.interp(upper - lower, table[2] - table[0], inverse)
    return Prior(
        freedom=1 / matched,
        variance=np.exp(median - np.interp(matched, inverse, table[1])),
    )


def fit_differences(differences: Float[np.ndarray, "F Q E"]) -> Prior:
    """One variance for all, where each side has one reference: half that of IN less OUT.

    Args:
        differences: of the two references' scores on each example; sorted in place. Their spread
            about their median also holds that of what training on an example does, so σ is rather
            too large than too small.
    """
    lower, _, upper = _quartiles(differences)
    std = (upper - lower) / 1.3489795003921634  # of a Gaussian with this interquartile range
    return Prior(np.full(std.shape, MAX_FREEDOM), std * std / 2)


def _quartiles(values: Float[np.ndarray, "F Q E"]) -> Float[np.ndarray, "3 F Q"]:
    """As `np.quantile`, sorting in place: for float32, several times as fast."""
    values.sort(axis=-1)
    place = np.array([0.25, 0.5, 0.75]) * (values.shape[-1] - 1)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, values.shape[-1] - 1)
    low, high = (np.moveaxis(values[..., at], -1, 0).astype(np.float64) for at in (below, above))
    return low + (place - below)[:, np.newaxis, np.newaxis] * (high - low)


def log_constant(freedom: Float[np.ndarray, "*S"]) -> Float[Any, "*S"]:
    """Log density of Student's t at 0, less that of the standard Gaussian."""
    return gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - np.log(freedom / 2) / 2


def tail_coefficients(freedom: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "D *S"]:
    """What `minus_log_tail` needs for these degrees of freedom, highest power first.

    With a = ν/2, u = t / √(1 + t²/ν) in [0, √ν) and x = 1 − u²/ν (DLMF 8.17.7, 26.5.2 of Abramowitz
    and Stegun),

        2 Pr[T ≥ t] = (1 + t²/ν)^(−a) · h(u), h(u) = ₂F₁(½, a; a + 1; x) / (a B(a, ½)),

    where h goes to erfcx(u/√2) as ν → ∞. So log h + log(1 + u/MIDDLE) is smooth in
    τ = 1/(1 + u/MIDDLE), on which it is interpolated at Chebyshev's nodes: absolute error below
    1e-5 for every ν, below 1e-6 for ν ≤ NEARLY_GAUSSIAN.
    """
    nodes = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
    nu = freedom[..., np.newaxis]
    least = 1 / (1 + np.sqrt(nu) / MIDDLE)
    tau = least + (1 - least) * (nodes + 1) / 2
    u = MIDDLE * (1 / tau - 1)
    capped = np.minimum(nu, NEARLY_GAUSSIAN)
    near = np.minimum(u, np.sqrt(capped))
    a = capped / 2
    exact = hyp2f1(0.5, a, a + 1, np.maximum(1 - near * near / capped, 0.0))
    more = np.log(exact / a) - betaln(a, 0.5) - np.log(erfcx(near / np.sqrt(2)))
    log_h = np.log(erfcx(u / np.sqrt(2))) + capped / nu * more
    powers = (2 * tau - 1)[..., np.newaxis] ** np.arange(DEGREE, -1, -1)
    solved = np.linalg.solve(powers, (log_h - np.log(tau))[..., np.newaxis])[..., 0]
    return np.moveaxis(solved, -1, 0)


def minus_log_tail(
    t: Float[np.ndarray, "*S"],
    freedom: Float[np.ndarray, "*#S"],
    coefficients: Float[np.ndarray, "D *#S"],
) -> Float[np.ndarray, "*S"]:
    """−log Pr[T ≥ t] of Student's t, rising for every t; several times as fast as SciPy's `stdtr`.

    Args:
        t: where.
        freedom: ν; broadcasts against t.
        coefficients: `tail_coefficients` of it.
    """
    squared = t * t / freedom
    part = np.abs(t) / (np.sqrt(1 + squared) * MIDDLE)  # u / MIDDLE
    place = 2 / (1 + part) - 1
    polynomial = coefficients[0]
    for coefficient in coefficients[1:]:
        polynomial = polynomial * place + coefficient
    tail = np.log1p(squared) * (freedom / 2) + np.log1p(part) + (np.log(2) - polynomial)
    return np.where(t < 0, -np.log1p(-np.exp(-tail)), tail)
