"""Online LiRA on other statistics than φ (figure 8 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from lira_jax import evaluation, workers
from lira_jax.attacks import lira
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.evaluation import Roc
from lira_jax.evaluation.judging import AT_ONCE
from lira_jax.score_set import ScoreSet


def statistic_curves(
    score_set: ScoreSet, references: References, config: AttackConfig
) -> dict[str, Roc]:
    """Figure 8 of the LiRA paper: the online attack, one query, on up to six statistics.

    Confidence, cross-entropy, φ, and φ from float32 probabilities as public code takes it, follow
    from φ; the hinge and the plain logit need logits and labels.

    Returns:
        Thinned curves by the statistic's title.
    """
    phi = np.asarray(score_set.scores[:, :, 0], dtype=np.float64)
    probability = expit(phi).astype(np.float32)
    share, rest = (p.astype(np.float64) + 1e-45 for p in (probability, 1 - probability))
    statistics = {
        "φ = log p/(1−p), stable": phi,
        "φ from float32 p": np.log(share) - np.log(rest),
        "cross-entropy −log p": -np.logaddexp(0.0, -phi),
        "confidence p": expit(phi),
    }
    if score_set.logits is not None and score_set.labels is not None:
        own, others = np.empty(phi.shape), np.empty(phi.shape)
        columns = np.arange(phi.shape[1])
        labels, all_logits = score_set.labels, score_set.logits

        def split(model: int) -> None:  # one model at a time: logits may be a large memory map
            logits = np.array(all_logits[model], dtype=np.float64)
            own[model] = logits[columns, labels]
            logits[columns, labels] = -np.inf
            others[model] = logits.max(axis=1)

        workers.each(split, range(phi.shape[0]))
        statistics |= {"hinge z_y − max z_k": own - others, "logit z_y": own}
    single = replace(config, queries=1)

    def attacked() -> Iterator[tuple[str, Float[np.ndarray, "N E"]]]:
        for title in list(statistics):
            values = statistics.pop(title).astype(np.float64, copy=False)
            shaped = replace(score_set, scores=values[..., np.newaxis])
            scores = lira.likelihoods(shaped, references, single, variances=[""])
            yield title, scores["lira-online"]

    def curve(attack: tuple[str, Float[np.ndarray, "N E"]]) -> tuple[str, Roc]:
        title, scores = attack
        return title, evaluation.thin(evaluation.roc(scores, score_set.keep))

    return dict(workers.in_order(curve, attacked(), AT_ONCE))
