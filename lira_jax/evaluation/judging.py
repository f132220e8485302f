"""One attack's scores, judged as every attack's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lira_jax import evaluation
from lira_jax.evaluation import Fold, Roc


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


def judged(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"], fold: Fold
) -> tuple[dict[str, Any], Curve]:
    """One attack's part of `metrics.json`, without its name, and its curve.

    Args:
        scores: one row per target, higher = member.
        member: what is true.
        fold: targets that are resampled together, as in `evaluation.intervals`.
    """
    curve = evaluation.roc(scores, member)
    found = evaluation.intervals(scores, member, fold)
    band = found.pop("band")
    nonmembers = member.size - int(member.sum())
    entry = {
        **evaluation.summary(curve),
        **found,
        "targets": scores.shape[0],
        "mean_over_targets": evaluation.mean_over_targets(scores, member),
        "expected_false_positives": evaluation.expected_false_positives(nonmembers),
        "few_false_positives": evaluation.few_false_positives(nonmembers),
        "shadow_threshold": evaluation.shadow_thresholds(scores, member, fold),
    }
    return entry, Curve(evaluation.thin(curve), Band(band["fpr"], band["lo"], band["hi"]))
