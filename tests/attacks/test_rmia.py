"""RMIA against its definition as a double loop, a known population, and scores without leakage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit

from lira_jax import evaluation
from lira_jax.attacks import references, rmia
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

NAMES = ("rmia-online", "rmia-offline")


def run(scores, keep, **config):
    return rmia.attack(*with_rule(scores, keep), AttackConfig(**config))


def plain(scores, keep):
    """Ratios, and shares of the population, one target, x and z at a time, by probabilities."""
    _, rule = with_rule(scores, keep)
    p = expit(scores).mean(axis=2)
    models, examples = keep.shape
    ratio = {name: np.empty(keep.shape) for name in NAMES}
    for target, e in np.ndindex(models, examples):
        p_in = p[references_of(rule, keep, target, e, True), e].mean()
        p_out = p[references_of(rule, keep, target, e, False), e].mean()
        ratio["rmia-online"][target, e] = p[target, e] / ((p_in + p_out) / 2)
        ratio["rmia-offline"][target, e] = p[target, e] / ((1.3 * p_out + 0.7) / 2)
    share = {name: np.zeros(keep.shape) for name in NAMES}
    for name in NAMES:
        for target, x in np.ndindex(models, examples):
            beaten = [
                ratio[name][target, x] / ratio[name][target, z] >= 2.0
                for z in range(examples)
                if z != x
            ]
            share[name][target, x] = np.mean(beaten)
    return ratio, share


@pytest.mark.parametrize("masks", MASKS)
def test_shares_equal_a_double_loop_and_ties_follow_the_ratio(masks, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    ratio, share = plain(scores, keep)
    others = keep.shape[1] - 1
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * len(keep) * 2 * 3)  # three examples
    for name, got in run(scores, keep).items():
        beaten = np.rint(others * share[name])
        np.testing.assert_array_equal(np.floor((others + 1) * got), beaten)
        order = np.lexsort([ratio[name].ravel(), beaten.ravel()])
        assert (np.diff(got.ravel()[order]) > 0).all()


@given(arrays.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e4, 50)))
def test_dominance_never_reorders_and_breaks_ties_strictly(log_ratio):
    got = rmia.dominance(log_ratio)
    assert ((got >= 0) & (got <= 1)).all()
    beaten = (log_ratio[:, None] - np.log(2) >= log_ratio).sum(axis=1)
    for a, b in np.ndindex(got.size, got.size):
        if beaten[a] > beaten[b]:
            assert got[a] >= got[b]
        if log_ratio[a] > log_ratio[b] + 1e-6:
            assert got[a] > got[b]
        if log_ratio[a] == log_ratio[b]:
            assert got[a] == got[b]


def test_exactly_gamma_times_a_ratio_exceeds_it():
    beaten = np.floor(3 * rmia.dominance(np.log(2) * np.arange(3)))
    np.testing.assert_array_equal(beaten, [0, 1, 2])


@pytest.mark.parametrize(("factor", "steps"), [(2.1, 1), (1.5, 2), (1.3, 3)])
def test_a_known_population_gives_known_shares(factor, steps):
    # All models give every example ½, but the target's ratios fall by a factor from one example
    # to the next: it takes so many steps to be exceeded by 2.
    keep = np.tile([[True] * 10, [False] * 10], (3, 1))
    p = np.full((6, 10), 0.5)
    p[0] /= factor ** np.arange(10)
    for name, got in run(np.log(p / (1 - p))[..., np.newaxis], keep).items():
        beaten = np.maximum(10 - steps - np.arange(10), 0)
        np.testing.assert_array_equal(np.floor(10 * got[0]), beaten, err_msg=name)
        np.testing.assert_array_equal(np.floor(10 * got[1:]), 0)


@pytest.mark.parametrize("masks", MASKS)
def test_the_rest_of_the_targets_block_matters_neither_for_x_nor_for_z(masks):
    rng = np.random.default_rng(2)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    _, rule = with_rule(scores, keep)
    before = run(scores, keep)
    for target in range(len(keep)):
        others = np.arange(len(keep)) // rule.fold == target // rule.fold
        others[target] = False
        changed = scores.copy()
        changed[others] += 5
        after = run(changed, keep)
        for name in NAMES:
            np.testing.assert_array_equal(after[name][target], before[name][target])


def test_with_leakage_both_forms_find_it_at_low_rates_and_online_is_ahead():
    rng = np.random.default_rng(4)
    keep = blocked_masks(rng, 16, 2_000)
    scores = uneven_scores(rng, keep, queries=1, shift=2)
    curves = {name: evaluation.roc(got, keep) for name, got in run(scores, keep).items()}
    areas = [evaluation.auc(curves[name]) for name in NAMES]
    assert areas[0] > areas[1] > 0.65
    for curve in curves.values():
        assert evaluation.tpr_at_fpr(curve, 0.001) > 0.003


def test_small_probabilities_keep_their_order():
    # p = e^φ down to e^−2000, which float64 has no number for.
    rng = np.random.default_rng(5)
    keep = blocked_masks(rng, 6, 40)
    scores = rng.uniform(-2000, -800, size=(*keep.shape, 1))
    for got in run(scores, keep).values():
        assert np.isfinite(got).all()
        assert all(np.unique(target).size == 40 for target in got)
    # Offline, p(x) is then (1 − a)/2 for all: the order is that of φ.
    order = np.argsort(scores[:, :, 0], axis=1)
    ranked = np.take_along_axis(run(scores, keep)["rmia-offline"], order, axis=1)
    assert (np.diff(ranked, axis=1) > 0).all()


def test_a_dropped_reference_leaves_nothing_behind():
    # p of the target's IN partner is 1, of all other references e^−100: sums less that one part
    # would be 0.
    keep = np.tile([[True, False], [False, True]], (4, 1))
    scores = np.full((8, 2, 1), -100.0)
    scores[0] = 50.0
    log_p = np.minimum(scores[:, :, 0], 0)
    _, rule = with_rule(scores, keep)
    for side in ("in", "out"):
        parts = references.base_and_dropped(rule, keep, slice(None), side)
        got = rmia.log_mean_of_references(log_p, *parts)
        np.testing.assert_allclose(got[0], -100.0)


def test_views_are_averaged_as_probabilities_and_only_the_first_used():
    rng = np.random.default_rng(6)
    keep = blocked_masks(rng, 6, 30)
    scores = uneven_scores(rng, keep, queries=3, shift=1)
    p = expit(scores[:, :, :2]).mean(axis=2, keepdims=True)
    two, mean = run(scores, keep, queries=2), run(np.log(p) - np.log1p(-p), keep)
    for name in NAMES:
        np.testing.assert_allclose(two[name], mean[name], rtol=1e-9, atol=1e-9)


def test_half_precision_memory_maps_are_read_as_they_are(tmp_path):
    rng = np.random.default_rng(8)
    keep = blocked_masks(rng, 8, 50)
    scores = uneven_scores(rng, keep, queries=2, shift=1).astype(np.float16)
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    got, expected = run(mapped, keep), run(scores.astype(np.float64), keep)
    for name in NAMES:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_where_all_models_are_as_certain_rounding_tells_nothing(masks):
    # Sums of equal terms, in another order for members than for non-members, differ by rounding:
    # unrounded ratios tell members from non-members, or the other way round.
    rng = np.random.default_rng(9)
    keep = masks(rng, 64, 100)
    for value in (0.1, 1.0, 35.0, 60.0, -3.0):
        scores = np.float32(value + 1e-4 * rng.normal(size=(*keep.shape, 2)) * (value == 60))
        for got in run(scores, keep).values():
            assert evaluation.auc(evaluation.roc(got, keep)) == 0.5
