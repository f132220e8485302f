"""The null check fails attacks that leak where nothing is to be known, and passes all others.

The broken attacks are the known mistakes of docs/methods.md, 3, that count members without any
leakage.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lira_jax.analysis.null_check import SHARES, draw, null_check
from lira_jax.attacks import ATTACKS, Family, lira, shokri
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet

SLOW = ("lira-bayes", "quantile-regression", "shokri")


def blocked(models=8, examples=600, seed=0):
    half = np.random.default_rng(seed).random((models // 2, examples)) < 0.5
    return np.stack([half, ~half], axis=1).reshape(models, examples)


def free(models=8, examples=600, seed=0):
    keep = np.random.default_rng(seed).random((models, 3 * examples)) < 0.5
    count = keep.sum(axis=0)
    return keep[:, (count >= 2) & (count <= models - 2)][:, :examples]


def halved(models=8, examples=600, seed=0):
    return np.random.default_rng(seed).random((models, examples)).argsort(axis=0) < models // 2


def check(keep, attack=None, families=None, views=2, **arguments):
    score_set = ScoreSet(np.zeros((*keep.shape, views), np.float32), keep, None, "test")
    families = families or {"broken": Family(attack, {"broken": "broken"})}
    return null_check(score_set, AttackConfig(), families, **arguments)


def log_ratio(phi, keep, chosen):
    """Per-example LiRA on one view, for each target the references of `chosen`, its own way."""
    result = np.empty(keep.shape)
    for target in range(len(keep)):
        value = 0.0
        for sign, side in ((1, keep), (-1, ~keep)):
            here = chosen(target) & side
            count = here.sum(axis=0)
            mean = np.where(here, phi, 0).sum(axis=0) / count
            squares = np.where(here, (phi - mean) ** 2, 0).sum(axis=0)
            std = np.sqrt(squares / np.maximum(count - 1, 1)) + 1e-3
            value = value - sign * (((phi[target] - mean) / std) ** 2 / 2 + np.log(std))
        result[target] = value
    return result


def unequal_counts(score_set, rule, config, progress):
    """3.10: leave-one-out with all other models, of which one fewer is on the target's side."""
    others = np.ones(score_set.keep.shape[0], dtype=bool)
    return {
        "broken": log_ratio(
            score_set.scores[:, :, 0].astype(np.float64),
            score_set.keep,
            lambda n: np.where(np.arange(others.size) == n, False, others)[:, np.newaxis],
        )
    }


def target_among_its_references(score_set, rule, config, progress):
    """Statistics over all models, the target's too: it lies nearer its own side."""
    everyone = np.ones((score_set.keep.shape[0], 1), dtype=bool)
    phi = score_set.scores[:, :, 0].astype(np.float64)
    return {"broken": log_ratio(phi, score_set.keep, lambda n: everyone)}


def first_models_in_the_file(score_set, rule, config, progress):
    """Constant counts, but the references are the first models on each side, for all examples."""
    models = np.arange(score_set.keep.shape[0], dtype=np.int32)
    order = np.broadcast_to(models[:, np.newaxis], score_set.keep.shape)
    found = lira.attack(score_set, dataclasses.replace(rule, order=order), config)
    return {name: found[name] for name in ("lira-online", "lira-offline-global")}


def number_of_references_above(score_set, rule, config, progress):
    """Ye's share without its denominator: how many OUT losses lie above, however many there are."""
    phi, keep = score_set.scores[:, :, 0], score_set.keep
    below = phi[np.newaxis] < phi[:, np.newaxis]  # [N, N, E]; the target is not below itself
    return {"broken": (below & ~keep).sum(axis=1).astype(np.float64)}


def fitted_on_the_target(score_set, rule, config, progress):
    """An attack model that saw the answer: nearest neighbours among all models' scores."""
    from sklearn.neighbors import KNeighborsClassifier

    scores = score_set.scores.reshape(-1, score_set.scores.shape[2])
    member = score_set.keep.ravel()
    fitted = KNeighborsClassifier(5).fit(scores, member)
    return {"broken": fitted.predict_proba(scores)[:, 1].reshape(score_set.keep.shape)}


def other_models_memberships(score_set, rule, config, progress):
    """A prior fitted on the attacked example itself: how few of the others trained on it."""
    keep = score_set.keep
    return {"broken": -(keep.sum(axis=0) - keep).astype(np.float64)}


@pytest.mark.parametrize(
    ("attack", "masks"),
    [
        (unequal_counts, halved),
        (target_among_its_references, blocked),
        (target_among_its_references, free),
        (first_models_in_the_file, halved),
        (number_of_references_above, halved),
        (number_of_references_above, free),
        (fitted_on_the_target, blocked),
        (other_models_memberships, halved),
    ],
)
def test_attacks_broken_in_a_known_way_are_caught(attack, masks):
    found = check(masks(), attack)
    assert not found["ok"]
    assert not any(one["ok"] for one in found["attacks"])


