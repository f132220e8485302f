"""Attack models: their input, their log-odds against scikit-learn's, and what they can learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, softmax

from lira_jax import evaluation
from lira_jax.attacks import shokri
from tests.attacks.shadow_outputs import blocked_masks, outputs, phi, run


@pytest.mark.parametrize("classes", [2, 4, 10, 30])
def test_features_are_log_probabilities_true_class_first(classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(25, classes)), rng.integers(0, classes, 25)
    got = shokri.features(logits.astype(np.float32), labels)
    assert got.shape == (25, 1 + min(classes - 1, shokri.OTHERS))
    for row, p, y in zip(got, softmax(logits, axis=1), labels, strict=True):
        others = sorted(np.delete(p, y), reverse=True)[: shokri.OTHERS]
        np.testing.assert_allclose(np.exp(row), [p[y], *others], rtol=1e-5)


def test_log_odds_are_those_of_scikit_learn_and_do_not_saturate(monkeypatch):
    import sklearn.neural_network

    made = []
    real = sklearn.neural_network.MLPClassifier

    def spy(*args, **settings):
        made.append(real(*args, **settings))
        return made[-1]

    monkeypatch.setattr(sklearn.neural_network, "MLPClassifier", spy)
    rng = np.random.default_rng(1)
    member = rng.random(300) < 0.5
    inputs = rng.normal(5.0, 3.0, size=(300, 4)) + 2 * member[:, np.newaxis]
    network = shokri.fit_network(inputs, member)
    expected = made[0].predict_proba((inputs - inputs.mean(axis=0)) / inputs.std(axis=0))[:, 1]
    np.testing.assert_allclose(expit(network.log_odds(inputs)), expected, rtol=1e-9)
    assert evaluation.auc(evaluation.roc(network.log_odds(inputs), member)) > 0.8
    far = network.log_odds(inputs + 1e4 * np.arange(300)[:, np.newaxis])
    assert len(np.unique(far)) == 300


def test_each_class_has_an_attack_model_of_its_own():
    # In class 0 members are more confident than others, in class 1 less: one model for both, which
    # does not know the class, could not tell.
    rng = np.random.default_rng(2)
    keep = blocked_masks(rng, 16, 600)
    score_set = outputs(rng, keep, classes=2)
    member = np.where(score_set.labels == 0, 3.0, -3.0) * keep
    logits = score_set.logits
    logits[:, np.arange(600), score_set.labels] += member
    score_set = dataclasses.replace(score_set, scores=phi(logits, score_set.labels)[..., None])
    got = run(score_set, "shokri")["shokri"]
    for label in (0, 1):
        chosen = score_set.labels == label
        assert evaluation.auc(evaluation.roc(got[:, chosen], keep[:, chosen])) > 0.75


def test_classes_too_rare_share_one_attack_model(monkeypatch):
    # 40 classes of about 6 examples: 3 in the other half, under 6 models, half of them members.
    rng = np.random.default_rng(3)
    keep = blocked_masks(rng, 12, 240)
    score_set = outputs(rng, keep, classes=40, shift=4.0)
    pairs = []
    fit = shokri.fit_network

    def spy(inputs, member):
        pairs.append(len(member))
        return fit(inputs, member)

    monkeypatch.setattr(shokri, "fit_network", spy)
    got = run(score_set, "shokri")["shokri"]
    assert sum(count > 500 for count in pairs) == 4  # one for each half of models and examples
    assert min(pairs) >= 2 * shokri.MIN_PAIRS
    rare = np.bincount(score_set.labels)[score_set.labels] <= 6
    assert rare.any()
    assert evaluation.auc(evaluation.roc(got[:, rare], keep[:, rare])) > 0.7


def test_without_enough_pairs_at_all_the_log_odds_are_zero():
    rng = np.random.default_rng(4)
    score_set = outputs(rng, blocked_masks(rng, 4, 12))
    np.testing.assert_array_equal(run(score_set, "shokri")["shokri"], 0.0)
