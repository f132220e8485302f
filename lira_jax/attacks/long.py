"""Attack on vulnerable examples (Long et al., arXiv 1802.04889; docs/methods.md, 2).

The attack guesses only on examples that resemble no other. An example's features are its mean
logits, centred over classes, under the models outside the target's group that did not train on it
(OUT); its nearest neighbour is the example with the greatest cosine similarity to it. The SHARE of
examples farthest from their nearest neighbours are the vulnerable ones, with all that tie with them
(as two do that are nearest to each other). On
these, the target's loss is tested against the example's OUT references, one-sided, for being too
low; all other examples get one constant, below every tested one: no guess.

The paper takes the share of references with a loss as low, which has few values and ties. Here the
test is Student's t on φ, with which the loss falls strictly: t = (φ − μ_out) / (σ_out √(1 + 1/n))
for n references. It allows for how little n references tell of μ and σ, so that scores of different
examples compare. Its p-value falls strictly with t, as the degrees of freedom are the same
everywhere, so t itself is the score: no two tails round to the same number. σ_out has a floor,
which with one reference is all there is.

Where masks form no blocks, the features are the mean over all models outside the group, OUT or not:
the number of OUT ones would depend on whether the target trained on the example (3.10), and which
examples are far from others depends a little on that number.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from lira_jax import workers
from lira_jax.attacks import cross_fit
from lira_jax.attacks.references import References, out_statistics, with_floor
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

SHARE = 0.1
# Similarities of one chunk of examples with all.
CHUNK_BYTES = 2**25


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`long`, float64, higher = member; views other than the identity go unused."""
    del config
    t = _student(score_set, references, progress)
    result = np.full_like(t, min(2 * t.min(), -1.0))
    for group in cross_fit.groups_of(score_set, references):
        isolated = vulnerable(_features(score_set, references, group), progress)
        guessed = np.ix_(group, isolated)
        result[guessed] = t[guessed]
    return {"long": result}


def _student(
    score_set: ScoreSet, references: References, progress: bool
) -> Float[np.ndarray, "N E"]:
    """Student's t of every target's φ under the example's OUT references."""
    phi, mean, squares = out_statistics(score_set, references, 1, "long: references", progress)
    count = references.count_out
    std = with_floor(np.sqrt(squares / max(count - 1, 1)), mean.std(axis=1, keepdims=True))
    std *= np.sqrt(1 + 1 / count)
    difference = phi.reshape(len(mean), -1, phi.shape[1]) - mean[:, np.newaxis]
    return (difference / std[:, np.newaxis]).reshape(phi.shape)


def _features(
    score_set: ScoreSet, references: References, group: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, "E K"]:
    """Mean logits under the models outside the group, see above; centred over classes."""
    logits, keep = score_set.logits, score_set.keep
    assert logits is not None
    total = np.zeros(logits.shape[1:])
    for model in np.flatnonzero(~group):
        outputs = np.array(logits[model], dtype=np.float64)
        if references.order is None:
            outputs[keep[model]] = 0.0
        total += outputs
    # A sum serves: the mean is over as many models on every example, and cosines know no scale.
    return total - total.mean(axis=1, keepdims=True)


def vulnerable(
    features: Float[np.ndarray, "E K"], progress: bool = False
) -> Bool[np.ndarray, " E"]:
    """The SHARE of examples with the least cosine similarity to any other; all that tie with them.

    Similarities are float32: which of two is farther is open where they differ by 1e-7.
    """
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.where(norm == 0, 1.0, norm)).astype(np.float32)
    examples = len(unit)
    nearest = np.empty(examples, dtype=np.float32)
    size = max(1, CHUNK_BYTES // (4 * examples))
    starts = range(0, examples, size)

    def work(start: int) -> None:
        rows = np.arange(start, min(start + size, examples))
        similarity = unit[rows] @ unit.T
        similarity[np.arange(rows.size), rows] = -np.inf
        nearest[rows] = similarity.max(axis=1)

    workers.each(work, starts, description="long: neighbours", progress=progress)
    count = max(1, round(SHARE * examples))
    return nearest <= np.partition(nearest, count - 1)[count - 1]