@pytest.mark.parametrize("masks", [blocked, free, halved])
def test_every_sound_attack_passes(masks):
    quick = {name: family for name, family in ATTACKS.items() if name not in SLOW}
    found = check(masks(), families=quick)
    assert found["ok"], [one for one in found["attacks"] if not one["ok"]]
    names = [name for family in quick.values() for name in family.titles]
    assert sorted(one["name"] for one in found["attacks"]) == sorted(names)
    for one in found["attacks"]:
        assert one["auc"]["error"] < 0.02
        assert abs(one["auc"]["value"] - 0.5) < 0.03


def test_learned_attacks_pass(monkeypatch):
    monkeypatch.setattr(shokri, "SEEN", 1)
    monkeypatch.setattr(shokri, "HIDDEN", 16)
    slow = {name: ATTACKS[name] for name in SLOW}
    found = check(blocked(6, 200), families=slow, draws=6, views=1)
    assert found["ok"], found
    assert found["views"] == 1


def first_view(score_set, rule, config, progress):
    return {"first": score_set.scores[:, :, 0].astype(np.float64)}


def last_view(score_set, rule, config, progress):
    return {"last": score_set.scores[:, :, -1].astype(np.float64)}


@pytest.mark.parametrize("masks", [blocked, free])
def test_sound_attacks_fail_no_more_often_than_it_says(masks):
    families = {
        "watson": ATTACKS["watson"],
        "first": Family(first_view, {}),
        "last": Family(last_view, {}),
    }
    checks = 40
    alarms = sum(
        not check(masks(6, 300, seed), families=families, draws=6, seed=seed)["ok"]
        for seed in range(checks)
    )
    # At 1 %, more than 3 of 40 come up less than once in a thousand times.
    assert alarms <= 3


def test_a_slight_advantage_in_the_tail_alone_is_caught():
    def tail(score_set, rule, config, progress):
        noise = np.random.default_rng(int(1e6 * abs(float(score_set.scores[0, 0, 0]))))
        scores = noise.normal(size=score_set.keep.shape)
        surest = score_set.keep & (noise.random(scores.shape) < 0.005)
        return {"broken": np.where(surest, 9.0, scores)}

    found = check(blocked(8, 2_000), tail)["attacks"][0]
    assert found["auc"]["ok"]
    assert not found["tpr_at_0.001"]["ok"]


def test_ties_are_a_coin_toss_and_constant_scores_at_chance():
    found = check(blocked(), lambda s, *_: {"constant": np.zeros(s.keep.shape)})
    assert found["ok"]
    assert found["attacks"][0]["auc"]["error"] > 0


def test_result_says_what_was_done_and_fits_json():
    found = check(blocked(8, 2_000), families={"yeom": ATTACKS["yeom"]}, draws=4)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["draws"], found["examples"], found["views"]) == (4, 2_000, 2)
    one = found["attacks"][0]
    assert one["tpr_at_0.01"]["chance"] == 0.01
    assert one["tpr_at_0.01"]["value"] == pytest.approx(0.01, abs=0.005)
    for key in ("auc", *SHARES):
        figure = one[key]
        away = (figure["value"] - figure["chance"]) / figure["error"]
        assert figure["z"] == pytest.approx(away)
        assert figure["ok"] == (abs(figure["z"]) <= found["critical_z"])
    again = check(blocked(8, 2_000), families={"yeom": ATTACKS["yeom"]}, draws=4)
    assert again == found
    assert check(blocked(8, 2_000), families={"yeom": ATTACKS["yeom"]}, draws=4, seed=1) != found


def test_shares_of_too_few_entries_are_not_judged():
    one = check(blocked(8, 100), families={"yeom": ATTACKS["yeom"]})["attacks"][0]
    assert one["tpr_at_0.001"] is None
    assert one["tpr_at_0.01"] is not None


def test_large_runs_are_checked_on_a_subset_of_examples_whose_masks_are_the_runs():
    keep = blocked(64, 3_000)
    seen = []

    def spy(score_set, rule, config, progress):
        seen.append(score_set.keep)
        return {"spy": score_set.scores[:, :, 0].astype(np.float64)}

    found = check(keep, spy, draws=2)
    columns = {column.tobytes() for column in keep.T.copy()}
    assert found["examples"] == 750
    for masks in seen:
        assert masks.shape == (64, 750)
        assert all(column.tobytes() in columns for column in masks.T.copy())
    assert (seen[0] != seen[1]).any()


def test_drawn_logits_give_the_drawn_scores():
    keep = blocked(4, 50)
    drawn = draw(keep, 2, 2, np.random.default_rng(0))
    logits = drawn.logits.astype(np.float64)
    column = np.arange(50)
    others = logits.copy()
    others[:, column, drawn.labels] = -np.inf
    phi = logits[:, column, drawn.labels] - np.logaddexp.reduce(others, axis=-1)
    np.testing.assert_allclose(phi, drawn.scores[:, :, 0], rtol=1e-4, atol=1e-4)
    assert ((drawn.merlin >= 0) & (drawn.merlin <= 1)).all()
    assert (drawn.gradient_norm > 0).all()
