"""Who the references are, and their statistics against refitting for every target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.attacks import references
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet


def blocked_masks(rng, blocks, examples, per_block, block):
    """Each example is IN `per_block` random models of every block."""
    ranks = rng.random((blocks, block, examples)).argsort(axis=1)
    return (ranks < per_block).reshape(blocks * block, examples)


def score_set(keep, queries=1, block=None):
    scores = np.random.default_rng(0).normal(size=(*keep.shape, queries))
    return ScoreSet(scores, keep, block, "file.npz")


def reference_models(rule, keep, side):
    """[N, E] sets of models: the references of every target and example."""
    base, dropped = references.base_and_dropped(rule, keep, slice(None), side)
    sets = np.empty(keep.shape, dtype=object)
    for target, example in np.ndindex(*keep.shape):
        gone = dropped[target // rule.fold, :, example]
        sets[target, example] = set(np.delete(base[:, example], gone).tolist())
    return sets


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 4),
    st.sampled_from([(1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]),
)
@settings(deadline=None, max_examples=20)
def test_leave_block_out_takes_all_models_outside_the_block(seed, blocks, fraction):
    per_block, block = fraction
    keep = blocked_masks(np.random.default_rng(seed), blocks, 30, per_block, block)
    rule = references.find(score_set(keep, block=block))
    inside, outside = (reference_models(rule, keep, side) for side in ("in", "out"))
    for target, example in np.ndindex(*keep.shape):
        others = {n for n in range(len(keep)) if n // block != target // block}
        members = {n for n in others if keep[n, example]}
        assert inside[target, example] == members
        assert outside[target, example] == others - members
        assert len(members) == rule.count_in
        assert len(others - members) == rule.count_out


@given(st.integers(0, 2**32 - 1), st.integers(4, 9))
@settings(deadline=None, max_examples=20)
def test_leave_one_out_counts_never_depend_on_the_answer(seed, models):
    rng = np.random.default_rng(seed)
    keep = rng.random((models, 400)) < 0.5
    keep = keep[:, (keep.sum(axis=0) >= 2) & ((~keep).sum(axis=0) >= 2)]
    rule = references.find(score_set(keep))
    assert rule.words.startswith("leave-one-out")
    for side, truth, count in (("in", keep, rule.count_in), ("out", ~keep, rule.count_out)):
        for (target, example), chosen in np.ndenumerate(reference_models(rule, keep, side)):
            assert len(chosen) == count
            assert target not in chosen
            assert all(truth[model, example] for model in chosen)


def test_leave_one_out_references_are_the_same_whichever_way_the_target_answers():
    # Flip one bit of one mask: that target's references on that example must not notice, as long
    # as the smallest counts stay.
    rng = np.random.default_rng(3)
    keep = rng.random((10, 60)) < 0.5
    keep = keep[:, (keep.sum(axis=0) >= 4) & (keep.sum(axis=0) <= 6)]
    flipped = keep.copy()
    target, example = 4, int(np.flatnonzero(keep.sum(axis=0) == 5)[0])
    flipped[target, example] ^= True
    rules = [references.find(score_set(masks)) for masks in (keep, flipped)]
    assert rules[0].count_in == rules[1].count_in
    for side in ("in", "out"):
        before, after = (
            reference_models(rule, masks, side)[target, example]
            for rule, masks in zip(rules, (keep, flipped), strict=True)
        )
        assert before == after


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize(("per_block", "block"), [(1, 2), (2, 5), (3, 4)])
def test_moments_equal_refitting_each_fold(centre, per_block, block):
    rng = np.random.default_rng(7)
    keep = blocked_masks(rng, 3, 20, per_block, block)
    values = rng.normal(size=(3 * block, 20, 3)).round(1) + 1e4  # ties, and a large offset
    rule = references.find(score_set(keep, block=block))
    truths = {"in": keep, "out": ~keep}
    for side in ("in", "out"):
        truth = truths[side]
        parts = references.base_and_dropped(rule, keep, slice(None), side)
        got = references.moments(values, *parts, centre=centre)
        for fold, example in np.ndindex(3, 20):
            chosen = truth[:, example] & (np.arange(3 * block) // block != fold)
            left = values[chosen, example]
            middle = left.mean(axis=0) if centre == "mean" else np.median(left, axis=0)
            squares = ((left - left.mean(axis=0)) ** 2).sum(axis=0)
            assert got.count == len(left)
            np.testing.assert_allclose(got.centre[fold, example], middle, rtol=1e-13)
            np.testing.assert_allclose(got.squares[fold, example], squares, atol=1e-9)


def test_blocks_are_recognised_at_their_smallest():
    rng = np.random.default_rng(0)
    assert references.recognise_block(blocked_masks(rng, 4, 50, 1, 2)) == 2
    assert references.recognise_block(blocked_masks(rng, 4, 50, 2, 5)) == 5
    assert references.recognise_block(blocked_masks(rng, 1, 50, 4, 8)) is None  # one block only
    assert references.recognise_block(rng.random((8, 50)) < 0.5) is None
    assert references.find(score_set(blocked_masks(rng, 4, 50, 1, 2))).words == (
        "leave-block-out, blocks of 2"
    )


@pytest.mark.parametrize(
    ("keep", "block", "words"),
    [
        (
            blocked_masks(np.random.default_rng(0), 3, 9, 1, 2),
            4,
            "6 models do not form blocks of 4",
        ),
        (blocked_masks(np.random.default_rng(0), 1, 9, 1, 2), 2, "fewer than two blocks"),
        (np.eye(4, 9, dtype=bool), 2, "example 2 is a member of 0 models of block 0"),
        (np.eye(4, 9, dtype=bool), None, "only 0 of 4 models trained on example 4"),
        (~np.eye(4, 4, dtype=bool), None, "only 1 of 4 models did not train on example 0"),
        (blocked_masks(np.random.default_rng(0), 1, 9, 1, 2), None, "only 1 of 2 models"),
    ],
)
def test_masks_that_leave_no_references_are_refused(keep, block, words):
    with pytest.raises(InputError) as caught:
        references.find(score_set(keep, block=block))
    assert words in str(caught.value)
    assert str(caught.value).startswith("file.npz: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 2**20])
def test_chunks_cover_every_example_once_in_order(monkeypatch, chunk_bytes):
    monkeypatch.setattr(references, "CHUNK_BYTES", chunk_bytes)
    scores = np.random.default_rng(0).normal(size=(4, 37, 3)).astype(np.float32)
    parts = list(references.map_chunks(lambda _, values: values, scores, queries=2))
    together = np.concatenate(parts, axis=1)
    assert together.dtype == np.float64
    np.testing.assert_array_equal(together, scores[:, :, :2])
