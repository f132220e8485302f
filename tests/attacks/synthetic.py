"""Masks, scores and references by plain loops, for the tests of attacks."""

from __future__ import annotations

import numpy as np

from lira_jax import evaluation
from lira_jax.attacks import references
from lira_jax.score_set import ScoreSet


def blocked_masks(rng, models, examples, block=2, per_block=1):
    """Each example is IN `per_block` random models of every block."""
    ranks = rng.random((models // block, block, examples)).argsort(axis=1)
    return (ranks < per_block).reshape(models, examples)


def free_masks(rng, models, examples, least=2):
    """Coin tosses, on examples that have `least` models on each side."""
    keep = rng.random((models, 20 * examples)) < 0.5
    count = keep.sum(axis=0)
    return keep[:, (count >= least) & (count <= models - least)][:, :examples]


def halved_masks(rng, models, examples):
    """Every example in exactly half of the models, without blocks."""
    return rng.random((models, examples)).argsort(axis=0) < models // 2


def uneven_scores(rng, keep, queries, shift):
    """Examples of unlike location and spread; members higher by `shift` spreads."""
    spread = rng.gamma(2.0, size=(keep.shape[1], 1))
    noise = rng.normal(size=(*keep.shape, queries))
    return 3 * rng.normal(size=(keep.shape[1], 1)) + spread * (noise + shift * keep[..., None])


def with_rule(scores, keep, source="test"):
    """The score set and its rule."""
    score_set = ScoreSet(scores, keep, None, source)
    return score_set, references.find(score_set)


def references_of(rule, keep, target, example, side):
    """The models that are the target's IN (True) or OUT references on one example."""
    if rule.order is None:
        outside = np.arange(len(keep)) // rule.fold != target // rule.fold
        return np.flatnonzero(outside & (keep[:, example] == side))
    base = [n for n in rule.order[:, example] if keep[n, example] == side]
    base = base[: rule.base_in if side else rule.base_out]
    base.remove(target if target in base else base[-1])
    return np.array(base)


MASKS = {
    "blocks of 2": lambda rng: blocked_masks(rng, 6, 11),
    "2 of 3": lambda rng: blocked_masks(rng, 9, 11, block=3, per_block=2),
    "2 of 4": lambda rng: blocked_masks(rng, 8, 11, block=4, per_block=2),
    "free": lambda rng: free_masks(rng, 7, 11, least=3),
    "one reference a side": lambda rng: halved_masks(rng, 4, 11),
}


def auc_and_tpr(scores, member, fpr):
    """AUC, and TPR at that FPR, of the pooled curve."""
    curve = evaluation.roc(scores, member)
    return np.array([evaluation.auc(curve), evaluation.tpr_at_fpr(curve, fpr)])
