"""What an attack gains from more views and from more shadow models, from one run.

docs/methods.md, 1: "Queries 1 / 2 / 18 / 162", and figures 9 and 17. Where targets times examples
are more than DECISIONS, the points rest on a random part of the examples, the same for all, except
those of all models and views, which are the attacks themselves. Of more than TARGETS models, points
of fewer models rest on the first TARGETS as targets, or the first so many as there are models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lira_jax import workers
from lira_jax.attacks import lira, lira_bayes
from lira_jax.attacks.draws import keys
from lira_jax.attacks.references import References, find
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.evaluation.judging import AT_ONCE, HEADLINE, headline
from lira_jax.score_set import ScoreSet

# Of the bootstrap behind every point: enough for a bar in a figure.
REPLICATES = 200
# Decisions (targets × examples) behind a point; more than some millions tell nothing new, and take
# most of the time of the attack stage.
DECISIONS = 2**21
# Targets behind a point of fewer models, or one group, if that is more: laws are fitted for every
# group.
TARGETS = 64

# The paper's sets of views: the image; its mirror; 9 shifts of both; 81 shifts of both.
QUERIES = (1, 2, 18, 162)
BY_QUERIES = (
    *lira_bayes.NAMES, "lira-online", "lira-online-shrinkage", "lira-offline",
    "lira-offline-shrinkage",
)  # fmt: skip
# Figure 9: a variance per example against a global one; and what is meant to be best of both.
BY_MODELS = (
    *lira_bayes.NAMES,
    "lira-online",
    "lira-online-global",
    "lira-online-shrinkage",
    "lira-offline",
    "lira-offline-global",
    "lira-offline-shrinkage",
)


def by_queries(
    score_set: ScoreSet,
    rule: References,
    config: AttackConfig,
    names: Sequence[str] = BY_QUERIES,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The figures of LiRA with the first 1, 2, 18 and 162 views, and with all that `config` uses.

    Args:
        score_set: φ of Q views; numbers of views above Q are left out.
        rule: by which targets get their references.
        config: of the attack; its `queries`, or Q, is the largest number of views.
        names: which of LiRA's variants; those it does not know are passed over.
        known: what was found, by name, with all views that `config` uses: not computed again.

    Returns:
        One entry per number of views and variant: queries, name and `judging.headline`.
    """
    score_set, rule = _part(score_set, rule)
    largest = config.queries or score_set.scores.shape[2]
    sizes = [q for q in QUERIES if q < largest] + [largest] * (known is None)

    def points() -> Iterator[tuple[dict[str, Any], Float[np.ndarray, "N E"]]]:
        for queries in sizes:
            chosen = dataclasses.replace(config, queries=queries)
            scores = _scores(score_set, rule, chosen, names)
            for name in names:
                if name in scores:
                    yield {"queries": queries, "name": name}, scores.pop(name)

    entries = _judged(points(), score_set, rule)
    return entries + _known({"queries": largest}, names, known)


