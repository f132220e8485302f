"""Which examples a run gives away: how exposed each is to an attack.

docs/methods.md, 1, figure 13.

NumPy and SciPy only.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax import evaluation
from lira_jax.attacks.references import map_chunks, with_floor
from lira_jax.attacks.thresholds import loss_of
from lira_jax.config import AttackConfig
from lira_jax.csv_text import csv_text
from lira_jax.findings import Vulnerability
from lira_jax.score_set import ScoreSet

MEASURED = ("d", "mean_score_in", "mean_score_out", "success", "success_lo", "success_hi")
# Of decisions by the default attack at `attack.fpr`.
DECIDED = ("flip_in", "flip_out", "fpr")
COLUMNS = ("rank", "example", "label", *MEASURED, *DECIDED, "canary", "attack")


def exposure(
    score_set: ScoreSet,
    attack: str,
    scores: Float[np.ndarray, "N E"],
    config: AttackConfig,
) -> Vulnerability:
    """How exposed every example is, over all models as targets.

    Decisions are those of one threshold for all examples and targets, the one of largest balanced
    accuracy on the pooled curve. The interval of `success` is Clopper and Pearson's for as many
    trials as there are targets, or 4/(1/IN + 1/OUT) where not equally many are on each side. It is
    wide enough for decisions that are independent; those of one example's targets share references,
    so that without leakage up to 10 % of the examples had ½ outside it (64 models), not 5 %.

    Where an example's φ do not vary on one side, σ is the floor of `attacks/references.py`:
    MIN_RELATIVE_STD of the σ of all φ of that side and view, and at least MIN_STD. An example that
    all models trained on, or none, has no exposure: its figures are NaN, and its rank is after all
    others.

    Args:
        score_set: φ and masks; φ may be a memory map.
        attack: name of the attack to be exposed to.
        scores: its scores, higher = member; those of `lira-online` and its kin are log-ratios.
        config: views to use.
    """
    keep = score_set.keep
    threshold = evaluation.best_threshold(scores, keep)
    right_in, right_out = (keep & (scores >= threshold)), (~keep & (scores < threshold))
    count_in = keep.sum(axis=0)
    count_out = keep.shape[0] - count_in
    on_both = (count_in > 0) & (count_out > 0)
    count_in, count_out = (np.where(on_both, count, 1) for count in (count_in, count_out))
    share_in = right_in.sum(axis=0) / count_in
    share_out = right_out.sum(axis=0) / count_out
    success = (share_in + share_out) / 2
    trials = 4 / (1 / count_in + 1 / count_out)
    low, high = evaluation.clopper_pearson(success * trials, trials)
    d = privacy_score(score_set, config.queries)

    def known(values: Float[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
        return np.where(on_both, values, np.nan)

    order = np.lexsort((np.arange(d.size), -d, -known(success)))
    rank = np.empty(d.size, dtype=np.int64)
    rank[order] = np.arange(1, d.size + 1)
    return Vulnerability(
        attack=attack,
        mean_score_in=known(np.sum(scores, axis=0, where=keep) / count_in),
        mean_score_out=known(np.sum(scores, axis=0, where=~keep) / count_out),
        success=known(success),
        success_lo=known(low),
        success_hi=known(high),
        d=d,
        rank=rank,
        threshold=threshold,
    )


def privacy_score(score_set: ScoreSet, queries: int = 0) -> Float[np.ndarray, " E"]:
    """Privacy score d = |μ_in − μ_out| / (σ_in + σ_out) of φ over all models, by example.

    The mean over the first `queries` views (0: all). σ are unbiased, and at least the floor that
    `exposure` states. NaN where one side has no model.
    """
    queries = queries or score_set.scores.shape[2]
    keep = score_set.keep
    shape = (2, score_set.scores.shape[1], queries)
    mean, squares = np.empty(shape), np.empty(shape)

    def describe(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> None:
        for side, inside in enumerate((keep[:, chunk], ~keep[:, chunk])):
            count = np.maximum(inside.sum(axis=0), 1)[:, np.newaxis]
            here = inside.astype(np.float64)
            # Less the first model's: equal scores come out with a spread of exactly zero.
            residual = scores - scores[0]
            centre = np.einsum("nc,ncq->cq", here, residual) / count
            residual -= centre
            mean[side, chunk] = scores[0] + centre
            squares[side, chunk] = np.einsum("nc,ncq,ncq->cq", here, residual, residual)

    for _ in map_chunks(describe, score_set.scores, queries):
        pass
    count = np.stack([keep.sum(axis=0), (~keep).sum(axis=0)])[..., np.newaxis]
    total = count.sum(axis=1, keepdims=True)
    overall = (count * mean).sum(axis=1, keepdims=True) / total
    spread = (squares + count * (mean - overall) ** 2).sum(axis=1, keepdims=True)
    overall = np.sqrt(spread / np.maximum(total - 1, 1))
    std = with_floor(np.sqrt(squares / np.maximum(count - 1, 1)), overall)
    d = (np.abs(mean[0] - mean[1]) / (std[0] + std[1])).mean(axis=-1)
    return np.where(count.min(axis=0)[:, 0] > 0, d, np.nan)


def as_csv(
    vulnerability: Vulnerability,
    labels: Int[np.ndarray, " E"] | None = None,
    canary: Bool[np.ndarray, " E"] | None = None,
) -> str:
    """One line per example, most exposed first, under COLUMNS; label is empty without labels.

    What is not known is empty: all but `fpr` where all models trained on the example, or none.
    `canary` is 1 for inserted points and 0 for others; `attack` is the one by whose success, and
    of whose scores, all this is.
    """
    # In the order of COLUMNS.
    return csv_text(
        [
            {
                "rank": vulnerability.rank[example],
                "example": example,
                "label": None if labels is None else int(labels[example]),
                **{
                    name: _known(getattr(vulnerability, name), example)
                    for name in (*MEASURED, *DECIDED)
                },
                "canary": 0 if canary is None else int(canary[example]),
                "attack": vulnerability.attack,
            }
            for example in vulnerability.order
        ]
    )


def _known(values: Float[np.ndarray, " E"] | None, example: int) -> str | None:
    return None if values is None or np.isnan(values[example]) else f"{values[example]:.6g}"


def with_spread(score_set: ScoreSet) -> Bool[np.ndarray, " E"]:
    """Which examples have at least two models on each side, so that both have a σ."""
    inside = score_set.keep.sum(axis=0)
    return np.asarray((inside >= 2) & (len(score_set.keep) - inside >= 2))


def mean_loss_out(score_set: ScoreSet) -> Float[np.ndarray, " E"]:
    """Mean cross-entropy loss under the models OUT, identity view; NaN where there are none."""
    outside = ~score_set.keep

    def mean(chunk: slice, scores: Float[np.ndarray, "N C 1"]) -> Float[np.ndarray, " C"]:
        count = outside[:, chunk].sum(axis=0)
        total = loss_of(scores[..., 0]).sum(axis=0, where=outside[:, chunk])
        return total / np.where(count > 0, count, np.nan)

    return np.concatenate(list(map_chunks(mean, score_set.scores, 1)))


def four_examples(loss_out: Float[np.ndarray, " E"], d: Float[np.ndarray, " E"]) -> dict[str, int]:
    """Four examples as in figure 3: easy and hard, inlier and outlier, chosen by rule.

    Easy is a low mean OUT loss, an outlier has a high privacy score d. Each pick is the example
    nearest to its corner when examples are ranked by both; fewer than four where fewer have both,
    and are not NaN.
    """
    usable = np.flatnonzero(np.isfinite(loss_out + d))
    by_loss, by_d = (_ranks(values[usable]) for values in (loss_out, d))
    picks: dict[str, int] = {}
    corners = {
        "easy inlier": by_loss + by_d,
        "hard inlier": -by_loss + by_d,
        "easy outlier": by_loss - by_d,
        "hard outlier": -by_loss - by_d,
    }
    for name, distance in corners.items():
        free = ~np.isin(usable, list(picks.values()))
        if free.any():
            picks[name] = int(usable[free][distance[free].argmin()])
    return picks


def _ranks(values: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")
