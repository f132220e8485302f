"""The verdict: what it says of which figures, and how surely."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lira_jax.analysis.analyse import analyse
from lira_jax.analysis.verdict import LEVELS, in_words, verdict
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.synthetic_findings import entry, findings


def judged(folds=500, width=0.2, **attacks):
    """Metrics of attacks given as (AUC, TPR at 0.1 %), each with its interval."""
    entries = [
        {
            "name": name, "title": name, "targets": 1000, "auc": auc,
            "auc_ci": [auc - 0.01, auc + 0.01],
            "tpr_at_fpr": {"0.001": tpr, "0.01": 10 * tpr},
            "tpr_at_fpr_ci": {
                key: [(1 - width) * scale * tpr, (1 + width) * scale * tpr]
                for key, scale in (("0.001", 1), ("0.01", 10))
            },
            "few_false_positives": {"0.001": False, "0.01": False},
        }
        for name, (auc, tpr) in attacks.items()
    ]  # fmt: skip
    return {"attacks": entries, "folds": folds}


def with_first(metrics, **changes):
    """The metrics with fields of the first attack replaced."""
    first, *others = metrics["attacks"]
    return metrics | {"attacks": [first | changes, *others]}


@pytest.fixture(scope="module")
def with_canaries():
    """Metrics of a run that gives away much, canaries most of all."""
    return findings(leak=3.0, examples=200, canaries=50, names=["lira-online"]).metrics


def test_a_leak_is_told_at_the_lowest_rate_that_stands():
    found = verdict(judged(weak=(0.6, 0.002), strong=(0.9, 0.1)))
    assert (found["level"], found["attack"]) == ("leak", "strong")
    assert found["title"] == LEVELS["leak"]
    assert found["hints"] == []
    assert in_words(found) == (
        "At a false-alarm rate of 1 in 1,000, the strongest of 2 attacks (strong) recognises "
        "10.0 % (8.00–12.0) of the training examples: about 100 times as many as guessing."
    )


def test_the_figure_that_it_rests_on_is_told_as_json_has_it():
    found = verdict(judged(weak=(0.6, 0.002), strong=(0.9, 0.1)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    figure = found["figure"]
    assert (figure["fpr"], figure["value"], figure["chance"]) == (0.001, 0.1, 0.001)
    assert figure["interval"] == [pytest.approx(0.08), pytest.approx(0.12)]
    # Wider than the interval, which holds for one attack alone.
    assert figure["chance"] < figure["lower"] < figure["interval"][0]
    assert (found["attacks"], found["folds"]) == (2, 500)


def test_a_leak_that_shows_on_average_only_is_told_so():
    found = verdict(judged(a=(0.55, 0.0011), b=(0.52, 0.0012)))
    assert (found["level"], found["attack"]) == ("average", "a")
    assert found["figure"]["fpr"] is None
    assert "no attack is surely better than guessing; but of one" in found["sentence"]
    assert "55.0 % (54.0–56.0) of cases, where guessing gives 50 %" in found["sentence"]


def test_as_many_degrees_of_freedom_as_folds_of_targets_less_one():
    # With models that train on a quarter, blocks are of four: 16 targets are four folds, not eight.
    barely = {"width": 0.117, "a": (0.505, 0.0012)}
    assert verdict(judged(folds=8, **barely))["level"] == "leak"
    assert verdict(judged(folds=4, **barely))["level"] == "open"


def test_the_folds_are_those_of_the_masks():
    rng = np.random.default_rng(0)
    fold_of = rng.permuted(np.tile(np.arange(4), (4, 15)), axis=1)  # of four blocks
    keep = (fold_of[:, np.newaxis] == np.arange(4)[:, np.newaxis]).reshape(16, 60)
    scores = rng.normal(size=(16, 60, 1)) + 3 * keep[..., np.newaxis]
    metrics = analyse(ScoreSet(scores, keep, 4, "quarters"), AttackConfig()).metrics
    assert metrics["folds"] == metrics["verdict"]["folds"] == 4


def test_too_few_models_never_give_the_all_clear_where_intervals_show_a_leak():
    metrics = findings(models=4, examples=60, names=["lira-online", "yeom"]).metrics
    assert metrics["verdict"]["level"] == "open"
    sentence = metrics["verdict"]["sentence"]
    assert "with 4 models attacked such an interval can be too narrow" in sentence


def test_canaries_that_are_told_are_in_the_verdict(with_canaries):
    quiet = judged(a=(0.505, 0.0011))
    told = verdict(quiet | {"canary_attacks": with_canaries["canary_attacks"]})
    assert verdict(quiet)["level"] == "none"
    assert told["level"] == "canaries"
    assert told["hints"][0].startswith("Of one inserted canary")


def test_no_leak_is_told_with_what_was_measured():
    found = verdict(judged(a=(0.505, 0.0011), b=(0.5, 0.0009)))
    assert (found["level"], found["attack"]) == ("none", "a")
    assert found["sentence"].startswith("No attack does better than guessing within its error")
    assert (
        "0.11 % (0.09–0.13) of the training examples, where guessing gives 0.1 %"
        in (found["sentence"])
    )


def test_an_interval_just_above_chance_counts_for_one_attack_and_not_for_the_best_of_many():
    barely = (0.5, 0.00126)  # its interval begins at 0.00101
    assert verdict(judged(one=barely))["level"] == "leak"
    many = judged(**{f"attack{n}": barely for n in range(25)})
    assert verdict(many)["level"] == "none"


def test_the_default_pays_for_no_choice_among_attacks():
    barely = (0.5, 0.00126)
    many = judged(**{f"attack{n}": barely for n in range(25)}) | {"default": "attack3"}
    found = verdict(many)
    assert (found["level"], found["attack"], found["attacks"]) == ("leak", "attack3", 1)
    assert "the attack (attack3) recognises" in found["sentence"]


def test_coin_flips_are_told_of_the_default_and_only_of_enough_calls():
    flips = {"fpr": 0.001, "called": 250, "unrepeated": 0.98}
    exposed = {"attack": "lira-bayes", "coin_flips": flips}
    told = verdict(judged(a=(0.9, 0.1)) | {"vulnerability": exposed})["hints"]
    assert told == [
        "Of the 250 times that Hierarchical LiRA rightly calls an example a member at a "
        "false-alarm rate of 0.1 %, 98 % are coin flips: it would not do so of another model "
        "trained on that example."
    ]
    few = exposed | {"coin_flips": flips | {"called": 99}}
    assert verdict(judged(a=(0.9, 0.1)) | {"vulnerability": few})["hints"] == []


def test_a_law_that_did_not_settle_is_named():
    rates = {"laws": {"kinds": [2], "unsettled": 3}}
    told = verdict(judged(a=(0.9, 0.1)) | {"per_example_fpr": rates, "models": 16})["hints"]
    assert told[0].startswith("The law that lira-bayes rests on did not settle for 3 of 16 models")


def test_another_attack_has_the_word_only_where_it_surely_finds_more():
    leak, nothing = (0.9, 0.1), (0.505, 0.0011)
    stronger = judged(named=(0.7, 0.01), other=leak) | {"default": "named"}
    assert verdict(stronger)["attack"] == "named"
    alone = verdict(judged(named=nothing, other=leak, third=nothing) | {"default": "named"})
    assert (alone["level"], alone["attack"], alone["attacks"]) == ("leak", "other", 2)
    assert "the strongest of 2 attacks (other)" in alone["sentence"]


def test_a_leak_that_is_sure_counts_though_it_is_within_the_error_of_the_default():
    overlapping = {"width": 0.35, "named": (0.505, 0.0014), "other": (0.505, 0.0018)}
    metrics = judged(**overlapping) | {"default": "named"}
    named, other = (entry["tpr_at_fpr_ci"]["0.001"] for entry in metrics["attacks"])
    assert named[0] < 0.001 < other[0] < named[1]
    found = verdict(metrics)
    assert (found["level"], found["attack"]) == ("leak", "other")


def test_scores_without_leakage_give_no_leak():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        member = np.repeat(rng.random((16, 200)) < 0.5, 2, axis=0)
        member[1::2] = ~member[::2]
        entries = [entry(f"a{n}", rng.normal(size=member.shape), member) for n in range(6)]
        assert verdict({"attacks": entries, "folds": 16})["level"] == "none"


def test_scores_that_leak_give_a_leak_and_count_who_is_given_away_canaries_apart(with_canaries):
    found = with_canaries["verdict"]
    assert found["level"] == "leak"
    assert "the attack (lira-online in words)" in found["sentence"]
    count = with_canaries["vulnerability"]["given_away"]
    assert f"right about {count} of 150 examples under 90 % of the models" in found["hints"][0]


def test_without_intervals_the_verdict_is_open():
    nothing = {"auc_ci": None, "tpr_at_fpr_ci": {"0.001": None, "0.01": None}}
    found = verdict(with_first(judged(a=(0.9, 0.1)), **nothing))
    assert found["level"] == "unknown"
    assert found["figure"]["lower"] is None
    assert "cannot be said" in found["sentence"]


def test_an_interval_over_examples_alone_is_told_as_such():
    found = verdict(with_first(judged(a=(0.9, 0.1)), over="examples"))
    assert found["hints"][-1].endswith("the interval says nothing about others.")


def test_a_failed_null_check_is_told():
    check = {"attacks": [{"name": "a", "ok": False}, {"name": "b", "ok": True}]}
    found = verdict(judged(a=(0.9, 0.1)) | {"null_check": check})
    assert found["hints"] == ["The null check failed for a: do not rely on what it found."]


def test_with_few_non_members_low_rates_are_not_judged():
    few = {"0.001": True, "0.01": True}
    found = verdict(with_first(judged(a=(0.9, 0.1)), few_false_positives=few))
    assert found["sentence"].startswith("There are too few non-members to judge low")
    few = {"0.001": True, "0.01": False}
    found = verdict(with_first(judged(a=(0.5, 0.001)), few_false_positives=few))
    assert "1 in 100," in found["sentence"]
