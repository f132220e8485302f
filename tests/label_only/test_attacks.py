"""Label-only attacks against brute force, closed forms, and answers that give nothing away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from lira_jax import evaluation
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig
from lira_jax.label_only import attacks
from lira_jax.label_only.answers import of_first
from lira_jax.label_only.attacks import ATTACKS, attack, by_budget
from lira_jax.score_set import ScoreSet
from tests.label_only.synthetic import CHECKPOINTS, answers, score_set

LABELS = ["gap", "augmentation-rotation", "augmentation-translation", "noise-gaussian",
          "noise-bernoulli", "boundary", "combined", "lira-label-only"]  # fmt: skip


@pytest.fixture(scope="module")
def held():
    return score_set()


# What attack networks are fitted on, which takes most of the time.
NETWORKS = ("rotation", "translation", "combined")


@pytest.fixture(scope="module")
def given_answers(held):
    return answers(held)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Attack networks that are soon fitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "HIDDEN", (4,))
        patch.setattr(attacks, "MAX_PAIRS", 300)
        yield


@pytest.fixture(scope="module")
def everything(given_answers):
    return attack(given_answers)


@pytest.fixture(scope="module")
def done(everything):
    return everything[0]


def members(found, one):
    return found.keep[found.sources + one.rows, : one.targets.shape[1]]


def decided(found, one):
    """Balanced accuracy on the targets of decisions by the source models' threshold."""
    positive, member = one.targets >= one.threshold, members(found, one)
    return (positive[member].mean() + 1 - positive[~member].mean()) / 2


def test_every_attack_runs_and_only_labels_are_counted_as_queries(everything):
    found, not_run = everything
    assert list(found) == list(ATTACKS)
    assert not not_run
    assert [name for name, one in found.items() if one.sees == "labels"] == LABELS
    assert {name: one.queries for name, one in found.items() if one.queries} == {
        "gap": 1, "augmentation-rotation": 3, "augmentation-translation": 5, "noise-gaussian": 21,
        "noise-bernoulli": 21, "boundary": 990, "combined": 500, "lira-label-only": 990,
    }  # fmt: skip
    assert {name for name, one in found.items() if one.sees == "gradients"} == {"carlini-wagner"}


