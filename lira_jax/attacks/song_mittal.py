"""Modified entropy (Song and Mittal, arXiv 2003.10595, section 3.2; docs/methods.md, 2).

With p = softmax(z) and the true label y, M = −(1 − p_y) log p_y − Σ_{k≠y} p_k log(1 − p_k): the
entropy of the output, made to grow with a wrong answer's confidence. A target's example of class y
is called a member where M ≤ τ_y; τ_y gives the best balanced accuracy on the class's examples
under other models (`cross_fit`). Classes without members or non-members there take the threshold of
all classes together, and where these have none, τ = 1.

The score is log τ_y − log M rather than τ_y − M: it calls the same pairs members at 0, and
confident members, whose M is below the rounding of τ_y, do not tie.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from lira_jax import workers
from lira_jax.attacks import cross_fit
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

# Where log(1 − p) is less, p is 1 to float64, and −log p is 1 − p.
NEARLY_ONE = -37.0


def attack(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`song-mittal`, float64, higher = member."""
    del config, progress
    labels, logits, keep = score_set.labels, score_set.logits, score_set.keep
    assert labels is not None
    assert logits is not None

    def of_model(outputs: Float[np.ndarray, "E K"]) -> Float[np.ndarray, " E"]:
        return log_modified_entropy(np.asarray(outputs), labels)

    entropy = np.stack(list(workers.in_order(of_model, logits)))
    result = np.empty_like(entropy)

    def attack_split(split: cross_fit.Split) -> None:
        models = np.flatnonzero(~split.targets)
        everything = np.ix_(models, np.flatnonzero(~split.examples))
        pooled = threshold(entropy[everything].ravel(), keep[everything].ravel())
        for label in np.unique(labels):
            fit = np.ix_(models, np.flatnonzero(~split.examples & (labels == label)))
            own = threshold(entropy[fit].ravel(), keep[fit].ravel())
            tau = next((value for value in (own, pooled) if value is not None), 0.0)
            attacked = np.ix_(split.targets, split.examples & (labels == label))
            result[attacked] = tau - entropy[attacked]

    workers.each(attack_split, cross_fit.splits(score_set, references))
    return {"song-mittal": result}


def log_modified_entropy(
    logits: Float[np.ndarray, "E K"], labels: Int[np.ndarray, " E"]
) -> Float[np.ndarray, " E"]:
    """Log M, in float64: exact where probabilities round to 0 or 1."""
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))
    top = logits.argmax(axis=1)
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    others = log_p.copy()
    others[rows, top] = -np.inf
    # log(1 − p): of the likeliest class from the sum of the others, none of which is above ½.
    log_rest = np.log1p(-np.exp(others))
    log_rest[rows, top] = logsumexp(others, axis=1)
    log_p[rows, top] = np.log1p(-np.exp(log_rest[rows, top]))
    terms = log_p + _log_minus(log_rest, log_p)
    terms[rows, labels] = (log_rest + _log_minus(log_p, log_rest))[rows, labels]
    return logsumexp(terms, axis=1)


def _log_minus(log_p: np.ndarray, log_rest: np.ndarray) -> np.ndarray:
    """log(−log p), given log p and log(1 − p)."""
    nearly_one = log_rest < NEARLY_ONE
    return np.where(nearly_one, log_rest, np.log(-np.where(nearly_one, -1.0, log_p)))


def threshold(values: Float[np.ndarray, " S"], member: Bool[np.ndarray, " S"]) -> float | None:
    """The τ with which value ≤ τ tells members with the best balanced accuracy.

    Halfway between the two values it separates; None without members or without non-members.
    """
    members = int(member.sum())
    if members in (0, member.size):
        return None
    order = np.argsort(values)
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    # In whole numbers, so that equally good thresholds do not differ by rounding.
    gain = np.cumsum(np.where(member[order], member.size - members, -members))[last]
    best = int(last[np.argmax(gain)])
    return float((ordered[best] + ordered[min(best + 1, ordered.size - 1)]) / 2)
