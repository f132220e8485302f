"""What is left of stage 3 where some examples leave targets without references."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from lira_jax.analysis import budgets, epsilon, exposure, null_check, runnable
from lira_jax.analysis import target as target_audit
from lira_jax.analysis.analyse import analyse
from lira_jax.attacks import ATTACKS, DEFAULT, TITLES, Family, references
from lira_jax.commands import attack as attack_command
from lira_jax.config import AttackConfig
from lira_jax.evaluation import bootstrap
from lira_jax.score_set import ScoreSet
from tests.attacks.test_few_references import tossed
from tests.attacks.test_lira_bayes import leaky


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(bootstrap, "REPLICATES", 40)
    monkeypatch.setattr(budgets, "REPLICATES", 40)
    monkeypatch.setattr(epsilon, "DRAWS", 2)


def test_three_models_by_coin_tosses_are_attacked_by_what_can_do_so():
    score_set = leaky(1, tossed(3), classes=5)
    found = analyse(score_set, AttackConfig())
    metrics = found.metrics
    assert [entry["name"] for entry in metrics["attacks"]] == [
        "lira-bayes", "lira-bayes-offline", "yeom",
    ]  # fmt: skip
    assert metrics["verdict"]["attack"] == DEFAULT
    reasons = {entry["name"]: entry["reason"] for entry in metrics["not_run"]}
    assert {*reasons} | {entry["name"] for entry in metrics["attacks"]} == {*TITLES}
    none = int(np.flatnonzero(~score_set.keep.any(axis=0))[0])
    few = (score_set.keep.sum(axis=0) < 2).sum()
    assert f"only 0 of 3 models trained on example {none}" in reasons["sablayrolles"]
    assert f"remove the {few} such examples" in reasons["sablayrolles"]
    assert reasons["shokri"] == "needs logits [N, E, K] beside the scores"
    assert metrics["ablation"] == []
    assert found.statistics == {}


def test_exposure_is_unknown_of_examples_that_all_models_trained_on_or_none():
    score_set = leaky(2, tossed(3))
    scores = np.random.default_rng(0).normal(size=score_set.keep.shape)
    found = exposure.exposure(score_set, "some", scores, AttackConfig())
    count = score_set.keep.sum(axis=0)
    known = (count > 0) & (count < 3)
    for values in (found.success, found.success_lo, found.d, found.mean_score_in):
        np.testing.assert_array_equal(np.isfinite(values), known)
    assert found.rank[known].max() == known.sum()  # all others come after
    lines = {int(line["example"]): line for line in csv.DictReader(
        io.StringIO(exposure.as_csv(found)))}  # fmt: skip
    for example in range(known.size):
        assert (lines[example]["success"] == "") == (not known[example])


def test_curves_over_numbers_of_models_keep_the_default_where_lira_has_no_references():
    score_set = leaky(3, tossed(12, share=0.4, seed=2))
    keep = score_set.keep
    enough = (keep.sum(axis=0) >= 2) & (keep.sum(axis=0) <= 10)
    score_set = ScoreSet(score_set.scores[:, enough], keep[:, enough], None, "test")
    rule = references.find(score_set, few=True)
    assert not rule.lacking
    names = ["lira-bayes", "lira-online"]
    entries, left_out = budgets.by_models(score_set, rule, AttackConfig(), names)
    found = {(entry["models"], entry["name"]) for entry in entries}
    assert found == {(12, "lira-online"), *((models, "lira-bayes") for models in (4, 8, 12))}
    assert [entry["models"] for entry in left_out] == [4, 8]
    assert "in a group of models, only 0 of 4 models" in left_out[0]["reason"]


def test_the_null_check_finds_what_leaks_by_the_number_of_references():
    keep = tossed(3, 1_000)
    score_set = ScoreSet(np.zeros((*keep.shape, 1), np.float32), keep, None, "test")

    def broken(drawn, rule, config, progress):
        return {"broken": drawn.keep.sum(axis=0) + drawn.scores[:, :, 0] * 1e-3}

    families = {
        "broken": Family(broken, {"broken": "broken"}, sides=()),
        "lira": ATTACKS["lira"],
        "lira-bayes": ATTACKS["lira-bayes"],
    }
    found = null_check.null_check(score_set, AttackConfig(), families, draws=8)
    passed = {entry["name"]: entry["ok"] for entry in found["attacks"]}
    assert passed == {"broken": False, "lira-bayes": True, "lira-bayes-offline": True}


def test_a_target_is_held_against_two_models():
    keep = tossed(3, 2_000)
    whole = leaky(4, keep)
    run = ScoreSet(whole.scores[:2], keep[:2], None, "run")
    target = target_audit.Target(whole.scores[2], keep[2], "mine.npz")
    found = target_audit.audit(run, target, AttackConfig(), 0.01, progress=False)
    assert found.references == {"in": 0, "out": 0}
    assert found.figures["auc"] > 0.8
    # The threshold is that of models which have one reference, not two.
    assert found.figures["fpr_ci"][0] < 0.02


def test_disjoint_shards_are_attacked_by_the_default_and_by_what_has_out_references():
    keep = np.eye(4, dtype=bool)[:, np.random.default_rng(0).integers(4, size=300)]
    metrics = analyse(leaky(5, keep), AttackConfig()).metrics
    names = {entry["name"] for entry in metrics["attacks"]}
    assert {"lira-bayes", "lira-bayes-offline", "lira-offline", "rmia-offline", "ye"} < names
    assert not names & {"lira-online", "rmia-online", "sablayrolles", "pmia-all"}
    assert metrics["references"] == {"in": 0, "out": 2}


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("models", [2, 4])
def test_the_command_attacks_what_two_or_four_models_leave(models, tmp_path, monkeypatch, capsys):
    score_set = leaky(6, tossed(models), classes=3)
    file, out = tmp_path / "scores.npz", tmp_path / "out"
    np.savez(file, scores=score_set.scores, keep=score_set.keep, labels=score_set.labels)
    attack_command.main(["--scores", str(file), "--out", str(out)])
    text = capsys.readouterr().out
    assert "lira-bayes-offline" in text
    assert "Not run: lira-online, lira-online-global" in text
    assert "which need references that some examples lack: only 0 of" in text
    assert f"remove the {(score_set.keep.sum(axis=0) < 2).sum()} such examples" in text
    assert "at least 0 IN and 0 OUT references" in text
    page = (out / "report.html").read_text()
    assert "each with at least 0 IN and 0 OUT references" in page
    assert "needs references that some examples lack" in page


def test_an_attack_of_ones_own_is_left_out_by_its_name_and_only_where_it_must_be():
    few, enough = (
        ScoreSet(np.zeros((*keep.shape, 1)), keep, None, "test")
        for keep in (tossed(3), np.tile(np.eye(2, dtype=bool), (2, 10)))
    )
    own = {"module:function": Family(lambda *_: {}, {})}
    for score_set, names in ((few, ["module:function"]), (enough, [])):
        found = runnable.not_run(own, score_set, references.find(score_set, few=True), {"its name"})
        assert [entry["name"] for entry in found] == names
