"""The paper's ablation, from a global threshold on the loss up to LiRA.

Three ladders (docs/methods.md, 1 "Ablation"). Each rung adds one idea to the one before
it, so that the gain of each is seen:

| ladder | step | score | name |
|---|---|---|---|
| global | LOSS | −ℓ | `yeom` |
| | + logit scaling | φ | `logit` |
| | + multiple queries | mean φ over views | `logit-queries` |
| offline | Per-example OUT threshold | mean_out ℓ − ℓ | `watson` |
| | + logit scaling | φ − μ_out | `watson-logit` |
| | + Gaussian | −log Pr[Z ≥ φ], Z ~ N(μ_out, σ_out²) | `lira-offline-one-query` |
| | + multiple queries | the same, summed over views | `lira-offline` |
| online | Per-example IN & OUT threshold | (mean_in ℓ + mean_out ℓ)/2 − ℓ | `sablayrolles` |
| | + logit scaling | φ − (μ_in + μ_out)/2 | `sablayrolles-logit` |
| | + Gaussian | Λ | `lira-online-one-query` |
| | + multiple queries | Λ, summed over views | `lira-online` |

Rungs without multiple queries take the identity view, view 0. The Gaussian rungs are LiRA with a
variance per example; −log Pr[Z ≥ φ] ranks as the z-score under OUT does. μ is `config.centre`.
φ falls as ℓ rises, so "LOSS" and its logit scaling rank alike but for float rounding; the paper's
own figures there differ by a tenth of a percent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lira_jax.attacks import lira, per_example, thresholds
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

QUERIES_STEP = "+ multiple queries"


@dataclass(frozen=True)
class Rung:
    """One step of a ladder.

    Attributes:
        ladder: which.
        step: what it adds, in the words of the paper's table.
        name: of its scores; that of an attack where it is one.
    """

    ladder: Literal["global", "offline", "online"]
    step: str
    name: str


RUNGS = (
    Rung("global", "LOSS", "yeom"),
    Rung("global", "+ logit scaling", "logit"),
    Rung("global", QUERIES_STEP, "logit-queries"),
    Rung("offline", "Per-example OUT threshold", "watson"),
    Rung("offline", "+ logit scaling", "watson-logit"),
    Rung("offline", "+ Gaussian", "lira-offline-one-query"),
    Rung("offline", QUERIES_STEP, "lira-offline"),
    Rung("online", "Per-example IN & OUT threshold", "sablayrolles"),
    Rung("online", "+ logit scaling", "sablayrolles-logit"),
    Rung("online", "+ Gaussian", "lira-online-one-query"),
    Rung("online", QUERIES_STEP, "lira-online"),
)


def rungs(score_set: ScoreSet, config: AttackConfig) -> tuple[Rung, ...]:
    """The rungs of these scores, from bottom to top: with one view, none adds queries."""
    many = (config.queries or score_set.scores.shape[2]) > 1
    return tuple(rung for rung in RUNGS if many or rung.step != QUERIES_STEP)


def ladders(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    skip: Collection[str] = (),
) -> Iterator[tuple[Rung, Float[np.ndarray, "N E"]]]:
    """Scores of every rung in the order of `rungs`, one at a time.

    Args:
        score_set: scores and masks.
        references: the rule, from `references.find`.
        config: views of the rungs with multiple queries, and μ.
        skip: names of rungs to leave out and not to compute, as their figures are at hand: a rung
            named as an attack has that attack's scores.

    Yields:
        Each rung and its float64 scores, higher = member.
    """
    wanted = [rung for rung in rungs(score_set, config) if rung.name not in skip]
    names = {rung.name for rung in wanted}
    waiting: dict[str, Float[np.ndarray, "N E"]] = {}
    for rung in wanted:
        if rung.name not in waiting:
            scores = _scores(rung.name, score_set, references, config)
            waiting |= {name: scores[name] for name in scores.keys() & names}
            del scores
        yield rung, waiting.pop(rung.name)


def _scores(
    name: str, score_set: ScoreSet, references: References, config: AttackConfig
) -> dict[str, Float[np.ndarray, "N E"]]:
    """By name, the scores of a rung and of what is computed with it."""

    def above(sides: tuple[per_example.Side, ...]) -> dict[str, Float[np.ndarray, "N E"]]:
        """φ less μ of these sides, under the identity view."""
        scores = per_example.above_references(
            score_set, references, np.asarray, sides, config.centre
        )
        return {name: scores}

    match name:
        case "yeom":
            return thresholds.yeom(score_set, references, config)
        case "logit":
            return {name: thresholds.mean_score(score_set.scores, 1)}
        case "logit-queries":
            return {name: thresholds.mean_score(score_set.scores, config.queries)}
        case "watson":
            return per_example.watson(score_set, references, config)
        case "watson-logit":
            return above(("out",))
        case "sablayrolles":
            return per_example.sablayrolles(score_set, references, config)
        case "sablayrolles-logit":
            return above(("in", "out"))
        case "lira-offline" | "lira-online":
            return lira.attack(score_set, references, config)
        case _:
            single = dataclasses.replace(config, queries=1)
            scores = lira.likelihoods(score_set, references, single, variances=[""])
            return {f"{variant}-one-query": values for variant, values in scores.items()}
