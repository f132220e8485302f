"""ROC, figures and intervals against scikit-learn, closed forms and brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from lira_jax import evaluation


@st.composite
def scores_and_members(draw):
    size = draw(st.integers(2, 40))
    # Few levels, so that ties are the rule.
    scores = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    member = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    member[:2] = [True, False]
    return np.array(scores, dtype=np.float64), np.array(member)


@given(scores_and_members())
@settings(deadline=None)
def test_curve_equals_scikit_learn_with_ties(case):
    scores, member = case
    curve = evaluation.roc(scores, member)
    for got, drop in ((curve, False), (evaluation.drop_intermediate(curve), True)):
        fpr, tpr, _ = roc_curve(member, scores, drop_intermediate=drop)
        np.testing.assert_array_equal(got.fpr, fpr)
        np.testing.assert_array_equal(got.tpr, tpr)
    assert evaluation.auc(curve) == pytest.approx(roc_auc_score(member, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 30, 10**9])
@pytest.mark.parametrize("size", [2, 3, 100])
def test_a_curve_merged_in_blocks_is_the_whole_curve(monkeypatch, levels, size):
    rng = np.random.default_rng(size)
    scores, member = rng.integers(levels, size=(5, size)) / 7, rng.random((5, size)) < 0.3
    member[0, :2] = [True, False]
    whole = evaluation.roc(scores, member)
    figures = evaluation.summary(whole)
    for block in (1, 7, 64):
        monkeypatch.setattr(evaluation, "BLOCK", block)
        curve = evaluation.roc(scores, member)
        np.testing.assert_array_equal(curve.false_positives, whole.false_positives)
        np.testing.assert_array_equal(curve.true_positives, whole.true_positives)
        assert evaluation.summary(curve) == figures
    assert figures["auc"] == float(np.trapezoid(whole.tpr, whole.fpr))
    assert figures["balanced_accuracy"] == float((1 - (whole.fpr + 1 - whole.tpr) / 2).max())


@given(scores_and_members(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
@settings(deadline=None)
def test_tpr_and_accuracy_equal_a_search_over_thresholds(case, limit):
    scores, member = case
    rates = [
        ((scores[~member] >= level).mean(), (scores[member] >= level).mean())
        for level in (*np.unique(scores), np.inf)
    ]
    curve = evaluation.roc(scores, member)
    best = max(tpr for fpr, tpr in rates if fpr <= limit)
    assert evaluation.tpr_at_fpr(curve, limit) == best
    accuracy = max((tpr + 1 - fpr) / 2 for fpr, tpr in rates)
    assert evaluation.balanced_accuracy(curve) == pytest.approx(accuracy)


def test_equal_scores_are_a_coin_toss():
    member = np.arange(100) % 2 == 0
    figures = evaluation.summary(evaluation.roc(np.zeros(100), member))
    assert figures["auc"] == 0.5
    assert figures["balanced_accuracy"] == 0.5
    assert set(figures["tpr_at_fpr"].values()) == {0.0}


def test_false_positives_count_exactly_up_to_the_limit():
    # 1,000 non-members: 0.1 % allows one false positive, not two.
    scores = np.concatenate([np.arange(1000.0), [999.5, 998.5, 997.5]])
    member = np.arange(1003) >= 1000
    curve = evaluation.roc(scores, member)
    assert evaluation.tpr_at_fpr(curve, 1e-3) == 2 / 3
    assert evaluation.tpr_at_fpr(curve, 1e-4) == 1 / 3
    # The public code stops strictly below the limit.
    assert evaluation.reference_code_summary(curve)["tpr_at_fpr"]["0.001"] == 1 / 3


@pytest.mark.parametrize("distance", [0.5, 1.5])
def test_gaussian_scores_give_the_closed_form(distance):
    rng = np.random.default_rng(0)
    size = 200_000
    scores = np.concatenate([rng.normal(size=size), rng.normal(distance, size=size)])
    member = np.arange(2 * size) >= size
    figures = evaluation.summary(evaluation.roc(scores, member))
    area = float(norm.cdf(distance / np.sqrt(2)))
    assert figures["auc"] == pytest.approx(area, abs=4 * (area * (1 - area) / size) ** 0.5)
    accuracy = norm.cdf(distance / 2)
    assert figures["balanced_accuracy"] == pytest.approx(accuracy, abs=0.005)
    for key, fpr in (("0.001", 1e-3), ("0.01", 1e-2)):
        threshold = norm.isf(fpr)
        tpr = norm.sf(threshold - distance)
        # Noise of the members above the threshold, and of the threshold itself.
        slope = norm.pdf(threshold - distance) / norm.pdf(threshold)
        error = float(np.sqrt((tpr * (1 - tpr) + slope**2 * fpr * (1 - fpr)) / size))
        assert figures["tpr_at_fpr"][key] == pytest.approx(tpr, abs=4 * error)


def test_mean_over_targets_averages_each_targets_own_curve():
    rng = np.random.default_rng(1)
    member = rng.random((3, 50)) < 0.5
    scores = rng.normal(size=(3, 50)) + member + 10 * np.arange(3)[:, np.newaxis]
    expected = np.mean([roc_auc_score(*row) for row in zip(member, scores, strict=True)])
    assert evaluation.mean_over_targets(scores, member)["auc"] == pytest.approx(expected)


def resampled(folds, examples, seed, replicates):
    """The draws of `evaluation`, as lists of folds and of examples: one pair per replicate."""
    drawn = evaluation._resamples(folds, examples, seed, replicates)
    for r in range(replicates):
        yield (
            np.repeat(np.arange(folds), drawn.folds[:, r].astype(int)),
            np.repeat(np.arange(examples), drawn.examples[:, r].astype(int)),
        )


@pytest.mark.parametrize("folds", [4, 1])
def test_intervals_equal_a_bootstrap_by_repeating_rows_and_columns(monkeypatch, folds):
    monkeypatch.setattr(evaluation, "REPLICATES", 60)
    rng = np.random.default_rng(2)
    member = rng.random((2 * folds, 80)) < 0.5
    scores = (rng.normal(size=member.shape) + member).round(1)  # with ties
    got = evaluation.intervals(scores, member, fold=2, seed=5)
    assert got["over"] == ("targets and examples" if folds > 1 else "examples")

    replicates = []
    for units, columns in resampled(folds, 80, 5, 60):
        rows = np.arange(2 * folds).reshape(folds, 2)[units].ravel()
        drawn, truth = scores[np.ix_(rows, columns)], member[np.ix_(rows, columns)]
        curve = evaluation.roc(drawn, truth)
        area = roc_auc_score(truth.ravel(), drawn.ravel())
        band = [evaluation.tpr_at_fpr(curve, fpr) for fpr in got["band"]["fpr"]]
        accuracy = evaluation.balanced_accuracy(curve)
        replicates.append((area, accuracy, evaluation.tpr_at_fpr(curve, 0.01), *band))
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    for place, interval in enumerate(
        (got["auc_ci"], got["balanced_accuracy_ci"], got["tpr_at_fpr_ci"]["0.01"])
    ):
        np.testing.assert_allclose(interval, [low[place], high[place]], atol=1e-12)
    np.testing.assert_allclose(got["band"]["lo"], low[3:], atol=1e-12)
    np.testing.assert_allclose(got["band"]["hi"], high[3:], atol=1e-12)
    assert got["band"]["fpr"][0] == pytest.approx(1 / (~member).sum())
    assert got["band"]["lo"][-1] == got["band"]["hi"][-1] == 1


def test_more_equal_scores_than_narrow_sums_hold_are_counted_right():
    member = np.zeros((16, 3_000), bool)
    member[::2] = True
    one_bin = 8 * 3_000 * int(evaluation._resamples(2, 3_000, 0, 100).examples.max())
    assert one_bin > 2**16 > 3_000
    for scores, area in ((np.zeros(member.shape), 0.5), (member.astype(float), 1.0)):
        found = evaluation.intervals(scores, member, fold=8, replicates=100)
        assert found["auc_ci"] == [area, area]


def test_resamples_draw_as_many_folds_and_examples_as_there_are():
    drawn = evaluation._resamples(5, 70, 0, 500)
    assert set(drawn.folds.sum(axis=0)) == {5}
    assert set(drawn.examples.sum(axis=0)) == {70}
    assert np.abs(drawn.examples.mean(axis=1) - 1).max() < 6 / np.sqrt(500)


def test_thinned_thresholds_change_intervals_little(monkeypatch):
    rng = np.random.default_rng(3)
    member = rng.random((8, 1500)) < 0.5
    scores = rng.normal(size=member.shape) + member
    whole = evaluation.intervals(scores, member, fold=1)
    monkeypatch.setattr(evaluation, "GRID", 2 * scores.size)
    exact = evaluation.intervals(scores, member, fold=1)
    np.testing.assert_allclose(whole["auc_ci"], exact["auc_ci"], atol=1e-4)
    for key in evaluation.FPRS:
        np.testing.assert_allclose(
            whole["tpr_at_fpr_ci"][key], exact["tpr_at_fpr_ci"][key], atol=2e-3
        )


@pytest.mark.parametrize(("of_targets", "of_examples"), [(0.6, 0.0), (0.0, 1.0), (0.4, 0.6)])
def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch, of_targets, of_examples):
    # Members score higher by an amount that differs between targets and between examples: a
    # bootstrap over one of them alone would miss the spread of the other.
    monkeypatch.setattr(evaluation, "REPLICATES", 200)
    rng = np.random.default_rng(7)
    spread = np.sqrt(2 + of_targets**2 + of_examples**2)
    truth = float(norm.cdf(1 / spread))
    covered = widths = 0.0
    runs = 100
    for _ in range(runs):
        half = rng.random((12, 120)) < 0.5
        member = np.stack([half, ~half], axis=1).reshape(24, 120)
        gain = 1 + of_targets * rng.normal(size=(24, 1)) + of_examples * rng.normal(size=(1, 120))
        scores = rng.normal(size=member.shape) + gain * member
        low, high = evaluation.intervals(scores, member, fold=2)["auc_ci"]
        covered += low <= truth <= high
        widths += (high - low) / runs
    # Percentiles of 12 folds are a little narrow; 100 runs at 95 % have an error of 2 %.
    assert covered / runs > 0.87
    assert widths < 0.25


def test_one_fold_has_intervals_over_its_examples_alone():
    rng = np.random.default_rng(0)
    member = rng.random((1, 400)) < 0.5
    got = evaluation.intervals(rng.normal(size=(1, 400)) + member, member, fold=1)
    low, high = got["auc_ci"]
    assert 0.03 < high - low < 0.2
    assert got["over"] == "examples"


def test_a_handful_of_examples_still_has_intervals():
    # Many replicates draw no member at all, or no non-member.
    member = np.array([[True, False, False]])
    got = evaluation.intervals(np.array([[1.0, 0.5, 2.0]]), member, fold=1)
    low, high = got["auc_ci"]
    assert 0 <= low <= high <= 1


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
        patch.setattr(evaluation, "REPLICATES", 20)
        patch.setattr(evaluation, "TOP", top)
        patch.setattr(evaluation, "FPRS", {"0.001": 0.001, "0.05": 0.05, "0.3": 0.3})
        got = evaluation.shadow_thresholds(scores, member, fold)
        for key, fpr in evaluation.FPRS.items():
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
    # METHODS.md, 3.14. Targets differ in level, so that each target's own ROC curve, at the
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


def test_fewer_than_ten_expected_false_positives_are_few():
    few = evaluation.few_false_positives(10_000)
    assert few == {"1e-05": True, "0.0001": True, "0.001": False, "0.01": False}
    assert evaluation.few_false_positives(9_999)["0.001"]


@given(scores_and_members())
@settings(deadline=None)
def test_best_threshold_reaches_the_balanced_accuracy_of_the_curve(case):
    scores, member = case
    called = scores >= evaluation.best_threshold(scores, member)
    accuracy = (called[member].mean() + 1 - called[~member].mean()) / 2
    assert accuracy == pytest.approx(evaluation.balanced_accuracy(evaluation.roc(scores, member)))


def test_figures_are_those_of_the_pooled_curve_and_fit_json():
    rng = np.random.default_rng(5)
    member = rng.random((4, 300)) < 0.5
    scores = rng.normal(size=member.shape) + member
    found = evaluation.figures(scores, member, fold=2)
    summary = evaluation.summary(evaluation.roc(scores, member))
    assert {key: found[key] for key in summary} == summary
    assert found["auc_ci"] == evaluation.intervals(scores, member, fold=2)["auc_ci"]
    assert json.loads(json.dumps(found)) == found


def test_thinning_keeps_points_of_the_curve_and_its_ends():
    rng = np.random.default_rng(4)
    member = rng.random(50_000) < 0.5
    curve = evaluation.roc(rng.normal(size=50_000) + member, member)
    thinned = evaluation.thin(curve)
    assert thinned.false_positives.size <= 2_000
    assert thinned.false_positives[0] == 0
    assert thinned.tpr[-1] == thinned.fpr[-1] == 1
    for fpr, tpr in zip(thinned.fpr, thinned.tpr, strict=True):
        assert evaluation.tpr_at_fpr(curve, fpr) == tpr


@pytest.mark.parametrize(
    ("scores", "member", "word"),
    [
        ([0.0, np.nan], [True, False], "NaN"),
        ([0.0, 1.0], [True, True], "non-members"),
        ([0.0, 1.0], [True, False, True], "shape"),
    ],
)
def test_senseless_arguments_are_refused(scores, member, word):
    with pytest.raises(ValueError, match=word):
        evaluation.roc(np.array(scores), np.array(member))


def test_folds_may_be_named_target_by_target_and_be_of_unequal_size():
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=(6, 80)), rng.random((6, 80)) < 0.5
    pairs = np.array([7, 7, 2, 2, 5, 5])
    in_order = np.argsort(pairs, kind="stable")
    for function in (evaluation.intervals, evaluation.shadow_thresholds):
        named = function(scores, member, pairs)
        for one in (named, expected := function(scores[in_order], member[in_order], 2)):
            one.pop("band", None)
        assert named == expected
    mixed = np.array([0, 0, 0, 1, 2, 2])
    assert evaluation.intervals(scores, member, mixed)["over"] == "targets and examples"
    assert evaluation.intervals(scores, member, np.zeros(6, int))["over"] == "examples"


@pytest.mark.parametrize("folds", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0], [3] * 6])
def test_decisions_equal_a_count_over_repeated_rows_and_columns(monkeypatch, folds):
    monkeypatch.setattr(evaluation, "REPLICATES", 60)
    rng = np.random.default_rng(1)
    member = rng.random((6, 50)) < 0.4
    positive = rng.random((6, 50)) < 0.3 + 0.4 * member
    found = evaluation.decisions(positive, member, np.array(folds), seed=3)

    def figures(said, true):
        tpr, fpr = said[true].mean(), said[~true].mean()
        return {"tpr": tpr, "fpr": fpr, "balanced_accuracy": (tpr + 1 - fpr) / 2,
                "precision": tpr / (tpr + fpr)}  # fmt: skip

    units = [np.flatnonzero(np.array(folds) == one) for one in np.unique(folds)]
    weights = evaluation._resamples(len(units), 50, 3, 60)
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
    monkeypatch.setattr(evaluation, "REPLICATES", 60)
    rng = np.random.default_rng(2)
    member = rng.random((4, 50)) < 0.5
    first, second = (rng.random((4, 50)) < 0.3 + gain * member for gain in (0.5, 0.2))
    fold = np.array([0, 0, 1, 1])
    value, (low, high) = evaluation.difference(first, second, member, fold, seed=3)
    weights = evaluation._resamples(2, 50, 3, 60)
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
    monkeypatch.setattr(evaluation, "REPLICATES", 40)
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
    rows = evaluation.fold_rows(2, 4)
    weights = evaluation._resamples(2, 200, 0, 30)
    expected = [
        sum(weights.folds[n // 2, r] * weights.examples[e, r] for n, e in np.argwhere(chosen))
        for r in range(30)
    ]
    np.testing.assert_array_equal(evaluation._drawn(chosen, rows, weights), expected)
    nothing = evaluation._drawn(np.zeros_like(chosen), rows, weights)
    np.testing.assert_array_equal(nothing, np.zeros(30))


def test_resamples_kept_for_the_next_call_cannot_be_changed_and_are_told_by_all_they_follow_from():
    first = evaluation._resamples(3, 20, 0, 10)
    assert evaluation._resamples(3, 20, 0, 10) is first
    with pytest.raises(ValueError, match="read-only"):
        first.examples[0, 0] = 7
    for other in ((4, 20, 0, 10), (3, 21, 0, 10), (3, 20, 0, 11)):
        assert evaluation._resamples(*other).examples.shape == (other[1], other[3])
    assert (evaluation._resamples(3, 20, 1, 10).examples != first.examples).any()


def test_folds_are_rows_in_a_row_or_as_named():
    assert [row.tolist() for row in evaluation.fold_rows(2, 5)] == [[0, 1], [2, 3], [4]]
    named = evaluation.fold_rows(np.array([7, 1, 7]), 3)
    assert [row.tolist() for row in named] == [[1], [0, 2]]


def test_the_interval_of_a_mean_is_students_over_means_of_folds():
    values = np.random.default_rng(0).normal(size=12)
    mean, interval = evaluation.mean_and_interval(values, 3)
    folds = values.reshape(4, 3).mean(axis=1)
    assert mean == pytest.approx(values.mean())
    assert interval == pytest.approx(student.interval(0.95, 3, folds.mean(), folds.std(ddof=1) / 2))
    assert evaluation.mean_and_interval(values, 12) == (mean, None)
    assert evaluation.mean_and_interval(np.full(4, 0.25), 2) == (0.25, [0.25, 0.25])
    order = np.random.default_rng(1).permutation(12)
    named = evaluation.mean_and_interval(values[order], np.arange(12)[order] // 3)[1]
    assert named == pytest.approx(interval)


def test_the_interval_of_a_mean_covers_it_with_folds_of_unequal_size():
    rng = np.random.default_rng(2)
    fold = np.repeat(np.arange(8), [1, 2, 3, 4, 1, 2, 3, 4])
    covered = 0
    for _ in range(400):
        values = rng.normal(size=8)[fold] + rng.normal(size=fold.size)
        low, high = evaluation.mean_and_interval(values, fold)[1]
        covered += low < 0 < high
    assert 0.88 < covered / 400 < 0.99
