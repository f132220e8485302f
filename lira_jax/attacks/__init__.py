"""Stage 3: attacks on saved scores. NumPy, SciPy and scikit-learn only; nothing here imports JAX.

A new attack is one file with a function of the type `Attack`, and one line in ATTACKS. A user's own
attack needs no line: `[attack] extra = "package.module:function"` names such a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lira_jax.attacks import (
    base,
    bavaria,
    gradient_norm,
    info_rmia,
    jayaraman,
    lira,
    lira_bayes,
    long,
    per_example,
    pmia,
    quantile_regression,
    rmia,
    shokri,
    song_mittal,
    thresholds,
)
from lira_jax.attacks.references import References, Side
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
        sides: on which every example must have references, or none of its attacks can run.
    """

    attack: Attack
    titles: Mapping[str, str]
    needs: tuple[str, ...] = ()
    sides: tuple[Side, ...] = ("in", "out")


# What the verdict, the ranking of examples, decisions about a target and the bound on ε rest on.
# It is named beforehand, so that none of these pays for a choice among attacks.
DEFAULT = "lira-bayes"

# The default first, then LiRA and what is newer, then the rows of the LiRA paper's Table I, from
# the last to the first.
ATTACKS: dict[str, Family] = {
    "lira-bayes": Family(
        lira_bayes.attack,
        {
            "lira-bayes": "Hierarchical LiRA",
            "lira-bayes-offline": "Hierarchical LiRA, offline",
        },
        sides=(),
    ),
    "lira": Family(
        lira.attack,
        {
            "lira-online": "LiRA online",
            "lira-online-global": "LiRA online, global variance",
            "lira-online-pooled": "LiRA online, pooled variance",
            "lira-online-shrinkage": "LiRA online, shrinkage variance",
            "lira-offline": "LiRA offline",
            "lira-offline-global": "LiRA offline, global variance",
            "lira-offline-pooled": "LiRA offline, pooled variance",
            "lira-offline-shrinkage": "LiRA offline, shrinkage variance",
        },
        sides=("out",),
    ),
    "rmia": Family(
        rmia.attack, {"rmia-online": "RMIA online", "rmia-offline": "RMIA offline"}, sides=("out",)
    ),
    "info-rmia": Family(
        info_rmia.attack,
        {"info-rmia-online": "InfoRMIA online", "info-rmia-offline": "InfoRMIA offline"},
        sides=("out",),
    ),
    "bavaria": Family(
        bavaria.attack,
        {
            "bavaria-n-online": "BaVarIA-n online",
            "bavaria-t-online": "BaVarIA-t online",
            "bavaria-n-offline": "BaVarIA-n offline",
            "bavaria-t-offline": "BaVarIA-t offline",
        },
    ),
    "base": Family(
        base.attack,
        {"base-online": "BASE online", "base-offline": "BASE offline"},
        ("labels", "logits"),
        sides=("out",),
    ),
    "pmia": Family(pmia.all_examples, {"pmia-all": "PMIA, all data as proxies"}),
    "pmia-class": Family(
        pmia.same_class, {"pmia-class": "PMIA, the same class as proxies"}, ("labels",)
    ),
    "quantile-regression": Family(
        quantile_regression.attack,
        {"quantile-regression": "Bertran et al. (quantile regression)"},
        sides=("out",),
    ),
    "gradient-norm": Family(
        gradient_norm.attack,
        {
            "lira-online-gradient-norm": "LiRA online on the gradient norm",
            "gradient-norm": "Gradient norm",
        },
        ("gradient_norm",),
    ),
    "ye": Family(per_example.ye, {"ye": "Ye et al. (attack R)"}, sides=("out",)),
    "watson": Family(
        per_example.watson, {"watson": "Watson et al. (calibrated loss)"}, sides=("out",)
    ),
    "long": Family(
        long.attack, {"long": "Long et al. (vulnerable examples)"}, ("logits",), sides=("out",)
    ),
    "sablayrolles": Family(
        per_example.sablayrolles, {"sablayrolles": "Sablayrolles et al. (MALT)"}
    ),
    "song-mittal": Family(
        song_mittal.attack,
        {"song-mittal": "Song and Mittal (modified entropy)"},
        ("labels", "logits"),
        sides=(),
    ),
    "jayaraman": Family(
        jayaraman.attack,
        {"merlin": "Jayaraman et al. (Merlin)", "morgan": "Jayaraman et al. (Morgan)"},
        ("merlin",),
        sides=(),
    ),
    "shokri": Family(
        shokri.attack, {"shokri": "Shokri et al. (attack models)"}, ("labels", "logits"), sides=()
    ),
    "yeom": Family(thresholds.yeom, {"yeom": "Yeom et al. (loss)"}, sides=()),
}
TITLES = {name: title for family in ATTACKS.values() for name, title in family.titles.items()}
