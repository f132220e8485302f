"""Thresholds on attack scores, and what decisions by them reach.

Everywhere a score that is at least the threshold is called a member's, and one rule says how many
non-members may be at a false-positive rate (`curves.allowed_false_positives`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax.evaluation.bootstrap import Fold, Resamples, percentiles
from lira_jax.evaluation.curves import FPRS, allowed_false_positives, roc

# Shares of members, before the attack, at which its precision is stated; by their key in JSON.
PRIORS = {"0.5": 0.5, "0.1": 0.1, "0.01": 0.01}
# Only this share of the highest non-members is sorted to choose thresholds from.
TOP = 0.02


def best_threshold(scores: Float[np.ndarray, "*S"], member: Bool[np.ndarray, "*S"]) -> float:
    """The threshold of the largest balanced accuracy: member iff the score is at least that.

    The highest of such thresholds; infinite if no threshold beats calling nothing a member.
    """
    curve = roc(scores, member)
    point = int(np.argmax(curve.tpr - curve.fpr))
    positives = int(curve.false_positives[point] + curve.true_positives[point])
    if not positives:
        return float("inf")
    place = scores.size - positives
    return float(np.partition(scores, place, axis=None)[place])


def threshold_at_fpr(
    nonmembers: Float[np.ndarray, " M"], fpr: float, *, unseen: bool = False
) -> float:
    """The least threshold at a false-positive rate: member iff the score is at least that.

    Args:
        nonmembers: scores to choose by.
        fpr: at most this share of these scores reach the threshold.
        unseen: it is for the scores of a model that these are not of. Then a score is called a
            member's if its conformal p-value, (1 + how many of these are at least as high) /
            (1 + M), is at most `fpr`: were all scores of one law and independent, the FPR would be
            kept on average. With fewer than 1/fpr scores the threshold is infinite.

    Examples:
        >>> scores = np.arange(200.0)
        >>> [int((scores >= threshold_at_fpr(scores, 0.01, unseen=u)).sum()) for u in (False, True)]
        [2, 1]
    """
    rank = _rank(nonmembers.size, fpr, unseen)
    if not 0 < rank <= nonmembers.size:
        return -np.inf if rank else np.inf
    place = nonmembers.size - rank
    return float(np.nextafter(np.partition(nonmembers, place)[place], np.inf))


def _rank(nonmembers: int, fpr: float, unseen: bool) -> int:
    """The rank of the highest non-member below the threshold, from 1; 0: even that is infinite."""
    if unseen:
        return allowed_false_positives(nonmembers + 1, fpr)
    return allowed_false_positives(nonmembers, fpr) + 1


def shadow_thresholds(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> dict[str, Any] | None:
    """What an attacker reaches who must choose the threshold before seeing the target.

    A threshold from the target's own ROC curve flatters the attack (docs/methods.md, 3.14). Here
    the threshold for a fold of targets is chosen on the non-members of all other folds, the shadow
    models alone, by `threshold_at_fpr` for unseen models. Models that are more confident in general
    than others reach more than the FPR: that is what `fpr` shows. (The target is one among the
    references by which the other folds' scores were computed, as any model is; it is not among the
    scores the threshold is chosen on.)

    Args:
        scores: attack scores, one row per target.
        member: what is true.
        fold: as in `intervals`.
        seed: of the resampling.

    Returns:
        By the keys of FPRS: threshold, the mean over folds of the least score called a member
        (None where nothing is in some fold); fpr, tpr, what the decisions reach over all targets;
        fpr_ci, tpr_ci, 95 % intervals by the bootstrap of `intervals`, of what these very
        thresholds reach: that others might have been chosen is not in them; precision, by the keys
        of PRIORS: the share of members among positives if that
        share of the candidates are members, TPR·π / (TPR·π + FPR·(1 − π)), or None where nothing
        was called a member. None with one fold of targets, as there are no others.
    """
    resamples = Resamples(fold, scores.shape, seed)
    folds = len(resamples.rows)
    if folds < 2:
        return None
    rates = {"fpr": resamples.rate_among(~member), "tpr": resamples.rate_among(member)}
    fold_of = np.empty(scores.shape[0], np.int32)
    for place, row in enumerate(resamples.rows):
        fold_of[row] = place
    result = {}
    for key, least in _shadow_choices(scores, ~member, fold_of, folds).items():
        positive = scores >= least[fold_of][:, np.newaxis]
        reached: dict[str, Any] = {
            "threshold": float(least.mean()) if np.isfinite(least).all() else None
        }
        for name, rate in rates.items():
            reached[name], replicates = rate(positive)
            reached[f"{name}_ci"] = percentiles(replicates)
        reached["precision"] = {
            name: precision(reached["tpr"], reached["fpr"], prior) for name, prior in PRIORS.items()
        }
        result[key] = reached
    return result


def precision(tpr: float, fpr: float, prior: float) -> float | None:
    """Share of members among positives, if `prior` is their share of the candidates."""
    positives = tpr * prior + fpr * (1 - prior)
    return tpr * prior / positives if positives else None


def decisions(
    positive: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> dict[str, Any]:
    """What given decisions reach, with 95 % intervals by the bootstrap of `intervals`.

    The intervals are of these very decisions: that other thresholds might have been tuned is not in
    them.

    Args:
        positive: what is called a member.
        member: what is true; some are, and some are not.
        fold: as in `intervals`.
        seed: of the resampling.

    Returns:
        tpr, fpr; balanced_accuracy, (TPR + 1 − FPR)/2; precision, the share of members among
        positives if half of the candidates are members, None where nothing is called a member; and
        of each its interval, such as tpr_ci.
    """
    return decisions_against(positive, member, {"": ~member}, fold, seed)[""]


def decisions_against(
    positive: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    nonmembers: Mapping[str, Bool[np.ndarray, "T E"]],
    fold: Fold,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`decisions` on the same members and several kinds of non-members, by the same resamples.

    Args:
        nonmembers: of each kind; what is neither a member nor of a kind does not count for it.
    """
    resamples = Resamples(fold, positive.shape, seed)
    of_members = resamples.rate_among(member)(positive)
    return {
        kind: _reached(resamples.rate_among(chosen)(positive), of_members)
        for kind, chosen in nonmembers.items()
    }


