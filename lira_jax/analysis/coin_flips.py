"""Coin flips: decisions that a model trained again would not get (arXiv 2505.18773, section 5).

Two models that were trained alike, both on an example or both not, may get different decisions on
it. The share of such pairs is the flip rate, 0 where all agree, ½ where each is a toss.

NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

# A call is a coin flip where the flip rate is that of calls made with probability 0.2 to 0.8.
COIN_FLIP = 2 * 0.2 * 0.8


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
        rule: from which `flip_in` on a call is a coin flip; targets: median count of targets behind
        a `flip_in`; mean_flip_in, mean_flip_out: over examples; called: members called so, over all
        targets, where `flip_in` is known; coin_flips: the share of these that are coin flips.
        None where there is nothing to average.
    """
    right = (called & keep)[:, np.isfinite(flip_in)].sum(axis=0)
    known = flip_in[np.isfinite(flip_in)]
    total = int(right.sum())
    return {
        "rule": COIN_FLIP,
        "targets": float(np.median(keep.sum(axis=0))),
        "mean_flip_in": _mean(flip_in),
        "mean_flip_out": _mean(flip_out),
        "called": total,
        # Rates of equal counts round alike; the margin is for the rule's own rounding.
        "coin_flips": float(right[known >= COIN_FLIP - 1e-12].sum() / total) if total else None,
    }


def _mean(rates: Float[np.ndarray, " E"]) -> float | None:
    known = rates[np.isfinite(rates)]
    return float(known.mean()) if known.size else None
