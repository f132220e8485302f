"""One threshold for all examples on a single statistic (docs/methods.md, 1 "Ablation" and 2).

Loss follows from φ exactly: ℓ = softplus(−φ).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def yeom(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`yeom` (the LOSS attack): −ℓ under the identity view, view 0."""
    del references, config, progress
    return {"yeom": -loss_of(np.asarray(score_set.scores[:, :, 0], dtype=np.float64))}


def mean_score(
    scores: Float[np.ndarray, "N E Q"],
    queries: int,
    weights: Float[np.ndarray, " W"] | None = None,
) -> Float[np.ndarray, "N E"]:
    """Mean φ over the first `queries` views (0: all), float64; by weights of these, if given."""
    used = queries or scores.shape[2]
    if weights is not None:
        return np.stack([np.asarray(model[:, :used], np.float64) @ weights for model in scores])
    return np.stack([model[:, :used].mean(axis=-1, dtype=np.float64) for model in scores])


def loss_of(scores: np.ndarray) -> np.ndarray:
    """ℓ = log(1 + exp(−φ)), stable for every φ."""
    return np.logaddexp(0.0, -scores)
