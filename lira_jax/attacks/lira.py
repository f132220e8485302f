"""The likelihood-ratio attack (LiRA, arXiv 2112.03570; docs/methods.md, 1 and 3).

Each example's scores φ under the models that trained on it (IN), and that did not (OUT), are taken
as Gaussian, one per view q. A target's score on the example is

- online:  Λ = Σ_q log N(φ_q; μ_in,q, σ_in,q²) − log N(φ_q; μ_out,q, σ_out,q²)
- offline: Λ = Σ_q −log Pr[Z ≥ φ_q], Z ~ N(μ_out,q, σ_out,q²): one-sided, and in log-space, so that
  confident members do not tie (3.4, 3.5).

Four estimates of σ, each for IN and OUT separately, each from the target's references alone (3.3):

- per example (`lira-online`, `lira-offline`): unbiased, from that example's references;
- `-global`: the standard deviation of all references' scores on all examples, so it includes the
  spread between examples; as in the public code;
- `-pooled`: the root mean square of the residuals within examples;
- `-shrinkage`: that example's, drawn towards what is usual over examples, the more so the fewer the
  references and the less variances differ between examples; Student's t, which knows how well σ is
  known, takes the Gaussian's place (`shrinkage.py`). One absurd score spoils `-global` and
  `-pooled` for all examples, and this one for its own example only.

Every σ of the first three is at least MIN_RELATIVE_STD of the global σ of its side and view (3.9).
With one reference on a side, nothing is known of a spread within examples: per-example and pooled σ
are then that floor, and the ranking is by distance to the centres; shrinkage takes the other side's
prior, or if that has one reference too, the spread of the two sides' differences over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr

from lira_jax.attacks import shrinkage
from lira_jax.attacks.references import (
    MIN_STD,
    Moments,
    References,
    Side,
    base_and_dropped,
    map_chunks,
    moments,
    with_floor,
)
from lira_jax.attacks.shrinkage import Evidence, Prior
from lira_jax.attacks.spread import Spread, merge, spread_of
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

VARIANCES = ("", "-global", "-pooled", "-shrinkage")


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of the eight variants, float64, higher = member."""
    return likelihoods(score_set, references, config, progress=progress)


