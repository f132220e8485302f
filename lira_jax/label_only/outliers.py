"""Examples unlike all others, on which an attack's decisions are surer (Choquette-Choo et al.,
arXiv 2007.14321, on outliers; after Long et al., `long.py`; docs/methods.md, 4).

Examples are compared by the last layer's inputs under the source models: two are neighbours where
the cosine distance of these is at most δ. An outlier is one with few neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# δ is the distance that this share of all pairs of examples lie within.
NEAR = 0.01
# So many of the most isolated examples are outliers: a share of all, and at least a number.
SHARE = 0.01
LEAST = 20
# Pairs of which δ is taken, drawn at random.
PAIRS = 1_000_000
# Examples that are compared with all others at once.
CHUNK = 1_024


@dataclass(frozen=True)
class Outliers:
    """The most isolated examples.

    Attributes:
        examples: their numbers, the most isolated first.
        neighbours: how many each of all examples has, the mean over source models.
        delta: cosine distance within which neighbours lie, for each source model.
    """

    examples: Int[np.ndarray, " O"]
    neighbours: Float[np.ndarray, " E"]
    delta: tuple[float, ...]


def find(features: Float[np.ndarray, "S E F"]) -> Outliers:
    """The most isolated examples: SHARE of all, at least LEAST, or all if there are fewer.

    By the number of neighbours, few first, and among equals by the cosine distance to the nearest
    other example, far first; both are means over source models. δ is such that NEAR of all pairs
    are neighbours, estimated on PAIRS of them.

    Args:
        features: of all examples, the last layer's inputs under each source model.
    """
    models, examples, _ = features.shape
    neighbours, nearest = np.zeros(examples), np.zeros(examples)
    deltas = []
    for vectors in features:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        # Features that are all 0 have no direction: nothing is near them.
        unit = (vectors / np.where(length > 0, length, np.inf)).astype(np.float32)
        delta = _delta(unit)
        deltas.append(delta)
        for start in range(0, examples, CHUNK):
            rows = np.arange(start, min(start + CHUNK, examples))
            distance = 1 - unit[rows] @ unit.T
            distance[np.arange(len(rows)), rows] = np.inf
            neighbours[rows] += (distance <= delta).sum(axis=1) / models
            nearest[rows] += distance.min(axis=1) / models
    count = min(examples, max(LEAST, round(SHARE * examples)))
    order = np.lexsort((-nearest, neighbours))
    return Outliers(order[:count], neighbours, tuple(deltas))


def _delta(unit: Float[np.ndarray, "E F"]) -> float:
    """The quantile NEAR of cosine distances of pairs."""
    examples = len(unit)
    rng = np.random.default_rng(0)
    first = rng.integers(examples, size=PAIRS)
    second = (first + rng.integers(1, examples, size=PAIRS)) % examples
    similarity = np.empty(PAIRS, np.float32)
    for start in range(0, PAIRS, 2**16):
        pairs = slice(start, start + 2**16)
        similarity[pairs] = np.einsum("pf,pf->p", unit[first[pairs]], unit[second[pairs]])
    return float(np.quantile(1 - similarity, NEAR))
