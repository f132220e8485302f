"""BASE against a plain loop over softened probabilities, and against RMIA's ratios."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from lira_jax import evaluation
from lira_jax.attacks import base, references, rmia
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet, logit_scaled
from tests.attacks.synthetic import (
    MASKS,
    blocked_masks,
    free_masks,
    halved_masks,
    references_of,
)

CLASSES = 4


def drawn(rng, keep):
    """Logits that are surer of the true label where the model trained on the example."""
    models, examples = keep.shape
    labels = rng.integers(CLASSES, size=examples)
    logits = 2 * rng.normal(size=(models, examples, CLASSES))
    logits[:, np.arange(examples), labels] += 3 * keep
    phi = logit_scaled(logits, labels)[..., np.newaxis]
    return ScoreSet(phi, keep, None, "test", labels=labels, logits=logits)


def run(score_set):
    return base.attack(score_set, references.find(score_set), AttackConfig())


@pytest.mark.parametrize("masks", MASKS)
def test_scores_equal_a_plain_loop(masks, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    score_set = drawn(rng, keep)
    rule = references.find(score_set)
    p = softmax(score_set.logits / 2, axis=2)[:, np.arange(keep.shape[1]), score_set.labels]
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * len(keep) * CLASSES * 3)
    got = run(score_set)
    for target, e in np.ndindex(keep.shape):
        inside, outside = (
            p[references_of(rule, keep, target, e, side), e] for side in (True, False)
        )
        online = np.log(p[target, e] / np.concatenate([inside, outside]).mean())
        offline = np.log(p[target, e]) - 0.33 * np.log(outside.mean())
        assert got["base-online"][target, e] == pytest.approx(online, abs=1e-10)
        assert got["base-offline"][target, e] == pytest.approx(offline, abs=1e-10)


def test_without_softening_the_online_score_is_rmias_ratio(monkeypatch):
    monkeypatch.setattr(base, "TEMPERATURE", 1.0)
    rng = np.random.default_rng(1)
    score_set = drawn(rng, blocked_masks(rng, 8, 50))
    rule = references.find(score_set)
    ratio = rmia.log_ratios(score_set, rule, AttackConfig(), "")["online"]
    np.testing.assert_allclose(run(score_set)["base-online"], ratio, rtol=0, atol=1e-11)


def test_a_constant_in_all_classes_logits_changes_nothing_and_large_ones_are_borne():
    rng = np.random.default_rng(2)
    score_set = drawn(rng, blocked_masks(rng, 6, 30))
    before = run(score_set)
    score_set.logits[:] += 500 * rng.normal(size=(6, 30, 1))
    for name, scores in run(score_set).items():
        np.testing.assert_allclose(scores, before[name], rtol=0, atol=1e-10)
    score_set.logits[:] *= 1e4
    assert all(np.isfinite(scores).all() for scores in run(score_set).values())


@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_where_all_models_are_as_certain_rounding_tells_nothing(masks):
    rng = np.random.default_rng(3)
    keep = masks(rng, 32, 100)
    for value in (0.1, 1.0, 35.0, 60.0):
        score_set = drawn(rng, keep)
        score_set.logits[:] = np.where(np.arange(CLASSES) == score_set.labels[:, None], value, 0)
        for scores in run(score_set).values():
            assert evaluation.auc(evaluation.roc(scores, keep)) == 0.5
