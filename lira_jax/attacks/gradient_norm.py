"""White-box attacks on the norm of the loss's gradient by the weights (LiRA's figure 15).

A model that fits an example has little left to learn from it: the gradient is small. Figure 15 puts
LiRA on this statistic beside LiRA on φ.

Norms are taken to be at least FLOOR, so that those of zero tie with the smallest that can be told
from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from lira_jax.attacks import lira
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# Squares of smaller gradients underflow in float32, in which norms are summed up.
FLOOR = 1e-19


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Both attacks, float64, higher = member.

    `gradient-norm` is minus the log norm under one threshold for all examples;
    `lira-online-gradient-norm` is LiRA online on that statistic, σ per example.
    """
    assert score_set.gradient_norm is not None, "a family's `needs` are checked before it runs"
    statistic = np.asarray(score_set.gradient_norm, dtype=np.float64)
    statistic = -np.log(np.maximum(statistic, FLOOR))
    as_scores = dataclasses.replace(score_set, scores=statistic[..., np.newaxis])
    config = dataclasses.replace(config, queries=1)
    ratios = lira.likelihoods(as_scores, references, config, variances=[""], progress=progress)
    return {"lira-online-gradient-norm": ratios["lira-online"], "gradient-norm": statistic}
