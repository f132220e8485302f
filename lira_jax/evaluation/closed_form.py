"""95 % intervals in closed form: of a share, of an AUC over examples, of a mean over targets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from scipy.special import betaincinv
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from lira_jax.evaluation.bootstrap import Fold, fold_rows


def clopper_pearson(
    successes: Num[np.ndarray, "*S"] | float | int, trials: Num[np.ndarray, "*S"] | float | int
) -> tuple[Float[np.ndarray, "*S"], Float[np.ndarray, "*S"]]:
    """Lower and upper limits of a share of so many trials (Clopper and Pearson, 1934).

    Exact, so rather too wide. Trials need not be whole, as an effective number of them is not.

    Examples:
        >>> [round(float(limit), 4) for limit in clopper_pearson(3, 10)]
        [0.0667, 0.6525]
    """
    # Whole where they are but for rounding.
    right = np.round(np.asarray(successes, np.float64), 9)
    wrong = np.round(trials - right, 9)
    low = betaincinv(np.where(right > 0, right, 1), wrong + 1, 0.025)
    high = betaincinv(right + 1, np.where(wrong > 0, wrong, 1), 0.975)
    return np.where(right > 0, low, 0.0), np.where(wrong > 0, high, 1.0)


def delong(
    members: Float[np.ndarray, " M"], nonmembers: Float[np.ndarray, " L"]
) -> tuple[float, list[float] | None]:
    """AUC, and its 95 % interval over examples (DeLong, DeLong and Clarke-Pearson, 1988).

    Where the classes are told apart without error its variance is zero; the other end is then
    Clopper and Pearson's for as many pairs as have no example in common. None with fewer than two
    of a kind.
    """
    count, others = len(members), len(nonmembers)
    ranks = rankdata(np.concatenate([members, nonmembers]))
    # Share of the other kind that each is on the right side of; a tie counts half.
    above = (ranks[:count] - rankdata(members)) / others
    below = 1 - (ranks[count:] - rankdata(nonmembers)) / count
    auc = float(above.mean())
    pairs = min(count, others)
    if pairs < 2:
        return auc, None
    if auc in (0.0, 1.0):
        low, high = clopper_pearson(auc * pairs, pairs)
        return auc, [float(low), float(high)]
    error = np.sqrt(above.var(ddof=1) / count + below.var(ddof=1) / others)
    low, high = np.clip(auc + norm.ppf([0.025, 0.975]) * error, 0, 1)
    return auc, [float(low), float(high)]


def mean_and_interval(
    values: Float[np.ndarray, " T"], fold: Fold
) -> tuple[float, list[float] | None]:
    """The mean over targets of a figure of each, and its 95 % interval by Student's t over folds.

    About other targets on the same examples; None with one fold.
    """
    rows = fold_rows(fold, len(values))
    mean = float(values.mean())
    if len(rows) < 2:
        return mean, None
    # How the sums over folds scatter about what their sizes let expect.
    excess = np.array([(values[row] - mean).sum() for row in rows])
    error = np.sqrt(len(rows) / (len(rows) - 1) * (excess**2).sum()) / values.size
    half = float(student.ppf(0.975, len(rows) - 1)) * error
    return mean, [mean - half, mean + half]
