"""Coin flips: decisions that a model trained again would not get (arXiv 2505.18773, section 5).

Two models that were trained alike, both on an example or both not, may get different decisions on
it. The share of such pairs is the flip rate, 0 where all agree, ½ where each is a toss. A call that
one model gets and hardly any other has a low flip rate too; so calls are judged by how often
another model would not get them.

NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float


def flip_rates(
    called: Bool[np.ndarray, "N E"], chosen: Bool[np.ndarray, "N E"]
) -> Float[np.ndarray, " E"]:
    """Share of pairs of the chosen targets whose decisions differ, by example.

    2·B0·B1/(B(B − 1)) of B decisions, unbiased for independent targets; NaN where B < 2. Of few
    targets it is coarse, and may be above ½.

    Args:
        called: decisions, True for a member.
        chosen: the targets that count.
    """
    count = chosen.sum(axis=0)
    ones = (called & chosen).sum(axis=0)
    pairs = count * (count - 1)
    return np.where(pairs > 0, 2 * ones * (count - ones) / np.maximum(pairs, 1), np.nan)


def coin_flips(
    called: Bool[np.ndarray, "N E"],
    keep: Bool[np.ndarray, "N E"],
    flip_in: Float[np.ndarray, " E"],
    flip_out: Float[np.ndarray, " E"],
) -> dict[str, Any]:
    """What `metrics.json` says of flip rates.

    Returns:
        targets: median count of targets behind a `flip_in`; mean_flip_in, mean_flip_out: over
        examples; called: members called so, over all targets, where others trained on the example
        too; unrepeated: the share of pairs of such a call and another model that trained on the
        example in which that other is not called a member, Σ B1·(B − B1)/(B − 1) / Σ B1. None where
        there is nothing to average.
    """
    count = keep.sum(axis=0)
    right = np.where(count > 1, (called & keep).sum(axis=0), 0)
    total = int(right.sum())
    differing = float((right * (count - right) / np.maximum(count - 1, 1)).sum())
    return {
        "targets": float(np.median(count)),
        "mean_flip_in": _mean(flip_in),
        "mean_flip_out": _mean(flip_out),
        "called": total,
        "unrepeated": differing / total if total else None,
    }


def _mean(rates: Float[np.ndarray, " E"]) -> float | None:
    known = rates[np.isfinite(rates)]
    return float(known.mean()) if known.size else None
