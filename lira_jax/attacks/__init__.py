"""Stage 3: attacks on saved scores. NumPy and SciPy only; nothing here imports JAX.

A new attack is one file with a function of the type below, and one line in ATTACKS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from lira_jax.attacks import lira, thresholds
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# Scores, masks and the rule for references in; by name, one score per target and example out,
# [N, E], higher = member. The last argument turns the progress bar on.
Attack = Callable[[ScoreSet, References, AttackConfig, bool], dict[str, Float[np.ndarray, "N E"]]]

ATTACKS: dict[str, Attack] = {
    "lira": lira.attack,  # lira-online, lira-offline, each also -global and -pooled
    "loss-per-example": thresholds.loss_per_example,
    "logit": thresholds.logit,
    "loss": thresholds.loss,
}
