"""Calibration: metrics against loops and scikit-learn, temperatures against a root search."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from lira_jax.trust import calibration

ERRORS = (calibration.ece, calibration.adaptive_ece, calibration.overconfidence_error)


def predictions(count=700, classes=5, scale=2.0, hint=1.5, seed=0):
    """Logits in float32, and labels that they tell something of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = scale * (rng.normal(size=(count, classes)) + hint * np.eye(classes)[labels])
    return logits.astype(np.float32), labels


def ensemble(models=6, **how):
    logits, labels = predictions(**how)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(models, *logits.shape)) * rng.uniform(0.5, 2, size=(models, 1, 1))
    return (logits + noise).astype(np.float32), labels


def by_loops(probabilities, labels, groups):
    """ECE and overconfidence error over groups of predictions, one at a time."""
    ece = over = 0.0
    for group in groups:
        if len(group):
            sure = sum(max(probabilities[i]) for i in group) / len(group)
            right = sum(np.argmax(probabilities[i]) == labels[i] for i in group) / len(group)
            ece += len(group) / len(labels) * abs(sure - right)
            over += len(group) / len(labels) * sure * max(sure - right, 0)
    return ece, over


cases = st.builds(
    predictions,
    count=st.integers(1, 60),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.0, 0.3, 2.0, 60.0]),
    hint=st.floats(-1, 3),
    seed=st.integers(0, 10**6),
)


