"""`lira-bayes` by any design of masks: honest, at chance without leakage, optimal where known."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax import evaluation
from lira_jax.analysis import null_check
from lira_jax.attacks import ATTACKS, hierarchical, lira, lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import (
    auc_and_tpr,
    blocked_masks,
    free_masks,
    halved_masks,
    references_of,
)
from tests.attacks.test_hierarchical import (
    TYPICAL,
    examples_of,
    line_of,
    log_joint,
    reference_log_odds,
    side_of,
)

QUARTERS = {"block": 4, "per_block": 1}


def tossed_masks(rng, models, examples):
    """Coin tosses as they fall, but for what leave-one-out needs."""
    return free_masks(rng, models, examples, least=2)


def quartered_masks(rng, models, examples):
    return blocked_masks(rng, models, examples, **QUARTERS)


def leaky(seed, keep, views=2, classes=None):
    """Examples of the law TYPICAL; levels of models; members as the law has them."""
    rng = np.random.default_rng((seed, 1))
    examples = keep.shape[1]
    mu_out, noise, mu_in, noise_in = examples_of(TYPICAL, rng, examples)
    deviate = rng.normal(size=keep.shape)
    x = np.where(keep, mu_in + np.sqrt(noise_in) * deviate, mu_out + np.sqrt(noise) * deviate)
    x += 0.3 * rng.normal(size=(len(keep), 1))
    labels = None if classes is None else rng.integers(classes, size=examples)
    between = 0.2 * rng.normal(size=(*keep.shape, views))
    scores = x[..., np.newaxis] + between - between.mean(axis=2, keepdims=True)
    return ScoreSet(scores, keep, None, "test", labels=labels)


def attack(score_set, rule=None):
    rule = references.find(score_set) if rule is None else rule
    return lira_bayes.attack(score_set, rule, AttackConfig())


DESIGNS = {
    "blocks of 2": lambda rng, n, e: blocked_masks(rng, n, e),
    "1 of 4": quartered_masks,
    "coin tosses": tossed_masks,
    "halves": halved_masks,
}


def masks(design, seed, models, examples):
    return DESIGNS[design](np.random.default_rng(seed), models, examples)


# Who the references are


@pytest.mark.parametrize("design", DESIGNS)
def test_references_are_all_that_the_design_allows(design, monkeypatch):
    if design == "coin tosses":  # which 60 examples are too few to tell
        monkeypatch.setattr(lira_bayes, "independent", lambda _: True)
    keep = masks(design, 1, 8, 60)
    score_set = leaky(1, keep)
    rule = references.find(score_set)
    centred = lira_bayes.prepare(score_set, rule, AttackConfig())
    assert centred.as_they_are == (design == "coin tosses")
    by_part = {part: lira_bayes.sides(centred, part, slice(None)) for part in centred.parts()}
    for target, example in itertools.product(range(8), range(60)):
        part = centred.part[target]
        out, inside = by_part[part]
        for side, found in ((False, out), (True, inside)):
            if centred.as_they_are:
                chosen = np.flatnonzero(keep[:, example] == side)
                chosen = chosen[chosen != target]
            else:
                chosen = references_of(rule, keep, target, example, side)
            values, fold = centred.of(part)[chosen, example], target // rule.fold
            count = np.broadcast_to(found.count, found.mean.shape)[fold, example]
            assert count == len(chosen)
            assert found.mean[fold, example] == pytest.approx(values.mean(), abs=1e-10)
            squares = np.square(values - values.mean()).sum()
            assert found.squares[fold, example] == pytest.approx(squares, abs=1e-9)


@pytest.mark.parametrize("models", [4, 8, 16, 64])
@pytest.mark.parametrize("examples", [20, 200, 5_000])
def test_independent_masks_are_known_from_exact_halves_and_blocks(models, examples):
    rng = np.random.default_rng(models)
    for share in (0.5, 0.2):
        # Of few examples nothing can be told, and those of the second kind below could pass.
        known = lira_bayes.independent(rng.random((models, examples)) < share)
        assert known == (examples == 5_000)
    assert not lira_bayes.independent(halved_masks(rng, models, examples))
    assert not lira_bayes.independent(blocked_masks(rng, models, examples))
    # Examples that are in all models together, or in none.
    assert not lira_bayes.independent(np.repeat(rng.random((1, examples)) < 0.5, models, axis=0))
    # Half of the models with exact halves, half by coin tosses.
    mixed = [halved_masks(rng, models // 2, examples), rng.random((models // 2, examples)) < 0.5]
    assert not lira_bayes.independent(np.concatenate(mixed))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_a_sides_statistics_less_each_model_are_those_of_the_others(seed):
    rng = np.random.default_rng(seed)
    x, side = rng.normal(size=(7, 12)), rng.random((7, 12)) < rng.random()
    # Cancellation: one score so far out that without it nothing is left of the sums but rounding.
    x[rng.integers(7), :6] += 10.0 ** rng.integers(4, 9)
    got = lira_bayes._less_own(x, side)
    for model, example in np.ndindex(x.shape):
        others = [x[n, example] for n in range(7) if side[n, example] and n != model]
        expected = side_of([np.array(others)])
        assert got.count[model, example] == expected.count[0]
        assert got.mean[model, example] == pytest.approx(expected.mean[0], rel=1e-7, abs=1e-7)
        assert got.squares[model, example] == pytest.approx(expected.squares[0], rel=1e-5, abs=1e-9)


def test_scores_are_the_laws_log_odds_example_by_example(monkeypatch):
    monkeypatch.setattr(lira_bayes, "independent", lambda _: True)
    keep = masks("coin tosses", 2, 8, 50)
    score_set = leaky(2, keep)
    rule = references.find(score_set)
    centred = lira_bayes.prepare(score_set, rule, AttackConfig())
    laws = lira_bayes.laws_of(centred, False)
    got = attack(score_set, rule)
    for target, example in itertools.product((0, 5), range(50)):
        others, x = np.arange(8) != target, centred.of(centred.part[target])
        out, inside = (x[others & (keep[:, example] == s), example] for s in (False, True))
        for name, known in (("lira-bayes", inside), ("lira-bayes-offline", np.zeros(0))):
            line = line_of(laws[target], out, known)
            as_in, as_out = (
                np.logaddexp.reduce(log_joint(laws[target], *scores, line))
                for scores in (
                    (out, [*known, x[target, example]]), ([*out, x[target, example]], known),
                )
            )  # fmt: skip
            assert got[name][target, example] == pytest.approx(as_in - as_out, abs=1e-7)


# What tells nothing changes nothing


@pytest.mark.parametrize(
    ("design", "models"), [("blocks of 2", 4), ("blocks of 2", 12), ("1 of 4", 8)]
)
def test_masks_of_a_targets_own_block_change_none_of_its_scores(design, models):
    keep = masks(design, 3, models, 150)
    score_set = leaky(3, keep)
    rule = references.find(score_set)
    before = attack(score_set, rule)
    other = keep.copy()
    other[: rule.fold] = np.roll(keep[: rule.fold], 1, axis=0)
    after = attack(ScoreSet(score_set.scores, other, rule.fold, "test"), rule)
    for name in lira_bayes.NAMES:
        np.testing.assert_allclose(after[name][: rule.fold], before[name][: rule.fold], 0, 1e-9)
        assert np.abs(after[name] - before[name]).max() > 0.1


def test_masks_of_a_target_by_coin_tosses_change_none_of_its_scores(monkeypatch):
    monkeypatch.setattr(lira_bayes, "independent", lambda _: True)
    keep = masks("coin tosses", 4, 10, 200)
    keep = keep[:, (keep[1:].sum(axis=0) >= 2) & (keep[1:].sum(axis=0) <= 7)]
    score_set = leaky(4, keep)
    before = attack(score_set)
    other = keep.copy()
    other[0] = np.random.default_rng(5).random(keep.shape[1]) < 0.5
    flipped = ScoreSet(score_set.scores, other, None, "test")
    assert lira_bayes.prepare(flipped, references.find(flipped), AttackConfig()).as_they_are
    after = attack(flipped)
    for name in lira_bayes.NAMES:
        np.testing.assert_allclose(after[name][0], before[name][0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("design", DESIGNS)
def test_the_order_of_models_and_examples_does_not_matter(design):
    keep = masks(design, 6, 8, 120)
    score_set = leaky(6, keep, classes=3)
    fold = references.find(score_set).fold
    rng = np.random.default_rng(7)
    blocks = rng.permutation(8 // fold)
    models = np.concatenate([fold * b + rng.permutation(fold) for b in blocks])
    examples = rng.permutation(keep.shape[1])
    index = np.ix_(models, examples)
    moved = ScoreSet(
        score_set.scores[index], keep[index], None, "test", labels=score_set.labels[examples]
    )
    before, after = attack(score_set), attack(moved)
    for name in lira_bayes.NAMES:
        np.testing.assert_allclose(after[name], before[name][index], rtol=0, atol=1e-9)


# Without leakage

CLASS_LEVELS = 0.8
DRAW = null_check.draw


def with_levels_by_class(keep, block, views, rng):
    """The null check's scores, and levels of models on classes too."""
    drawn = DRAW(keep, block, views, rng)
    levels = CLASS_LEVELS * rng.normal(size=(len(keep), null_check.CLASSES))
    drawn.scores[:] += levels[:, drawn.labels, np.newaxis].astype(np.float32)
    return drawn


