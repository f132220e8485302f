"""Audit of a model of one's own: against brute force, calibration, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.stats import binom, kstest

from lira_jax.analysis import target as targets
from lira_jax.analysis.target import Target, audit
from lira_jax.attacks import lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import blocked_masks
from tests.conftest import refusal


def population(seed, models, examples, views=3, shift=1.5):
    """Models of one law in blocks of 2, and a target: examples of unlike place and spread."""
    rng = np.random.default_rng(seed)
    keep = np.vstack([blocked_masks(rng, models, examples), rng.random((1, examples)) < 0.5])
    place = 3 * rng.normal(size=(examples, 1))
    spread = np.sqrt(6 / rng.chisquare(6, size=(examples, 1)))
    # The same model's views have most of their noise in common.
    noise = rng.normal(size=(*keep.shape, 1)) + 0.4 * rng.normal(size=(*keep.shape, views))
    scores = place + spread * (noise + shift * keep[..., np.newaxis])
    run = ScoreSet(scores[:-1], keep[:-1], 2, "run")
    return run, Target(scores[-1], keep[-1], "target.npz")


@pytest.mark.parametrize("models", [4, 6, 32])
def test_p_values_are_uniform_where_the_target_did_not_train(models):
    # Also with two references, of which a Gaussian would be far too sure.
    run, target = population(1, models, 6_000)
    got = audit(run, target, AttackConfig(), progress=False)
    assert kstest(got.p_value[~target.keep], "uniform").pvalue > 0.01
    assert kstest(got.p_value[target.keep], "uniform").pvalue < 1e-6


@pytest.mark.parametrize("fpr", [0.001, 0.02])
def test_decisions_reach_the_stated_rate_on_a_target_of_the_same_law(fpr):
    run, target = population(2, 16, 20_000)
    got = audit(run, target, AttackConfig(), fpr, progress=False)
    nonmembers = int((~target.keep).sum())
    false_positives = int(got.decision[~target.keep].sum())
    # The shadow models' rates share the examples and their references, so that the threshold is as
    # uncertain as the target's rate.
    low, high = 2 * binom(nonmembers // 2, fpr).ppf([0.005, 0.995])
    assert low <= false_positives <= high
    assert got.figures["fpr"] == false_positives / nonmembers
    assert got.figures["tpr"] > 5 * fpr
    low, high = got.figures["tpr_ci"]
    assert 0.9 * low < got.shadow["tpr"] < high
    # On the shadow models that it was chosen on, the rate is met to one false positive.
    count = got.shadow["nonmembers"]
    assert fpr - 1.5 / count < got.shadow["fpr"] <= fpr


def test_the_threshold_knows_nothing_of_the_target():
    run, target = population(3, 8, 300)
    other = Target(target.scores + 5, ~target.keep, "other.npz")
    got = [audit(run, one, AttackConfig(), 0.01, progress=False) for one in (target, other)]
    assert got[0].threshold == got[1].threshold
    assert got[0].shadow == got[1].shadow
    rule = references.find(run)
    shadows = lira_bayes.attack(run, rule, AttackConfig())["lira-bayes"]
    above = (shadows[~run.keep] > got[0].threshold).sum()
    assert above == int(0.01 * (~run.keep).sum())


def test_a_model_of_the_run_is_judged_as_within_the_run():
    run, _ = population(4, 12, 400)
    within = lira_bayes.attack(run, references.find(run), AttackConfig())["lira-bayes"][0]
    target = Target(run.scores[0], run.keep[0], "first.npz")
    # Without its block: the same references, but a law to which other models belong. With the
    # block's other model: one more, on one side.
    without_block = ScoreSet(run.scores[2:], run.keep[2:], 2, "run")
    got = audit(without_block, target, AttackConfig(), progress=False)
    assert np.corrcoef(got.log_ratio, within)[0, 1] > 0.99
    without_itself = ScoreSet(run.scores[1:], run.keep[1:], None, "run")
    got = audit(without_itself, target, AttackConfig(), progress=False)
    assert np.corrcoef(got.log_ratio, within)[0, 1] > 0.9
    assert got.references == {"in": 5, "out": 5}


def test_views_may_be_the_first_of_the_runs():
    run, target = population(5, 8, 60)
    first = Target(target.scores[:, :1], None, "first.npz")
    config = AttackConfig(queries=1)
    got = [audit(run, one, config, progress=False) for one in (target, first)]
    np.testing.assert_array_equal(got[0].log_ratio, got[1].log_ratio)
    np.testing.assert_array_equal(got[0].p_value, got[1].p_value)
    assert got[0].views == got[1].views == 1


@pytest.mark.parametrize("truth", ["both", "members", "nonmembers", "unknown"])
def test_files_hold_every_example_most_suspicious_first(truth, tmp_path):
    run, target = population(7, 8, 50)
    keep = {"both": target.keep, "members": target.keep | True, "nonmembers": target.keep & False}
    target = Target(target.scores, keep.get(truth), "target.npz")
    got = audit(run, target, AttackConfig(), 0.1, progress=False)
    targets.write(got, tmp_path / "out")
    with (tmp_path / "out" / "target.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    order = [int(row["example"]) for row in rows]
    assert sorted(order) == list(range(50))
    assert (np.diff([float(row["log_ratio"]) for row in rows]) <= 0).all()
    np.testing.assert_array_equal([float(row["log_ratio"]) for row in rows], got.log_ratio[order])
    np.testing.assert_array_equal([float(row["p_value"]) for row in rows], got.p_value[order])
    np.testing.assert_array_equal([row["member_decision"] == "1" for row in rows],
                                  got.decision[order])  # fmt: skip
    if truth == "unknown":
        assert "member" not in rows[0]
    else:
        np.testing.assert_array_equal([row["member"] == "1" for row in rows], target.keep[order])
    told = json.loads((tmp_path / "out" / "target.json").read_text())
    assert told["threshold"] == got.threshold
    assert told["decided_members"] == got.decision.sum()
    assert (told["figures"] is None) == (truth == "unknown")
    text = targets.summary(got)
    assert ("In truth" in text) == (truth != "unknown")
    assert f"{told['decided_members']:,} (log-ratio of" in text
    if truth != "unknown":
        assert ("AUC" in text) == (truth == "both")
        assert ("TPR" in text.splitlines()[-1]) == (truth != "nonmembers")


def test_a_threshold_on_few_false_positives_says_so():
    run, target = population(8, 8, 50)
    rates = {
        fpr: targets.summary(audit(run, target, AttackConfig(), fpr, progress=False))
        for fpr in (0.001, 0.1)
    }
    assert "fewer than 10 expected false positives" in rates[0.001]
    assert "fewer than 10" not in rates[0.1]


def written(folder, **arrays):
    path = folder / "target.npz"
    np.savez(path, **arrays)
    return path


def test_files_are_read_as_they_may_be_written(tmp_path):
    run, target = population(9, 8, 20)
    path = written(tmp_path, scores=target.scores.astype(np.float16), keep=target.keep.astype(int))
    got = targets.read_target(path, run)
    assert got.keep.dtype == bool
    np.testing.assert_array_equal(got.keep, target.keep)
    np.testing.assert_array_equal(got.scores, target.scores.astype(np.float16))
    assert targets.read_target(written(tmp_path, scores=target.scores), run).keep is None
    one_view = ScoreSet(run.scores[:, :, :1], run.keep, 2, "run")
    flat = written(tmp_path, scores=target.scores[:, 0])
    assert targets.read_target(flat, one_view).scores.shape == (20, 1)
    assert targets.read_target(flat, run, queries=1).scores.shape == (20, 1)


GOOD = np.zeros((20, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"keep": np.zeros(20, bool)}, "no array `scores` (the file holds keep)"),
        ({"scores": GOOD[:19]}, "`scores` is of 19 examples, run of 20; score the target on"),
        (
            {"scores": GOOD[:, :2]},
            "holds 2 views, run 3; score the target on the run's views, in their order, "
            "or use the first 2 by --attack.queries 2",
        ),
        ({"scores": GOOD[:, 0]}, "`scores` holds 1 view, run 3"),
        ({"scores": np.zeros((20, 4))}, "`scores` holds 4 views, run 3"),
        ({"scores": np.zeros((2, 20, 3))}, "`scores` has shape (2, 20, 3); must be (20,) or"),
        ({"scores": GOOD.astype(int)}, "`scores` is int64; save floating-point numbers"),
        ({"scores": np.where(np.arange(3) == 1, np.nan, GOOD)}, "nan at example 0, view 1"),
        ({"scores": GOOD.astype(float) + 1e39}, "every score must be finite"),
        ({"scores": GOOD, "keep": np.zeros((20, 1), bool)}, "`keep` has shape (20, 1); must be"),
        ({"scores": GOOD, "keep": np.full(20, 2)}, "`keep` is 2 at example 0; use 1"),
        ({"scores": GOOD, "keep": np.full(20, 0.5)}, "`keep` is float64"),
    ],
)
def test_a_target_that_does_not_fit_the_run_is_refused(arrays, words, tmp_path):
    run, _ = population(10, 8, 20)
    path = written(tmp_path, **arrays)
    message = refusal(tmp_path, lambda: targets.read_target(path, run))
    assert message.startswith(f"{path}: ")
    assert words in message


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    run, _ = population(10, 8, 20)
    missing = tmp_path / "missing.npz"
    assert "no such file" in refusal(tmp_path, lambda: targets.read_target(missing, run))
    broken = written(tmp_path, scores=GOOD)
    broken.write_bytes(broken.read_bytes()[:100])
    assert str(broken) in refusal(tmp_path, lambda: targets.read_target(broken, run))


def test_rates_and_views_that_cannot_be_are_refused():
    run, target = population(11, 8, 20)
    for fpr in (0.0, 1.0, -0.1, float("nan")):
        message = refusal(None, lambda fpr=fpr: audit(run, target, AttackConfig(), fpr, False))
        assert message.startswith(f"a false-positive rate of {fpr}: ")
    message = refusal(None, lambda: audit(run, target, AttackConfig(queries=4), 0.1, False))
    assert message.startswith("attack.queries = 4: run holds 3 views")
