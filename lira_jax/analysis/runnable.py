"""Which attacks a set of scores allows, and why it does not allow the others.

Most attacks need references on a side, or both, of every example. The default takes any numbers,
none included: it alone, and what has no references, can still be run with 2 or 3 models, or where
some examples are in one model, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lira_jax.attacks import Family
from lira_jax.attacks.references import References, Side
from lira_jax.score_set import ScoreSet

# What an attack lacks where a field of ScoreSet is missing, and how to come by it.
REMEDIES = {
    "labels": "needs labels [E] beside the scores",
    "logits": "needs logits [N, E, K] beside the scores",
    "merlin": "needs noisy queries: python score.py --run DIR --score.noisy_queries 100",
    "gradient_norm": "needs gradients: python score.py --run DIR --score.gradient_norm True",
}


def lacking(family: Family, score_set: ScoreSet, rule: References) -> str | None:
    """Why a family cannot be run, "needs …"; None if it can."""
    for need in family.needs:
        if getattr(score_set, need) is None:
            return REMEDIES[need]
    return next((_needs(side, rule) for side in family.sides if side in rule.lacking), None)


def _needs(side: Side, rule: References) -> str:
    return f"needs references that some examples lack: {rule.lacking[side]}"


def not_run(
    families: Mapping[str, Family],
    score_set: ScoreSet,
    rule: References,
    run: Collection[str],
) -> list[dict[str, Any]]:
    """Name, title and reason of every attack that was not run.

    Args:
        families: all that were asked for, by name.
        score_set, rule: what they were to run on.
        run: names of the attacks that were.
    """
    found = []
    for key, family in families.items():
        reason = lacking(family, score_set, rule)
        if reason is None and "in" in rule.lacking:  # those by OUT references have no online attack
            reason = _needs("in", rule)
        if reason is not None:
            titles = family.titles or {key: key}
            found += [
                {"name": name, "title": title, "reason": reason}
                for name, title in titles.items()
                if name not in run
            ]
    return found
