"""The law of `hierarchical.py`, found in the references of many examples.

The eleven numbers are those of the greatest evidence, by L-BFGS: lines that stand for h are drawn
about where references lie, the evidence is maximised along them with its exact gradient, and lines
are drawn anew until the evidence no longer changes. Its gradient is the mean, over what references
leave open, of the gradient that all means and kinds known would give (Fisher's identity).

**Priors.** Some of the numbers hardly differ between runs of unlike data and networks, where many
models show them (docs/methods.md, 1): they are PRIORS, of the weight of one measurement each. A
thousand examples with many references overrule them; with one or two references each they decide
what so few cannot tell: how much of what scores differ by is noise, and how noise differs.

An example that no value of v explains (an absurd score) is left to a kind without limits, and has
no part in the law.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from lira_jax.attacks.hierarchical import (
    LEAST_REST,
    Law,
    Side,
    line_about,
    line_at,
    log_sum,
    posterior,
)
from lira_jax.errors import InputError

# By number, what it is about and how far it may lie from that. In units of √v₀ for m₁.
PRIORS = {
    "log_spread": (np.log(0.58), 0.15),
    "level": (1.2, 0.8),
    "level_slope": (1.0, 0.3),
    "mean_slope": (0.0, 1.0),
    "reach_slope": (0.62, 0.12),
    "log_scale": (np.log(3.5), 0.3),
    "log_varied": (np.log(0.27), 0.1),
    "floor": (-1.65, 0.2),
}
NAMES = tuple(Law.__dataclass_fields__)[:-1]

# How often lines are drawn anew, and steps in between; the change of the mean log evidence of an
# example that is none; and for L-BFGS, as a share.
ROUNDS, STEPS = 8, 50
TOLERANCE = 1e-5
SMALL = 1e-8
# How far from where it starts a number may come: by its prior, as a logarithm, the mean in widths.
FAR = 8.0
# The least noise, as a share of the spread of means, and where all scores are equal: about
# float32's resolution of φ.
LEAST_NOISE = 1e-6
LEAST_VARIANCE = 1e-12
# The kind without limits: its share, and how many times as wide as all scores.
LOUD_SHARE = 1e-4
LOUD = 30.0
# Interquartile range of a Gaussian.
QUARTILES = 1.3489795003921634


def fit(out: Side, inside: Side) -> Law:
    """The law of these examples.

    Args:
        out, inside: references of C examples; any numbers of them.

    Raises:
        InputError: references are all IN or all OUT; or no law found, which finite scores never
            come to.
    """
    start, width = _start(out, inside)
    where, spread = _prior(start)
    loud = _loud(start, width, out, inside)
    numbers = start.numbers()
    limit = np.where(np.isfinite(spread), FAR * spread, FAR)
    limit[NAMES.index("mean")] = FAR * np.sqrt(width)
    bounds = list(zip(numbers - limit, numbers + limit, strict=True))
    examples = out.mean.size
    last, settled = np.inf, False
    for _ in range(ROUNDS):
        line = line_about(Law(*numbers).kinds(), out, inside)

        def cost(
            at: Float[np.ndarray, " 11"], place: Float[np.ndarray, "K C"] = line.place
        ) -> tuple[float, Float[np.ndarray, " 11"]]:
            value, gradient = evidence(Law(*at), place, out, inside, loud)
            away = (at - where) / spread
            value -= 0.5 * float(away @ away)
            return -value / examples, (away / spread - gradient) / examples

        found = minimize(
            cost, numbers, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": STEPS, "ftol": SMALL},
        )  # fmt: skip
        numbers = found.x
        if not np.isfinite(found.fun):
            break
        settled = abs(found.fun - last) < TOLERANCE
        last = found.fun
        if settled:
            break
    if not (np.isfinite(numbers).all() and np.isfinite(last)):
        raise InputError(
            f"lira-bayes: no law fits the scores of these {examples} examples; look for absurd or "
            "constant scores, and leave such models or examples out"
        )
    return replace(Law(*numbers.tolist()), converged=settled)


def evidence(
    law: Law,
    place: Float[np.ndarray, "K C"],
    out: Side,
    inside: Side,
    loud: Float[np.ndarray, " C"],
) -> tuple[float, Float[np.ndarray, " 11"]]:
    """The sum of log p(references) over examples, and its gradient by the law's numbers.

    Args:
        law: as it is.
        place: where lines are drawn; held fixed.
        out, inside: references.
        loud: log evidence of the kind without limits, times its share.
    """
    kinds = law.kinds()
    line = line_at(kinds, place)
    known = posterior(kinds, line, out, inside)
    total = np.logaddexp(log_sum(known.log_evidence, axis=0), loud)
    weight = np.exp(known.log_evidence - total)

    # Of log v by OUT and by IN scores, were means known; each squared is the mean of a square.
    squares = out.squares + out.count * ((out.mean - known.out) ** 2 + known.var_out)
    of_out = 0.5 * (squares / kinds.noise - out.count)
    squares = inside.squares + inside.count * ((inside.mean - known.inside) ** 2 + known.var_in)
    of_in = 0.5 * (squares / line.noise_in - inside.count)
    # Of μ_out about its mean, and of μ_in about the line.
    from_mean, from_place = known.out - kinds.mean, known.out - place
    of_mean = from_mean / kinds.level
    of_level = 0.5 * ((from_mean**2 + known.var_out) / kinds.level - 1)
    b, gap = line.b, 1 - line.b
    off = known.inside - place - line.added - b * from_place
    off_squared = off**2 + known.var_in - 2 * b * known.cov + b * b * known.var_out
    of_rest = 0.5 * (off_squared / line.rest - 1) / line.rest
    varied = np.square(kinds.varied * gap)
    softened = kinds.floor + (1 - kinds.floor) * b * b
    of_b = (
        (off * from_place + known.cov - b * known.var_out) / line.rest
        - 2 * of_rest * kinds.varied**2 * gap
        + 2 * of_in * (1 - kinds.floor) * b / softened
    )
    # The line's slope and height go with (a − place)/T.
    of_below = -of_b * b * gap + off / line.rest * kinds.scale * gap
    of_noise = of_out + of_in + of_rest * LEAST_REST * kinds.noise

    def mean(values: Float[np.ndarray, "K C"]) -> Float[np.ndarray, "K 1"]:
        return (weight * values).sum(axis=1, keepdims=True)

    of_mean, of_level, of_below_all, of_noise = map(mean, (of_mean, of_level, of_below, of_noise))
    of_varied = float((weight * 2 * of_rest * varied).sum())
    of_scale = float(
        (weight * (of_below * place / kinds.scale + off / line.rest * line.added)).sum()
    ) + of_varied - float(of_below_all.sum()) * law.mean / kinds.scale  # fmt: skip
    u = kinds.u
    of_u = of_noise + of_level * law.level_slope + of_mean * law.mean_slope
    of_u = of_u + of_below_all * law.reach_slope
    of_floor = float((weight * of_in * (1 - b * b) / softened).sum())
    gradient = [
        (of_noise + of_level).sum(),
        (of_u * u).sum(),
        of_level.sum(),
        (of_level * u).sum(),
        of_mean.sum() + of_below_all.sum() / kinds.scale,
        (of_mean * u).sum(),
        of_below_all.sum(),
        (of_below_all * u).sum(),
        of_scale,
        of_varied,
        of_floor * kinds.floor * (1 - kinds.floor),
    ]
    return float(total.sum()), np.array(gradient)


def _prior(start: Law) -> tuple[Float[np.ndarray, " 11"], Float[np.ndarray, " 11"]]:
    """Where each number is expected, and how far off it may be; no limit where nothing is known."""
    where = np.array([PRIORS.get(name, (0.0, np.inf))[0] for name in NAMES])
    spread = np.array([PRIORS.get(name, (0.0, np.inf))[1] for name in NAMES])
    spread[NAMES.index("mean_slope")] *= np.exp(0.5 * start.log_noise)
    return where, spread


def _start(out: Side, inside: Side) -> tuple[Law, float]:
    """Where the fit starts, by medians and quartiles; and how widely single scores vary."""
    n_o, n_i = (np.broadcast_to(s.count, s.mean.shape) for s in (out, inside))
    x_o, x_i = out.mean[n_o > 0], inside.mean[n_i > 0]
    if not (x_o.size and x_i.size):
        raise InputError(
            "lira-bayes: a target's references are all IN or all OUT; give models that trained on "
            "some of the examples and not on others"
        )
    expected = {name: about for name, (about, _) in PRIORS.items()}
    spread = max(_width(x_o) ** 2, _width(x_i) ** 2, LEAST_VARIANCE)
    both, several = (n_o > 0) & (n_i > 0), n_o > 1
    if several.any():
        noise = float(np.median(out.squares[several] / (n_o[several] - 1)))
    elif both.any():
        noise = _width((inside.mean - out.mean)[both]) ** 2 / 2
    else:
        noise = spread / (1 + np.exp(expected["level"]))
    noise = max(noise, LEAST_NOISE * spread + LEAST_VARIANCE)
    level = max(_width(x_o) ** 2 - noise / float(n_o[n_o > 0].mean()), 0.1 * noise)
    mean = float(np.median(x_o))
    added = float(
        np.median((inside.mean - out.mean)[both]) if both.any() else np.median(x_i) - mean
    )
    scale = np.exp(expected["log_scale"])
    added = max(added, 0.05 * np.sqrt(noise))
    law = Law(
        log_noise=float(np.log(noise)), level=float(np.log(level / noise)), mean=mean,
        reach=float(added / scale + np.log(-np.expm1(-added / scale))),
        **{name: about for name, about in expected.items() if name != "level"},
    )  # fmt: skip
    return law, spread + noise


def _width(values: Float[np.ndarray, " C"]) -> float:
    """A standard deviation by quartiles; of few or mostly equal values by all."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float((high - low) / QUARTILES) or float(values.std())


def _loud(start: Law, width: float, out: Side, inside: Side) -> Float[np.ndarray, " C"]:
    """Log evidence, times its share, of scores that are anywhere about."""
    variance = LOUD**2 * width
    total = 0.0
    for side in (out, inside):
        count = side.count
        far = side.squares + count * (side.mean - start.mean) ** 2 / (1 + count)
        total = total + count * np.log(variance) + np.log1p(count) + far / variance
    return np.log(LOUD_SHARE) - 0.5 * np.broadcast_to(total, out.mean.shape)
