"""Stage 3: attacks on saved scores. NumPy, SciPy and scikit-learn only; nothing here imports JAX.

A new attack is one file with a function of the type `Attack`, and one line in ATTACKS. A user's own
attack needs no line: `[attack] extra = "package.module:function"` names such a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lira_jax.attacks import lira, thresholds
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# Scores, masks and the rule for references in; by name, one score per target and example out,
# [N, E], higher = member. The last argument turns the progress bar on.
Attack = Callable[[ScoreSet, References, AttackConfig, bool], dict[str, Float[np.ndarray, "N E"]]]


@dataclass(frozen=True)
class Family:
    """Attacks that are computed together.

    Attributes:
        attack: what computes them.
        titles: what tables and legends call each, by its name, in the order of tables.
        needs: fields of ScoreSet, beyond scores and keep, without which it cannot run.
    """

    attack: Attack
    titles: Mapping[str, str]
    needs: tuple[str, ...] = ()


ATTACKS: dict[str, Family] = {
    "lira": Family(
        lira.attack,
        {
            "lira-online": "LiRA online",
            "lira-online-global": "LiRA online, global variance",
            "lira-online-pooled": "LiRA online, pooled variance",
            "lira-offline": "LiRA offline",
            "lira-offline-global": "LiRA offline, global variance",
            "lira-offline-pooled": "LiRA offline, pooled variance",
        },
    ),
    "watson": Family(thresholds.watson, {"watson": "Watson et al. (calibrated loss)"}),
    "yeom": Family(thresholds.yeom, {"yeom": "Yeom et al. (loss)"}),
}
TITLES = {name: title for family in ATTACKS.values() for name, title in family.titles.items()}
