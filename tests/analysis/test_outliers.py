"""Absurd scores: what one of them does to attacks, to ranks, and what is told of it."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax import evaluation
from lira_jax.analysis import exposure, outliers, target
from lira_jax.attacks import ATTACKS, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet, check, of_examples
from tests.attacks.synthetic import blocked_masks, free_masks

MODELS, EXAMPLES = 16, 4_000
# What one score among 64,000 may do to the TPR at 1 % FPR, a share: one that is absurd; and one
# just short of it, which `-pooled` and its like feel most.
HAIR, MOST = 0.006, 0.015
# Of scores alone: what other attacks need, an absurd score does not change.
FAMILIES = [name for name, family in ATTACKS.items() if not family.needs]


def leaking(seed=0, models=MODELS, examples=EXAMPLES, masks=blocked_masks) -> ScoreSet:
    """Examples of unlike difficulty, spread and leak."""
    rng = np.random.default_rng(seed)
    keep = masks(rng, models, examples)
    spread = 0.8 * np.exp(0.6 * rng.normal(size=examples))
    scores = rng.normal(3, 2.5, examples) + spread * rng.normal(size=keep.shape)
    scores += rng.gamma(1.0, 1.2, examples) * keep
    return ScoreSet(scores.astype(np.float32)[..., np.newaxis], keep, None, "scores.npz")


def with_scores(score_set, place, value):
    scores = np.array(score_set.scores)
    scores[place] = value
    return dataclasses.replace(score_set, scores=scores)


def seen(score_set):
    """As attacks see it, and what is absurd in it."""
    found = outliers.find(score_set)
    kept = outliers.kept_models(score_set, references.find(score_set), found)
    return outliers.as_attacked(score_set, found, kept), outliers.as_json(score_set, found, kept)


def attacked(score_set, families=FAMILIES):
    rule = references.find(score_set)
    scores = [ATTACKS[name].attack(score_set, rule, AttackConfig(), False) for name in families]
    return {name: values for of_family in scores for name, values in of_family.items()}


def rates(score_set, families=FAMILIES):
    """TPR at 1 % FPR of every attack."""
    return {
        name: evaluation.tpr_at_fpr(evaluation.roc(values, score_set.keep), 0.01)
        for name, values in attacked(score_set, families).items()
    }


@cache
def honest():
    score_set = leaking()
    return score_set, rates(score_set)


@cache
def an_out_score():
    """A model and an example that it did not train on."""
    return tuple(np.argwhere(~honest()[0].keep)[777].tolist())


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_one_absurd_score_changes_no_attack_by_more_than_a_hair(value):
    score_set, before = honest()
    spoilt = with_scores(score_set, an_out_score(), value)
    after = rates(seen(spoilt)[0])
    assert before["lira-online"] > 0.15
    for name, rate in before.items():
        assert abs(after[name] - rate) < HAIR, (name, rate, after[name])


def test_it_would_bring_the_attacks_down_that_the_bound_protects():
    score_set, before = honest()
    raw = rates(with_scores(score_set, an_out_score(), 1e6), ["lira"])
    assert raw["lira-online"] < before["lira-online"] / 2
    assert raw["lira-online-pooled"] < before["lira-online-pooled"] / 2


@settings(max_examples=12, deadline=None)
@given(
    model=st.integers(0, MODELS - 1),
    example=st.integers(0, EXAMPLES - 1),
    value=st.floats(-(2.0**59), 2.0**59, width=32, allow_subnormal=False) | st.floats(-200, 200),
)
def test_whatever_one_score_is_lira_finds_as_much(model, example, value):
    score_set, before = honest()
    spoilt = with_scores(score_set, (model, example), value)
    for name, rate in rates(seen(check(spoilt))[0], ["lira"]).items():
        assert abs(rate - before[name]) < MOST, (name, value)


def test_one_absurd_score_leaves_the_most_exposed_examples_as_they_are():
    score_set, _ = honest()
    spoilt, _ = seen(with_scores(score_set, an_out_score(), 1e6))

    def first(scores: ScoreSet) -> set[int]:
        ratio = attacked(scores, ["lira"])["lira-online"]
        ranked = exposure.exposure(scores, "lira-online", ratio, AttackConfig())
        return set(ranked.order[:50].tolist())

    assert len(first(score_set) & first(spoilt)) >= 49


# Tails: of t with 4 degrees of freedom, the farthest of 10⁵ lies at some 20 times the spread.
HONEST = {
    "Gaussian": lambda rng, size: rng.normal(size=size),
    "Laplace": lambda rng, size: rng.laplace(size=size),
    "Student's t, 4": lambda rng, size: rng.standard_t(4, size=size),
}


@pytest.mark.parametrize("law", HONEST)
@pytest.mark.parametrize("models", [2, 4, 16])
def test_honest_scores_are_handed_on_untouched(law, models):
    rng = np.random.default_rng(models)
    keep = blocked_masks(rng, models, 3_000)
    spread = rng.gamma(2.0, size=(3_000, 1))
    scores = 3 * rng.normal(size=(3_000, 1)) + spread * HONEST[law](rng, (*keep.shape, 2))
    score_set = ScoreSet(scores.astype(np.float32), keep, None, "test")
    found = outliers.find(score_set)
    assert not found
    assert outliers.as_attacked(score_set, found, np.ones(models, bool)) is score_set
    assert outliers.in_words(outliers.as_json(score_set, found, np.ones(models, bool))) == []


# Saturated: most of φ the same, as of float32 probabilities; the rest honestly below.
DEGENERATE = {
    "constant": lambda phi, rng: np.full_like(phi, 0.1),
    "views alike": lambda phi, rng: np.repeat(phi[..., :1], 2, axis=-1),
    "rounded": lambda phi, rng: phi.round(),
    "half saturated": lambda phi, rng: np.minimum(phi, np.median(phi)),
    "saturated": lambda phi, rng: np.minimum(phi, np.quantile(phi, 0.05)),
    "saturated but for rounding": lambda phi, rng: (
        np.minimum(phi, np.quantile(phi, 0.3)) + 1e-6 * rng.normal(size=phi.shape)
    ),
    "one example varies": lambda phi, rng: np.where(np.arange(phi.shape[1])[:, None] == 3, phi, 5),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_scores_that_hardly_vary_are_not_absurd(kind):
    rng = np.random.default_rng(0)
    phi = DEGENERATE[kind](np.repeat(leaking(examples=600).scores, 2, axis=-1), rng)
    score_set = ScoreSet(phi.astype(np.float32), blocked_masks(rng, MODELS, 600), None, "test")
    assert not outliers.find(score_set)


def test_a_leak_that_shows_in_far_scores_still_shows():
    # One of eight models trains on an example, and is far surer of it than all others.
    rng = np.random.default_rng(0)
    keep = blocked_masks(rng, 16, 400, block=8)
    scores = rng.normal(size=keep.shape) + 500 * keep
    score_set = ScoreSet(scores[..., np.newaxis].astype(np.float32), keep, None, "test")
    bounded, told = seen(score_set)
    assert told["scores"]["count"] == keep.sum()
    ratio = attacked(bounded, ["lira"])["lira-online-shrinkage"]
    assert evaluation.auc(evaluation.roc(ratio, keep)) == 1


@pytest.mark.parametrize("masks", [blocked_masks, free_masks])
def test_masks_have_no_part_in_what_is_absurd_or_what_becomes_of_it(masks):
    rng = np.random.default_rng(1)
    score_set = with_scores(leaking(examples=300), (3, 5), 1e6)
    other = dataclasses.replace(score_set, keep=masks(rng, MODELS, 300))
    found = [outliers.find(each) for each in (score_set, other)]
    np.testing.assert_array_equal(*(outliers.bounded(score_set.scores, each) for each in found))


BROKEN = {
    "at -1e4 everywhere": lambda scores: np.full_like(scores, -1e4),
    "a million times": lambda scores: scores * 1e6,
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_absurd_model_is_left_out_with_its_block_and_named(how):
    score_set, _ = honest()
    spoilt, told = seen(with_scores(score_set, 3, BROKEN[how](score_set.scores[3])))
    assert [one["model"] for one in told["models"]] == [3]
    assert told["left_out"] == [2, 3]
    assert told["scores"]["count"] == told["examples"]["count"] == 0
    words = " ".join(outliers.in_words(told))
    assert "model 3 " in words
    assert "with model 2 of the same block" in words
    others = np.delete(np.arange(MODELS), [2, 3])
    np.testing.assert_array_equal(spoilt.scores, score_set.scores[others])
    np.testing.assert_array_equal(spoilt.keep, score_set.keep[others])


def test_without_blocks_the_absurd_model_alone_is_left_out():
    score_set = leaking(examples=400, masks=partial(free_masks, least=3))
    score_set = with_scores(score_set, 3, -1e4)
    _, told = seen(score_set)
    assert told["left_out"] == [3]


def test_a_model_without_which_too_few_remain_stays_and_the_figures_are_disowned():
    score_set = with_scores(leaking(models=4, examples=400), 3, -1e4)
    spoilt, told = seen(score_set)
    assert told["left_out"] == []
    assert len(spoilt.scores) == 4
    assert "no figure of this run is to be relied on" in outliers.in_words(told)[0]


FAR_OUT = {
    "up": lambda scores: scores + 1e6,
    "down": lambda scores: scores - 1e4,
    "wide": lambda scores: scores * 1e6,
}


@pytest.mark.parametrize("how", FAR_OUT)
def test_an_example_far_from_all_others_is_named_and_keeps_how_its_models_stand(how):
    score_set, before = honest()
    most = int(np.argmax(exposure.privacy_score(score_set)))
    scores = FAR_OUT[how](score_set.scores.astype(np.float64))[:, most]
    bounded, told = seen(with_scores(score_set, (slice(None), most), scores))
    assert [one["example"] for one in told["examples"]["farthest"]] == [most]
    assert f" {most} (" in outliers.in_words(told)[0]
    order = np.argsort(score_set.scores[:, most, 0])
    assert (np.diff(bounded.scores[order, most, 0]) >= 0).all()
    ratio = attacked(bounded, ["lira"])["lira-online"]
    ranked = exposure.exposure(bounded, "lira-online", ratio, AttackConfig())
    plain = attacked(score_set, ["lira"])["lira-online"]
    unspoilt = exposure.exposure(score_set, "lira-online", plain, AttackConfig())
    assert abs(int(ranked.rank[most]) - int(unspoilt.rank[most])) <= 3
    after = evaluation.tpr_at_fpr(evaluation.roc(ratio, bounded.keep), 0.01)
    assert abs(after - before["lira-online"]) < HAIR


def test_a_tenth_of_absurd_scores_is_counted_the_farthest_named_and_attacks_run():
    rng = np.random.default_rng(0)
    score_set = leaking(examples=500)
    chosen = rng.random(score_set.scores.shape) < 0.1
    spoilt = with_scores(score_set, chosen, 1e6 * rng.normal(size=int(chosen.sum())))
    bounded, told = seen(spoilt)
    assert told["scores"]["count"] == pytest.approx(chosen.sum(), rel=0.01)
    assert told["models"] == []
    first = told["scores"]["farthest"][0]
    assert first["score"] == spoilt.scores[first["model"], first["example"], first["view"]]
    assert len(told["scores"]["farthest"]) == outliers.NAMED
    assert "; …." in outliers.in_words(told)[0]
    assert all(np.isfinite(values).all() for values in attacked(bounded, ["lira"]).values())


def test_only_the_views_asked_for_are_looked_at():
    score_set = leaking(examples=300)
    two = dataclasses.replace(score_set, scores=np.repeat(score_set.scores, 2, axis=-1))
    two.scores[3, 5, 1] = 1e6
    assert outliers.find(two).count == 1
    assert "view 1" in outliers.in_words(seen(two)[1])[0]
    assert not outliers.find(two, queries=1)


def test_what_is_advised_helps():
    # Without the example, or with the model's own scores again, nothing is absurd.
    score_set = leaking(examples=300)
    spoilt = with_scores(score_set, (3, 5), 1e6)
    words = outliers.in_words(seen(spoilt)[1])[0]
    assert "Score this model again, or remove this example." in words
    assert not outliers.find(of_examples(spoilt, np.arange(300) != 5))
    broken = with_scores(score_set, 3, -1e4)
    assert "Train or score it again." in outliers.in_words(seen(broken)[1])[0]
    assert not outliers.find(with_scores(broken, 3, score_set.scores[3]))
    far = with_scores(score_set, (slice(None), 5), 1e6 * score_set.scores[:, 5])
    assert "what is no real example is to be removed" in outliers.in_words(seen(far)[1])[0]
    assert not outliers.find(of_examples(far, np.arange(300) != 5))


def test_half_precision_memory_maps_are_bounded_in_their_own_type(tmp_path):
    spoilt = with_scores(leaking(examples=300), (3, 5), 6e4)
    np.save(tmp_path / "scores.npy", spoilt.scores.astype(np.float16))
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    found = outliers.find(dataclasses.replace(spoilt, scores=mapped))
    bounded = outliers.bounded(mapped, found)
    assert found.count == 1
    assert bounded.dtype == np.float16
    changed = np.argwhere(bounded != mapped)
    assert changed.tolist() == [[3, 5, 0]]
    assert mapped[3, 5, 0] == np.float16(6e4)


def test_a_target_is_held_against_bounded_shadow_models():
    score_set = leaking(examples=1_000)
    spoilt = with_scores(score_set, (slice(None), 7), 1e6 * score_set.scores[:, 7])
    spoilt = with_scores(spoilt, (3, 5), 1e6)
    # The target is a model of the run that scored all as the run's own do.
    audits = []
    for each in (score_set, spoilt):
        shadows = dataclasses.replace(each, scores=each.scores[:14], keep=each.keep[:14])
        aimed = target.Target(each.scores[14], each.keep[14], "target.npz")
        audits.append(target.audit(shadows, aimed, AttackConfig(), fpr=0.01, progress=False))
    plain, absurd = audits
    assert (plain.decision == absurd.decision).mean() > 0.97
    assert "absurd" in target.summary(absurd)
    assert "absurd" not in target.summary(plain)
    assert target.as_json(absurd)["outliers"]["scores"]["count"] == 1


def test_the_few_leaking_examples_of_models_that_are_sure_of_all_others_are_not_absurd():
    """Though next to the others, whose scores hardly vary, they are far out."""
    rng = np.random.default_rng(0)
    score_set = leaking()
    sure = np.arange(EXAMPLES) >= EXAMPLES * 8 // 100
    scores = np.where(sure, rng.normal(12, 0.02, score_set.keep.shape), 0)
    few = rng.normal(3, 1, score_set.keep.shape) + 4 * score_set.keep
    scores = np.where(sure, scores, few).astype(np.float32)[..., np.newaxis]
    score_set = dataclasses.replace(score_set, scores=scores)
    assert seen(score_set)[0] is score_set
    assert outliers.find(with_scores(score_set, (3, 500), 1e6)).count == 1
