"""The likelihood-ratio attack (LiRA, arXiv 2112.03570; METHODS.md, 1 and 3).

Each example's scores φ under the models that trained on it (IN), and that did not (OUT), are taken
as Gaussian, one per view q. A target's score on the example is

- online:  Λ = Σ_q log N(φ_q; μ_in,q, σ_in,q²) − log N(φ_q; μ_out,q, σ_out,q²)
- offline: Λ = Σ_q −log Pr[Z ≥ φ_q], Z ~ N(μ_out,q, σ_out,q²): one-sided, and in log-space, so that
  confident members do not tie (3.4, 3.5).

Three estimates of σ, each for IN and OUT separately, each from the target's references alone (3.3):

- per example (`lira-online`, `lira-offline`): unbiased, from that example's references;
- `-global`: the standard deviation of all references' scores on all examples, so it includes the
  spread between examples; as in the public code;
- `-pooled`: the root mean square of the residuals within examples.

Every σ is at least MIN_RELATIVE_STD of the global σ of its side and view (3.9). With one reference
on a side, nothing is known of a spread within examples: per-example and pooled σ are then that
floor, and the ranking is by distance to the centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr

from lira_jax.attacks.references import Moments, References, base_and_dropped, map_chunks, moments
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# The least σ, as a share of the global σ of the same side and view.
MIN_RELATIVE_STD = 0.01
# The least σ, in units of φ: about its float32 resolution. Only for scores that are all equal.
MIN_STD = 1e-6

VARIANCES = ("", "-global", "-pooled")


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of the six variants, float64, higher = member."""
    models, examples, queries = score_set.scores.shape
    queries = config.queries or queries
    fold = references.fold

    def sides(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> tuple[Moments, Moments]:
        keep = score_set.keep
        inside = moments(scores, *base_and_dropped(references, keep, chunk, "in"), config.centre)
        outside = moments(scores, *base_and_dropped(references, keep, chunk, "out"), config.centre)
        return inside, outside

    def spread_of_chunk(
        chunk: slice, scores: Float[np.ndarray, "N C Q"]
    ) -> tuple[_Spread, _Spread]:
        inside, outside = sides(chunk, scores)
        return _spread(inside), _spread(outside)

    spreads = map_chunks(
        spread_of_chunk, score_set.scores, queries, "lira: spread of scores", progress
    )
    spread_in, spread_out = reduce(
        lambda a, b: (_merge(a[0], b[0]), _merge(a[1], b[1])),
        spreads,
    )

    names = [f"lira-{kind}{variance}" for kind in ("online", "offline") for variance in VARIANCES]
    result = {name: np.empty((models, examples)) for name in names}

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        inside, outside = sides(chunk, scores)
        targets = scores.reshape(-1, fold, *scores.shape[1:])  # [F, B, C, Q]
        from_in = targets - inside.centre[:, np.newaxis]
        from_out = targets - outside.centre[:, np.newaxis]
        for variance in VARIANCES:
            std_in = _std(inside, spread_in, variance)[:, np.newaxis]
            std_out = _std(outside, spread_out, variance)[:, np.newaxis]
            z_in, z_out = from_in / std_in, from_out / std_out
            offline = -log_ndtr(-z_out).sum(axis=-1)
            online = (np.log(std_out / std_in) + (z_out * z_out - z_in * z_in) / 2).sum(axis=-1)
            result[f"lira-offline{variance}"][:, chunk] = offline.reshape(models, -1)
            result[f"lira-online{variance}"][:, chunk] = online.reshape(models, -1)

    for _ in map_chunks(score_chunk, score_set.scores, queries, "lira: likelihoods", progress):
        pass
    return result


@dataclass(frozen=True)
class _Spread:
    """Spread of one side's reference scores over a set of examples, per fold and view.

    Attributes:
        examples: how many.
        count: references per example.
        mean: mean over examples of the examples' means, [F, Q].
        within: sum of squared deviations from the examples' own means, [F, Q].
        between: sum over examples of the squared deviation of their means from `mean`, [F, Q].
    """

    examples: int
    count: int
    mean: Float[np.ndarray, "F Q"]
    within: Float[np.ndarray, "F Q"]
    between: Float[np.ndarray, "F Q"]


def _spread(side: Moments) -> _Spread:
    mean = side.mean.mean(axis=1)
    deviation = side.mean - mean[:, np.newaxis]
    return _Spread(
        examples=side.mean.shape[1],
        count=side.count,
        mean=mean,
        within=side.squares.sum(axis=1),
        between=(deviation * deviation).sum(axis=1),
    )


def _merge(a: _Spread, b: _Spread) -> _Spread:
    """The spread over two disjoint sets of examples."""
    examples = a.examples + b.examples
    step = b.mean - a.mean
    return _Spread(
        examples=examples,
        count=a.count,
        mean=a.mean + step * (b.examples / examples),
        within=a.within + b.within,
        between=a.between + b.between + step * step * (a.examples * b.examples / examples),
    )


def _std(side: Moments, spread: _Spread, variance: str) -> Float[np.ndarray, "F C|1 Q"]:
    """σ of one side: per example, [F, C, Q], or one for all examples, [F, 1, Q]."""
    total = spread.within + spread.count * spread.between
    overall = np.sqrt(total / (spread.examples * spread.count - 1))
    overall = np.maximum(overall, MIN_STD)[:, np.newaxis]
    freedom = max(spread.count - 1, 1)
    if variance == "-global":
        return overall
    if variance == "-pooled":
        std = np.sqrt(spread.within / (spread.examples * freedom))[:, np.newaxis]
    else:
        std = np.sqrt(side.squares / freedom)
    return np.maximum(std, np.maximum(MIN_RELATIVE_STD * overall, MIN_STD))
