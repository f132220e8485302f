"""By how much one attack is ahead of another on the same targets and examples, with 95 % intervals.

Two intervals that overlap decide nothing: most of their width is that of hard targets and hard
examples, which both attacks share. Drawn together in every replicate, that cancels out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lira_jax.evaluation.bootstrap import Resamples, _grid, _weighted_counts, percentiles
from lira_jax.evaluation.curves import FPRS, roc, summary


@dataclass(frozen=True)
class Resampled:
    """An attack's figures: the AUC, and the TPR at each of FPRS.

    Attributes:
        auc: of the pooled curve.
        tpr_at_fpr: by the keys of FPRS.
        replicates: AUC and TPRs in each replicate; NaN in one without members or without others.
        resamples: the replicates.
    """

    auc: float
    tpr_at_fpr: dict[str, float]
    replicates: Float[np.ndarray, "R C"]
    resamples: Resamples


def resampled(
    scores: Float[np.ndarray, "T E"], member: Bool[np.ndarray, "T E"], resamples: Resamples
) -> Resampled:
    """An attack's figures, as they are and in each replicate of the bootstrap of `intervals`.

    Computed once per attack; `paired_differences` then compares any two of them.

    Args:
        scores: one row per target, higher = member.
        member: what is true; the same for all attacks that are compared.
        resamples: by which targets and examples are drawn; likewise.

    Raises:
        ValueError: as `roc`.
    """
    exact = summary(roc(scores, member))
    others = ~member
    counts = _weighted_counts(scores, (others, member), _grid(scores[others]), resamples)
    usable = (counts[:, -1] > 0).all(axis=0)
    fpr, tpr = np.swapaxes(counts[..., usable] / counts[:, -1:, usable], 1, 2)
    replicates = np.full((usable.size, 1 + len(FPRS)), np.nan)
    replicates[usable, 0] = np.trapezoid(tpr, fpr, axis=1)
    limits = list(FPRS.values())
    replicates[usable, 1:] = [
        y[np.searchsorted(x, limits, side="right") - 1] for x, y in zip(fpr, tpr, strict=True)
    ]
    return Resampled(exact["auc"], exact["tpr_at_fpr"], replicates, resamples)


def paired_differences(first: Resampled, second: Resampled) -> dict[str, Any]:
    """By how much the first attack's figures exceed the second's, with 95 % intervals.

    Above 0, the first attack is ahead. Where `intervals` is not exact, neither is this; but noise
    that both attacks share is not counted.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> member = rng.random((4, 200)) < 0.5
        >>> noise = rng.normal(size=(4, 200))
        >>> resamples = Resamples(2, member.shape)
        >>> weak, strong = (resampled(noise + k * member, member, resamples) for k in (1, 2))
        >>> found = paired_differences(strong, weak)
        >>> round(found["auc"], 2), found["auc_ci"][0] > 0
        (0.15, True)

    Args:
        first, second: attacks on the same, or one attack on two runs whose models trained on the
            same examples.

    Returns:
        auc; tpr_at_fpr, by the keys of FPRS; auc_ci, tpr_at_fpr_ci, their intervals.

    Raises:
        ValueError: attacks that were not drawn together.
    """
    if first.resamples is not second.resamples:
        raise ValueError("the two attacks have resamples of their own, so nothing pairs them")
    rates = {key: first.tpr_at_fpr[key] - second.tpr_at_fpr[key] for key in FPRS}
    limits = [percentiles(column) for column in (first.replicates - second.replicates).T]
    return {
        "auc": first.auc - second.auc,
        "auc_ci": limits[0],
        "tpr_at_fpr": rates,
        "tpr_at_fpr_ci": dict(zip(FPRS, limits[1:], strict=True)),
    }