@given(cases, st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_errors_are_those_of_loops_over_bins(case, bins):
    p, labels = softmax(case[0].astype(np.float64), axis=1), case[1]
    sure = p.max(axis=1)
    groups = [
        [i for i in range(len(sure)) if b / bins < sure[i] <= (b + 1) / bins] for b in range(bins)
    ]
    ece, over = by_loops(p, labels, groups)
    assert calibration.ece(p, labels, bins) == pytest.approx(ece, abs=1e-12)
    assert calibration.overconfidence_error(p, labels, bins) == pytest.approx(over, abs=1e-12)
    if len(np.unique(sure)) == len(sure):
        order = np.argsort(sure)
        border = [b * len(sure) // bins for b in range(bins + 1)]
        groups = [order[border[b] : border[b + 1]] for b in range(bins)]
        adaptive = by_loops(p, labels, groups)[0]
        assert calibration.adaptive_ece(p, labels, bins) == pytest.approx(adaptive, abs=1e-12)


@given(cases, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_errors_are_ordered_and_forget_the_order_of_predictions(case, random):
    p, labels = softmax(case[0].astype(np.float64), axis=1), case[1]
    ece, adaptive, over = (error(p, labels) for error in ERRORS)
    gap = abs(p.max(axis=1).mean() - (p.argmax(axis=1) == labels).mean())
    assert gap - 1e-12 <= ece <= 1
    assert gap - 1e-12 <= adaptive <= 1
    assert 0 <= over <= ece + 1e-12
    shuffled = np.array(random.sample(range(len(labels)), len(labels)))
    for error, value in zip(ERRORS, (ece, adaptive, over), strict=True):
        assert error(p[shuffled], labels[shuffled]) == pytest.approx(value, abs=1e-12)


def test_a_confidence_on_a_border_belongs_to_the_bin_below_it():
    p = np.array([[1 / 3, 1 / 3, 1 / 3], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0]])
    counts = calibration.reliability(p, np.array([0, 0, 0])).counts
    assert np.flatnonzero(counts).tolist() == [4, 8, 14]


def test_bins_are_those_of_scikit_learn():
    logits, labels = predictions()
    p = softmax(logits.astype(np.float64), axis=1)
    bins = calibration.reliability(p, labels)
    held = bins.counts > 0
    right = p.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, p.max(axis=1), n_bins=15)
    np.testing.assert_allclose(bins.accuracy[held], accuracy, atol=1e-12)
    np.testing.assert_allclose(bins.confidence[held], confidence, atol=1e-12)
    assert bins.counts.sum() == labels.size
    assert np.isnan(bins.accuracy[~held]).all()


def test_loss_and_brier_are_those_of_scikit_learn():
    logits, labels = predictions()
    p = softmax(logits.astype(np.float64), axis=1)
    one_hot = np.eye(5)[labels]
    assert calibration.brier(p, labels) == pytest.approx(((p - one_hot) ** 2).sum(1).mean())
    two = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
    first = (labels == 0).astype(int)
    binary = brier_score_loss(first, p[:, 0])
    assert calibration.brier(two, first) == pytest.approx(2 * binary, abs=1e-12)
    loss = calibration.summary(logits, labels)["loss"]
    assert loss == pytest.approx(log_loss(labels, p), abs=1e-9)


def test_the_loss_of_a_wrong_certainty_is_finite():
    logits = np.array([[5000.0, 0.0]], np.float32)
    figures = calibration.summary(logits, np.array([1]))
    assert figures["loss"] == 5000
    assert figures["brier"] == 2
    assert figures["overconfidence_error"] == figures["ece"] == figures["adaptive_ece"] == 1


def test_confidence_that_is_right_has_no_error():
    # Of ten predictions of confidence c/10, c are correct.
    shares = np.repeat(np.arange(5, 11), 10)
    p = np.stack([shares / 10, 1 - shares / 10], axis=1)
    labels = (np.tile(np.arange(10), 6) >= shares).astype(int)
    for error in ERRORS:
        assert error(p, labels, 6) == pytest.approx(0, abs=1e-12)


def test_equal_confidences_across_a_border_share_their_correctness():
    p = np.tile([0.75, 0.25], (4, 1))
    assert calibration.adaptive_ece(p, np.array([0, 0, 1, 1]), 2) == pytest.approx(0.25)
    assert calibration.adaptive_ece(p, np.array([0, 1, 0, 1]), 2) == pytest.approx(0.25)


def test_summary_is_every_metric_of_the_softmax():
    logits, labels = predictions()
    p = softmax(logits.astype(np.float64), axis=1)
    figures = calibration.summary(logits, labels)
    assert list(figures) == list(calibration.METRICS)
    assert figures["accuracy"] == (p.argmax(axis=1) == labels).mean()
    for name in ("brier", "ece", "adaptive_ece", "overconfidence_error"):
        assert figures[name] == pytest.approx(getattr(calibration, name)(p, labels), abs=1e-12)


def test_an_ensemble_is_the_mean_of_its_models_with_an_interval_over_folds():
    logits, labels = ensemble()
    chosen = np.random.default_rng(2).random(logits.shape[:2]) < 0.5
    found = calibration.of_ensemble(logits, labels, chosen, 2)
    assert json.loads(json.dumps(found)) == found
    each = [calibration.summary(z[c], labels[c]) for z, c in zip(logits, chosen, strict=True)]
    for name in calibration.METRICS:
        values = np.array([figures[name] for figures in each])
        assert found[name] == pytest.approx(values.mean(), abs=1e-12)
        folds = values.reshape(3, 2).mean(axis=1)
        low, high = stats.t.interval(0.95, 2, folds.mean(), stats.sem(folds))
        most = calibration.METRICS[name]
        assert found[f"{name}_ci"] == pytest.approx([max(low, 0), min(high, most)], abs=1e-9)


def test_an_interval_ends_where_the_figure_does():
    # Three models of which one is wrong once: Student's interval alone would pass both ends.
    logits = np.tile(20 * np.eye(4, dtype=np.float32), (3, 1, 1))
    logits[0, 0] = logits[0, 1]
    found = calibration.of_ensemble(logits, np.arange(4), np.ones((3, 4), bool), 1)
    assert found["accuracy_ci"][1] == 1
    assert found["ece_ci"][0] == 0
    assert found["loss_ci"][0] == 0
    assert found["loss_ci"][1] > 2


def test_one_fold_has_no_interval():
    logits, labels = ensemble(models=2)
    found = calibration.of_ensemble(logits, labels, np.ones(logits.shape[:2], bool), 2)
    assert found["ece_ci"] is None


def test_the_diagram_of_an_ensemble_pools_its_predictions():
    logits, labels = ensemble(count=30, seed=3)
    chosen = np.random.default_rng(2).random(logits.shape[:2]) < 0.5
    found = calibration.of_ensemble(logits, labels, chosen, 2)["reliability"]
    p = softmax(logits.astype(np.float64), axis=2)
    everyone = np.tile(labels, (len(logits), 1))
    pooled = calibration.reliability(p[chosen], everyone[chosen])
    assert found["counts"] == pooled.counts.tolist()
    for name in ("accuracy", "confidence"):
        values = np.array(found[name], float)
        np.testing.assert_allclose(values, getattr(pooled, name), atol=1e-12)
    each = [calibration.reliability(q[c], labels[c]) for q, c in zip(p, chosen, strict=True)]
    models = {np.sum([one.counts[place] > 0 for one in each]) for place in range(15)}
    assert models >= {0, 1, 2}
    for place, spread in enumerate(found["spread"]):
        held = [one for one in each if one.counts[place]]
        if len(held) < 2:
            assert spread is None
            continue
        accuracy = np.array([one.accuracy[place] for one in held])
        weights = [one.counts[place] for one in held]
        middle = np.average(accuracy, weights=weights)
        variance = np.average((accuracy - middle) ** 2, weights=weights)
        assert spread == pytest.approx(np.sqrt(variance), abs=1e-12)


def test_temperature_one_changes_no_bit():
    logits, _ = ensemble()
    for one in (1.0, 1, np.ones(6)):
        scaled = calibration.with_temperature(logits, one)
        assert scaled.dtype == logits.dtype
        assert scaled.tobytes() == logits.tobytes()


@given(cases, st.floats(1e-2, 1e2))
@settings(max_examples=15, deadline=None)
def test_no_temperature_changes_the_prediction(case, temperature):
    logits = case[0]
    scaled = calibration.with_temperature(logits, temperature)
    # Division may round two logits to one, so the predicted class is among the largest.
    first = logits.argmax(axis=1)[:, np.newaxis]
    assert (np.take_along_axis(scaled, first, axis=1)[:, 0] == scaled.max(axis=1)).all()


def test_each_model_can_have_a_temperature_of_its_own():
    logits, _ = ensemble(models=3)
    scaled = calibration.with_temperature(logits, np.array([0.5, 1.0, 4.0]))
    for mine, whole, by in zip(scaled, logits, (0.5, 1, 4), strict=True):
        np.testing.assert_array_equal(mine, whole / np.float32(by))


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, 1e-60])
def test_a_temperature_must_be_positive_and_finite(temperature):
    with pytest.raises(ValueError, match="not positive and finite"):
        calibration.with_temperature(predictions()[0], temperature)
    with pytest.raises(ValueError, match="not positive and finite"):
        calibration.with_temperature(ensemble(2)[0], np.array([1.0, temperature]))