_Rate = tuple[float, Float[np.ndarray, " R"]]


def _reached(fpr: _Rate, tpr: _Rate) -> dict[str, Any]:
    """The figures of decisions and their intervals, from both rates as they are and resampled."""
    reached: dict[str, Any] = {}
    for name, figure in _OF_DECISIONS.items():
        value = float(figure(np.array(fpr[0]), np.array(tpr[0])))
        known = np.isfinite(value)
        reached[name] = value if known else None
        reached[f"{name}_ci"] = percentiles(figure(fpr[1], tpr[1])) if known else None
    return reached


def difference(
    first: Bool[np.ndarray, "T E"],
    second: Bool[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """By how much the first decisions' balanced accuracy exceeds the second's, and the interval.

    Both are drawn together in every replicate, so that what hard targets and examples do to both
    cancels out.

    Args:
        first, second: what is called a member, by two attacks on the same, or by one attack on two
            runs whose models trained on the same examples.
        member, fold, seed: as in `decisions`.
    """
    resamples = Resamples(fold, first.shape, seed)
    among_others, among_members = resamples.rate_among(~member), resamples.rate_among(member)
    accuracy = _OF_DECISIONS["balanced_accuracy"]
    (more, more_drawn), (less, less_drawn) = (
        [
            accuracy(*rates)
            for rates in zip(among_others(called), among_members(called), strict=True)
        ]
        for called in (first, second)
    )
    return float(more - less), percentiles(more_drawn - less_drawn)


def _precision_of(fpr: Any, tpr: Any) -> Any:
    positives = tpr + fpr
    return tpr / np.where(positives > 0, positives, np.nan)


_OF_DECISIONS = {
    "tpr": lambda fpr, tpr: tpr,
    "fpr": lambda fpr, tpr: fpr,
    "balanced_accuracy": lambda fpr, tpr: (tpr + 1 - fpr) / 2,
    "precision": _precision_of,
}


def _shadow_choices(
    scores: Float[np.ndarray, "T E"],
    nonmember: Bool[np.ndarray, "T E"],
    fold_of: Int[np.ndarray, " T"],
    folds: int,
) -> dict[str, Float[np.ndarray, " F"]]:
    """By FPR, the least score that is called a member in each fold; infinite if none is."""
    count = np.bincount(np.repeat(fold_of, nonmember.sum(axis=1)), minlength=folds)
    total = int(count.sum())
    # The highest of all non-members nearly always hold what is asked of the other folds.
    kept = min(total, int(TOP * total) + 1)
    pool = scores[nonmember]
    pool.partition(total - kept)
    top = np.flatnonzero((scores >= pool[total - kept]) & nonmember)
    top = top[np.argsort(scores.ravel()[top])[::-1]]
    highest, unit = scores.ravel()[top], fold_of[top // scores.shape[1]]
    result = {key: np.full(folds, np.inf) for key in FPRS}
    for left_out in range(folds):
        others = highest[unit != left_out]
        size = total - int(count[left_out])
        for key, fpr in FPRS.items():
            rank = _rank(size, fpr, unseen=True)
            if rank > others.size:
                rest = nonmember & (fold_of != left_out)[:, np.newaxis]
                others = np.sort(scores[rest])[::-1]
            if rank:
                result[key][left_out] = np.nextafter(others[rank - 1], np.inf)
    return result
