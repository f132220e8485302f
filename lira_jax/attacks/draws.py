"""Random numbers that follow models and examples wherever they stand in the arrays.

What has to be drawn (references where masks form no blocks, subsamples, the order of ties) is drawn
from a hash of the scores' ranks, never from places. So results are the same for the same input, and
follow models and examples when these are reordered, and scores when these are shifted and scaled;
membership plays no part.
"""

from __future__ import annotations

import weakref

import numpy as np
from jaxtyping import Float, UInt64
from scipy.stats import rankdata

from lira_jax import workers
from lira_jax.score_set import ScoreSet

# Examples that are ranked at once: 2 MiB of scores at 256 models.
CHUNK = 1024


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
    global _kept
    scores = score_set.scores
    if _kept is not None and _kept[0]() is scores:
        return _kept[1]
    models = np.zeros(scores.shape[0], dtype=np.uint64)
    examples = np.zeros(scores.shape[1], dtype=np.uint64)

    def of_models(start: int) -> UInt64[np.ndarray, " N"]:
        part = np.array(scores[:, start : start + CHUNK, 0], dtype=np.float64)
        return _mix(_ranks(part, axis=0)).sum(axis=1, dtype=np.uint64)

    for part in workers.in_order(of_models, range(0, examples.size, CHUNK)):
        models += part

    def of_examples(model: tuple[int, np.uint64]) -> UInt64[np.ndarray, " E"]:
        row = np.array(scores[model[0], :, 0], dtype=np.float64)
        return _mix(_ranks(row, axis=0) ^ model[1])

    for part in workers.in_order(of_examples, enumerate(_mix(models))):
        examples += part
    if not scores.flags.writeable:
        models.flags.writeable = examples.flags.writeable = False
        _kept = weakref.ref(scores), (models, examples)
    return models, examples


# The last keys and the scores they are of: a handful of attacks ask for the same ones. Only of
# scores that nobody can change, as those of a run, which are mapped for reading, are.
_kept: tuple[weakref.ref[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None


def _ranks(values: Float[np.ndarray, "..."], axis: int) -> UInt64[np.ndarray, "..."]:
    """Ranks along an axis; equal values have the least of theirs."""
    return rankdata(values, method="min", axis=axis).astype(np.uint64)


def _mix(values: UInt64[np.ndarray, "*S"]) -> UInt64[np.ndarray, "*S"]:
    """SplitMix64: a bijection whose output bits each depend on all input bits."""
    values = values + 0x9E3779B97F4A7C15
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)
