"""InfoRMIA (Tao, Shokri, ICLR 2026, arXiv 2510.05582; docs/methods.md, 2).

RMIA asks which share of the population z an example x exceeds by a factor γ. InfoRMIA asks by how
much it exceeds them in the mean, in units of information:

    score(x) = E_z log[ (p(x|θ)/p(x)) / (p(z|θ)/p(z)) ]
             = log[p(x|θ)/p(x)] + D(p(z) ‖ p(z|θ)),

where D = E_z log[p(z)/p(z|θ)] belongs to the target alone. So it is continuous, has no γ and no
ties, ranks a target's examples as RMIA's ratio does, and aligns targets: one that is more
confident than others on all examples is taken back by as much.

p(x|θ), p(x) and the population are those of `rmia.py`: probabilities averaged over views, p(x) over
references, `info-rmia-offline` with RMIA's correction for the IN models that are missing, and z all
other examples of the run.

Left open there, and chosen here: z are drawn by the data, whose law is
p(z), so that the expectation is their plain mean; and views and the offline p(x) are as in RMIA.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lira_jax.attacks.references import References
from lira_jax.attacks.rmia import DECIMALS, log_ratios
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of `info-rmia-online` and `info-rmia-offline`, float64, higher = member.

    Where some example leaves a target without IN references, `info-rmia-offline` alone.
    """
    ratios = log_ratios(score_set, references, config, "info-rmia", progress)
    for of_kind in ratios.values():
        for target in of_kind:
            target[:] = above_population(target).round(DECIMALS)
    return {f"info-rmia-{kind}": scores for kind, scores in ratios.items()}


def above_population(log_ratio: Float[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
    """How far each is above the mean of all others.

    Args:
        log_ratio: log p(x|θ) − log p(x) of one target's examples, of which there are at least two.
    """
    return (log_ratio - log_ratio.mean()) * (log_ratio.size / (log_ratio.size - 1))
