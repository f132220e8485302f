"""What models give in general, and to classes, is taken off; what they know of examples stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.attacks import centring

CLASSES = 5


def case(seed, models=8, examples=600):
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=examples) + rng.normal(size=(models, examples))
    return rng, x, rng.integers(CLASSES, size=examples)


def centred(x, labels, others=None):
    x, others = x.copy(), None if others is None else others.copy()
    levels = centring.centre(x, labels, others)
    return (x, levels) if others is None else (x, others)


def by_hand(x, labels):
    """Model by model and group by group."""
    y = x.copy()
    for groups in ([np.arange(x.shape[1])], [np.flatnonzero(labels == c) for c in set(labels)]):
        excess = y - y.mean(axis=0)
        levels, squares = [], 0.0
        for group in groups:
            levels.append([])
            for row in excess[:, group]:
                low, high = np.percentile(row, [25, 75])
                row = np.clip(row, low - 1.5 * (high - low), high + 1.5 * (high - low))
                levels[-1].append(row.mean())
                squares += np.square(row - row.mean()).sum() / len(x)
        variance = squares / sum(group.size - 1 for group in groups)
        sizes = [group.size for group in groups]
        signals = [np.mean(np.square(of_group)) for of_group in levels]
        excesses = [s - variance / n for s, n in zip(signals, sizes, strict=True)]
        true = max(0, np.average(excesses, weights=sizes))
        for group, of_group in zip(groups, levels, strict=True):
            share = true / (true + variance / group.size)
            y[:, group] -= share * np.array(of_group)[:, np.newaxis]
    return y


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=5)
def test_levels_are_what_the_page_says(seed):
    rng, x, labels = case(seed)
    x += 0.5 * rng.normal(size=(8, 1)) + 0.5 * rng.normal(size=(8, CLASSES))[:, labels]
    np.testing.assert_allclose(centred(x, labels)[0], by_hand(x, labels), atol=1e-10)


def test_what_models_add_in_general_and_to_a_class_is_gone():
    rng, x, labels = case(1)
    before, _ = centred(x, labels)
    added = 20 * rng.normal(size=(8, 1)) + 20 * rng.normal(size=(8, CLASSES))[:, labels]
    after, (of_all, by_class) = centred(x + added, labels)
    # What all models have in common is an example's, and stays.
    difference = after - before
    difference -= difference.mean(axis=0)
    assert np.abs(difference).max() < 0.3
    assert np.abs(added - added.mean(axis=0)).max() > 20
    assert by_class.level.shape == (8, CLASSES)
    assert min(of_all.share.min(), by_class.share.min()) > 0.99


def test_noise_alone_is_left_in():
    shares = []
    for seed in range(20):
        _, x, labels = case(seed)
        after, (of_all, by_class) = centred(x, labels)
        shares.extend([*of_all.share, *by_class.share])
        assert np.abs(after - x).max() < 0.25
    # Of noise, the estimate of signal/noise is as often below 1 as above.
    assert np.mean(shares) < 0.25
    assert np.median(shares) < 0.15


def test_an_absurd_score_moves_hardly_any_other():
    rng, x, labels = case(2)
    x += rng.normal(size=(8, CLASSES))[:, labels]
    before, _ = centred(x, labels)
    x[3, 17] = 1e6
    after, _ = centred(x, labels)
    moved = np.abs(after - before)
    moved[:, 17] = 0
    assert moved.max() < 0.1


def test_memorised_examples_stay_where_they_are():
    # A tenth of the examples of every model, its members say, score far higher.
    rng, x, labels = case(3)
    known = rng.random(x.shape) < 0.1
    after, _ = centred(x + 8 * known, labels)
    gap = after[known].mean() - after[~known].mean()
    assert gap == pytest.approx(8, abs=0.5)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=5)
def test_the_order_of_models_and_examples_and_names_of_classes_do_not_matter(seed):
    rng, x, labels = case(seed)
    before, _ = centred(x, labels)
    models, examples = rng.permutation(8), rng.permutation(600)
    names = rng.permutation(CLASSES) + 3
    after, _ = centred(x[np.ix_(models, examples)], names[labels[examples]])
    np.testing.assert_allclose(after, before[np.ix_(models, examples)], atol=1e-10)


def test_a_common_origin_and_unit_stay():
    _, x, labels = case(4)
    before, _ = centred(x, labels)
    after, _ = centred(10 * x + 1_000, labels)
    np.testing.assert_allclose(after, 10 * before + 1_000, atol=1e-8)


def test_equal_scores_and_single_examples_are_left_alone():
    x = np.full((4, 3), 2.5)
    after, (of_all, by_class) = centred(x, np.arange(3))
    np.testing.assert_array_equal(after, x)
    assert not of_all.share.any()
    assert not by_class.share.any()


def test_without_labels_only_what_a_model_gives_in_general_goes():
    rng, x, labels = case(5)
    by_class = 5 * rng.normal(size=(8, CLASSES))[:, labels]
    after, (_, none) = centred(x + 9 * rng.normal(size=(8, 1)) + by_class, None)
    assert none is None
    assert np.abs((after - after.mean(axis=0)).mean(axis=1)).max() < 1
    of_class = after[:, labels == 0] - after.mean(axis=0)[labels == 0]
    assert of_class.mean(axis=1).std() > 2


def test_others_move_none_of_the_runs_models_and_go_by_the_same_rule():
    rng, _, labels = case(6, models=16)
    level = 6 * rng.normal(size=(17, 1)) + 4 * rng.normal(size=(17, CLASSES))[:, labels]
    everyone = 3 * rng.normal(size=600) + rng.normal(size=(17, 600)) + level
    alone, _ = centred(everyone[:16], labels)
    of_run, other = centred(everyone[:16], labels, everyone[16:])
    np.testing.assert_array_equal(of_run, alone)
    # As if it were one more of them, up to where they have their origin. That is the mean of 16
    # models, or of 17, and a class's 120 examples say what it is to a tenth.
    together, _ = centred(everyone, labels)
    expected = together[16] - together[:16].mean(axis=0)
    got = other[0] - of_run.mean(axis=0)
    assert np.abs(expected - got).max() < 0.05
    assert np.corrcoef(expected, got)[0, 1] > 0.999


def test_each_other_is_centred_by_itself():
    rng, x, labels = case(7)
    others = 3 * rng.normal(size=(3, 600)) + 5 * rng.normal(size=(3, 1))
    _, together = centred(x, labels, others)
    for number in range(3):
        _, alone = centred(x, labels, others[number : number + 1])
        np.testing.assert_allclose(together[number], alone[0], atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_classes_of_few_examples_give_away_does_not_go_with_their_level(size):
    # No level of any class, and members far above others.
    rng = np.random.default_rng(size)
    half = rng.random((8, 200)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(16, 200)
    x = 2 * rng.normal(size=200) + rng.normal(size=(16, 200)) + 3 * keep
    after, (_, by_class) = centred(x, np.arange(200) // size)
    gap = [of[keep].mean() - of[~keep].mean() for of in (x, after)]
    assert gap[1] > 0.85 * gap[0]
    assert by_class.share.max() < 0.15
    if size == 1:
        assert (by_class.share == 0).all()
