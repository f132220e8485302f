"""Quantile regression (Bertran et al., arXiv 2307.03694), on φ.

The paper predicts, from an example alone, quantiles of the score of a model that did not train on
it, and calls a member what scores above. Here the prediction has the example's other OUT scores to
go by, which tell more than the image. For a pair of a model and an example with n OUT references
of mean μ and sum of squared deviations S (φ is the mean over views):

- s² = (S + PRIOR σ²) / (n − 1 + PRIOR), with σ² the mean variance within examples (USUAL), and
  u = (φ − μ) / (s √(1 + 1/n));
- gradient-boosted trees predict the median and the UPPER quantile of u from μ and log s. They are
  fitted on a subsample of at most MAX_PAIRS OUT pairs of other models and other examples
  (`cross_fit`), whose references leave out the target's group and the pair's own fold;
- the score is (u − median) / (upper quantile − median): how far up in the OUT law, in units of its
  own upper half. It passes 1 where the paper's attack at a false-positive rate of 1 − UPPER says
  member, and goes on rising.

With fewer than MIN_PAIRS pairs to fit on, and with two folds, where they have no references, the
quantiles are those of a standard normal law, and the score is u but for a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri
from threadpoolctl import threadpool_limits

from lira_jax import workers
from lira_jax.attacks import cross_fit, draws
from lira_jax.attacks.references import References, out_statistics, with_floor
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

UPPER = 0.95
PRIOR = 4.0
# Variances above this quantile of theirs count as that much in their mean: one far-off score would
# otherwise widen s on all examples.
USUAL = 0.99
MAX_PAIRS = 10_000
MIN_PAIRS = 2_000
TREES = 20
# Pairs in a leaf, so that some are above the upper quantile.
LEAF = 100
GROUPS = 4
# The least distance from median to upper quantile; under a standard normal law it is 1.64.
MIN_WIDTH = 0.1


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`quantile-regression`, float64, higher = member."""
    queries = config.queries or score_set.scores.shape[2]
    phi, mean, squares = out_statistics(
        score_set, references, queries, "quantiles: references", progress
    )
    count = np.array(references.count_out)
    std = np.stack([_std(*fold, count) for fold in zip(mean, squares, strict=True)])
    result = np.empty(phi.shape)
    noise = draws.noise(score_set)
    splits = cross_fit.splits(score_set, references, GROUPS)

    def attack_split(split: cross_fit.Split) -> None:
        per_fold = np.ix_(split.targets[:: references.fold], split.examples)
        center, unit = mean[per_fold], std[per_fold]  # [F, C]
        median, upper = _quantiles(
            _fit(phi, score_set.keep, noise, references.fold, split), center, unit
        )
        attacked = np.ix_(split.targets, split.examples)
        targets = phi[attacked].reshape(len(center), references.fold, -1)
        u = (targets - center[:, np.newaxis]) / (unit * np.sqrt(1 + 1 / count))[:, np.newaxis]
        width = np.maximum(upper - median, MIN_WIDTH)
        score = (u - median[:, np.newaxis]) / width[:, np.newaxis]
        result[attacked] = score.reshape(-1, score.shape[-1])

    workers.each(attack_split, splits, GROUPS, "quantiles", progress)
    return {"quantile-regression": result}


def _std(
    mean: Float[np.ndarray, " P"], squares: Float[np.ndarray, " P"], count: np.ndarray
) -> Float[np.ndarray, " P"]:
    """The scale s of each example or pair, from its references and their number."""
    freedom = np.broadcast_to(count - 1, mean.shape)
    variance = squares / np.maximum(freedom, 1)
    most = np.quantile(variance, USUAL)
    within = np.average(np.minimum(variance, most), weights=np.maximum(freedom, 1e-9))
    std = np.sqrt((squares + PRIOR * within) / (freedom + PRIOR))
    return with_floor(std, float(mean.std()))


def _fit(
    phi: Float[np.ndarray, "N E"],
    keep: Bool[np.ndarray, "N E"],
    noise: np.ndarray,
    fold: int,
    split: cross_fit.Split,
) -> tuple[Any, Any] | None:
    """Regressors of median and upper quantile for a split; None with too few pairs."""
    among = ~split.targets[:, np.newaxis] & ~split.examples & ~keep
    chosen = cross_fit.lowest(noise.ravel(), np.flatnonzero(among), MAX_PAIRS)
    model, example = np.divmod(chosen, phi.shape[1])
    fold_of = np.arange(len(phi)) // fold
    reference = ~keep[:, example] & ~split.targets[:, np.newaxis]
    reference &= fold_of[:, np.newaxis] != fold_of[model]
    count = reference.sum(axis=0)
    usable = count > 0
    if usable.sum() < MIN_PAIRS:
        return None
    model, example, reference, count = (
        model[usable], example[usable], reference[:, usable], count[usable],
    )  # fmt: skip
    scores = phi[:, example]
    mean = scores.mean(axis=0, where=reference)
    squares = np.square(scores - mean).sum(axis=0, where=reference)
    std = _std(mean, squares, count)
    u = (phi[model, example] - mean) / (std * np.sqrt(1 + 1 / count))
    # Threads gain little on so few pairs, and lose much where cores are busy.
    with threadpool_limits(1, "openmp"):
        return _regressor(0.5, mean, std, u), _regressor(UPPER, mean, std, u)


def _regressor(quantile: float, mean: np.ndarray, std: np.ndarray, u: np.ndarray) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        loss="quantile",
        quantile=quantile,
        learning_rate=0.25,
        max_iter=TREES,
        max_leaf_nodes=8,
        min_samples_leaf=LEAF,
        early_stopping=False,
        random_state=0,
    ).fit(np.column_stack([mean, np.log(std)]), u)


def _quantiles(
    regressors: tuple[Any, Any] | None,
    mean: Float[np.ndarray, "F C"],
    std: Float[np.ndarray, "F C"],
) -> tuple[Float[np.ndarray, "F C"], Float[np.ndarray, "F C"]]:
    """Median and upper quantile of u; of a standard normal law without regressors."""
    if regressors is None:
        return np.zeros(mean.shape), np.full(mean.shape, ndtri(UPPER))
    inputs = np.column_stack([mean.ravel(), np.log(std).ravel()])
    with threadpool_limits(1, "openmp"):
        median, upper = (trees.predict(inputs).reshape(mean.shape) for trees in regressors)
    return median, upper
