"""Thresholds on the loss that differ from example to example (docs/methods.md, 2).

The target's loss ℓ on an example, under the identity view, is set against the losses that the
target's references have on it:

- `sablayrolles` (MALT; Sablayrolles et al., ICML 2019): (mean_in ℓ + mean_out ℓ)/2 − ℓ;
- `watson` (calibrated loss; Watson et al., ICLR 2022): mean_out ℓ − ℓ;
- `ye` (attack R; Ye et al., CCS 2022): the share of the OUT losses above ℓ. Their test says member
  where ℓ is at most the α-quantile of the OUT losses, which this share ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from lira_jax.attacks.references import References, base_and_dropped, map_chunks, moments
from lira_jax.attacks.thresholds import loss_of
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

Side = Literal["in", "out"]


def sablayrolles(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`sablayrolles` (MALT): the middle between the IN and the OUT mean of ℓ, less ℓ."""
    del config
    sides: tuple[Side, ...] = ("in", "out")
    return {
        "sablayrolles": above_references(
            score_set, references, minus_loss, sides, progress=progress
        )
    }


def watson(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`watson` (calibrated loss): the OUT mean of ℓ, less ℓ."""
    del config
    return {
        "watson": above_references(score_set, references, minus_loss, ("out",), progress=progress)
    }


def above_references(
    score_set: ScoreSet,
    references: References,
    statistic: Callable[[Float[np.ndarray, "N C 1"]], Float[np.ndarray, "N C 1"]],
    sides: tuple[Side, ...],
    centre: Literal["mean", "median"] = "mean",
    progress: bool = False,
) -> Float[np.ndarray, "N E"]:
    """How far the target's statistic is above that of its references.

    Args:
        score_set: scores and masks.
        references: the rule.
        statistic: what is compared, of φ under the identity view.
        sides: whose centres; of IN and OUT, the middle between the two.
        centre: of one side's statistics.
        progress: show a progress bar.
    """

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C 1"]) -> Float[np.ndarray, "N C"]:
        values = statistic(scores)
        centres = [
            moments(
                values, *base_and_dropped(references, score_set.keep, chunk, side), centre
            ).centre
            for side in sides
        ]
        threshold = np.mean(centres, axis=0)  # [F, C, 1]
        targets = values.reshape(-1, references.fold, *values.shape[1:])  # [F, B, C, 1]
        return (targets - threshold[:, np.newaxis]).reshape(len(values), -1)

    chunks = map_chunks(score_chunk, score_set.scores, 1, "references", progress)
    return np.concatenate(list(chunks), axis=1)


def minus_loss(scores: np.ndarray) -> np.ndarray:
    """−ℓ of φ: higher = member."""
    return -loss_of(scores)


def ye(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`ye` (attack R): the share of the example's OUT references with a loss above the target's.

    With R OUT references it takes R + 1 values, and ties stay ties: a non-member reaches the
    highest one with probability 1/(R + 1) or, where losses tie, less. So at a false-positive rate
    below about 1/(R + 1) (1.6 % for R = 62) no threshold is left and the true-positive rate is 0.
    That is the attack, not its evaluation; a finer rank would have to come from a model of the
    losses, as LiRA's.

    Compared is φ instead of the loss, which is the same except that φ does not saturate.
    """
    del config

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C 1"]) -> Float[np.ndarray, "N C"]:
        phi = scores[:, :, 0]
        base, dropped = base_and_dropped(references, score_set.keep, chunk, "out")
        outside = np.take_along_axis(phi, base, axis=0)  # [R, C]
        targets = phi.reshape(-1, references.fold, phi.shape[1])  # [F, B, C]
        below = np.zeros(targets.shape, dtype=np.int32)
        for reference in outside:
            below += reference < targets
        left_out = outside[dropped, np.arange(phi.shape[1])]  # [F, D, C]
        for reference in np.moveaxis(left_out, 1, 0):
            below -= reference[:, np.newaxis] < targets
        return below.reshape(phi.shape) / references.count_out

    chunks = map_chunks(score_chunk, score_set.scores, 1, "ye", progress)
    return {"ye": np.concatenate(list(chunks), axis=1)}
