"""BASE (Lassila, Östman, Ngo, Graell i Amat, NeurIPS 2025, arXiv 2505.24089; docs/methods.md, 2).

The Bayes-optimal test compares the target's loss on an example with a threshold that is an
expectation over models; BASE takes it over the references. With p the probability of the true label
at a softmax temperature of TEMPERATURE, under the identity view,

- `base-online`:  log p(x|θ) − log mean_j p_j(x), over all references j, IN and OUT alike;
- `base-offline`: log p(x|θ) − OFFLINE_SCALE · log mean_j p_j(x), over OUT references alone; the
  factor makes up for the IN models that are missing.

At temperature 1, `base-online` is the log-ratio of RMIA with as many IN as OUT references, which
RMIA then compares with the population's (`rmia.py`): BASE puts one threshold on it for all targets.

Left open there, and chosen here: each side counts by its references, whose numbers are the
same for every target and example. What is softened by a temperature needs all classes' logits,
which are there under the identity view alone, so other views go unused.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from lira_jax.attacks.references import References, Side, base_and_dropped, map_chunks
from lira_jax.attacks.rmia import DECIMALS, log_mean_of_references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# As in its public implementation.
TEMPERATURE = 2.0
OFFLINE_SCALE = 0.33


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of `base-online` and `base-offline`, float64, higher = member.

    Where some example leaves a target without IN references, `base-offline` alone.
    """
    del config
    labels, logits = score_set.labels, score_set.logits
    assert labels is not None
    assert logits is not None
    names = ("base-online", "base-offline") if references.count_in else ("base-offline",)
    result = {name: np.empty(logits.shape[:2]) for name in names}
    count_in, count_out = references.count_in, references.count_out

    def score_chunk(chunk: slice, outputs: Float[np.ndarray, "N C K"]) -> None:
        softened = outputs / TEMPERATURE
        of_label = np.take_along_axis(softened, labels[np.newaxis, chunk, np.newaxis], axis=2)
        log_p = of_label[..., 0] - logsumexp(softened, axis=2)

        def log_mean(side: Side) -> Float[np.ndarray, "F C"]:
            used = base_and_dropped(references, score_set.keep, chunk, side)
            return log_mean_of_references(log_p, *used)

        log_out = log_mean("out")
        thresholds = {"base-offline": OFFLINE_SCALE * log_out}
        if count_in:
            weight_in, weight_out = (
                np.log(count / (count_in + count_out)) for count in (count_in, count_out)
            )
            thresholds["base-online"] = np.logaddexp(
                weight_in + log_mean("in"), weight_out + log_out
            )
        targets = log_p.reshape(-1, references.fold, log_p.shape[1])  # [F, B, C]
        for name, threshold in thresholds.items():
            scores = (targets - threshold[:, np.newaxis]).reshape(log_p.shape)
            # Rounding errors alone would tell members apart where models are equally certain.
            result[name][:, chunk] = scores.round(DECIMALS)

    # Logits are read as scores are, with classes in place of views.
    for _ in map_chunks(score_chunk, logits, logits.shape[2], "base", progress):
        pass
    return result
