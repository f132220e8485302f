"""Merlin and Morgan (Jayaraman, Wang, Knipmeyer, Gu, Evans, arXiv 2005.10881; docs/methods.md, 2).

Both rest on the share of T noisy copies of an example on which the target's loss is greater than
on the example itself, `score_set.merlin`: near a minimum of the loss, where training leaves its
examples, most are.

- `merlin`: that share. It has T + 1 values, so ties are broken at random; no tie-break ever changes
  the order of two different shares.
- `morgan`: pairs with a loss in a window φ_l ≤ ℓ ≤ φ_u first, within and outside it by the share,
  ties as before. The paper also puts a threshold on the share; here that is where the curve is
  read. The window is the interval of losses that holds the greatest share of members less that of
  non-members (the best balanced accuracy), found exactly, on other models and other examples
  (`cross_fit`). The paper takes the one with the best precision at a stated false-positive rate; a
  ranking has none stated.

The loss falls strictly with φ, so windows are found on φ, where confident scores do not round to
the same loss. The random order of ties is `draws.noise`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from lira_jax.attacks import cross_fit, draws
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`merlin` and `morgan`, float64, higher = member; views other than the identity go unused."""
    del config, progress
    assert score_set.merlin is not None
    levels, level = np.unique(score_set.merlin, return_inverse=True)
    merlin = level.reshape(score_set.keep.shape).astype(np.float64)
    # In [0, 1), and few enough bits for the sum with any number of levels to be exact.
    merlin += (draws.noise(score_set) >> 36) * 2.0**-28
    morgan = merlin.copy()
    keep, phi = score_set.keep, score_set.scores[:, :, 0]
    for split in cross_fit.splits(score_set, references):
        fit = np.ix_(~split.targets, ~split.examples)
        low, high = window(np.asarray(phi[fit], dtype=np.float64).ravel(), keep[fit].ravel())
        attacked = np.ix_(split.targets, split.examples)
        morgan[attacked] += levels.size * ((low <= phi[attacked]) & (phi[attacked] <= high))
    return {"merlin": merlin, "morgan": morgan}


def window(values: Float[np.ndarray, " S"], member: Bool[np.ndarray, " S"]) -> tuple[float, float]:
    """The closed interval with the greatest share of members less that of non-members.

    All values, where there are no members or no non-members.
    """
    members = int(member.sum())
    if members in (0, member.size):
        return -np.inf, np.inf
    order = np.argsort(values)
    ordered = values[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    # In whole numbers, so that equally good intervals do not differ by rounding.
    weight = np.where(member[order], member.size - members, -members)
    total = np.append(0, np.cumsum(np.add.reduceat(weight, first)))
    least = np.minimum.accumulate(total[:-1])
    last = int(np.argmax(total[1:] - least))
    start = int(np.argmax(total[: last + 1] == least[last]))
    return float(ordered[first[start]]), float(ordered[first[last]])
