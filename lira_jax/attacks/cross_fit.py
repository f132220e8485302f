"""What the learned attacks are fitted on: never the target's fold, never the attacked example.

Fitting anew for each of up to 128 folds would be too slow. So the folds are split into a few
groups, and the examples into two halves, and what attacks the targets of a group on the examples
of a half is fitted on the models outside the group and the examples of the other half.

Leaving out the half matters where the masks form no blocks. How many of the other models trained
on an example then tells whether the target did (docs/methods.md, 3.10), and a fit that sees that
example can learn it: on 8 models and 100 examples without leakage, masks exact halves, `shokri`
fitted on the attacked examples comes to an AUC of .42. How many trained on other examples
tells nothing.

Whatever is random here (who is in which group or half, subsamples, the order of ties) is drawn from
a hash of the scores, never from places in the arrays. So results are the same for the same input,
and follow models and examples when these are reordered; membership plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt64

from lira_jax.attacks.draws import keys
from lira_jax.attacks.references import References
from lira_jax.score_set import ScoreSet


@dataclass(frozen=True)
class Split:
    """Targets and examples that are attacked with one fit, made on all other models and examples.

    Attributes:
        targets: the models of one group of folds.
        examples: one half of the examples.
    """

    targets: Bool[np.ndarray, " N"]
    examples: Bool[np.ndarray, " E"]


def splits(score_set: ScoreSet, references: References, groups: int = 2) -> list[Split]:
    """Every target and example in one split.

    Args:
        score_set: scores; where there are labels, each class is halved by itself.
        references: names the fold.
        groups: of folds, or as many as there are folds, if fewer.
    """
    _, examples = keys(score_set)
    labels = np.zeros(examples.size) if score_set.labels is None else score_set.labels
    half = np.empty(examples.size, dtype=np.int64)
    half[np.lexsort((examples, labels))] = np.arange(examples.size) % 2
    return [
        Split(group, half == h)
        for group in groups_of(score_set, references, groups)
        for h in range(2)
    ]


def groups_of(
    score_set: ScoreSet, references: References, groups: int = 2
) -> list[Bool[np.ndarray, " N"]]:
    """The models of each group of folds, all models in one; as many groups as folds, if fewer."""
    models, _ = keys(score_set)
    folds = models.reshape(-1, references.fold).sum(axis=1)
    group = np.empty(folds.size, dtype=np.int64)
    group[np.argsort(folds, kind="stable")] = np.arange(folds.size) % min(groups, folds.size)
    group = np.repeat(group, references.fold)
    return [group == number for number in np.unique(group)]


def balanced_pairs(
    noise: UInt64[np.ndarray, "N E"],
    keep: Bool[np.ndarray, "N E"],
    models: Int[np.ndarray, " M"],
    examples: Int[np.ndarray, " L"],
    most: int,
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """A random subsample of pairs of a model and an example, as many IN as OUT: IN first.

    Args:
        noise: from `draws.noise`; pairs come in its order.
        keep: all masks.
        models, examples: to choose from.
        most: pairs of each kind; fewer where there are fewer.
    """
    among = np.ix_(models, examples)
    inside = keep[among].ravel()
    order = noise[among].ravel()
    sides = [np.flatnonzero(inside), np.flatnonzero(~inside)]
    count = min(most, *(side.size for side in sides))
    chosen = np.concatenate([lowest(order, side, count) for side in sides])
    return models[chosen // max(examples.size, 1)], examples[chosen % max(examples.size, 1)]


def lowest(
    noise: UInt64[np.ndarray, " S"], places: Int[np.ndarray, " P"], count: int
) -> Int[np.ndarray, " C"]:
    """Those `count` of the places where the noise is lowest, in its order."""
    if count < places.size:
        places = places[np.argpartition(noise[places], count)[:count]]
    return places[np.argsort(noise[places], kind="stable")]
