"""How well attack scores tell members from non-members: ROC, TPR at low FPR, intervals.

NumPy only. The primary curve pools the scores of all targets under one threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

# The false-positive rates at which the true-positive rate is reported, by their key in JSON.
FPRS = {"1e-05": 1e-5, "0.0001": 1e-4, "0.001": 1e-3, "0.01": 1e-2}

# Thresholds of the curves that the bootstrap resamples; every rank where non-members are fewer.
GRID = 2_000
REPLICATES = 1_000


@dataclass(frozen=True)
class Roc:
    """A ROC curve, one point per distinct score, from (0, 0) up to all.

    Attributes:
        false_positives: non-members at or above the point's threshold, ascending, int [P].
        true_positives: members at or above it, ascending, int [P].
    """

    false_positives: Int[np.ndarray, " P"]
    true_positives: Int[np.ndarray, " P"]

    @property
    def fpr(self) -> Float[np.ndarray, " P"]:
        """False-positive rates."""
        return self.false_positives / self.false_positives[-1]

    @property
    def tpr(self) -> Float[np.ndarray, " P"]:
        """True-positive rates."""
        return self.true_positives / self.true_positives[-1]


def roc(scores: Float[np.ndarray, "*S"], member: Bool[np.ndarray, "*S"]) -> Roc:
    """The ROC curve of scores of any shape; equal scores are one point.

    Raises:
        ValueError: a NaN score, different shapes, or members or non-members missing.
    """
    if scores.shape != member.shape:
        raise ValueError(f"scores have shape {scores.shape}, membership {member.shape}")
    if np.isnan(scores).any():
        raise ValueError("an attack score is NaN")
    if member.all() or not member.any():
        raise ValueError("a ROC curve needs members and non-members")
    # Members and non-members are sorted apart, and a stable sort merges the two runs: two to three
    # times as fast as one argsort of all scores.
    members, nonmembers = np.sort(scores[member]), np.sort(scores[~member])
    both = np.concatenate([members, nonmembers])
    order = np.argsort(both, kind="stable")[::-1]
    ordered = both[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), both.size - 1)
    true_positives = np.cumsum(order < members.size)[last]
    return Roc(
        false_positives=np.append(0, last + 1 - true_positives),
        true_positives=np.append(0, true_positives),
    )


def auc(curve: Roc) -> float:
    """Area under the curve, by trapezoids, so a tie counts half."""
    return float(np.trapezoid(curve.tpr, curve.fpr))


def balanced_accuracy(curve: Roc) -> float:
    """The largest 1 − (FPR + 1 − TPR)/2 over thresholds."""
    return float((1 - (curve.fpr + 1 - curve.tpr) / 2).max())


def tpr_at_fpr(curve: Roc, fpr: float) -> float:
    """The largest TPR over thresholds whose FPR is at most `fpr`; no interpolation."""
    return float(curve.tpr[np.searchsorted(curve.fpr, fpr, side="right") - 1])


def summary(curve: Roc) -> dict[str, Any]:
    """The figures of one curve: auc, balanced_accuracy, tpr_at_fpr."""
    return {
        "auc": auc(curve),
        "balanced_accuracy": balanced_accuracy(curve),
        "tpr_at_fpr": {key: tpr_at_fpr(curve, fpr) for key, fpr in FPRS.items()},
    }


def mean_over_targets(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"]
) -> dict[str, Any]:
    """The figures of each target's own curve, averaged over targets; keys as in `summary`."""
    each = [summary(roc(*target)) for target in zip(scores, member, strict=True)]
    return {
        "auc": float(np.mean([one["auc"] for one in each])),
        "balanced_accuracy": float(np.mean([one["balanced_accuracy"] for one in each])),
        "tpr_at_fpr": {
            key: float(np.mean([one["tpr_at_fpr"][key] for one in each])) for key in FPRS
        },
    }