def likelihoods(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    *,
    targets: Float[np.ndarray, "T E Q"] | None = None,
    variances: Sequence[str] = VARIANCES,
    progress: bool = False,
) -> dict[str, Float[np.ndarray, "T E"]]:
    """`lira-online` and `lira-offline` of chosen variances, float64, higher = member.

    Where some example leaves a target without IN references, `lira-offline` alone.

    Args:
        score_set: φ of the run's models.
        references: from `references.find`.
        config: views to use and the centre of references.
        targets: φ of models that are not among the run's. Their references are the whole base of
            each side: with blocks, all models; without, as many on every example as the one with
            the fewest has, as many as the run's own models have and one more, so that scores are
            of the same law as theirs. None: the run's own models, each against the models outside
            its fold.
        variances: which estimates of σ, of VARIANCES.
        progress: show progress bars.
    """
    models, examples, queries = score_set.scores.shape
    queries = config.queries or queries
    folds, per_fold = models // references.fold, references.fold
    if targets is not None:
        folds, per_fold = 1, targets.shape[0]
    evidence = Evidence(folds, queries, examples) if "-shrinkage" in variances else None
    kinds: tuple[str, ...] = ("online", "offline")
    used: tuple[Side, Side] = ("in", "out")
    if references.count_in == 0:  # OUT references stand in for IN ones, and go unused as such
        kinds, used = ("offline",), ("out", "out")

    def sides(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> tuple[Moments, Moments]:
        both = []
        for side in used:
            base, dropped = base_and_dropped(references, score_set.keep, chunk, side)
            if targets is not None:
                dropped = dropped[:1, :0]
            both.append(moments(scores, base, dropped, config.centre))
        return both[0], both[1]

    def spread_of_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> tuple[Spread, Spread]:
        inside, outside = sides(chunk, scores)
        if evidence is not None:
            evidence.add(chunk, inside, outside)
        return spread_of(inside), spread_of(outside)

    spreads = map_chunks(
        spread_of_chunk, score_set.scores, queries, "lira: spread of scores", progress
    )
    spread_in, spread_out = reduce(
        lambda a, b: (merge(a[0], b[0]), merge(a[1], b[1])),
        spreads,
    )
    student = None if evidence is None else _student(*evidence.priors(), spread_in, spread_out)
    evidence = None  # the largest array of all

    names = [f"lira-{kind}{variance}" for kind in kinds for variance in variances]
    result = {name: np.empty((folds * per_fold, examples)) for name in names}

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        inside, outside = sides(chunk, scores)
        phi = scores
        if targets is not None:
            phi = np.asarray(targets[:, chunk, :queries], dtype=np.float64)
        phi = phi.reshape(folds, per_fold, *phi.shape[1:])  # [F, B, C, Q]
        from_in = phi - inside.centre[:, np.newaxis]
        from_out = phi - outside.centre[:, np.newaxis]
        for variance in variances:
            if variance == "-shrinkage":
                assert student is not None
                online, offline = student(inside, outside, from_in, from_out)
            else:
                std_in = _std(inside, spread_in, variance)[:, np.newaxis]
                std_out = _std(outside, spread_out, variance)[:, np.newaxis]
                online, offline = _gaussian(std_in, std_out, from_in, from_out)
            for kind, found in (("online", online), ("offline", offline)):
                if kind in kinds:
                    result[f"lira-{kind}{variance}"][:, chunk] = found.reshape(folds * per_fold, -1)

    for _ in map_chunks(score_chunk, score_set.scores, queries, "lira: likelihoods", progress):
        pass
    return result


# Both scores, of targets' distances to the IN and OUT centres.
_Pair = tuple[Float[np.ndarray, "F B C"], Float[np.ndarray, "F B C"]]


def _gaussian(
    std_in: Float[np.ndarray, "F 1 #C Q"],
    std_out: Float[np.ndarray, "F 1 #C Q"],
    from_in: Float[np.ndarray, "F B C Q"],
    from_out: Float[np.ndarray, "F B C Q"],
) -> _Pair:
    z_in, z_out = from_in / std_in, from_out / std_out
    online = (np.log(std_out / std_in) + (z_out * z_out - z_in * z_in) / 2).sum(axis=-1)
    return online, -log_ndtr(-z_out).sum(axis=-1)


def _student(
    prior_in: Prior, prior_out: Prior, spread_in: Spread, spread_out: Spread
) -> Callable[[Moments, Moments, np.ndarray, np.ndarray], _Pair]:
    """As `_gaussian`, of the predictive laws of shrunk variances."""
    nu_in = (prior_in.freedom + (spread_in.count - 1))[:, np.newaxis, np.newaxis]  # [F, 1, 1, Q]
    nu_out = (prior_out.freedom + (spread_out.count - 1))[:, np.newaxis, np.newaxis]
    constant = shrinkage.log_constant(nu_in) - shrinkage.log_constant(nu_out)
    coefficients = shrinkage.tail_coefficients(nu_out)

    def scores(
        inside: Moments,
        outside: Moments,
        from_in: Float[np.ndarray, "F B C Q"],
        from_out: Float[np.ndarray, "F B C Q"],
    ) -> _Pair:
        scale_in = prior_in.predictive_scale(inside)[:, np.newaxis]
        scale_out = prior_out.predictive_scale(outside)[:, np.newaxis]
        t_in, t_out = from_in / scale_in, from_out / scale_out
        online = np.log1p(t_out * t_out / nu_out) * ((nu_out + 1) / 2)
        online -= np.log1p(t_in * t_in / nu_in) * ((nu_in + 1) / 2)
        online += np.log(scale_out / scale_in) + constant
        offline = shrinkage.minus_log_tail(t_out, nu_out, coefficients)
        return online.sum(axis=-1), offline.sum(axis=-1)

    return scores


def _std(side: Moments, spread: Spread, variance: str) -> Float[np.ndarray, "F #C Q"]:
    """σ of one side: per example, [F, C, Q], or one for all examples, [F, 1, Q]."""
    overall = np.maximum(np.sqrt(spread.variance), MIN_STD)[:, np.newaxis]
    freedom = max(spread.count - 1, 1)
    if variance == "-global":
        return overall
    if variance == "-pooled":
        std = np.sqrt(spread.within / (spread.examples * freedom))[:, np.newaxis]
    else:
        std = np.sqrt(side.squares / freedom)
    return with_floor(std, overall)
