"""Curves against views and models: each point is the attack on that part of the run alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lira_jax import evaluation
from lira_jax.analysis import budgets
from lira_jax.attacks import lira, lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.evaluation import bootstrap, judging
from lira_jax.score_set import ScoreSet


def synthetic(models=16, examples=120, queries=3, block=2, seed=0):
    rng = np.random.default_rng(seed)
    ranks = rng.random((models // block, block, examples)).argsort(axis=1)
    keep = (ranks == 0).reshape(models, examples)
    scores = rng.normal(size=(*keep.shape, queries)) + 1.5 * keep[..., np.newaxis]
    return ScoreSet(scores.astype(np.float32), keep, None, "file.npz")


def free(models=12, examples=200, seed=0):
    rng = np.random.default_rng(seed)
    keep = rng.random((models, examples)) < 0.5
    keep = keep[:, (keep.sum(axis=0) > 3) & (keep.sum(axis=0) < models - 3)]
    return ScoreSet(rng.normal(size=(*keep.shape, 1)) + keep[..., None], keep, None, "file.npz")


def without(entry, *keys):
    return {key: value for key, value in entry.items() if key not in keys}


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    for module in (budgets, bootstrap):
        monkeypatch.setattr(module, "REPLICATES", 20)


def both(score_set, rule, config):
    """Scores of LiRA and of hierarchical LiRA."""
    return lira.attack(score_set, rule, config) | lira_bayes.attack(score_set, rule, config)


def test_by_queries_are_the_attack_with_so_many_views():
    score_set = synthetic(queries=20)
    rule = references.find(score_set)
    entries = budgets.by_queries(score_set, rule, AttackConfig())
    views = [entry["queries"] for entry in entries if entry["name"] == "lira-online"]
    assert views == [1, 2, 18, 20]
    for entry in entries:
        config = AttackConfig(queries=entry["queries"])
        scores = both(score_set, rule, config)[entry["name"]]
        expected = judging.headline(scores, score_set.keep, rule.fold)
        assert without(entry, "queries", "name") == expected
    # Independent noise per view: more views tell more.
    assert entries[-1]["auc"] > entries[0]["auc"] + 0.1
    assert json.loads(json.dumps(entries)) == entries


def test_what_is_known_of_the_whole_is_taken_and_not_computed(monkeypatch):
    score_set = synthetic(queries=2)
    rule = references.find(score_set)
    expected = [
        (budgets.by_models(score_set, rule, AttackConfig())[0], "models", 16),
        (budgets.by_queries(score_set, rule, AttackConfig()), "queries", 2),
    ]
    known = {
        point["name"]: {key: (name, key) for key in judging.HEADLINE} | {"other": 1}
        for name, point in enumerate(expected[0][0])
    }
    whole = lira.likelihoods

    def counted(part, rule, config, **other):
        assert (len(part.keep), config.queries or 2) != (16, 2)
        return whole(part, rule, config, **other)

    monkeypatch.setattr(lira, "likelihoods", counted)
    found = [
        budgets.by_models(score_set, rule, AttackConfig(), known=known)[0],
        budgets.by_queries(score_set, rule, AttackConfig(), known=known),
    ]
    for (points, budget, full), got in zip(expected, found, strict=True):
        assert [list(point) for point in got] == [list(point) for point in points]
        for before, after in zip(points, got, strict=True):
            if before[budget] == full:
                naming = {key: before[key] for key in before.keys() - set(judging.HEADLINE)}
                after_figures = {key: known[before["name"]][key] for key in judging.HEADLINE}
                assert after == naming | after_figures
            else:
                assert after == before


def test_by_queries_use_no_more_views_than_the_attack_does():
    score_set = synthetic(queries=20)
    rule = references.find(score_set)
    entries = budgets.by_queries(score_set, rule, AttackConfig(queries=2), ["lira-offline"])
    assert [entry["queries"] for entry in entries] == [1, 2]
    assert {entry["name"] for entry in entries} == {"lira-offline"}


@pytest.mark.parametrize(("models", "block", "sizes"), [(16, 2, [4, 8, 16]), (15, 3, [6, 12, 15])])
def test_by_models_attacks_disjoint_groups_as_runs_of_their_own(models, block, sizes):
    score_set = synthetic(models=models, block=block, examples=60)
    rule = references.find(score_set)
    config = AttackConfig(queries=2)
    entries, skipped = budgets.by_models(score_set, rule, config)
    assert skipped == []
    assert sorted({entry["models"] for entry in entries}) == sizes
    for entry in entries:
        size = entry["models"]
        targets = models // size * size
        assert entry["targets"] == targets
        pooled = np.empty((targets, 60))
        for start in range(0, targets, size):
            group = slice(start, start + size)
            part = ScoreSet(score_set.scores[group], score_set.keep[group], block, "group")
            found = both(part, references.find(part), config)
            pooled[group] = found[entry["name"]]
        expected = judging.headline(pooled, score_set.keep[:targets], block)
        assert without(entry, "models", "targets", "name") == expected
    whole = lira.attack(score_set, rule, config)["lira-online"]
    last = next(e for e in entries if e["models"] == models and e["name"] == "lira-online")
    assert last["auc"] == evaluation.auc(evaluation.roc(whole, score_set.keep))


def test_of_more_models_than_so_many_the_first_groups_are_attacked_one_at_least(monkeypatch):
    monkeypatch.setattr(budgets, "TARGETS", 4)
    score_set = synthetic(models=16, examples=60)
    rule = references.find(score_set)
    entries, _ = budgets.by_models(score_set, rule, AttackConfig(), ["lira-online"])
    assert {entry["models"]: entry["targets"] for entry in entries} == {4: 4, 8: 8, 16: 16}
    for entry in entries:
        first = slice(0, entry["targets"])
        part = ScoreSet(score_set.scores[first], score_set.keep[first], 2, "first")
        scores = lira.attack(part, references.find(part), AttackConfig())["lira-online"]
        assert entry["auc"] == evaluation.auc(evaluation.roc(scores, part.keep))


@pytest.mark.parametrize("made", [synthetic, free])
def test_above_so_many_decisions_points_rest_on_a_part_that_order_does_not_change(
    monkeypatch, made
):
    score_set = made(models=16)
    rule = references.find(score_set)
    whole = budgets.by_queries(score_set, rule, AttackConfig(queries=1))
    monkeypatch.setattr(budgets, "DECISIONS", 16 * 50)
    part, of_part = budgets._part(score_set, rule)
    assert part.keep.shape == (16, 50)
    assert (of_part.count_in, of_part.count_out) == (rule.count_in, rule.count_out)
    entries = budgets.by_queries(score_set, rule, AttackConfig(queries=1))
    found = both(part, of_part, AttackConfig(queries=1))
    for entry, before in zip(entries, whole, strict=True):
        area = evaluation.auc(evaluation.roc(found[entry["name"]], part.keep))
        assert entry["auc"] == area != before["auc"]

    moved = np.random.default_rng(0).permutation(score_set.keep.shape[1])
    other = ScoreSet(
        score_set.scores[:, moved], score_set.keep[:, moved], score_set.block, "file.npz"
    )
    again, _ = budgets._part(other, references.find(other))
    assert {*map(bytes, again.scores.swapaxes(0, 1))} == {*map(bytes, part.scores.swapaxes(0, 1))}


def test_more_models_find_more_members_with_a_variance_per_example():
    score_set = synthetic(models=32, examples=300, queries=1)
    entries, _ = budgets.by_models(
        score_set, references.find(score_set), AttackConfig(), ["lira-online"]
    )
    areas = [entry["auc"] for entry in entries]
    assert [entry["models"] for entry in entries] == [4, 8, 16, 32]
    # With one reference a side (4 models) there is no variance to estimate badly.
    assert (np.diff(areas[1:]) > 0).all()


def test_free_masks_skip_groups_without_references_and_say_why():
    score_set = free()
    rule = references.find(score_set)
    assert rule.order is not None
    entries, skipped = budgets.by_models(score_set, rule, AttackConfig())
    of = {entry["models"]: set() for entry in entries}
    for entry in entries:
        of[entry["models"]].add(entry["name"])
    assert of[12] == {*budgets.BY_MODELS}
    assert of[4] == {"lira-bayes", "lira-bayes-offline"} <= of[8] < of[12]
    assert [one["models"] for one in skipped] == [4, 8]
    for one in skipped:
        assert "leave-one-out needs 2 on each side" in one["reason"]
    targets = {entry["models"]: entry["targets"] for entry in entries}
    assert targets == {4: 12, 8: 8, 12: 12}


def test_without_leakage_every_point_is_at_chance():
    score_set = synthetic(models=16, examples=2_000)
    noise = np.random.default_rng(1).normal(size=(16, 2_000, 2))
    score_set = ScoreSet(noise, score_set.keep, None, "noise")
    rule = references.find(score_set)
    entries = budgets.by_queries(score_set, rule, AttackConfig())
    entries += budgets.by_models(score_set, rule, AttackConfig())[0]
    assert len(entries) > 10
    for entry in entries:
        assert entry["auc"] == pytest.approx(0.5, abs=0.012)