def by_models(
    score_set: ScoreSet,
    rule: References,
    config: AttackConfig,
    names: Sequence[str] = BY_MODELS,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The figures of LiRA with fewer shadow models.

    For each M of `levels`, the run's models are cut into as many disjoint groups of M as there are;
    each is attacked as a run of its own, every model once as target with references from its group,
    and the targets of all groups are pooled. So a small M costs no targets: up to TARGETS models,
    its figures rest on as many decisions as those of the whole run. Of more models, so many groups
    are attacked that there are TARGETS targets.

    Args:
        score_set: φ of N models.
        rule: of the whole run; no group cuts its blocks.
        config: of the attack.
        names: which of LiRA's variants; those it does not know are passed over.
        known: what was found, by name, with all models: not computed again.

    Returns:
        One entry per M and variant: models (M), targets, name and `judging.headline`; and one per
        M for which some group leaves an example without references: models, reason.
    """
    score_set, rule = _part(score_set, rule)
    models = score_set.keep.shape[0]
    block = rule.fold if rule.order is None else None
    sizes = [size for size in levels(models, rule) if known is None or size < models]
    skipped = []

    def points() -> Iterator[tuple[dict[str, Any], Float[np.ndarray, "T E"]]]:
        for size in sizes:
            starts = range(0, models - size + 1, size)[: max(1, TARGETS // size)]

            def group(
                start: int, size: int = size
            ) -> tuple[References, dict[str, Float[np.ndarray, "M E"]]]:
                part = _group(score_set, start, size, block)
                rule = find(part, few=True)
                return rule, _scores(part, rule, config, names)

            try:
                rules, parts = zip(*workers.in_order(group, starts, len(starts)), strict=True)
            except InputError as error:
                skipped.append({"models": size, "reason": str(error)})
                continue
            lacking = [text for rule in rules for text in rule.lacking.values()]
            if lacking:
                skipped.append({"models": size, "reason": f"in a group of models, {lacking[0]}"})
            targets = size * len(starts)
            for name in names:
                if all(name in part for part in parts):
                    scores = np.concatenate([part.pop(name) for part in parts])
                    yield {"models": size, "targets": targets, "name": name}, scores

    entries = _judged(points(), score_set, rule)
    return entries + _known({"models": models, "targets": models}, names, known), skipped


def _part(score_set: ScoreSet, rule: References) -> tuple[ScoreSet, References]:
    """The examples that points rest on: all, or so many drawn at random that DECISIONS are left.

    Drawn by a hash of the scores (`draws.py`), so the same wherever models and examples stand.
    """
    models, examples = score_set.keep.shape
    most = max(DECISIONS // models, 1)
    if examples <= most:
        return score_set, rule
    chosen = np.zeros(examples, bool)
    chosen[np.argsort(keys(score_set)[1], kind="stable")[:most]] = True
    order = None if rule.order is None else rule.order[:, chosen]
    labels = score_set.labels
    # LiRA and its kin ask for nothing else.
    part = ScoreSet(
        score_set.scores[:, chosen], score_set.keep[:, chosen], score_set.block, score_set.source,
        labels=None if labels is None else labels[chosen],
    )  # fmt: skip
    return part, dataclasses.replace(rule, order=order)


def _judged(
    points: Iterable[tuple[dict[str, Any], Float[np.ndarray, "T E"]]],
    score_set: ScoreSet,
    rule: References,
) -> list[dict[str, Any]]:
    """Every point with its figures, from the scores of the first T models."""

    def judge(point: tuple[dict[str, Any], Float[np.ndarray, "T E"]]) -> dict[str, Any]:
        naming, scores = point
        member = score_set.keep[: len(scores)]
        return naming | headline(scores, member, rule.fold, replicates=REPLICATES)

    return list(workers.in_order(judge, points, AT_ONCE))


def _known(
    size: Mapping[str, int], names: Sequence[str], known: Mapping[str, Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The points of the whole run, whose figures are at hand."""
    return [
        {**size, "name": name} | {key: known[name][key] for key in HEADLINE}
        for name in names
        if known and name in known
    ]


def _scores(
    score_set: ScoreSet, rule: References, config: AttackConfig, names: Sequence[str]
) -> dict[str, Float[np.ndarray, "N E"]]:
    """Scores of those of LiRA's variants, and of hierarchical LiRA's, that the names ask for; of
    LiRA's those alone for which every example has references."""
    kinds = ("lira-online", "lira-offline")
    variances = [
        variance
        for variance in lira.VARIANCES
        if any(f"{kind}{variance}" in names for kind in kinds)
    ]
    scores = {}
    if variances and "out" not in rule.lacking:
        scores = lira.likelihoods(score_set, rule, config, variances=variances)
    if any(name in names for name in lira_bayes.NAMES):
        scores |= lira_bayes.attack(score_set, rule, config)
    return scores


def levels(models: int, rule: References) -> list[int]:
    """Numbers of shadow models to compare: 2 blocks (4 models without), doubled up to N; and N."""
    least = 2 * rule.fold if rule.order is None else 4
    sizes = {models}
    while least < models:
        sizes.add(least)
        least *= 2
    return sorted(sizes)


def _group(score_set: ScoreSet, start: int, size: int, block: int | None) -> ScoreSet:
    """The models start … start + size − 1 alone."""
    group = slice(start, start + size)
    return ScoreSet(
        score_set.scores[group], score_set.keep[group], block, score_set.source,
        labels=score_set.labels,
    )  # fmt: skip
