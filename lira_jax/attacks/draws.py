"""Random numbers that follow models and examples wherever they stand in the arrays.

What has to be drawn (references where masks form no blocks, subsamples, the order of ties) is drawn
from a hash of the scores' ranks, never from places. So results are the same for the same input, and
follow models and examples when these are reordered, and scores when these are shifted and scaled;
membership plays no part.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt64
from scipy.stats import rankdata

from lira_jax.score_set import ScoreSet

# Examples that are ranked at once: 8 MiB of scores at 256 models.
CHUNK = 4096


def noise(score_set: ScoreSet) -> UInt64[np.ndarray, "N E"]:
    """Random integers, the same for the same model and example wherever they stand.

    Scores that are all equal have equal noise.
    """
    models, examples = keys(score_set)
    return np.stack([_mix(examples ^ key) for key in _mix(models)])


def keys(score_set: ScoreSet) -> tuple[UInt64[np.ndarray, " N"], UInt64[np.ndarray, " E"]]:
    """A key for every model and example, from the ranks of scores under the identity view.

    Ranks, so that shifting and scaling all scores changes nothing. Sums modulo 2⁶⁴, so that no
    place counts.
    """
    scores = score_set.scores
    models = np.zeros(scores.shape[0], dtype=np.uint64)
    examples = np.zeros(scores.shape[1], dtype=np.uint64)
    for start in range(0, examples.size, CHUNK):
        part = np.array(scores[:, start : start + CHUNK, 0], dtype=np.float64)
        models += _mix(_ranks(part, axis=0)).sum(axis=1, dtype=np.uint64)
    for model, key in enumerate(_mix(models)):
        row = np.array(scores[model, :, 0], dtype=np.float64)
        examples += _mix(_ranks(row, axis=0) ^ key)
    return models, examples


def _ranks(values: Float[np.ndarray, "..."], axis: int) -> UInt64[np.ndarray, "..."]:
    """Ranks along an axis; equal values have the least of theirs."""
    return rankdata(values, method="min", axis=axis).astype(np.uint64)


def _mix(values: UInt64[np.ndarray, "*S"]) -> UInt64[np.ndarray, "*S"]:
    """SplitMix64: a bijection whose output bits each depend on all input bits."""
    values = values + 0x9E3779B97F4A7C15
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)
