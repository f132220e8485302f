"""Attacks on prediction scores, tuned on one shadow model (Hintersdorf et al., arXiv 2111.09076,
section 3; docs/methods.md, 5). Higher = member.

None of them knows an input's label, so they can be asked about any input:

- `entropy`: minus the entropy of the prediction;
- `max-score`: the largest prediction score p, as log(p / (1 − p)), in which scores that round to 1
  differ;
- `top-3`: log-odds of a network with one hidden layer of 64 ReLUs on the three largest scores, the
  largest likewise as log(p / (1 − p)), the others as their logarithms.

A fourth, `max-score-calibrated`, is LiRA offline on the maximum score: it compares with what other
models say of the very input (`lira_jax/trust/results.py`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import log_softmax, logsumexp
from threadpoolctl import threadpool_limits

from lira_jax.attacks.shokri import Network, fit_network

TOP = 3


def minus_entropy(logits: Float[np.ndarray, "*M K"]) -> Float[np.ndarray, "*M"]:
    """Σ_k p_k log p_k, float64; from logits, so that it stays exact where p rounds to 1."""
    exact = np.asarray(logits, np.float64)
    log_p = log_softmax(exact, axis=-1)
    # Where the others' sum is below the rounding of 1, that gives 0 for the largest score.
    largest = np.argmax(exact, axis=-1)[..., np.newaxis]
    log_odds = max_score(exact)[..., np.newaxis]
    np.put_along_axis(log_p, largest, -np.logaddexp(0, -log_odds), axis=-1)
    return np.sum(np.exp(log_p) * log_p, axis=-1)


def max_score(logits: Float[np.ndarray, "*M K"]) -> Float[np.ndarray, "*M"]:
    """Log(p / (1 − p)) of the largest prediction score p, float64."""
    exact = np.sort(np.asarray(logits, np.float64), axis=-1)
    return exact[..., -1] - logsumexp(exact[..., :-1], axis=-1)


def top_scores(logits: Float[np.ndarray, "*M K"]) -> Float[np.ndarray, "*M J"]:
    """The J = 3 largest scores, descending (all where there are fewer classes): the largest as
    log-odds, which do not round to 0, the others as log-probabilities."""
    largest = np.sort(log_softmax(np.asarray(logits, np.float64), axis=-1), axis=-1)
    return np.concatenate(
        [max_score(logits)[..., np.newaxis], largest[..., -2 : -TOP - 1 : -1]], axis=-1
    )


def fit_top_3(logits: Float[np.ndarray, "E K"], member: Bool[np.ndarray, " E"]) -> Network:
    """The attack network, from one shadow model's predictions and its membership."""
    # Threads gain nothing on a network this small.
    with threadpool_limits(1, "blas"):
        return fit_network(top_scores(logits), member)


def top_3(network: Network, logits: Float[np.ndarray, "*M K"]) -> Float[np.ndarray, "*M"]:
    """Log-odds of membership."""
    inputs = top_scores(logits)
    return network.log_odds(inputs.reshape(-1, inputs.shape[-1])).reshape(inputs.shape[:-1])
