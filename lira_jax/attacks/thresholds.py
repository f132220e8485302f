"""Thresholds on a single statistic (METHODS.md, 1 "Ablation" and 2).

Loss follows from φ exactly: ℓ = softplus(−φ).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lira_jax.attacks.references import References, base_and_dropped, map_chunks, moments
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def yeom(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`yeom` (the LOSS attack): −ℓ under the identity view, view 0."""
    del references, config, progress
    return {"yeom": -loss_of(np.asarray(score_set.scores[:, :, 0], dtype=np.float64))}


def watson(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`watson` (calibrated loss): mean_out ℓ − ℓ under the identity view."""
    del config
    models, examples, _ = score_set.scores.shape
    result = np.empty((models, examples))

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C 1"]) -> None:
        losses = loss_of(scores)
        outside = moments(losses, *base_and_dropped(references, score_set.keep, chunk, "out"))
        targets = losses.reshape(-1, references.fold, *losses.shape[1:])  # [F, B, C, 1]
        difference = outside.mean[:, np.newaxis] - targets
        result[:, chunk] = difference.reshape(models, -1)

    for _ in map_chunks(score_chunk, score_set.scores, 1, "watson", progress):
        pass
    return {"watson": result}


def mean_score(scores: Float[np.ndarray, "N E Q"], queries: int) -> Float[np.ndarray, "N E"]:
    """Mean φ over the first `queries` views (0: all), float64."""
    used = queries or scores.shape[2]
    return np.stack([model[:, :used].mean(axis=-1, dtype=np.float64) for model in scores])


def loss_of(scores: np.ndarray) -> np.ndarray:
    """ℓ = log(1 + exp(−φ)), stable for every φ."""
    return np.logaddexp(0.0, -scores)
