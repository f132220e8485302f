"""What attacks make of inputs from elsewhere is what plain loops make of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from lira_jax import evaluation
from lira_jax.attacks import references, shokri
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.evaluation import bootstrap
from lira_jax.score_set import logit_scaled
from lira_jax.trust import attacks, judging, results
from lira_jax.trust.calibration import with_temperature
from tests.trust.synthetic import made

PLAIN = AttackConfig(temperatures="")
KINDS = ("test", "uniform", "digits")


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few replicates, and networks that learn from few pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "REPLICATES", 20)
        patch.setattr(shokri, "SEEN", 100)
        patch.setattr(shokri, "HIDDEN", 8)
        yield


def run(outputs, held, config=PLAIN):
    metrics, _ = results.results(outputs, held, config)
    return json.loads(json.dumps(metrics, allow_nan=False))


def calibration(metrics, name="plain"):
    return next(one for one in metrics["calibrations"] if one["name"] == name)


def attack(metrics, name, by="plain"):
    return next(one for one in calibration(metrics, by)["attacks"] if one["name"] == name)


def against(found, kind):
    return next(one for one in found["inputs"] if one["kind"] == kind)


def scores_of(outputs, held, config=PLAIN):
    """The scores of every attack on the plain predictions."""
    kinds = {kind.name: kind.logits["plain"] for kind in outputs.kinds}
    plain = results._Calibrated("plain", "none", held.logits, kinds)
    return results._attack(plain, outputs.kinds, held, held.block, config)


@pytest.fixture(scope="module")
def both():
    return made(models=6, examples=50, inputs=30, laplace=False, seed=1)


@pytest.fixture(scope="module")
def found(both):
    return run(*both)


# Who tunes on what.


def test_the_source_model_is_the_first_of_the_next_block():
    np.testing.assert_array_equal(judging.source_of(6, 2), [2, 2, 4, 4, 0, 0])
    np.testing.assert_array_equal(judging.source_of(6, 3), [3, 3, 3, 0, 0, 0])


def decided(found):
    """What is called a member of a target, as far as its figures tell."""
    return [one["by_target"]["fpr"] for one in found["inputs"]]


@pytest.mark.parametrize("name", ["entropy", "max-score", "top-3"])
def test_decisions_follow_from_the_source_models_membership_not_from_the_targets(both, found, name):
    outputs, held = both
    keep = held.keep.copy()
    keep[:2] = ~keep[:2]  # the targets 0 and 1, sources to nobody but 4 and 5
    of_targets = attack(run(outputs, dataclasses.replace(held, keep=keep)), name)
    for before, after in zip(decided(attack(found, name)), decided(of_targets), strict=True):
        assert after[:4] == before[:4]
    keep = held.keep.copy()
    keep[2:4] = ~keep[2:4]  # their source and its block
    of_source = attack(run(outputs, dataclasses.replace(held, keep=keep)), name)
    before, after = (np.array(decided(one)) for one in (attack(found, name), of_source))
    assert (after[:, 2:4] == before[:, 2:4]).all()
    assert (after[:, :2] != before[:, :2]).any()


def test_nothing_of_the_target_tunes_its_thresholds(both):
    outputs, held = both
    logits = held.logits.copy()
    logits[0] *= 3
    whole = scores_of(outputs, held)
    changed = scores_of(outputs, dataclasses.replace(held, logits=logits))
    for name, one in whole.items():
        if name not in ("lira-offline", "lira-online", "max-score-calibrated"):
            np.testing.assert_array_equal(one.source[:2], changed[name].source[:2])
            assert (one.examples[0] != changed[name].examples[0]).any() or name == "gap"


# Figures, by loops.


@pytest.mark.parametrize("name", ["entropy", "max-score", "top-3", "lira-offline", "lira-online"])
def test_figures_are_those_of_a_count(both, found, name):
    outputs, held = both
    own, keep = scores_of(outputs, held)[name], held.keep
    sources = judging.source_of(6, 2)
    confidence = softmax(held.logits.astype(np.float64), axis=2).max(axis=2)

    def cut(target, key):
        mask = keep[sources[target]]
        if key == "decision":
            return evaluation.best_threshold(own.source[target], mask)
        others = np.sort(own.source[target][~mask])[::-1]
        return np.nextafter(others[int(judging.LOW[key] * len(others))], np.inf)

    one = attack(found, name)
    assert one["auc"] == pytest.approx(roc_auc_score(keep.ravel(), own.examples.ravel()))
    of_each = [roc_auc_score(*pair) for pair in zip(keep, own.examples, strict=True)]
    assert one["by_target"]["auc"] == pytest.approx(of_each)
    for key in ("decision", "0.01", "0.001"):
        figures = one["decision"] if key == "decision" else one["low"][key]
        called = np.stack([own.examples[n] >= cut(n, key) for n in range(6)])
        tpr, fpr = called[keep].mean(), called[~keep].mean()
        assert figures["tpr"] == pytest.approx(tpr)
        assert figures["fnr"] == pytest.approx(1 - tpr)
        assert figures["fnr_ci"] == pytest.approx([1 - t for t in figures["tpr_ci"]][::-1])
        assert figures["fpr"] == pytest.approx(fpr)
        assert figures["balanced_accuracy"] == pytest.approx((tpr + 1 - fpr) / 2)
        assert figures["precision"] == (pytest.approx(tpr / (tpr + fpr)) if tpr + fpr else None)
        for kind, scores in own.kinds.items():
            elsewhere = against(one, kind)
            figures = elsewhere["decision"] if key == "decision" else elsewhere["low"][key]
            reached = np.stack([scores[n] >= cut(n, key) for n in range(6)])
            share = reached.mean()
            assert figures["fpr"] == pytest.approx(share)
            assert figures["precision"] == (
                pytest.approx(tpr / (tpr + share)) if tpr + share else None
            )
            if key == "decision":
                assert elsewhere["by_target"]["fpr"] == pytest.approx(reached.mean(axis=1))
                mixed = np.append(own.examples[keep], scores)
                truth = np.arange(mixed.size) < keep.sum()
                assert elsewhere["auc"] == pytest.approx(roc_auc_score(truth, mixed))
    called = np.stack([own.examples[n] >= cut(n, "decision") for n in range(6)])
    means = {}
    for key, chosen in (
        ("tp", called & keep),
        ("fp", called & ~keep),
        ("fn", ~called & keep),
        ("tn", ~called & ~keep),
    ):
        if not chosen.any(axis=1).all():
            assert one["mmps"][key] is None
            continue
        means[key] = np.array([confidence[n][chosen[n]].mean() for n in range(6)])
        assert one["mmps"][key]["mean"] == pytest.approx(means[key].mean())
    if {"fp", "tp"} <= means.keys():
        difference = (means["fp"] - means["tp"]).reshape(3, 2).mean(axis=1)
        interval = student.interval(0.95, 2, difference.mean(), difference.std(ddof=1) / np.sqrt(3))
        assert one["mmps"]["fp_less_tp"]["ci"] == pytest.approx(interval)
        assert one["mmps"]["fp_less_tp"]["mean"] == pytest.approx(difference.mean())


def test_figures_of_kinds_are_named_and_only_plain_predictions_have_intervals_of_the_auc(both):
    outputs, held = both
    found = run(outputs, held, AttackConfig(temperatures="2"))
    assert (found["targets"], found["blocks"], found["examples"]) == (6, 3, 50)
    truth = {kind.name: kind for kind in outputs.kinds}["test"]
    right = (truth.logits["plain"].argmax(axis=2) == truth.labels).mean()
    assert found["kinds"] == [
        {"name": name, "title": f"{name}, in words", "inputs": 30, "labelled": name == "test",
         "accuracy": pytest.approx(right) if name == "test" else None}
        for name in KINDS
    ]  # fmt: skip
    low, high = against(attack(found, "max-score"), "uniform")["auc_ci"]
    assert low < against(attack(found, "max-score"), "uniform")["auc"] < high
    assert against(attack(found, "max-score", "temperature-2.0"), "uniform")["auc_ci"] is None


def test_the_gap_attack_is_asked_only_where_there_are_labels(both, found):
    _, held = both
    gap = attack(found, "gap")
    assert [one["kind"] for one in gap["inputs"]] == ["test"]
    right = held.logits.argmax(axis=2) == held.labels
    assert gap["decision"]["tpr"] == pytest.approx(right[held.keep].mean())
    assert gap["decision"]["fpr"] == pytest.approx(right[~held.keep].mean())
    assert gap["low"]["0.001"]["tpr"] == 0
    assert attack(found, "lira-online")["inputs"] == []


# LiRA on inputs.


def offline_by_loops(statistic_of, keep, inputs):
    """Target by target and input by input; `statistic_of(target)` is [N, M]."""
    found = np.empty((len(keep), inputs))
    for target in range(len(keep)):
        statistic = statistic_of(target)
        for number in range(inputs):
            mask = keep[:, number % keep.shape[1]]
            others = [n for n in range(len(keep)) if n // 2 != target // 2 and not mask[n]]
            out = statistic[others, number]
            found[target, number] = -norm.logsf(
                statistic[target, number], out.mean(), out.std(ddof=1)
            )
    return found


def test_inputs_are_compared_with_the_models_that_the_mask_of_an_example_names():
    # More inputs than examples: masks are used again from the first on.
    outputs, held = made(models=10, examples=20, inputs=30, laplace=False, fit=False)
    found = scores_of(outputs, held)
    for kind in outputs.kinds:
        logits = kind.logits["plain"]

        def phi(target, kind=kind, logits=logits):
            labels = kind.labels if kind.name == "test" else logits[target].argmax(axis=1)
            return logit_scaled(logits, labels)

        for name, statistic_of in (
            ("lira-offline", phi),
            ("max-score-calibrated", lambda _, logits=logits: attacks.max_score(logits)),
        ):
            expected = offline_by_loops(statistic_of, held.keep, 30)
            np.testing.assert_allclose(found[name].kinds[kind.name], expected, rtol=1e-5)
    expected = offline_by_loops(lambda _: logit_scaled(held.logits, held.labels), held.keep, 20)
    np.testing.assert_allclose(found["lira-offline"].examples, expected, rtol=1e-5)


def test_no_kind_changes_what_is_found_of_another(both, found):
    outputs, held = both
    wild = dataclasses.replace(
        outputs.kinds[1],
        name="scaled",
        logits={"plain": (1000 * outputs.kinds[1].logits["plain"]).astype(np.float32)},
    )
    more = scores_of(dataclasses.replace(outputs, kinds=(*outputs.kinds, wild)), held)
    for name, one in scores_of(outputs, held).items():
        np.testing.assert_array_equal(one.examples, more[name].examples)
        for kind in one.kinds:
            np.testing.assert_array_equal(one.kinds[kind], more[name].kinds[kind])
        assert all(np.isfinite(rows).all() for rows in more[name].kinds.values())


def test_a_single_input_can_be_asked_about_with_a_single_reference():
    outputs, held = made(models=4, inputs=1, laplace=False, fit=False)
    assert against(attack(run(outputs, held), "lira-offline"), "uniform")["decision"]["fpr"] <= 1


# Calibrations.


def test_temperature_1_and_no_temperature_are_the_same(both, found):
    outputs, held = both
    with_one = run(outputs, held, AttackConfig(temperatures="1"))
    plain, other = calibration(found), calibration(with_one, "temperature-1.0")
    assert plain["temperature"] is None
    assert other["temperature"] == {"mean": 1, "least": 1, "greatest": 1, "at_bound": 0}
    assert (plain["members"], plain["nonmembers"]) == (other["members"], other["nonmembers"])
    for one, same in zip(plain["attacks"], other["attacks"], strict=True):
        for item in one["inputs"]:
            item = item | {"auc_ci": None}
            assert item == against(same, item["kind"])
        assert one | {"inputs": []} == same | {"inputs": []}


def test_a_fitted_temperature_is_each_models_own_and_lowers_its_loss(both):
    outputs, held = both
    fit = outputs.fit
    assert fit is not None
    times = np.geomspace(0.5, 8, 6)[:, None, None]
    wild = dataclasses.replace(fit, logits={"plain": (fit.logits["plain"] * times).astype("f4")})
    outputs = dataclasses.replace(outputs, fit=wild)
    fitted = results._calibrations(outputs, held, AttackConfig(temperatures="fit"))[0][1]
    assert (fitted.name, fitted.at_bound) == ("temperature-fit", 0)

    def loss(logits):
        log_p = log_softmax(logits.astype(np.float64), axis=2)
        return -log_p[:, np.arange(len(fit.labels)), fit.labels].mean(axis=1)

    logits = wild.logits["plain"]
    best = loss(with_temperature(logits, fitted.temperature))
    for factor in (0.9, 1.1):
        assert (best < loss(with_temperature(logits, factor * fitted.temperature))).all()
    assert (best <= loss(logits)).all()
    metrics = run(outputs, held, AttackConfig(temperatures="fit"))
    told = calibration(metrics, "temperature-fit")["temperature"]
    assert told["greatest"] == pytest.approx(fitted.temperature.max())
    assert told["least"] < told["mean"] < told["greatest"]


def test_temperatures_move_confidence_and_calibration_but_no_order_of_labels(both, found):
    outputs, held = both
    hot = run(outputs, held, AttackConfig(temperatures="10"))
    plain, other = calibration(hot), calibration(hot, "temperature-10.0")
    assert other["members"]["accuracy"] == plain["members"]["accuracy"]
    assert other["members"]["ece"] > plain["members"]["ece"]
    tp, hot_tp = (attack(hot, "max-score", by)["mmps"]["tp"] for by in ("plain", other["name"]))
    assert hot_tp["mean"] < tp["mean"]
    assert attack(hot, "gap", other["name"])["decision"] == attack(hot, "gap")["decision"]


def test_what_was_not_predicted_is_told_with_what_to_run(both):
    outputs, held = both
    without = dataclasses.replace(outputs, fit=None)
    done, not_run = results._calibrations(without, held, AttackConfig())
    assert [one.name for one in done] == ["plain", *(f"temperature-{t}" for t in (0.5, 2.0, 10.0))]
    assert {one["name"]: one["reason"] for one in not_run} == {
        "temperature-fit": "no held-out images were predicted: score.py --trust --trust.fit N",
        "laplace-probit": "not predicted: score.py --trust --trust.laplace True",
        "laplace-sampled": "not predicted: score.py --trust --trust.laplace True",
    }


def test_laplace_predictions_are_attacked_where_they_are():
    outputs, held = made(inputs=10, examples=30)
    without = dataclasses.replace(
        outputs.kinds[2], logits={"plain": outputs.kinds[2].logits["plain"]}
    )
    found = run(dataclasses.replace(outputs, kinds=(*outputs.kinds[:2], without)), held)
    assert [one["name"] for one in found["calibrations"]] == [
        "plain", "laplace-probit", "laplace-sampled",
    ]  # fmt: skip
    assert found["not_run"] == []
    probit = attack(found, "max-score", "laplace-probit")
    assert [one["kind"] for one in probit["inputs"]] == ["test", "uniform"]
    own = attacks.max_score(outputs.candidates["probit"])
    assert probit["auc"] == pytest.approx(roc_auc_score(held.keep.ravel(), own.ravel()))


# What figures are drawn from.


def test_figures_get_confidences_and_samples_as_the_network_sees_them(both):
    outputs, held = both
    scaled = dataclasses.replace(outputs.kinds[0], scale=255.0)
    kinds = (scaled, *outputs.kinds[1:])
    _, drawn = results.results(dataclasses.replace(outputs, kinds=kinds), held, PLAIN)
    largest = softmax(held.logits.astype(np.float64), axis=2).max(axis=2)
    np.testing.assert_allclose(drawn.confidence, largest, rtol=1e-12)
    assert set(drawn.of_kinds) == set(drawn.samples) == set(KINDS)
    np.testing.assert_array_equal(drawn.samples["digits"], outputs.kinds[2].samples)
    lit = np.where(scaled.samples > 127, 255, 0)  # times 255, all but grey is black or white
    np.testing.assert_array_equal(drawn.samples["test"], lit)


# Refusals, and what theory says.


def test_masks_without_blocks_are_refused_in_one_line(both):
    outputs, held = both
    rng = np.random.default_rng(0)
    keep = rng.random((6, 50)).argsort(axis=0) < 3
    free = dataclasses.replace(held, keep=keep, block=None)
    assert references.find(free).order is not None
    with pytest.raises(InputError, match="models form no blocks") as caught:
        results.results(outputs, free, PLAIN)
    assert "\n" not in str(caught.value)


def test_without_a_leak_the_compared_score_errs_alike_everywhere_and_a_shift_fools_only_the_plain():
    shifted = {"test": (True, 0.0), "uniform": (False, 4.0)}
    outputs, held = made(
        models=16, examples=600, inputs=600, leak=0.0, kinds=shifted, laplace=False, fit=False
    )
    found = run(outputs, held)
    plain, compared = attack(found, "max-score"), attack(found, "max-score-calibrated")
    assert compared["auc"] == pytest.approx(0.5, abs=0.02)

    def fpr(one, kind):
        return against(one, kind)["decision"]["fpr"]

    assert fpr(plain, "test") == pytest.approx(plain["decision"]["fpr"], abs=0.03)
    assert fpr(plain, "uniform") > plain["decision"]["fpr"] + 0.2
    for kind in ("test", "uniform"):
        assert fpr(compared, kind) == pytest.approx(compared["decision"]["fpr"], abs=0.03)
