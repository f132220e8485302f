"""The attacks as the public LiRA code evaluates them (`--protocol reference-code`).

The last model is the only target and all others are its references. Every example's IN scores, and
its OUT scores, in the order of models, are cut to the shortest such list over the examples. Medians
are the centres, standard deviations divide by n and get 1e-30 added, and views are averaged.

Kept digit by digit for comparison with published numbers. What it gets wrong (docs/methods.md, 3):
the global variance takes σ_out from IN scores, so that σ cannot change the ranking; the offline
density is two-sided; one target only.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from lira_jax.attacks.references import map_chunks
from lira_jax.attacks.thresholds import mean_score
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet

WORDS = "reference code: the last model is the only target, lists cut to the shortest, medians"


def list_lengths(score_set: ScoreSet) -> tuple[int, int]:
    """IN and OUT references left to every example after the cut.

    Raises:
        InputError: an example that every reference trained on, or none.
    """
    keep = score_set.keep[:-1]
    lengths = []
    for counts, word in ((keep.sum(axis=0), "no"), ((~keep).sum(axis=0), "every")):
        if not counts.min():
            raise InputError(
                f"{score_set.source}: in `keep` {word} model but the last trained on example "
                f"{counts.argmin()}, so one side has no reference; add models or remove the example"
            )
        lengths.append(int(counts.min()))
    return lengths[0], lengths[1]


def attack(
    score_set: ScoreSet, queries: int, progress: bool = False
) -> dict[str, Float[np.ndarray, "1 E"]]:
    """Scores of the last model on every example, float64, higher = member.

    Args:
        score_set: checked by `list_lengths`.
        queries: views to use, the first so many; 0 uses all.
        progress: show a progress bar.
    """
    queries = queries or score_set.scores.shape[2]
    lengths = dict(zip(("in", "out"), list_lengths(score_set), strict=True))
    shape = (score_set.scores.shape[1], queries)
    median = {side: np.empty(shape) for side in lengths}
    std = {side: np.empty(shape) for side in lengths}

    def describe(
        chunk: slice, scores: Float[np.ndarray, "N C Q"]
    ) -> dict[str, tuple[int, float, float]]:
        keep = score_set.keep[:-1, chunk]
        whole = {}
        for side, length in lengths.items():
            cut = _cut(scores[:-1], keep, side, length)
            median[side][chunk] = np.median(cut, axis=0)
            std[side][chunk] = np.std(cut, axis=0)
            whole[side] = (cut.size, float(cut.mean()), float(cut.var()))
        return whole

    chunks = list(map_chunks(describe, score_set.scores, queries, "reference code", progress))
    std_all = {side: _std_of_parts([chunk[side] for chunk in chunks]) for side in lengths}

    target = np.asarray(score_set.scores[-1:, :, :queries], dtype=np.float64)

    def density(side: str, scale: Float[np.ndarray, "E Q"] | float) -> Float[np.ndarray, "1 E Q"]:
        return norm.logpdf(target, median[side], scale + 1e-30)

    online = density("in", std["in"]) - density("out", std["out"])
    online_global = density("in", std_all["in"]) - density("out", std_all["in"])
    return {
        "lira-online": online.mean(axis=-1),
        "lira-online-global": online_global.mean(axis=-1),
        "lira-offline": -density("out", std["out"]).mean(axis=-1),
        "lira-offline-global": -density("out", std_all["out"]).mean(axis=-1),
        "global-threshold": mean_score(score_set.scores[-1:], queries),
    }


def _cut(
    scores: Float[np.ndarray, "M C Q"],
    keep: Bool[np.ndarray, "M C"],
    side: str,
    length: int,
) -> Float[np.ndarray, "L C Q"]:
    """Each example's scores on one side, in the order of models, cut to `length`."""
    outside = ~keep if side == "in" else keep
    first = np.argsort(outside, axis=0, kind="stable")[:length]
    return scores[first, np.arange(keep.shape[1])]


def _std_of_parts(parts: list[tuple[int, float, float]]) -> float:
    """Standard deviation (dividing by n) of all numbers, from (size, mean, variance) of parts."""
    size, mean, variance = (np.array(column) for column in zip(*parts, strict=True))
    overall = np.average(mean, weights=size)
    return float(np.sqrt(np.average(variance + (mean - overall) ** 2, weights=size)))