def intervals(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: int,
    seed: int = 0,
) -> dict[str, Any]:
    """95 % bootstrap intervals of the pooled figures.

    Targets are resampled by whole folds, as the targets of a block share masks. Examples are not
    resampled: the interval is about other models trained on the same examples. With fewer than two
    folds every interval is None.

    Args:
        scores: attack scores, one row per target.
        member: what is true.
        fold: targets per fold; targets f·fold … f·fold + fold − 1 are resampled together.
        seed: of the resampling.

    Returns:
        auc_ci, balanced_accuracy_ci: [low, high]; tpr_at_fpr_ci: by the keys of FPRS.
    """
    units = scores.shape[0] // fold
    if units < 2:
        return {
            "auc_ci": None,
            "balanced_accuracy_ci": None,
            "tpr_at_fpr_ci": dict.fromkeys(FPRS),
        }
    grid = _thresholds(scores[~member])
    false_positives = _counts_at_or_above(scores, ~member, grid, fold)
    true_positives = _counts_at_or_above(scores, member, grid, fold)
    # A replicate draws as many folds as there are, with replacement; its curve is a weighted sum.
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=REPLICATES).astype(np.float64)
    fpr = weights @ false_positives
    tpr = weights @ true_positives
    fpr /= weights @ _per_fold(~member, fold)
    tpr /= weights @ _per_fold(member, fold)
    accuracy = np.maximum(0.5, (1 - (fpr + 1 - tpr) / 2).max(axis=1))
    return {
        "auc_ci": _percentiles(np.asarray(np.trapezoid(tpr, fpr, axis=1))),
        "balanced_accuracy_ci": _percentiles(accuracy),
        "tpr_at_fpr_ci": {
            key: _percentiles(np.where(fpr <= limit, tpr, 0.0).max(axis=1))
            for key, limit in FPRS.items()
        },
    }


def _thresholds(nonmember_scores: Float[np.ndarray, " M"]) -> Float[np.ndarray, " G"]:
    """Thresholds at log-spaced ranks of the non-members, and just above each, ascending."""
    ordered = np.sort(nonmember_scores)[::-1]
    ranks = np.unique(np.geomspace(1, ordered.size, GRID).round().astype(np.int64)) - 1
    if ordered.size <= GRID:
        ranks = np.arange(ordered.size)
    at = ordered[ranks]
    # At a score and just above it: there the true positives between two non-members are all in.
    return np.unique(np.concatenate([at, np.nextafter(at, np.inf)]))


def _counts_at_or_above(
    scores: Float[np.ndarray, "T E"],
    chosen: Bool[np.ndarray, "T E"],
    grid: Float[np.ndarray, " G"],
    fold: int,
) -> Float[np.ndarray, "U G"]:
    """Chosen scores of each fold at or above each threshold, thresholds descending."""
    counts = np.zeros((scores.shape[0] // fold, grid.size))
    for target, (row, use) in enumerate(zip(scores, chosen, strict=True)):
        ordered = np.sort(row[use])
        counts[target // fold] += ordered.size - np.searchsorted(ordered, grid[::-1])
    return counts


def _per_fold(chosen: Bool[np.ndarray, "T E"], fold: int) -> Float[np.ndarray, "U 1"]:
    return chosen.reshape(-1, fold * chosen.shape[1]).sum(axis=1, dtype=np.float64)[:, np.newaxis]


def _percentiles(replicates: np.ndarray) -> list[float]:
    low, high = np.percentile(replicates, [2.5, 97.5])
    return [float(low), float(high)]


def reference_code_summary(curve: Roc) -> dict[str, Any]:
    """The figures as the public LiRA code takes them; keys as in `summary`.

    Its curve leaves out points on a straight line between their neighbours, and its TPR is that of
    the last point whose FPR is strictly below the limit.
    """
    curve = drop_intermediate(curve)
    below = {key: np.flatnonzero(curve.fpr < fpr)[-1] for key, fpr in FPRS.items()}
    return {
        "auc": auc(curve),
        "balanced_accuracy": balanced_accuracy(curve),
        "tpr_at_fpr": {key: float(curve.tpr[point]) for key, point in below.items()},
    }


def drop_intermediate(curve: Roc) -> Roc:
    """The curve as scikit-learn's `roc_curve` gives it by default.

    A point goes when the steps to it and from it are the same; the first after (0, 0) stays.
    """
    steps = np.diff(np.stack([curve.false_positives, curve.true_positives])[:, 1:], axis=1)
    turns = (steps[:, 1:] != steps[:, :-1]).any(axis=0)
    kept = np.ones(curve.false_positives.size, dtype=bool)
    if kept.size > 3:
        kept[2:-1] = turns
    return Roc(curve.false_positives[kept], curve.true_positives[kept])


def thin(curve: Roc, points: int = 2_000) -> Roc:
    """The largest TPR at each of a few log-spaced FPR, to draw and to keep.

    What is left is read as steps: TPR stays until the next point.
    """
    ranks = np.geomspace(1, curve.false_positives[-1], points - 1).round().astype(np.int64)
    ranks = np.unique(np.append(0, ranks))
    corner = np.unique(np.searchsorted(curve.false_positives, ranks, side="right") - 1)
    return Roc(curve.false_positives[corner], curve.true_positives[corner])
