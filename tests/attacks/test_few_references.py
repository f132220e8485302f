"""Examples that leave a target no reference on a side: who still attacks, and how well."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.analysis import null_check
from lira_jax.attacks import ATTACKS, lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import auc_and_tpr, free_masks, uneven_scores
from tests.attacks.test_hierarchical import line_of, log_joint
from tests.attacks.test_lira_bayes import leaky

CONFIG = AttackConfig()
# Examples from which on it can be told that masks are independent.
ENOUGH = 700


def tossed(models, examples=ENOUGH, share=0.5, seed=0):
    return np.random.default_rng((seed, models)).random((models, examples)) < share


def attack(score_set):
    rule = references.find(score_set, few=True)
    assert lira_bayes.prepare(score_set, rule, CONFIG).as_they_are
    return lira_bayes.attack(score_set, rule, CONFIG)


def assert_at_chance(found):
    """AUC and TPR at 1 % of several draws, within their error."""
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    # Student's t of 5 degrees of freedom or more is beyond 6.9 but once in 1,000.
    assert (np.abs(np.mean(found, axis=0) - [0.5, 0.01]) < 6.9 * error).all()
    assert (error < [0.02, 0.005]).all()


# The rule


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([0.1, 0.5, 0.8]))
@settings(deadline=None, max_examples=15)
def test_sides_without_references_are_named_and_all_others_have_equally_many(seed, models, share):
    keep = np.random.default_rng(seed).random((models, 60)) < share
    scores = np.random.default_rng(seed).normal(size=(*keep.shape, 1))
    score_set = ScoreSet(scores, keep, None, "file.npz")
    rule = references.find(score_set, few=True)
    for side, truth, count in (("in", keep, rule.count_in), ("out", ~keep, rule.count_out)):
        least = truth.sum(axis=0).min()
        assert count == max(least - 1, 0)
        assert (side in rule.lacking) == (least < 2)
        base, dropped = references.base_and_dropped(rule, keep, slice(None), side)
        for target, example in np.ndindex(models, 60 if count else 0):
            chosen = np.delete(base[:, example], dropped[target, :, example])
            assert len(set(chosen)) == count
            assert target not in chosen
            assert truth[chosen, example].all()
    if rule.lacking:
        with pytest.raises(InputError) as caught:
            references.find(score_set)
        assert any(text in str(caught.value) for text in rule.lacking.values())


# Who attacks


@pytest.mark.parametrize("name", ["lira", "rmia", "info-rmia", "base"])
def test_without_in_references_offline_attacks_are_what_they_are_with_them(name):
    rng = np.random.default_rng(3)
    keep = free_masks(rng, 7, 40, least=3)
    scores, logits = uneven_scores(rng, keep, 2, 1.0), rng.normal(size=(7, 40, 3))
    labels = rng.integers(3, size=40)
    score_set = ScoreSet(scores, keep, None, "test", labels=labels, logits=logits)
    rule = references.find(score_set)
    without = dataclasses.replace(rule, base_in=1)
    assert (without.count_in, without.count_out) == (0, rule.count_out)
    both = ATTACKS[name].attack(score_set, rule, CONFIG, False)
    alone = ATTACKS[name].attack(score_set, without, CONFIG, False)
    assert list(alone) == [other for other in both if "offline" in other] != []
    for other, values in alone.items():
        np.testing.assert_array_equal(values, both[other])


def test_attacks_by_out_references_alone_are_at_chance_without_leakage():
    found = []
    for seed in range(6):
        keep = tossed(8, share=0.12, seed=seed)
        drawn = null_check.draw(keep, None, 1, np.random.default_rng(seed))
        rule = references.find(drawn, few=True)
        assert [*rule.lacking] == ["in"]
        scores = {}
        for name in ("lira", "rmia", "info-rmia", "base", "watson", "lira-bayes"):
            scores |= ATTACKS[name].attack(drawn, rule, CONFIG, False)
        assert len(scores) == 10
        found.append([auc_and_tpr(values, keep, 0.01) for values in scores.values()])
    assert_at_chance(found)


# How the default attacks


@pytest.mark.parametrize("models", [2, 3])
def test_scores_are_the_laws_log_odds_with_whatever_references_there_are(models):
    keep = tossed(models)
    score_set = leaky(1, keep)
    rule = references.find(score_set, few=True)
    centred = lira_bayes.prepare(score_set, rule, CONFIG)
    laws = lira_bayes.laws_of(centred, False)
    got = attack(score_set)["lira-bayes"]
    for target, example in np.ndindex(models, 30):
        others, x = np.arange(models) != target, centred.of(centred.part[target])
        out, inside = (x[others & (keep[:, example] == s), example] for s in (False, True))
        line = line_of(laws[target], out, inside)
        as_in, as_out = (
            np.logaddexp.reduce(log_joint(laws[target], *scores, line))
            for scores in (
                (out, [*inside, x[target, example]]), ([*out, x[target, example]], inside)
            )
        )  # fmt: skip
        assert got[target, example] == pytest.approx(as_in - as_out, abs=1e-7)


@pytest.mark.parametrize(("models", "least"), [(2, 0.015), (3, 0.1), (4, 0.11)])
def test_one_two_or_three_other_models_tell_more_than_the_score_alone(models, least):
    keep = tossed(models, 2_000)
    score_set = leaky(2, keep)
    alone, _ = auc_and_tpr(score_set.scores.mean(axis=2), keep, 0.01)
    for values in attack(score_set).values():
        found, _ = auc_and_tpr(values, keep, 0.01)
        assert found > alone + least / 2
    assert auc_and_tpr(attack(score_set)["lira-bayes"], keep, 0.01)[0] > alone + least


@pytest.mark.parametrize("models", [2, 3, 4])
def test_a_few_models_without_leakage_are_at_chance(models):
    found = []
    for seed in range(8):
        keep = tossed(models, 1_000, seed=seed)
        drawn = null_check.draw(keep, None, 1, np.random.default_rng((seed, models)))
        found.append([auc_and_tpr(values, keep, 0.01) for values in attack(drawn).values()])
    assert_at_chance(found)


@pytest.mark.parametrize("models", [2, 3])
def test_masks_of_a_target_change_none_of_its_scores(models):
    keep = tossed(models)
    other = keep.copy()
    other[0] = np.random.default_rng(5).random(keep.shape[1]) < 0.5
    score_set = leaky(4, keep)
    before, after = attack(score_set), attack(dataclasses.replace(score_set, keep=other))
    for name in lira_bayes.NAMES:
        np.testing.assert_allclose(after[name][0], before[name][0], rtol=0, atol=1e-9)


# Masks that are not independent


def shards(rng, models, examples):
    """Every example in one model."""
    return np.eye(models, dtype=bool)[:, rng.integers(models, size=examples)]


def all_but_one(rng, models, examples):
    return ~shards(rng, models, examples)


def halves_of_two(rng, models, examples):
    half = rng.random((1, examples)) < 0.5
    return np.concatenate([half, ~half])


def few_tosses(rng, models, examples):
    return rng.random((models, 200)) < 0.5


DESIGNS = [(shards, 4), (shards, 3), (all_but_one, 4), (halves_of_two, 2), (few_tosses, 4)]


@pytest.mark.parametrize(("design", "models"), DESIGNS)
def test_designs_that_leave_no_references_on_a_side_are_at_chance_without_leakage(design, models):
    found = []
    for seed in range(8):
        keep = design(np.random.default_rng((seed, models)), models, 400)
        drawn = null_check.draw(keep, None, 1, np.random.default_rng(seed))
        rule = references.find(drawn, few=True)
        assert rule.lacking
        assert not lira_bayes.prepare(drawn, rule, CONFIG).as_they_are
        scores = lira_bayes.attack(drawn, rule, CONFIG)
        found.append([auc_and_tpr(values, keep, 0.01) for values in scores.values()])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - [0.5, 0.01]) < 6.9 * error).all()
    assert (error[:, 0] < 0.03).all()


@pytest.mark.parametrize(("design", "models"), DESIGNS[:3])
def test_references_of_one_side_tell_more_than_the_score_alone(design, models):
    keep = design(np.random.default_rng(7), models, 1_000)
    score_set = leaky(7, keep)
    rule = references.find(score_set, few=True)
    alone, _ = auc_and_tpr(score_set.scores.mean(axis=2), keep, 0.01)
    found, _ = auc_and_tpr(lira_bayes.attack(score_set, rule, CONFIG)["lira-bayes"], keep, 0.01)
    assert found > alone + 0.08
