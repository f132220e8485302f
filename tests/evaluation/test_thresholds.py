"""Thresholds and decisions against p-values of each score, counts and known laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lira_jax import evaluation
from lira_jax.evaluation import bootstrap, curves, thresholds
from tests.evaluation.brute_force import resampled, scores_and_members


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 4), (2, 3), (3, 2)]),
    st.sampled_from([0.001, 0.02, 1.0]),
)
@settings(deadline=None, max_examples=15)
def test_shadow_thresholds_equal_conformal_p_values_of_each_score(seed, shape, top):
    fold, folds = shape
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 60, size=(fold * folds, 40)).astype(float)  # ties
    scores += 20 * (rng.random(scores.shape[0]) < 0.3)[:, np.newaxis]  # some hold all the highest
    member = rng.random(scores.shape) < 0.5
    unit = np.arange(len(scores)) // fold
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "REPLICATES", 20)
        patch.setattr(thresholds, "TOP", top)
        patch.setattr(thresholds, "FPRS", rates := {"0.001": 0.001, "0.05": 0.05, "0.3": 0.3})
        got = evaluation.shadow_thresholds(scores, member, fold)
        for key, fpr in rates.items():
            positive = np.zeros(member.shape, dtype=bool)
            for row, values in enumerate(scores):
                others = scores[unit != unit[row]][~member[unit != unit[row]]]
                p_value = (1 + (others >= values[:, np.newaxis]).sum(axis=1)) / (1 + others.size)
                positive[row] = p_value <= fpr
            assert got[key]["fpr"] == pytest.approx(positive[~member].mean())
            assert got[key]["tpr"] == pytest.approx(positive[member].mean())
            replicates = []
            for units, columns in resampled(folds, 40, 0, 20):
                rows = np.arange(fold * folds).reshape(folds, fold)[units].ravel()
                place = np.ix_(rows, columns)
                replicates.append(positive[place][member[place]].mean())
            np.testing.assert_allclose(got[key]["tpr_ci"], np.percentile(replicates, [2.5, 97.5]))


def test_without_leakage_shadow_thresholds_reach_their_rate_and_own_thresholds_exceed_it():
    # docs/methods.md, 3.14. Targets differ in level, so that each target's own ROC curve, at the
    # threshold that suits it best, finds members where nothing can be found.
    rng = np.random.default_rng(1)
    reached, own = [], []
    for _ in range(30):
        member = np.repeat(rng.random((8, 1, 200)) < 0.5, 2, axis=1)
        member[:, 1] ^= True
        member = member.reshape(16, 200)
        scores = rng.normal(size=member.shape) + 0.3 * rng.normal(size=(16, 1))
        found = evaluation.shadow_thresholds(scores, member, fold=2)
        reached.append([found["0.01"]["fpr"] - 0.01, found["0.01"]["tpr"] - 0.01])
        own.append(evaluation.mean_over_targets(scores, member)["balanced_accuracy"] - 0.5)
    error = np.std(reached, axis=0, ddof=1) / np.sqrt(30)
    assert (np.abs(np.mean(reached, axis=0)) < 4 * error).all()
    assert (error < 1e-3).all()
    assert np.mean(own) > 0.02


def test_precision_at_priors_follows_bayes_rule():
    rng = np.random.default_rng(4)
    member = rng.random((6, 8_000)) < 0.5
    found = evaluation.shadow_thresholds(rng.normal(size=member.shape) + 2 * member, member, fold=1)
    at = found["0.01"]
    assert at["threshold"] == pytest.approx(norm.isf(0.01), abs=0.08)
    assert at["fpr_ci"][0] < norm.sf(at["threshold"]) < at["fpr_ci"][1]
    assert at["tpr_ci"][0] < norm.sf(at["threshold"] - 2) < at["tpr_ci"][1]
    assert at["precision"]["0.01"] == pytest.approx(
        0.01 * at["tpr"] / (0.01 * at["tpr"] + 0.99 * at["fpr"])
    )
    # The share of members among the positives of a population that holds so many members.
    positives = rng.normal(size=10**6) + 2 * (truth := rng.random(10**6) < 0.1) >= at["threshold"]
    assert at["precision"]["0.1"] == pytest.approx(truth[positives].mean(), abs=0.02)


def test_too_few_shadow_models_call_nothing_a_member():
    member = np.tile([[True, False]], (4, 50))
    scores = np.random.default_rng(0).normal(size=(4, 100))
    at = evaluation.shadow_thresholds(scores, member, fold=1)["0.0001"]
    assert (at["threshold"], at["fpr"], at["tpr"]) == (None, 0, 0)
    assert set(at["precision"].values()) == {None}
    assert evaluation.shadow_thresholds(scores[:2], member[:2], fold=2) is None


@given(scores_and_members())
@settings(deadline=None, max_examples=30)
def test_best_threshold_reaches_the_balanced_accuracy_of_the_curve(case):
    scores, member = case
    called = scores >= evaluation.best_threshold(scores, member)
    accuracy = (called[member].mean() + 1 - called[~member].mean()) / 2
    assert accuracy == pytest.approx(evaluation.balanced_accuracy(evaluation.roc(scores, member)))


@pytest.mark.parametrize("folds", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], [3] * 6])
def test_decisions_equal_a_count_over_repeated_rows_and_columns(monkeypatch, folds):
    monkeypatch.setattr(bootstrap, "REPLICATES", 60)
    rng = np.random.default_rng(1)
    member = rng.random((6, 50)) < 0.4
    positive = rng.random((6, 50)) < 0.3 + 0.4 * member
    found = evaluation.decisions(positive, member, np.array(folds), seed=3)

    def figures(said, true):
        tpr, fpr = said[true].mean(), said[~true].mean()
        return {"tpr": tpr, "fpr": fpr, "balanced_accuracy": (tpr + 1 - fpr) / 2,
                "precision": tpr / (tpr + fpr)}  # fmt: skip

    units = [np.flatnonzero(np.array(folds) == one) for one in np.unique(folds)]
    weights = bootstrap._weights(len(units), 50, 3, 60)
    drawn = []
    for replicate in range(60):
        rows = [unit for unit, count in zip(units, weights.folds[:, replicate], strict=True)
                for _ in range(int(count))]  # fmt: skip
        columns = np.repeat(np.arange(50), weights.examples[:, replicate].astype(int))
        chosen = np.ix_(np.concatenate(rows), columns)
        drawn.append(figures(positive[chosen], member[chosen]))
    for name, value in figures(positive, member).items():
        assert found[name] == pytest.approx(value)
        expected = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        assert found[f"{name}_ci"] == pytest.approx(list(expected))


def test_two_decisions_are_compared_on_the_same_draws(monkeypatch):
    monkeypatch.setattr(bootstrap, "REPLICATES", 60)
    rng = np.random.default_rng(2)
    member = rng.random((4, 50)) < 0.5
    first, second = (rng.random((4, 50)) < 0.3 + gain * member for gain in (0.5, 0.2))
    fold = np.array([0, 0, 1, 1])
    value, (low, high) = evaluation.difference(first, second, member, fold, seed=3)
    weights = bootstrap._weights(2, 50, 3, 60)
    drawn = []
    for replicate in range(60):
        rows = np.repeat([0, 1, 2, 3], np.repeat(weights.folds[:, replicate].astype(int), 2))
        columns = np.repeat(np.arange(50), weights.examples[:, replicate].astype(int))
        chosen = np.ix_(rows, columns)
        drawn.append(
            np.subtract(*(
                balanced_accuracy_score(member[chosen].ravel(), said[chosen].ravel())
                for said in (first, second)
            ))
        )  # fmt: skip
    assert value == pytest.approx(
        balanced_accuracy_score(member.ravel(), first.ravel())
        - balanced_accuracy_score(member.ravel(), second.ravel())
    )
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert evaluation.difference(first, first, member, fold) == (0.0, [0.0, 0.0])


def test_decisions_that_accuse_nobody_have_no_precision():
    member = np.arange(40).reshape(2, 20) % 2 == 0
    found = evaluation.decisions(np.zeros((2, 20), bool), member, 1)
    assert (found["balanced_accuracy"], found["balanced_accuracy_ci"]) == (0.5, [0.5, 0.5])
    assert (found["precision"], found["precision_ci"]) == (None, None)


def kinds_beside_members():
    """Decisions on 30 examples, then on 12 inputs of one kind and 8 of another."""
    rng = np.random.default_rng(4)
    positive = rng.random((4, 50)) < 0.4
    member = np.zeros((4, 50), bool)
    member[:, :30] = rng.random((4, 30)) < 0.5
    kinds = {name: np.zeros((4, 50), bool) for name in ("", "first", "second")}
    kinds[""][:, :30] = ~member[:, :30]
    kinds["first"][:, 30:42] = True
    kinds["second"][:, 42:] = True
    return positive, member, kinds


@pytest.mark.parametrize("fold", [2, 4])
def test_kinds_of_non_members_are_judged_against_the_same_draws_of_members(monkeypatch, fold):
    monkeypatch.setattr(bootstrap, "REPLICATES", 40)
    positive, member, kinds = kinds_beside_members()
    scores = np.random.default_rng(5).normal(size=(4, 50)) + member
    found = evaluation.decisions_against(positive, member, kinds, fold, seed=3)
    for name, others in kinds.items():
        drawn = []
        area = evaluation.intervals(scores, member, fold, seed=3, nonmember=others)["auc_ci"]
        for units, columns in resampled(4 // fold, 50, 3, 40):
            rows = np.arange(4).reshape(-1, fold)[units].ravel()
            said, true, false, values = (
                array[np.ix_(rows, columns)] for array in (positive, member, others, scores)
            )
            tpr, fpr = said[true].mean(), said[false].mean()
            either = true | false
            drawn.append((tpr, fpr, tpr / (tpr + fpr), roc_auc_score(true[either], values[either])))
        *expected, areas = np.percentile(drawn, [2.5, 97.5], axis=0).T
        for figure, interval in zip(("tpr", "fpr", "precision"), expected, strict=True):
            assert found[name][f"{figure}_ci"] == pytest.approx(list(interval))
        assert area == pytest.approx(list(areas))
        assert found[name]["fpr"] == positive[others].mean()
        assert found[name]["tpr"] == positive[member].mean()


def test_many_non_members_of_one_kind_give_the_figures_of_the_few_that_are_stored_apart():
    # Of few chosen among many, sums run over the chosen alone.
    rng = np.random.default_rng(0)
    chosen = np.zeros((4, 200), bool)
    chosen[rng.integers(4, size=9), rng.integers(50, 150, size=9)] = True
    resamples = bootstrap.Resamples(2, (4, 200), replicates=30)
    weights = resamples.weights
    expected = [
        sum(weights.folds[n // 2, r] * weights.examples[e, r] for n, e in np.argwhere(chosen))
        for r in range(30)
    ]
    np.testing.assert_array_equal(resamples._drawn(chosen), expected)
    nothing = resamples._drawn(np.zeros_like(chosen))
    np.testing.assert_array_equal(nothing, np.zeros(30))


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([0.0, 0.001, 0.01, 0.1, 1.0])
)
@settings(deadline=None, max_examples=40)
def test_the_threshold_at_a_rate_is_the_least_that_keeps_to_it(seed, size, fpr):
    scores = np.random.default_rng(seed).integers(0, 50, size=size) / 7  # ties
    levels = np.append(np.nextafter(np.unique(scores), np.inf), -np.inf)
    threshold = evaluation.threshold_at_fpr(scores, fpr)
    assert threshold == min(level for level in levels if (scores >= level).mean() <= fpr)
    # Of a score of another model: its p-value.
    unseen = evaluation.threshold_at_fpr(scores, fpr, unseen=True)
    kept = [level for level in levels if (1 + (scores >= level).sum()) / (1 + size) <= fpr]
    assert unseen == min(kept, default=np.inf)


def test_one_rule_says_how_many_false_positives_a_rate_allows():
    rng = np.random.default_rng(0)
    for fpr in (*evaluation.FPRS.values(), 0.3):
        scores = rng.normal(size=5_000)
        allowed = curves.allowed_false_positives(scores.size, fpr)
        assert (scores >= evaluation.threshold_at_fpr(scores, fpr)).sum() == allowed
        member = np.arange(6_000) >= 5_000
        both = np.append(scores, rng.normal(1, 1, size=1_000))
        called = both >= evaluation.threshold_at_fpr(scores, fpr)
        curve = evaluation.roc(both, member)
        assert evaluation.tpr_at_fpr(curve, fpr) == called[member].mean()
    assert [curves.allowed_false_positives(n, 0.001) for n in (999, 1_000, 3_000)] == [0, 1, 3]
