"""The false-positive rate that each example really has, and decisions that keep it on every one.

One threshold on Λ for all examples keeps a rate on average: on some examples OUT models reach it
far more often than on others. Under the fitted law of one more OUT score x of an example, its own
rate is the probability of {x: Λ(x) ≥ threshold}, which may be several intervals, as Λ need not
rise everywhere. Decisions by Pr[X ≥ x | OUT] ≤ rate instead keep it on every example, as far as
the law holds. Both are checked on the run's own models as targets, with references outside their
block.

NumPy and SciPy only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lira_jax import evaluation, workers
from lira_jax.analysis.coin_flips import coin_flips, flip_rates
from lira_jax.attacks import lira_bayes
from lira_jax.attacks.hierarchical import Law, Mixture
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.findings import Vulnerability
from lira_jax.score_set import ScoreSet

# Where crossings of the threshold are looked for: so many σ beyond all kinds' means, at so many
# points; each is then found by so many halvings.
SIGMAS = 10.0
POINTS = 160
HALVINGS = 30
# About so many pairs of a model and an example it did not train on are compared with predictions.
PAIRS = 50_000
# Examples of one grid at a time.
CHUNK = 256
# Edges of the groups of predictions, in multiples of the rate aimed at.
EDGES = (0.0, 0.1, 0.5, 2.0, 10.0, np.inf)
QUANTILES = {"median": 0.5, "0.95": 0.95, "0.99": 0.99, "max": 1.0}
FAR_ABOVE = 10


def of_threshold(of_out: Mixture, of_in: Mixture, threshold: float) -> Float[np.ndarray, " C"]:
    """Pr{Λ(X) ≥ threshold} for X of each example's OUT law.

    Exact but for crossings that are a pair within one step of the grid, or beyond it.
    """
    reach = SIGMAS * np.sqrt(of_out.variance)
    low, high = (of_out.mean - reach).min(axis=0), (of_out.mean + reach).max(axis=0)
    grid = low + np.linspace(0, 1, POINTS)[:, np.newaxis] * (high - low)
    above = of_in.log_density(grid) - of_out.log_density(grid) >= threshold
    step, example = np.nonzero(above[1:] != above[:-1])
    up, own_out, own_in = above[step + 1, example], of_out.of(example), of_in.of(example)
    left, right = grid[step, example], grid[step + 1, example]
    for _ in range(HALVINGS if example.size else 0):
        middle = (left + right) / 2
        over = own_in.log_density(middle) - own_out.log_density(middle) >= threshold
        left, right = np.where(over == up, left, middle), np.where(over == up, middle, right)
    tail = np.exp(own_out.log_tail((left + right) / 2)) if example.size else np.zeros(0)
    signed = np.bincount(example, np.where(up, tail, -tail), minlength=low.size)
    return np.clip(above[0] + signed, 0.0, 1.0)


def reliability(
    score_set: ScoreSet,
    rule: References,
    config: AttackConfig,
    log_odds: Float[np.ndarray, "N E"],
    exposed: Vulnerability,
    canary: Bool[np.ndarray, " E"],
) -> tuple[Vulnerability, dict[str, Any], dict[str, Any]]:
    """How far decisions by the default attack at `config.fpr` can be relied on, example by example.

    Args:
        score_set, rule, config: as for `lira_bayes.attack`.
        log_odds: its scores.
        exposed: exposure of every example, to add to.
        canary: inserted points; thresholds and all but the columns are of the others.

    Returns:
        Exposure with `flip_in`, `flip_out` and `fpr`; `per_example_fpr` and `coin_flips` of
        `metrics.json`.
    """
    rare = np.empty(score_set.keep.shape, bool)  # as OUT scores of that example go

    def decide(
        model: int, chunk: slice, of_out: Mixture, _: Mixture, x: Float[np.ndarray, " C"]
    ) -> None:
        rare[model, chunk] = of_out.log_tail(x) <= np.log(config.fpr)

    centred = lira_bayes.prepare(score_set, rule, config)
    laws = lira_bayes.laws_of(centred, False)
    lira_bayes.of_run(centred, laws, decide)
    natural, keep = ~canary, score_set.keep
    threshold = evaluation.threshold_at_fpr(log_odds[:, natural][~keep[:, natural]], config.fpr)
    called = log_odds >= threshold
    flip_in, flip_out = flip_rates(called, keep), flip_rates(called, ~keep)
    fpr = _of_examples(*lira_bayes.of_another(score_set, rule, config), threshold)
    shown = keep[:, natural]
    per_example = {
        "attack": "lira-bayes",
        "laws": {"unsettled": sum(not law.converged for law in laws)},
        "fpr": config.fpr,
        "in_use": config.calibrate,
        "spread": {name: float(np.quantile(fpr[natural], q)) for name, q in QUANTILES.items()},
        "far_above": FAR_ABOVE,
        "share_far_above": float((fpr[natural] > FAR_ABOVE * config.fpr).mean()),
        "groups": _groups(centred, laws, config.fpr, threshold, called, natural),
        "pooled": {"threshold": threshold}
        | evaluation.decisions(called[:, natural], shown, rule.fold),
        "per-example": evaluation.decisions(rare[:, natural], shown, rule.fold),
    }
    flips = {"fpr": config.fpr} | coin_flips(
        called[:, natural], shown, flip_in[natural], flip_out[natural]
    )
    return replace(exposed, flip_in=flip_in, flip_out=flip_out, fpr=fpr), per_example, flips


def _of_examples(of_out: Mixture, of_in: Mixture, threshold: float) -> Float[np.ndarray, " E"]:
    """`of_threshold`, in chunks, as a grid of all examples would take much memory."""
    examples = of_out.mean.shape[1]
    parts = np.array_split(np.arange(examples), -(-examples // CHUNK))
    found = workers.in_order(
        lambda part: of_threshold(of_out.of(part), of_in.of(part), threshold), parts
    )
    return np.concatenate(list(found))


def _groups(
    centred: lira_bayes.Centred,
    laws: list[Law],
    rate: float,
    threshold: float,
    called: Bool[np.ndarray, "N E"],
    natural: Bool[np.ndarray, " E"],
) -> list[dict[str, Any]]:
    """Predicted and observed rates of pairs of a model and an example it did not train on.

    A prediction is of the references outside the model's block, so that its own scores and the
    decision that is observed have no part in it.

    Returns:
        Of each group by prediction that has pairs: least and most (None: no limit), its limits in
        multiples of the rate aimed at; pairs; predicted, observed; observed_ci, Clopper and
        Pearson's, as for independent decisions.
    """
    models, examples = called.shape
    some = min(models, max(1, 2 * PAIRS // examples))
    chosen = np.linspace(0, models - 1, some).round().astype(int)
    predicted = np.full(called.shape, np.nan, np.float32)

    def predict(
        model: int, chunk: slice, of_out: Mixture, of_in: Mixture, _: Float[np.ndarray, " C"]
    ) -> None:
        outside = np.flatnonzero(~centred.keep[model, chunk] & natural[chunk])
        for part in np.array_split(outside, -(-outside.size // CHUNK)) if outside.size else ():
            rates = of_threshold(of_out.of(part), of_in.of(part), threshold)
            predicted[model, chunk.start + part] = rates

    lira_bayes.of_run(centred, laws, predict, chosen)
    pairs = np.isfinite(predicted)
    expected, observed = predicted[pairs].astype(np.float64), called[pairs]
    group = np.digitize(expected, rate * np.array(EDGES[1:-1]))
    groups = []
    for number in np.unique(group):
        here = group == number
        count, ones = int(here.sum()), int(observed[here].sum())
        groups.append(
            {
                "least": EDGES[number],
                "most": EDGES[number + 1] if np.isfinite(EDGES[number + 1]) else None,
                "pairs": count,
                "predicted": float(expected[here].mean()),
                "observed": ones / count,
                "observed_ci": [float(end) for end in evaluation.clopper_pearson(ones, count)],
            }
        )
    return groups