def test_the_gap_attack_is_half_plus_half_the_train_test_gap(given_answers, done):
    right = given_answers.logits.argmax(axis=2) == given_answers.labels
    own, keep = right[1:], given_answers.keep[1:]
    expected = 0.5 + (own[keep].mean() - own[~keep].mean()) / 2
    assert decided(given_answers, done["gap"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["confidence", "gap", "noise-gaussian", "boundary"])
def test_no_other_threshold_is_better_on_the_source_models(given_answers, done, name):
    one, member = done[name], given_answers.keep[:1]
    own = one.sources
    accuracy = {
        level: ((own[member] >= level).mean() + 1 - (own[~member] >= level).mean()) / 2
        for level in (*np.unique(own), np.inf)
    }
    assert accuracy[one.threshold] == pytest.approx(max(accuracy.values()))
    assert one.on_sources == pytest.approx(max(accuracy.values()))


def test_the_confidence_attack_ranks_by_the_largest_probability(given_answers, done):
    largest = softmax(given_answers.logits.astype(np.float64), axis=2).max(axis=2)
    for model in range(3):
        order = np.argsort(done["confidence"].targets[model])
        assert np.all(np.diff(largest[1 + model][order]) >= -1e-12)


def test_memguard_leaves_the_confidence_attack_nothing_and_the_right_label_the_gap(
    given_answers, done
):
    guarded = done["confidence-memguard"]
    assert np.unique(guarded.targets).size == 1
    assert decided(given_answers, guarded) == 0.5
    served = attacks.memguard(given_answers.logits.astype(np.float64))
    own = np.take_along_axis(served, given_answers.labels[None, :, None], axis=2)[..., 0]
    assert evaluation.auc(evaluation.roc(own[1:], given_answers.keep[1:])) == pytest.approx(
        evaluation.auc(evaluation.roc(done["gap"].targets, given_answers.keep[1:]))
    )


def test_scores_that_memguard_served_already_are_as_empty(held):
    found = answers(held, without=NETWORKS)
    served = attacks.memguard(found.logits)
    found, _ = attack(dataclasses.replace(found, logits=served))
    for name in ("confidence", "confidence-memguard"):
        assert np.unique(found[name].targets).size == 1


def test_nothing_is_tuned_on_the_targets(given_answers, done):
    """Targets whose membership is turned round change no threshold, choice or score."""
    keep = given_answers.keep.copy()
    keep[1:] = ~keep[1:]
    turned, _ = attack(dataclasses.replace(given_answers, keep=keep))
    for name, one in done.items():
        if name != "lira-label-only":  # whose references the other targets are
            assert turned[name].threshold == one.threshold
            assert turned[name].chosen == one.chosen
            np.testing.assert_array_equal(turned[name].targets, one.targets)


def test_images_with_a_wrong_label_have_the_least_noise_score(given_answers, done):
    wrong = given_answers.answers["correct"].values[1:] == 0
    assert np.all(done["noise-gaussian"].targets[wrong] == 0)
    assert done["noise-gaussian"].chosen == "σ = 0.02"  # the other is nearly all noise


def test_the_more_telling_views_are_chosen_and_their_columns_used(held):
    found = answers(held, without=("rotation", "combined"))
    bits = found.answers["translation"]
    values = bits.values.copy()
    values[..., 1:5] = 0.0  # d = 1 tells nothing; d = 2 tells all
    values[..., 5:] = found.keep[..., np.newaxis]
    changed = {**found.answers, "translation": dataclasses.replace(bits, values=values)}
    one = attack(dataclasses.replace(found, answers=changed))[0]["augmentation-translation"]
    assert one.chosen == "d = 2"
    assert one.queries == 9
    assert decided(found, one) == 1.0


def test_an_attack_network_is_judged_on_examples_it_did_not_see(monkeypatch):
    """On noise, a network's scores of what it was fitted on look better than chance."""
    monkeypatch.setattr(attacks, "HIDDEN", (10, 10))
    rng = np.random.default_rng(0)
    member = rng.random((1, 60)) < 0.5
    inputs = rng.normal(size=(1, 60, 30))
    unseen = attacks._cross_fitted(inputs, member)
    seen = attacks._fit(inputs, member)(inputs[0])[np.newaxis]
    assert evaluation.auc(evaluation.roc(seen, member)) > 0.95
    assert evaluation.auc(evaluation.roc(unseen, member)) < 0.75


def test_more_queries_are_other_thresholds_of_their_own(given_answers, done):
    points = dict(by_budget(given_answers))
    assert list(points) == CHECKPOINTS
    np.testing.assert_array_equal(points[1000].targets, done["boundary"].targets)
    accuracy = [decided(given_answers, one) for one in points.values()]
    assert accuracy[0] < accuracy[-1]
    member = given_answers.keep[:1]
    for place, one in enumerate(points.values()):
        distances = given_answers.answers["boundary"].values[:1, :, place].astype(np.float64)
        assert one.threshold == evaluation.best_threshold(distances, member)


def test_lira_on_the_distance_is_lira_on_its_logarithm(given_answers, done):
    distance = given_answers.answers["boundary"].values[..., -1].astype(np.float64)
    scale = np.median(distance[0][distance[0] > 0])
    scores = np.log(1 + distance / scale)[..., np.newaxis]
    held = ScoreSet(scores[1:], given_answers.keep[1:], 2, "test")
    rule = references.find(held)
    expected = lira.attack(held, rule, AttackConfig())["lira-online-shrinkage"]
    np.testing.assert_allclose(done["lira-label-only"].targets, expected)
    source = lira.likelihoods(
        held, rule, AttackConfig(), targets=scores[:1], variances=("-shrinkage",)
    )
    np.testing.assert_allclose(done["lira-label-only"].sources, source["lira-online-shrinkage"])


def test_lira_on_the_distance_takes_whole_blocks_alone_and_says_where_there_are_too_few(held):
    partly = attack(answers(held, targets=(9, 8, 3, 6, 7), without=NETWORKS))[0]["lira-label-only"]
    assert partly.rows.tolist() == [3, 4, 1, 0]  # models 6, 7, 8, 9
    for targets in ((2, 3), (2, 4, 6), (2, 3, 4)):
        found, not_run = attack(answers(held, targets=targets, without=NETWORKS))
        assert "lira-label-only" not in found
        assert "two or more blocks of 2" in not_run["lira-label-only"]


def test_what_was_not_asked_is_not_run_and_the_command_is_named(held):
    found, not_run = attack(answers(held, without=("boundary", "combined", "correct", "rotation")))
    assert set(not_run) == {
        "gap", "augmentation-rotation", "noise-gaussian", "noise-bernoulli", "boundary", "combined",
        "lira-label-only",
    }  # fmt: skip
    assert not_run["boundary"].endswith("score.py --run DIR --label-only --label_only.budget 2500")
    assert "augmentation-translation" in found


def test_few_pairs_make_no_attack_network(held):
    found, not_run = attack(of_first(answers(held), 30))
    assert "needs 20 members" in not_run["combined"]
    assert "boundary" in found


def test_several_source_models_are_pooled(held):
    found = answers(held, sources=(0, 3), without=NETWORKS)
    one = attack(found)[0]["boundary"]
    assert one.sources.shape == (2, 400)
    assert one.targets.shape == (6, 400)
    assert one.threshold == evaluation.best_threshold(one.sources, found.keep[:2])


def test_scores_beside_are_tuned_in_the_same_way(held):
    given_answers = answers(held, without=NETWORKS)
    phi = held.scores[list(given_answers.models), :, 0].astype(np.float64)
    found, _ = attack(given_answers, beside={"mine": phi})
    assert next(iter(found)) == "mine"
    np.testing.assert_array_equal(found["mine"].targets, phi[1:])
    assert found["mine"].threshold == evaluation.best_threshold(phi[:1], held.keep[:1])


@given(st.integers(0, 2**16))
@settings(max_examples=2, deadline=None)
def test_answers_without_leakage_are_a_coin_toss_for_every_attack(seed):
    held = score_set(models=12, examples=200, leak=0.0, seed=seed)
    found = answers(held, seed=seed)
    for one in attack(found)[0].values():
        member = members(found, one)
        fold = np.array(found.models[found.sources :])[one.rows] // 2
        # Masks of a block are opposite, so scores of examples and models cancel; what is left is
        # one score's own noise, about ½/√(targets · examples) = 0.01.
        area = evaluation.auc(evaluation.roc(one.targets, member))
        assert abs(area - 0.5) < 0.06
        assert abs(decided(found, one) - 0.5) < 0.06
        assert evaluation.decisions(one.targets >= one.threshold, member, fold)["tpr"] is not None
