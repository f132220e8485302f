"""Scores less what a model gives to all examples, and to all examples of a class, in general.

A model that is more confident than others, or that knows one class better, scores members and
non-members of it alike too high: that tells nothing of any one example, and hides what does. With
r[n, e] the excess of model n's score over the mean of all models, the level of a model on a group
of examples (all; then each class) is the mean of r over the group, drawn in at Tukey's fences, so
that a few absurd or much memorised examples move it little, times the share of it that chance does
not explain: τ²/(τ² + σ²/n) for a group of n examples. σ² is the spread of r within groups, and τ²
what the mean square of levels is above σ²/n, both over all groups: of a class of one or two
examples nothing can be told, and what its scores give away must not go with its level. No mask is
read, so it cannot tell the answer. It takes the target's scores on many examples, which an auditor
has.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lira_jax import workers
from lira_jax.attacks.thresholds import mean_score
from lira_jax.score_set import ScoreSet

# Tukey's fences: so many interquartile ranges beyond the quartiles.
FENCE = 1.5


@dataclass(frozen=True)
class Levels:
    """The levels that were taken off.

    Attributes:
        level: of each model on each group, as found, [N, G].
        share: by which each group's levels were taken off, in [0, 1], [G].
    """

    level: Float[np.ndarray, "N G"]
    share: Float[np.ndarray, " G"]


def centre(
    x: Float[np.ndarray, "N E"],
    labels: Int[np.ndarray, " E"] | None,
    others: Float[np.ndarray, "T E"] | None = None,
) -> tuple[Levels, Levels | None]:
    """Centre scores in place.

    Args:
        x: of the run's models.
        labels: classes; None centres by model alone.
        others: scores of models from elsewhere, centred in place by the same rule: by its
            excess over the mean of the run's, which stays where it is.

    Returns:
        The levels of the run's models over all examples, and by class.
    """
    of_all = _take_off(x, [slice(None)], others)
    if labels is None:
        return of_all, None
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return of_all, _take_off(x, np.split(order, starts[1:]), others)


def scores_centred(score_set: ScoreSet, queries: int) -> ScoreSet:
    """With φ of every view less the levels of its model, which are those of the mean over views.

    Logits and what else an attack may take stay as they are. All in memory.

    Args:
        score_set: of a run.
        queries: views to use; 0: all.
    """
    mean = mean_score(score_set.scores, queries)
    off = mean.copy()
    centre(mean, score_set.labels)
    off -= mean
    scores = np.array(score_set.scores)
    for model, level in zip(scores, off, strict=True):
        model -= level[:, np.newaxis].astype(scores.dtype)
    scores.flags.writeable = False
    return dataclasses.replace(score_set, scores=scores)


def differences(score_set: ScoreSet, queries: int = 0) -> dict[str, Any]:
    """How much models differ in what they give in general, and to a class.

    Args:
        score_set: of a run.
        queries: views to use; 0: all.

    Returns:
        noise: median over examples of the standard deviation of mean φ over models, in which the
        others are seen; all: standard deviation over models of their level on all examples;
        classes: the same within each class, less the level on all examples, its root mean square
        over classes, or None without labels; largest: the class where it is most, and how much;
        and for both the share, in [0, 1], by which it is more than chance.
    """
    x = mean_score(score_set.scores, queries)
    noise = float(np.median(x.std(axis=0, ddof=1)))
    of_all, of_classes = centre(x, score_set.labels)
    found: dict[str, Any] = {
        "noise": noise,
        "all": float(of_all.level.std()),
        "all_share": float(of_all.share[0]),
        "classes": None,
        "classes_share": None,
        "largest": None,
    }
    if of_classes is not None:
        spread = of_classes.level.std(axis=0)
        names = np.unique(np.asarray(score_set.labels))
        found["classes"] = float(np.sqrt(np.square(spread).mean()))
        found["classes_share"] = float(of_classes.share.mean())
        most = int(spread.argmax())
        found["largest"] = {"class": int(names[most]), "spread": float(spread[most])}
    return found


def _take_off(
    x: Float[np.ndarray, "N E"],
    groups: list[Any],
    others: Float[np.ndarray, "T E"] | None,
) -> Levels:
    mean = x.mean(axis=0)

    def of_group(group: Any) -> tuple[Float[np.ndarray, " N"], float, int]:
        drawn_in = _drawn_in(x[:, group] - mean[group])
        level = drawn_in.mean(axis=1)
        within = float(np.square(drawn_in - level[:, np.newaxis]).sum(axis=1).mean())
        return level, within, drawn_in.shape[1]

    found = list(workers.in_order(of_group, groups))
    level = np.stack([each[0] for each in found], axis=1)
    sizes = np.array([each[2] for each in found])
    freedom = int((sizes - 1).sum())
    share = np.zeros(sizes.size)
    if freedom:
        noise = sum(each[1] for each in found) / freedom / sizes
        excess = np.square(level).mean(axis=0) - noise
        true = max(0.0, float(excess @ sizes) / float(sizes.sum()))
        share = np.divide(true, true + noise, out=share, where=true + noise > 0)
    for group, of_models, part in zip(groups, level.T, share, strict=True):
        x[:, group] -= part * of_models[:, np.newaxis]
        if others is not None:
            excess_of_others = _drawn_in(others[:, group] - mean[group])
            others[:, group] -= part * excess_of_others.mean(axis=1, keepdims=True)
    return Levels(level, share)


def _drawn_in(excess: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    low, high = np.quantile(excess, [0.25, 0.75], axis=1, keepdims=True)
    fence = FENCE * (high - low)
    return np.clip(excess, low - fence, high + fence)
