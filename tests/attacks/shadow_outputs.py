"""Made-up outputs of shadow models, and the three kinds of masks."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from lira_jax.attacks import ATTACKS, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def blocked_masks(rng, models, examples):
    """Blocks of two: one of them trained on the example."""
    first = rng.random((models // 2, examples)) < 0.5
    return np.stack([first, ~first], axis=1).reshape(models, examples)


def free_masks(rng, models, examples):
    """Coin tosses, on examples that have two models on each side."""
    keep = rng.random((models, 20 * examples)) < 0.5
    count = keep.sum(axis=0)
    return keep[:, (count >= 2) & (count <= models - 2)][:, :examples]


def halved_masks(rng, models, examples):
    """Every example in exactly half of the models, without blocks."""
    return rng.random((models, examples)).argsort(axis=0) < models // 2


MASKS = [blocked_masks, free_masks, halved_masks]


def outputs(rng, keep, classes=3, shift=0.0, level=0.0):
    """A score set with everything any attack needs.

    Members' logit of the true label, and with it their share of noisy copies with greater loss, is
    higher by `shift`; models differ by `level` in how confident they are in general.
    """
    models, examples = keep.shape
    labels = rng.integers(0, classes, examples)
    logits = 2 * rng.normal(size=(examples, classes)) + 0.5 * rng.normal(
        size=(*keep.shape, classes)
    )
    logits[:, np.arange(examples), labels] += 1 + shift * keep
    logits *= np.exp(level * rng.normal(size=(models, 1, 1)))
    share = 1 / (1 + np.exp(-shift * keep - level * rng.normal(size=(models, 1))))
    return ScoreSet(
        scores=phi(logits, labels)[..., np.newaxis],
        keep=keep,
        block=None,
        source="test",
        labels=labels,
        logits=logits,
        merlin=rng.binomial(10, share) / 10,
    )


def phi(logits, labels):
    """The logit-scaled score: log p_y − log(1 − p_y)."""
    true = np.eye(logits.shape[-1], dtype=bool)[labels]
    others = np.where(true, -np.inf, logits)
    return (logits * true).sum(axis=-1) - logsumexp(others, axis=-1)


def run(score_set, family, **config):
    """Scores by name."""
    rule = references.find(score_set)
    return ATTACKS[family].attack(score_set, rule, AttackConfig(**config), False)
