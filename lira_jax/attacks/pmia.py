"""Proxies in place of IN models, PMIA (Du et al., NDSS 2026, arXiv 2507.21412; docs/methods.md, 2).

An attacker who trained his models before he knew the example x has none that trained on x. He has
the scores of *proxies*, examples that his models did train on, and takes x's IN law to be theirs:

    score(x) = Σ_q log N(φ_q; μ_proxy,q, σ_proxy,q²) − log N(φ_q; μ_out,q, σ_out,q²),

the OUT law being that of x under his models. Proxies are all examples (`pmia-all`), or those of x's
class (`pmia-class`). The paper's third kind, the nearest neighbour in a feature space, is left out:
it needs features of the examples from a network of its own, which no saved scores have
(docs/methods.md, 2).

Here every example is attacked, so x's proxies are the other examples under the target's IN
references, x itself left out: its own IN scores play no part, as if it had none.

Left open there, and chosen here: proxies' centre is the mean, which needs no sorting of all
scores (the authors' code takes the median; x's own OUT centre is `config.centre`). σ_out is that of
x's own OUT references, unbiased; with one reference, which has no spread, that of all references'
scores on all examples. σ has the floor of LiRA's. A class with one example takes all examples.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from jaxtyping import Float, Int

from lira_jax.attacks.references import (
    Moments,
    References,
    base_and_dropped,
    map_chunks,
    moments,
    with_floor,
)
from lira_jax.attacks.spread import Spread, merge, spread_of
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def all_examples(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`pmia-all`, float64, higher = member."""
    groups = np.zeros(score_set.scores.shape[1], dtype=np.int64)
    return {"pmia-all": likelihood_ratio(score_set, references, config, groups, progress)}


def same_class(
    score_set: ScoreSet, references: References, config: AttackConfig, progress: bool = False
) -> dict[str, Float[np.ndarray, "N E"]]:
    """`pmia-class`, float64, higher = member."""
    assert score_set.labels is not None
    return {
        "pmia-class": likelihood_ratio(score_set, references, config, score_set.labels, progress)
    }


def likelihood_ratio(
    score_set: ScoreSet,
    references: References,
    config: AttackConfig,
    groups: Int[np.ndarray, " E"],
    progress: bool = False,
) -> Float[np.ndarray, "N E"]:
    """The log-ratio of the proxies' law and the OUT law.

    Args:
        score_set: φ and masks.
        references: the rule.
        config: views to use, and the centre of OUT scores.
        groups: an example's proxies are the others of its group.
        progress: show progress bars.
    """
    models, _, queries = score_set.scores.shape
    queries = config.queries or queries

    def inside_of(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> Moments:
        return moments(scores, *base_and_dropped(references, score_set.keep, chunk, "in"))

    def outside_of(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> Moments:
        base_and_fold = base_and_dropped(references, score_set.keep, chunk, "out")
        return moments(scores, *base_and_fold, config.centre)

    def gather(
        chunk: slice, scores: Float[np.ndarray, "N C Q"]
    ) -> tuple[dict[int, Spread], Spread]:
        inside, here = inside_of(chunk, scores), groups[chunk]
        by_group = {int(g): spread_of(_part(inside, here == g)) for g in np.unique(here)}
        return by_group, spread_of(outside_of(chunk, scores))

    proxies: dict[int, Spread] = {}
    everyone_out: Spread | None = None
    for by_group, spread in map_chunks(
        gather, score_set.scores, queries, "pmia: proxies", progress
    ):
        for group, new in by_group.items():
            proxies[group] = merge(proxies[group], new) if group in proxies else new
        everyone_out = spread if everyone_out is None else merge(everyone_out, spread)
    assert everyone_out is not None
    everyone_in = reduce(merge, proxies.values())
    overall_in, overall_out = (
        np.sqrt(everyone.variance)[:, np.newaxis] for everyone in (everyone_in, everyone_out)
    )

    def score_chunk(chunk: slice, scores: Float[np.ndarray, "N C Q"]) -> Float[np.ndarray, "N C"]:
        inside, outside, here = inside_of(chunk, scores), outside_of(chunk, scores), groups[chunk]
        mean_in, variance_in = np.empty((2, *inside.mean.shape))
        for group in np.unique(here):
            mine = here == group
            known = proxies[int(group)]
            known = known if known.examples > 1 else everyone_in
            mean_in[:, mine], variance_in[:, mine] = known.of_others(_part(inside, mine))
        std_in = with_floor(np.sqrt(variance_in), overall_in)[:, np.newaxis]
        std_out = np.broadcast_to(overall_out, outside.mean.shape)
        if outside.count > 1:
            std_out = np.sqrt(outside.squares / (outside.count - 1))
        std_out = with_floor(std_out, overall_out)[:, np.newaxis]
        phi = scores.reshape(-1, references.fold, *scores.shape[1:])  # [F, B, C, Q]
        z_in = (phi - mean_in[:, np.newaxis]) / std_in
        z_out = (phi - outside.centre[:, np.newaxis]) / std_out
        ratio = np.log(std_out / std_in) + (z_out * z_out - z_in * z_in) / 2
        return ratio.sum(axis=-1).reshape(models, -1)

    chunks = map_chunks(score_chunk, score_set.scores, queries, "pmia", progress)
    return np.concatenate(list(chunks), axis=1)


def _part(side: Moments, chosen: np.ndarray) -> Moments:
    """The statistics of the chosen examples alone."""
    return Moments(
        side.count, side.mean[:, chosen], side.centre[:, chosen], side.squares[:, chosen]
    )