@pytest.mark.parametrize(
    ("design", "models"),
    [
        *((design, 16) for design in DESIGNS if design != "coin tosses"),
        ("blocks of 2", 4),
        ("coin tosses", 8),
        ("blocks of 2", 64),
    ],
)
def test_without_leakage_it_is_at_chance(design, models, monkeypatch):
    monkeypatch.setattr(null_check, "ENTRIES", 1_600)
    monkeypatch.setattr(null_check, "draw", with_levels_by_class)
    keep = masks(design, models, models, 1_600 // models)
    score_set = ScoreSet(np.zeros((*keep.shape, 1), np.float32), keep, None, "test")
    family = {"lira-bayes": ATTACKS["lira-bayes"]}
    found = null_check.null_check(score_set, AttackConfig(), family, draws=5)
    assert found["ok"], found["attacks"]
    assert all(entry["auc"]["error"] < 0.03 for entry in found["attacks"])


def test_masks_by_coin_tosses_of_few_examples_are_at_chance_over_masks():
    # Of one set of masks on 25 examples, numbers of IN models happen to spread less or more.
    found = []
    for seed in range(6):
        keep = masks("coin tosses", 100 + seed, 64, 25)
        drawn = with_levels_by_class(keep, None, 1, np.random.default_rng(seed))
        found.append([auc_and_tpr(values, keep, FPR)[0] for values in attack(drawn).values()])
    np.testing.assert_allclose(np.mean(found, axis=0), 0.5, atol=0.035)


# With leakage, of a known law

MODELS, EXAMPLES, POPULATIONS, FPR = 24, 2_000, 2, 0.01
COUNT = MODELS // 2 - 1


@cache
def measured():
    """By name, AUC and TPR of each population."""
    found = {}
    for seed in range(POPULATIONS):
        keep = blocked_masks(np.random.default_rng(seed), MODELS, EXAMPLES)
        population = leaky(seed, keep)
        rule = references.find(population)
        got = attack(population, rule) | lira.attack(population, rule, AttackConfig())
        for name, values in got.items():
            found.setdefault(name, []).append(auc_and_tpr(values, keep, FPR))
    return {name: np.mean(values, axis=0) for name, values in found.items()}


@cache
def known_law(targets=5, some=100):
    """AUC and TPR of the likelihood ratio under the true law, by integration, and of the attack."""
    keep = blocked_masks(np.random.default_rng(0), MODELS, EXAMPLES)
    population = leaky(0, keep)
    got = attack(population)["lira-bayes"][:targets, :some]
    x = population.scores.mean(axis=2)
    x -= x.mean(axis=1, keepdims=True)  # of a model
    x += population.scores.mean()
    exact = np.empty(got.shape)
    for target, example in np.ndindex(got.shape):
        others = np.arange(MODELS) // 2 != target // 2
        out, inside = (x[others & (keep[:, example] == s), example] for s in (False, True))
        exact[target, example] = reference_log_odds(
            TYPICAL, out, inside, x[target, example], points=21
        )
    shown = keep[:targets, :some]
    return auc_and_tpr(got, shown, 0.05), auc_and_tpr(exact, shown, 0.05)


def test_under_a_known_law_it_comes_to_what_the_optimal_test_does():
    # On the same targets, so that chance hardly parts the two.
    found, best = known_law()
    assert (np.abs(np.subtract(found, best)) < [0.01, 0.05]).all(), (found, best)


def test_under_a_known_law_it_is_ahead_of_shrinkage_lira_online_and_offline():
    found = measured()
    for kind, name in (("online", "lira-bayes"), ("offline", "lira-bayes-offline")):
        assert (found[name] > found[f"lira-{kind}-shrinkage"]).all(), found
    assert (found["lira-bayes"] > found["lira-bayes-offline"]).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_few_models_under_a_known_law_do_better_than_lira_as_well(design):
    keep = masks(design, 8, 8, 600)
    population = leaky(8, keep)
    rule = references.find(population)
    found = attack(population, rule) | lira.attack(population, rule, AttackConfig())
    ours, theirs = (
        auc_and_tpr(found[n], keep, FPR) for n in ("lira-bayes", "lira-online-shrinkage")
    )
    assert (ours > theirs).all(), (ours, theirs)


# Small and odd runs


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("examples", [2, 5, 20])
def test_small_runs_have_finite_scores_without_a_warning(design, examples):
    keep = masks(design, 9, 8, examples)
    score_set = leaky(9, keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in attack(score_set).values():
            assert np.isfinite(values).all()


def test_scores_that_are_all_equal_tell_nothing():
    keep = masks("blocks of 2", 10, 8, 40)
    for values in attack(ScoreSet(np.full((8, 40, 1), 2.0), keep, None, "test")).values():
        assert np.isfinite(values).all()
        assert abs(evaluation.auc(evaluation.roc(values, keep)) - 0.5) < 0.05


def test_an_example_without_in_references_is_scored_from_its_out_references(monkeypatch):
    monkeypatch.setattr(lira_bayes, "independent", lambda _: True)
    # Leave-one-out asks for two on a side; blocks as given, for one outside each block.
    rng = np.random.default_rng(11)
    keep = rng.random((8, 300)) < 0.5
    keep[:, 0] = False
    score_set = leaky(11, keep)
    rule = references.find(ScoreSet(score_set.scores, free_masks(rng, 8, 300), None, "test"))
    for values in attack(score_set, rule).values():
        assert np.isfinite(values).all()
    centred = lira_bayes.prepare(score_set, rule, AttackConfig())
    assert centred.as_they_are
    law, part = lira_bayes.laws_of(centred, False)[3], centred.part[3]
    out, inside = lira_bayes.sides(centred, part, np.array([0]))
    known = lira_bayes._of_fold(out, 3)
    expected = hierarchical.log_odds(law, known, known.none(), centred.of(part)[3, :1])
    assert attack(score_set, rule)["lira-bayes"][3, 0] == pytest.approx(expected[0], abs=1e-9)
    assert inside.count[3, 0] == 0


# Models from elsewhere


@pytest.mark.parametrize("models", [12])
def test_a_model_from_elsewhere_scores_nearly_as_if_its_block_were_in_the_run(models):
    keep = masks("blocks of 2", 12, models, 800)
    whole = leaky(12, keep, classes=3)
    inside_run = attack(whole)
    rest = ScoreSet(whole.scores[2:], keep[2:], 2, "test", labels=whole.labels)
    found = lira_bayes.of_targets(
        rest, references.find(rest), AttackConfig(), whole.scores[:1].copy()
    )
    for name, got in (("lira-bayes", found.log_odds), ("lira-bayes-offline", found.offline)):
        expected = inside_run[name][0]
        assert np.corrcoef(got[0], expected)[0, 1] > 0.985, name
        assert abs(np.mean(got[0] - expected)) < 0.1, name


def test_views_of_a_model_from_elsewhere_have_the_weights_that_all_of_the_run_give_them():
    keep = masks("blocks of 2", 16, 8, 500)
    run = leaky(16, keep)
    rng = np.random.default_rng(16)
    run.scores[..., 1] += 3 * rng.normal(size=keep.shape)
    rule, target = references.find(run), leaky(17, keep).scores[:1]
    of_first = dataclasses.replace(run, scores=run.scores[..., :1])
    found, first = (
        lira_bayes.of_targets(of, rule, AttackConfig(), views).log_odds
        for of, views in ((run, target), (of_first, target[..., :1]))
    )
    assert np.corrcoef(found[0], first[0])[0, 1] > 0.95
    worse = target.copy()
    worse[..., 1] += 3 * rng.normal(size=worse.shape[:2])
    moved = lira_bayes.of_targets(run, rule, AttackConfig(), worse).log_odds
    assert np.corrcoef(moved[0], found[0])[0, 1] > 0.95


def test_tails_and_log_odds_of_a_model_from_elsewhere_are_those_of_its_laws():
    keep = masks("blocks of 2", 13, 12, 200)
    run = leaky(13, keep)
    targets = leaky(13, keep).scores[:2] + 0.3
    found = lira_bayes.of_targets(run, references.find(run), AttackConfig(), targets)
    odds = found.of_in.log_density(found.x) - found.of_out.log_density(found.x)
    np.testing.assert_allclose(found.log_odds, odds, rtol=0, atol=1e-12)
    tail = found.of_out.log_tail(found.x)
    np.testing.assert_allclose(found.log_tail, tail, rtol=0, atol=1e-12)


def test_the_level_of_a_model_from_elsewhere_changes_none_of_its_scores():
    keep = masks("blocks of 2", 14, 8, 600)
    run = leaky(14, keep)
    run.scores[:] += 10 * np.arange(8)[:, np.newaxis, np.newaxis] % 7
    rule, target = references.find(run), leaky(15, keep).scores[:1]
    scores = [
        lira_bayes.of_targets(run, rule, AttackConfig(), target + level).log_odds
        for level in (0.0, 15.0)
    ]
    assert np.abs(scores[1] - scores[0]).max() < 0.2
