"""ROC curves: area, balanced accuracy, TPR at a low FPR and its rule for ties.

The primary curve pools the scores of all targets under one threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from lira_jax import workers

# The false-positive rates at which the true-positive rate is reported, by their key in JSON.
FPRS = {"1e-05": 1e-5, "0.0001": 1e-4, "0.001": 1e-3, "0.01": 1e-2}
# Fewer expected false positives than this behind a TPR, and every output marks it.
FEW_FALSE_POSITIVES = 10
# Scores, or points of a curve, that are worked on at a time, so that they stay in the CPU's caches.
BLOCK = 2**16


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

    Examples:
        >>> curve = roc(np.array([4, 3, 2, 2, 1.0]), np.array([True, False, True, False, False]))
        >>> curve.false_positives.tolist(), curve.true_positives.tolist()
        ([0, 0, 1, 2, 3], [0, 1, 1, 2, 2])

    Raises:
        ValueError: a NaN score, different shapes, or members or non-members missing.
    """
    if scores.shape != member.shape:
        raise ValueError(f"scores have shape {scores.shape}, membership {member.shape}")
    if np.isnan(scores).any():
        raise ValueError("an attack score is NaN")
    if member.all() or not member.any():
        raise ValueError("a ROC curve needs members and non-members")
    # Members and non-members are sorted apart, which is the long work, and merged block by block.
    members, nonmembers = scores[member], scores[~member]
    members.sort()
    nonmembers.sort()
    # No block parts equal scores: it begins where its least one begins.
    least = np.unique(np.concatenate([members[::BLOCK], nonmembers[::BLOCK]]))
    starts = [np.searchsorted(side, least[::-1]).tolist() for side in (members, nonmembers)]
    stops = [
        [side.size, *start[:-1]] for side, start in zip((members, nonmembers), starts, strict=True)
    ]
    dtype = np.int32 if scores.size < 2**31 else np.int64

    def merged(at: tuple[int, int, int, int]) -> Integer[np.ndarray, "2 B"]:
        """The points of the members a … b − 1 and the non-members c … d − 1."""
        a, b, c, d = at
        both = np.concatenate([members[a:b], nonmembers[c:d]])
        order = np.argsort(both, kind="stable")[::-1]
        ordered = both[order]
        last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), both.size - 1)
        positives = np.cumsum(order < b - a)[last]
        above = (nonmembers.size - d, members.size - b)
        return np.stack([above[0] + last + 1 - positives, above[1] + positives]).astype(dtype)

    blocks = zip(starts[0], stops[0], starts[1], stops[1], strict=True)
    points = np.empty((2, scores.size + 1), dtype)
    points[:, 0], end = 0, 1
    for block in workers.in_order(merged, blocks):
        points[:, end : end + block.shape[1]] = block
        end += block.shape[1]
    # Of scores that are all unlike, as most are, the points take no more than is kept.
    points = points[:, :end] if 2 * end > scores.size else points[:, :end].copy()
    return Roc(false_positives=points[0], true_positives=points[1])


def auc(curve: Roc) -> float:
    """Area under the curve, by trapezoids, so a tie counts half.

    Examples:
        >>> auc(roc(np.array([2.0, 1.0, 1.0]), np.array([True, True, False])))
        0.75
    """
    areas = np.empty(curve.false_positives.size - 1)
    for start in range(0, areas.size, BLOCK):
        fpr, tpr = _rates(curve, slice(start, start + BLOCK + 1))
        areas[start : start + BLOCK] = np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2
    return float(areas.sum())


def balanced_accuracy(curve: Roc) -> float:
    """The largest 1 − (FPR + 1 − TPR)/2 over thresholds."""
    highest = []
    for start in range(0, curve.false_positives.size, BLOCK):
        fpr, tpr = _rates(curve, slice(start, start + BLOCK))
        highest.append((1 - (fpr + 1 - tpr) / 2).max())
    return float(max(highest))


def _rates(curve: Roc, part: slice) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """FPR and TPR of a part of the curve."""
    return (
        curve.false_positives[part] / curve.false_positives[-1],
        curve.true_positives[part] / curve.true_positives[-1],
    )


def allowed_false_positives(nonmembers: int, fpr: float, *, below: bool = False) -> int:
    """How many of so many non-members may be called members at a false-positive rate.

    The one rule for all: the largest k with k / nonmembers ≤ fpr, or < fpr if `below`.

    Examples:
        >>> allowed_false_positives(1_000, 0.001), allowed_false_positives(1_000, 0.001, below=True)
        (1, 0)
    """
    count = min(int(fpr * nonmembers) + 1, nonmembers)
    # The quotient is rounded as the rate is: 1 of 1,000 is 0.001. A product may miss it.
    while count / nonmembers > fpr or (below and count / nonmembers == fpr):
        count -= 1
    return count


def tpr_at_fpr(curve: Roc, fpr: float, *, below: bool = False) -> float:
    """The largest TPR over thresholds whose FPR is at most `fpr`; no interpolation.

    Equal scores are all called members or none of them is.

    Examples:
        >>> curve = roc(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
        >>> tpr_at_fpr(curve, 0.49), tpr_at_fpr(curve, 0.5), tpr_at_fpr(curve, 0.5, below=True)
        (0.5, 1.0, 0.5)

    Args:
        curve: of members and non-members.
        fpr: the limit.
        below: the FPR has to stay below the limit, as in the public LiRA code.
    """
    most = allowed_false_positives(int(curve.false_positives[-1]), fpr, below=below)
    point = np.searchsorted(curve.false_positives, most, side="right") - 1
    return float(curve.true_positives[point] / curve.true_positives[-1])


def summary(curve: Roc, *, below: bool = False) -> dict[str, Any]:
    """The figures of one curve: auc, balanced_accuracy, tpr_at_fpr (`below` as there)."""
    return {
        "auc": auc(curve),
        "balanced_accuracy": balanced_accuracy(curve),
        "tpr_at_fpr": {key: tpr_at_fpr(curve, fpr, below=below) for key, fpr in FPRS.items()},
    }


def reference_code_summary(curve: Roc) -> dict[str, Any]:
    """The figures as the public LiRA code takes them; keys as in `summary`.

    Its curve leaves out points on a straight line between their neighbours, and its TPR is that of
    the last point whose FPR is strictly below the limit.
    """
    return summary(drop_intermediate(curve), below=True)


def mean_over_targets(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"]
) -> dict[str, Any] | None:
    """The figures of each target's own curve, averaged over targets; keys as in `summary`.

    Targets with members only, or non-members only, have no curve; None if no target has one.
    """
    usable = member.any(axis=1) & ~member.all(axis=1)
    targets = zip(scores[usable], member[usable], strict=True)
    each = list(workers.in_order(lambda target: summary(roc(*target)), targets))
    if not each:
        return None
    rates = [own["tpr_at_fpr"] for own in each]
    return {
        "auc": float(np.mean([own["auc"] for own in each])),
        "balanced_accuracy": float(np.mean([own["balanced_accuracy"] for own in each])),
        "tpr_at_fpr": {key: float(np.mean([own[key] for own in rates])) for key in FPRS},
    }


def expected_false_positives(nonmembers: int) -> dict[str, float]:
    """False positives that each rate of FPRS stands for, by its key."""
    return {key: fpr * nonmembers for key, fpr in FPRS.items()}


def few_false_positives(nonmembers: int) -> dict[str, bool]:
    """Does a TPR at that FPR rest on fewer than FEW_FALSE_POSITIVES expected false positives?"""
    expected = expected_false_positives(nonmembers)
    return {key: count < FEW_FALSE_POSITIVES for key, count in expected.items()}


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
