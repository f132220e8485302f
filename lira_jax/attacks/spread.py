"""How reference scores of one side spread over many examples, gathered by chunks of examples.

Attacks with a law that examples share take it from here. Statistics are per fold, of the fold's
references alone, so that neither the target nor the rest of its fold is among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lira_jax.attacks.references import Moments


@dataclass(frozen=True)
class Spread:
    """Spread of one side's reference scores over a set of examples, per fold and view.

    Attributes:
        examples: how many.
        count: references per example.
        mean: mean over examples of the examples' means, [F, Q].
        within: sum of squared deviations from the examples' own means, [F, Q].
        between: sum over examples of the squared deviation of their means from `mean`, [F, Q].
    """

    examples: int
    count: int
    mean: Float[np.ndarray, "F Q"]
    within: Float[np.ndarray, "F Q"]
    between: Float[np.ndarray, "F Q"]

    @property
    def variance(self) -> Float[np.ndarray, "F Q"]:
        """Of all references' scores on all examples, so with what is between examples; unbiased."""
        total = self.within + self.count * self.between
        return total / max(self.examples * self.count - 1, 1)

    def of_others(
        self, side: Moments
    ) -> tuple[Float[np.ndarray, "F C Q"], Float[np.ndarray, "F C Q"]]:
        """For each example, mean and variance of the references' scores on all others.

        Args:
            side: of C of the examples, of which there are at least two.
        """
        away = side.mean - self.mean[:, np.newaxis]
        left = self.examples - 1
        total = (self.within + self.count * self.between)[:, np.newaxis] - side.squares
        total = total - (self.count * self.examples / left) * away * away
        variance = np.maximum(total, 0.0) / max(left * self.count - 1, 1)
        return self.mean[:, np.newaxis] - away / left, variance


def spread_of(side: Moments) -> Spread:
    """The spread over a chunk of examples."""
    mean = side.mean.mean(axis=1)
    deviation = side.mean - mean[:, np.newaxis]
    return Spread(
        examples=side.mean.shape[1],
        count=side.count,
        mean=mean,
        within=side.squares.sum(axis=1),
        between=(deviation * deviation).sum(axis=1),
    )


def merge(a: Spread, b: Spread) -> Spread:
    """The spread over two disjoint sets of examples."""
    examples = a.examples + b.examples
    step = b.mean - a.mean
    return Spread(
        examples=examples,
        count=a.count,
        mean=a.mean + step * (b.examples / examples),
        within=a.within + b.within,
        between=a.between + b.between + step * step * (a.examples * b.examples / examples),
    )
