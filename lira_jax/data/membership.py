"""Which shadow model trains on which example.

Blocked masks: for a keep fraction m/B, models come in blocks of B. A seeded permutation cuts the
examples into B equal folds, and model j of the block trains on folds j … j+m−1 (mod B). Every model
then trains on the same number of examples, every example is in exactly m models of each block, and
a target tells nothing about its own membership through counts over the other blocks (with exact
halves over all models and leave-one-out it would).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32

from lira_jax import random_streams
from lira_jax.errors import InputError


def usable_examples(examples: int, block: int) -> int:
    """The largest number of examples, at most `examples`, that B folds share equally."""
    return examples - examples % block


def blocked_masks(
    seed: int, models: int, examples: int, kept_folds: int, block: int
) -> Bool[np.ndarray, "N E"]:
    """Membership masks of the first N models, a function of seed, model and E only.

    Examples:
        >>> masks = blocked_masks(seed=0, models=8, examples=40, kept_folds=1, block=4)
        >>> set(masks.sum(axis=1).tolist()), set(masks.sum(axis=0).tolist())
        ({10}, {2})

    Args:
        seed: of the run.
        models: N, a multiple of `block`.
        examples: E, a multiple of `block`.
        kept_folds: m, folds that each model trains on.
        block: B, models per block.

    Returns:
        bool [N, E], true where the model trains on the example (IN).

    Raises:
        InputError: N or E is no multiple of B, E is 0, or not 0 < m < B.
    """
    if not 0 < kept_folds < block:
        raise InputError(f"keep fraction {kept_folds}/{block}: must lie between 0 and 1")
    if models % block:
        raise InputError(f"{models} models: give a multiple of the block size {block}")
    if examples == 0 or examples % block:
        raise InputError(f"{examples} examples: give a positive multiple of {block}, the folds")
    keep = np.zeros((models, examples), bool)
    for first in range(0, models, block):
        # Seeded by (seed, block) alone, so that more models leave these as they are.
        order = random_streams.masks(seed, first // block).permutation(examples)
        folds = order.reshape(block, -1)
        for j in range(block):
            kept = [(j + step) % block for step in range(kept_folds)]
            keep[first + j, folds[kept].ravel()] = True
    return keep


def member_indices(keep: Bool[np.ndarray, "N E"]) -> Int32[np.ndarray, "N M"]:
    """Each model's own examples, ascending; all models have equally many."""
    return np.stack([np.flatnonzero(row) for row in keep]).astype(np.int32)
