"""InfoRMIA against its definition as a double loop, known populations, and RMIA."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lira_jax import evaluation
from lira_jax.attacks import info_rmia, references, rmia
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import (
    MASKS,
    blocked_masks,
    free_masks,
    halved_masks,
    uneven_scores,
    with_rule,
)
from tests.attacks.test_rmia import plain

NAMES = ("info-rmia-online", "info-rmia-offline")


def run(scores, keep, **config):
    return info_rmia.attack(*with_rule(scores, keep), AttackConfig(**config))


@pytest.mark.parametrize("masks", MASKS)
def test_scores_are_the_mean_gain_over_all_other_examples(masks, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    ratio, _ = plain(scores, keep)  # of RMIA, by probabilities
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * len(keep) * 2 * 3)  # three examples
    for name, got in run(scores, keep).items():
        of_kind = ratio[name.removeprefix("info-")]
        for target, x in np.ndindex(keep.shape):
            gains = [
                np.log(of_kind[target, x] / of_kind[target, z])
                for z in range(keep.shape[1])
                if z != x
            ]
            assert got[target, x] == pytest.approx(np.mean(gains), abs=1e-9)


def test_of_a_known_population_it_is_the_ratio_and_the_divergence():
    # All references give every example ½. The target gives ¾ to a quarter of the others.
    keep = np.tile([[True] * 21, [False] * 21], (3, 1))
    p = np.full((6, 21), 0.5)
    p[0, :6] = 0.75
    got = run(np.log(p / (1 - p))[..., np.newaxis], keep)["info-rmia-online"]
    divergence = 0.25 * np.log(0.5 / 0.75)  # of the 20 others, 5 are at ¾
    assert got[0, 0] == pytest.approx(np.log(0.75 / 0.5) + divergence)


@given(
    arrays.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e3, 50)),
    st.floats(-100, 100),
)
@settings(deadline=None, max_examples=30)
def test_what_a_target_gives_to_all_examples_does_not_count(log_ratio, level):
    got = info_rmia.above_population(log_ratio)
    np.testing.assert_allclose(info_rmia.above_population(log_ratio + level), got, atol=1e-9)
    assert got.sum() == pytest.approx(0, abs=1e-8)
    order = np.argsort(log_ratio)
    assert (np.diff(got[order]) >= -1e-9).all()


def test_within_a_target_it_ranks_as_rmia_does():
    rng = np.random.default_rng(1)
    keep = blocked_masks(rng, 8, 60)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    shares = rmia.attack(*with_rule(scores, keep), AttackConfig())
    for name, got in run(scores, keep).items():
        of_rmia = shares[name.removeprefix("info-")]
        np.testing.assert_array_equal(np.argsort(got), np.argsort(of_rmia))


@pytest.mark.parametrize("masks", ["blocks of 2", "2 of 4"])
def test_the_rest_of_the_targets_block_matters_neither_for_x_nor_for_z(masks):
    rng = np.random.default_rng(2)
    keep = MASKS[masks](rng)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    _, rule = with_rule(scores, keep)
    before, changed = run(scores, keep), scores.copy()
    changed[1 : rule.fold] += 5
    after = run(changed, keep)
    for name in NAMES:
        np.testing.assert_allclose(after[name][0], before[name][0], 1e-9, 1e-9)


@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_where_all_models_are_as_certain_rounding_tells_nothing(masks):
    rng = np.random.default_rng(3)
    keep = masks(rng, 32, 100)
    for value in (0.1, 1.0, 35.0, -3.0):
        for got in run(np.full((*keep.shape, 2), value), keep).values():
            assert evaluation.auc(evaluation.roc(got, keep)) == 0.5