@pytest.mark.parametrize("hint", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_fitted_temperatures_minimise_the_loss(scale, hint):
    logits, labels = ensemble(models=4, scale=4.0, hint=hint)
    logits *= np.float32(scale)
    fitted, found = calibration.fit_temperatures(logits, labels)
    assert found.all()
    for z, t in zip(logits.astype(np.float64), fitted, strict=True):
        best = minimize_scalar(
            lambda log_t, z=z: (
                -log_softmax(z / np.exp(log_t), axis=1)[np.arange(labels.size), labels].mean()
            ),
            bounds=(np.log(t) - 2, np.log(t) + 2),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert t == pytest.approx(np.exp(best.x), rel=1e-5)

        def slope(inverse, z=z):
            expected = (softmax(inverse * z, axis=1) * z).sum(axis=1)
            return (expected - z[np.arange(labels.size), labels]).mean()

        # The root of the slope is sharper than the minimum of the loss.
        assert 1 / t == pytest.approx(brentq(slope, 0.1 / t, 10 / t, rtol=1e-13), rel=1e-5)


def test_a_fitted_temperature_depends_on_its_model_alone_and_scales_with_its_logits():
    logits, labels = ensemble(models=3)
    fitted, _ = calibration.fit_temperatures(logits, labels)
    alone, _ = calibration.fit_temperatures(logits[1:2], labels)
    assert alone[0] == fitted[1]
    # The loss is flat about its minimum: to rounding, a temperature is known to about 1e-7.
    four = calibration.fit_temperatures(4 * logits, labels)[0]
    np.testing.assert_allclose(four, 4 * fitted, rtol=1e-5)
    scaled = calibration.with_temperature(logits, fitted)
    np.testing.assert_allclose(calibration.fit_temperatures(scaled, labels)[0], 1, rtol=1e-5)


def test_a_temperature_that_the_data_do_not_settle_is_an_end_of_the_range_or_one():
    logits, labels = predictions(scale=1.0)
    right = np.eye(5, dtype=np.float32)[labels]
    # Equal logits whose mean rounds.
    equal = np.full_like(logits, 0.1)
    fitted, found = calibration.fit_temperatures(
        np.stack([logits, right, -right, equal, equal * 0]), labels
    )
    assert found.tolist() == [True, False, False, False, False]
    unit = right.std(axis=1).mean()
    np.testing.assert_allclose(fitted[1:], [unit / 100, unit * 100, 1, 1], rtol=1e-5)


@pytest.mark.usefixtures("any_shape")
def test_predictions_that_cannot_be_judged_are_refused():
    logits, labels = predictions(count=10)
    for judge in (calibration.summary, *ERRORS, calibration.brier):
        with pytest.raises(ValueError, match="labels must be from 0 to 4"):
            judge(logits, np.where(labels == labels[0], -1, labels))
        with pytest.raises(ValueError, match="labels must be from 0 to 4"):
            judge(logits, labels + 5)
        with pytest.raises(ValueError, match="predictions have shape"):
            judge(logits, labels[:-1])
        with pytest.raises(ValueError, match="no predictions"):
            judge(logits[:0], labels[:0])
    for error in ERRORS:
        with pytest.raises(ValueError, match="bins must be at least 1"):
            error(logits, labels, 0)
    with pytest.raises(ValueError, match="the choice"):
        calibration.of_ensemble(logits[np.newaxis], labels, np.ones((2, 10), bool), 1)
    with pytest.raises(ValueError, match="no predictions"):
        calibration.of_ensemble(logits[np.newaxis], labels, np.zeros((1, 10), bool), 1)
    logits[0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        calibration.fit_temperatures(logits[np.newaxis], labels)
