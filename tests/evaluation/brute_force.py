"""Cases with ties, and the bootstrap's draws as lists."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lira_jax.evaluation import bootstrap


@st.composite
def scores_and_members(draw):
    size = draw(st.integers(2, 40))
    # Few levels, so that ties are the rule.
    scores = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    member = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    member[:2] = [True, False]
    return np.array(scores, dtype=np.float64), np.array(member)


def resampled(folds, examples, seed, replicates):
    """The draws of `evaluation`, as lists of folds and of examples: one pair per replicate."""
    drawn = bootstrap._weights(folds, examples, seed, replicates)
    for r in range(replicates):
        yield (
            np.repeat(np.arange(folds), drawn.folds[:, r].astype(int)),
            np.repeat(np.arange(examples), drawn.examples[:, r].astype(int)),
        )
