"""One attack's scores, judged as every attack's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lira_jax import evaluation
from lira_jax.evaluation import Fold, Roc

# Attacks that are judged at once, where there are as many cores. Each takes some four times the
# memory of its scores, these included.
AT_ONCE = 8
# What `headline` tells.
HEADLINE = ("auc", "balanced_accuracy", "tpr_at_fpr", "auc_ci", "balanced_accuracy_ci",
            "tpr_at_fpr_ci", "over", "few_false_positives")  # fmt: skip


@dataclass(frozen=True)
class Band:
    """A pointwise 95 % interval of a ROC curve.

    Attributes:
        fpr: where, ascending.
        lo, hi: least and greatest TPR there.
    """

    fpr: Float[np.ndarray, " P"]
    lo: Float[np.ndarray, " P"]
    hi: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Curve:
    """One attack's ROC as it is drawn.

    Attributes:
        roc: the curve, thinned or not.
        band: its bootstrap interval, if there is one.
    """

    roc: Roc
    band: Band | None = None


def headline(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    replicates: int | None = None,
) -> dict[str, Any]:
    """HEADLINE: the figures of the pooled curve, their intervals, few_false_positives.

    Args:
        scores: one row per target, higher = member.
        member: what is true.
        fold, replicates: as in `evaluation.intervals`.
    """
    rates, _ = _pooled(scores, member, fold, replicates)
    return rates | {"few_false_positives": evaluation.few_false_positives(int((~member).sum()))}


def judged(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"], fold: Fold
) -> tuple[dict[str, Any], Curve]:
    """One attack's part of `metrics.json`, without its name, and its curve.

    Args:
        scores: one row per target, higher = member.
        member: what is true.
        fold: targets that are resampled together, as in `evaluation.intervals`.
    """
    rates, curve = _pooled(scores, member, fold)
    nonmembers = int((~member).sum())
    entry = {
        **rates,
        "targets": scores.shape[0],
        "mean_over_targets": evaluation.mean_over_targets(scores, member),
        "expected_false_positives": evaluation.expected_false_positives(nonmembers),
        "few_false_positives": evaluation.few_false_positives(nonmembers),
        "shadow_threshold": evaluation.shadow_thresholds(scores, member, fold),
    }
    return entry, curve


def _pooled(
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    fold: Fold,
    replicates: int | None = None,
) -> tuple[dict[str, Any], Curve]:
    """The figures of the curve of all targets and their intervals, and the curve to draw."""
    curve = evaluation.roc(scores, member)
    intervals = evaluation.intervals(scores, member, fold, replicates=replicates)
    band = Band(**intervals.pop("band"))
    return evaluation.summary(curve) | intervals, Curve(evaluation.thin(curve), band)
