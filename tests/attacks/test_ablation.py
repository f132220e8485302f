"""The ladders against plain formulas, LiRA itself, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import ATTACKS, ablation, lira
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import (
    MASKS,
    blocked_masks,
    free_masks,
    halved_masks,
    references_of,
    uneven_scores,
    with_rule,
)


def run(scores, keep, skip=(), **config):
    rungs = ablation.ladders(*with_rule(scores, keep), AttackConfig(**config), skip=skip)
    return {rung.name: values for rung, values in rungs}


def population(masks=blocked_masks, models=8, examples=30, queries=3, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    keep = masks(rng, models, examples)
    return uneven_scores(rng, keep, queries, shift), keep


def test_steps_are_those_of_the_papers_table():
    scores, keep = population()
    steps: dict[str, list[str]] = {}
    for rung, values in ablation.ladders(*with_rule(scores, keep), AttackConfig()):
        steps.setdefault(rung.ladder, []).append(rung.step)
        assert values.shape == keep.shape
        assert values.dtype == np.float64
    refine = ["+ logit scaling", "+ Gaussian", "+ multiple queries"]
    assert steps == {
        "global": ["LOSS", "+ logit scaling", "+ multiple queries"],
        "offline": ["Per-example OUT threshold", *refine],
        "online": ["Per-example IN & OUT threshold", *refine],
    }


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("masks", MASKS)
def test_rungs_below_the_gaussian_equal_a_plain_loop(masks, centre):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=3, shift=1)
    _, rule = with_rule(scores, keep)
    got = run(scores, keep, centre=centre, queries=2)
    middle = np.mean if centre == "mean" else np.median
    phi = scores[:, :, 0]
    loss = -np.log(expit(phi))
    for target, e in np.ndindex(*keep.shape):
        inside = references_of(rule, keep, target, e, True)
        outside = references_of(rule, keep, target, e, False)
        mean_in, mean_out = loss[inside, e].mean(), loss[outside, e].mean()
        mu_in, mu_out = middle(phi[inside, e]), middle(phi[outside, e])
        expected = {
            "yeom": -loss[target, e],
            "logit": phi[target, e],
            "logit-queries": scores[target, e, :2].mean(),
            "watson": mean_out - loss[target, e],
            "watson-logit": phi[target, e] - mu_out,
            "sablayrolles": (mean_in + mean_out) / 2 - loss[target, e],
            "sablayrolles-logit": phi[target, e] - (mu_in + mu_out) / 2,
        }
        for name, value in expected.items():
            assert got[name][target, e] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("queries", [0, 2])
def test_gaussian_rungs_are_lira_with_one_and_with_all_views(queries, centre):
    scores, keep = population()
    score_set, rule = with_rule(scores, keep)
    got = run(scores, keep, queries=queries, centre=centre)
    for suffix, used in (("-one-query", 1), ("", queries)):
        expected = lira.attack(score_set, rule, AttackConfig(queries=used, centre=centre))
        for name in ("lira-offline", "lira-online"):
            np.testing.assert_array_equal(got[f"{name}{suffix}"], expected[name])


def test_the_offline_gaussian_rung_ranks_as_the_z_score_under_out():
    scores, keep = population(models=12)
    _, rule = with_rule(scores, keep)
    got = run(scores, keep)["lira-offline-one-query"]
    z = np.empty(keep.shape)
    for target, e in np.ndindex(*keep.shape):
        outside = scores[references_of(rule, keep, target, e, False), e, 0]
        z[target, e] = (scores[target, e, 0] - outside.mean()) / outside.std(ddof=1)
    np.testing.assert_array_equal(np.argsort(got, axis=None), np.argsort(z, axis=None))


def test_a_rung_named_as_an_attack_has_that_attacks_scores():
    scores, keep = population()
    score_set, rule = with_rule(scores, keep)
    got = run(scores, keep)
    shared = set()
    for family in ATTACKS.values():
        if named := got.keys() & family.titles.keys():
            scores_of = family.attack(score_set, rule, AttackConfig(), False)
            for name in named:
                np.testing.assert_array_equal(got[name], scores_of[name])
            shared |= named
    assert shared == {"yeom", "watson", "sablayrolles", "lira-offline", "lira-online"}


@pytest.mark.parametrize(("stored", "asked"), [(1, 0), (3, 1)])
def test_with_one_view_no_rung_adds_queries(stored, asked):
    scores, keep = population(queries=stored)
    several = run(scores, keep, queries=asked)
    assert len(several) == 8
    assert not {"logit-queries", "lira-offline", "lira-online"} & several.keys()


def test_skipped_rungs_are_not_computed(monkeypatch):
    scores, keep = population()
    everything = run(scores, keep)
    used = []

    def counted(score_set, rule, config, **other):
        used.append(config.queries)
        return whole(score_set, rule, config, **other)

    whole = lira.likelihoods
    monkeypatch.setattr(lira, "likelihoods", counted)
    skip = ("yeom", "lira-offline", "lira-online")
    got = run(scores, keep, skip=skip)
    assert list(got) == [name for name in everything if name not in skip]
    assert used == [1]
    for name, values in got.items():
        np.testing.assert_array_equal(values, everything[name])


@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_without_leakage_every_rung_has_auc_one_half(masks):
    areas: dict[str, list[float]] = {}
    for seed in range(20):
        scores, keep = population(masks, 8, 300, queries=2, shift=0, seed=seed)
        rng = np.random.default_rng(100 + seed)
        scores = scores + 3 * rng.normal(size=(8, 1, 1)) * (seed % 2)
        for name, values in run(scores, keep).items():
            areas.setdefault(name, []).append(evaluation.auc(evaluation.roc(values, keep)))
    assert len(areas) == 11
    for name, area in areas.items():
        error = np.std(area, ddof=1) / np.sqrt(len(area))
        assert abs(np.mean(area) - 0.5) < 4.5 * error, (name, np.mean(area), error)
        assert error < 0.03


def test_each_rung_of_a_known_population_has_its_auc():
    # Examples at 10·N(0, 1), spreads of 1, members 1 higher: a global threshold has the examples'
    # variance against it, a per-example one only the reference means'. Two views halve the noise.
    rng = np.random.default_rng(1)
    keep = blocked_masks(rng, 32, 5_000)
    where = 10 * rng.normal(size=(1, 5_000, 1))
    scores = where + rng.normal(size=(*keep.shape, 2)) + keep[..., np.newaxis]
    got = run(scores, keep)
    for name, variance in {
        "yeom": 101,
        "logit": 101,
        "logit-queries": 100.5,
        "watson-logit": 1 + 1 / 15,
        "sablayrolles-logit": 1 + 1 / 30,
    }.items():
        area = evaluation.auc(evaluation.roc(got[name], keep))
        assert area == pytest.approx(norm.cdf(1 / np.sqrt(2 * variance)), abs=0.006), name
