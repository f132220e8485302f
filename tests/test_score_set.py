"""Reading score files, and one line for everything that can be wrong with them."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from lira_jax import score_set
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet, check, read_npz

MODELS, EXAMPLES, QUERIES, CLASSES = 4, 6, 2, 3


def arrays():
    rng = np.random.default_rng(0)
    half = np.tile([True, False], (2, EXAMPLES // 2))
    return {
        "scores": rng.normal(size=(MODELS, EXAMPLES, QUERIES)).astype(np.float32),
        "keep": np.stack([half, ~half], axis=1).reshape(MODELS, EXAMPLES),
        "labels": np.arange(EXAMPLES) % CLASSES,
        "logits": rng.normal(size=(MODELS, EXAMPLES, CLASSES)).astype(np.float32),
        "block": np.array(2),
    }


def saved(tmp_path, **changes):
    path = tmp_path / "scores.npz"
    held = {name: value for name, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **held)
    return path


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_what_was_saved(tmp_path):
    score_set = check(read_npz(saved(tmp_path)))
    expected = arrays()
    for name in ("scores", "keep", "labels", "logits"):
        np.testing.assert_array_equal(getattr(score_set, name), expected[name])
    assert score_set.block == 2
    assert score_set.source == str(tmp_path / "scores.npz")


OPTIONAL = {
    "merlin": np.linspace(0, 1, MODELS * EXAMPLES).reshape(MODELS, EXAMPLES),
    "gradient_norm": np.arange(MODELS * EXAMPLES, dtype=np.float16).reshape(MODELS, EXAMPLES),
    "canary": np.arange(EXAMPLES) >= EXAMPLES - 2,
}


def twice(array):
    """As many examples again."""
    return np.concatenate([array, array], axis=0 if array.ndim == 1 else 1)


def test_noisy_queries_gradient_norms_and_canaries_may_come_along(tmp_path):
    longer = {name: twice(array) for name, array in (arrays() | OPTIONAL).items() if array.ndim}
    longer["canary"] = np.arange(2 * EXAMPLES) >= 2 * EXAMPLES - 2
    score_set = check(read_npz(saved(tmp_path, **longer)))
    for name in OPTIONAL:
        np.testing.assert_array_equal(getattr(score_set, name), longer[name])
    longer["canary"] = longer["canary"].astype(np.int8)
    assert check(read_npz(saved(tmp_path, **longer))).canary.dtype == np.bool_
    assert read_npz(saved(tmp_path)).canary is None


def test_canaries_that_leave_fewer_than_ten_examples_are_refused(tmp_path):
    score_set = read_npz(saved(tmp_path, canary=OPTIONAL["canary"]))
    message = refusal(check, score_set)
    assert "`canary` leaves 4 examples" in message
    assert "leave `canary` out" in message
    check(dataclasses.replace(score_set, canary=None))  # the remedy


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_scores_of_any_floating_point_type_are_taken_as_they_are(tmp_path, kind):
    changes = {name: arrays()[name].astype(kind) for name in ("scores", "logits")}
    score_set = check(read_npz(saved(tmp_path, **changes)))
    assert score_set.scores.dtype == score_set.logits.dtype == kind
    np.testing.assert_array_equal(score_set.scores, changes["scores"])


def test_a_float16_score_beyond_its_range_is_named(tmp_path):
    beyond = arrays()["scores"].astype(np.float16)
    beyond[1, 2, 0] = np.inf
    score_set = read_npz(saved(tmp_path, scores=beyond))
    assert "`scores` is inf at model 1, example 2, view 0" in refusal(check, score_set)


def test_needs_only_scores_and_keep_and_takes_one_view_and_integers(tmp_path):
    one_view = arrays()["scores"][:, :, 0]
    integers = arrays()["keep"].astype(np.int64)
    path = saved(tmp_path, scores=one_view, keep=integers, labels=None, logits=None, block=None)
    score_set = check(read_npz(path))
    np.testing.assert_array_equal(score_set.scores, one_view[..., np.newaxis])
    np.testing.assert_array_equal(score_set.keep, arrays()["keep"])
    assert score_set.keep.dtype == np.bool_
    assert (score_set.labels, score_set.logits, score_set.block) == (None, None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "truncated, or not an .npz file"),
        (b"scores, keep\n1, 2\n", "truncated, or not an .npz file"),
        (b"PK\x03\x04 and no more", "truncated, or not an .npz file"),
    ],
)
def test_foreign_files_are_refused(tmp_path, content, words):
    path = tmp_path / "scores.npz"
    if content is not None:
        path.write_bytes(content)
    message = refusal(read_npz, path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_a_folder_and_a_bare_array_are_refused(tmp_path):
    assert "is a folder, not a file" in refusal(read_npz, tmp_path)
    np.save(tmp_path / "scores.npy", arrays()["scores"])
    assert "one bare array" in refusal(read_npz, tmp_path / "scores.npy")


def test_every_truncation_is_refused(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        assert "truncated" in refusal(read_npz, path)


def test_damaged_bytes_are_refused(tmp_path):
    path = saved(tmp_path)
    damaged = bytearray(path.read_bytes())
    start = damaged.find(arrays()["scores"].tobytes())
    damaged[start + 8] ^= 0xFF
    path.write_bytes(damaged)
    assert "`scores` is truncated or damaged" in refusal(read_npz, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": None}, "no array `scores` (the file holds block, keep, labels, logits)"),
        ({"keep": None}, "no array `keep`"),
        ({"scores": np.array([[None]])}, "`scores` holds Python objects"),
        ({"block": np.array([2, 2])}, "`block` is int64 of shape (2,)"),
        ({"block": np.array(2.0)}, "`block` is float64"),
        ({"keep": np.full((4, 6), 2)}, "`keep` is 2 at model 0, example 0"),
        ({"canary": np.arange(6)}, "`canary` is 2 at example 2; use 1 (inserted) and 0 (not)"),
        ({"merlin": np.array([[None]])}, "`merlin` holds Python objects"),
    ],
)
def test_wrong_arrays_are_refused_on_reading(tmp_path, changes, words):
    message = refusal(read_npz, saved(tmp_path, **changes))
    assert message.startswith(str(tmp_path / "scores.npz"))
    assert words in message


def with_value(name, index, value):
    array = arrays()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": np.zeros(4)}, "`scores` has shape (4,)"),
        ({"scores": np.zeros((4, 6, 2, 1))}, "`scores` has shape (4, 6, 2, 1)"),
        ({"scores": np.zeros((4, 6, 2), int)}, "`scores` is int64"),
        ({"scores": np.zeros((4, 6, 0))}, "1 view"),
        ({"scores": np.zeros((1, 6, 2)), "keep": np.ones((1, 6), bool)}, "at least 2 models"),
        ({"keep": np.ones((4, 5), bool)}, "`keep` must be (4, 6)"),
        ({"keep": np.ones((4, 6))}, "`keep` is float64"),
        (with_value("keep", 2, True), "every example is a member of model 2"),
        (with_value("keep", 1, False), "every example is a non-member of model 1"),
        (with_value("scores", (2, 3, 1), np.nan), "`scores` is nan at model 2, example 3, view 1"),
        (with_value("scores", (0, 5, 0), np.inf), "`scores` is inf at model 0, example 5, view 0"),
        (with_value("scores", (3, 0, 0), -np.inf), "`scores` is -inf at model 3, example 0"),
        ({"scores": np.zeros((4, 6, 2), np.longdouble)}, "16, 32 or 64 bits"),
        ({"scores": np.zeros((4, 6, 2), complex)}, "`scores` is complex128"),
        ({"scores": np.zeros((4, 6, 2), "M8[s]")}, "`scores` is datetime64[s]"),
        ({"logits": np.zeros((4, 6, 3), np.longdouble)}, "16, 32 or 64 bits"),
        (with_value("scores", (1, 2, 0), 1e19), "at model 1, example 2, view 0; every score"),
        (with_value("logits", (1, 2, 0), -1e38), "at model 1, example 2, class 0; every logit"),
        ({"gradient_norm": np.full((4, 6), 1e30)}, "at most 1e+18"),
        ({"labels": np.full(6, 2**63, np.uint64)}, "must be 0 … 2"),
        ({"labels": np.full(6, 2**31), "logits": None}, "below 2³¹"),
        ({"labels": np.zeros(5, int)}, "`labels` is int64 of shape (5,)"),
        ({"labels": np.zeros(6)}, "`labels` is float64"),
        (with_value("labels", 4, 3), "`labels` is 3 at example 4; must be 0 … 2"),
        (with_value("labels", 1, -1), "`labels` is -1 at example 1"),
        (with_value("labels", 1, -1) | {"logits": None}, "must be 0 or above"),
        ({"logits": np.zeros((4, 6))}, "`logits` has shape (4, 6)"),
        ({"logits": np.zeros((4, 5, 3))}, "must be (4, 6, classes)"),
        ({"logits": np.zeros((4, 6, 3), int)}, "`logits` is int64"),
        ({"canary": np.zeros(5, bool)}, "`canary` is bool of shape (5,)"),
        ({"canary": np.zeros(6)}, "`canary` is float64 of shape (6,)"),
        ({"canary": np.ones(6, bool)}, "in `canary` every example is one"),
        ({"merlin": np.zeros((4, 5))}, "`merlin` has shape (4, 5); must be (4, 6)"),
        ({"merlin": np.zeros((4, 6), int)}, "`merlin` is int64"),
        (
            {"merlin": np.full((4, 6), 1.5)},
            "`merlin` is 1.5 at model 0, example 0; must be a share",
        ),
        ({"merlin": np.full((4, 6), np.nan)}, "`merlin` is nan"),
        ({"gradient_norm": np.zeros((3, 6))}, "`gradient_norm` has shape (3, 6); must be (4, 6)"),
        ({"gradient_norm": np.full((4, 6), -1.0)}, "`gradient_norm` is -1.0"),
        ({"gradient_norm": np.full((4, 6), np.inf)}, "`gradient_norm` is inf"),
    ],
)
def test_wrong_values_are_refused_by_check(changes, words):
    held = arrays() | {"block": 2} | changes
    message = refusal(check, ScoreSet(**held, source="run/scores.npy"))
    assert message.startswith("run/scores.npy: ")
    assert words in message


def test_check_reads_a_memory_map(tmp_path):
    np.save(tmp_path / "scores.npy", arrays()["scores"])
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    score_set = ScoreSet(mapped, arrays()["keep"], 2, "run")
    assert check(score_set) is score_set
    assert check(dataclasses.replace(score_set, scores=mapped.astype(np.float64)))


def test_logit_scaled_is_the_log_odds_of_the_true_label_and_does_not_saturate():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 5, 4)), rng.integers(4, size=5)
    p = softmax(logits, axis=-1)[:, np.arange(5), labels]
    np.testing.assert_allclose(score_set.logit_scaled(logits, labels), np.log(p / (1 - p)))
    shifted = score_set.logit_scaled(log_softmax(logits, axis=-1), labels)
    np.testing.assert_allclose(shifted, np.log(p / (1 - p)))
    sure = score_set.logit_scaled(np.array([[60.0, 0.0, 0.0]], np.float32), np.array([0]))
    np.testing.assert_allclose(sure, 60 - np.log(2), rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_of_examples_cuts_every_array(first):
    rng = np.random.default_rng(0)
    whole = ScoreSet(
        scores=rng.normal(size=(2, 6, 3)), keep=rng.random((2, 6)) < 0.5, block=2, source="test",
        labels=np.arange(6), logits=rng.normal(size=(2, 6, 4)), merlin=rng.random((2, 6)),
        canary=np.arange(6) == 5,
    )  # fmt: skip
    chosen = np.arange(6) < 4 if first else np.arange(6) % 2 == 0
    part = score_set.of_examples(whole, chosen)
    np.testing.assert_array_equal(part.scores, whole.scores[:, chosen])
    np.testing.assert_array_equal(part.logits, whole.logits[:, chosen])
    np.testing.assert_array_equal(part.keep, whole.keep[:, chosen])
    np.testing.assert_array_equal(part.merlin, whole.merlin[:, chosen])
    np.testing.assert_array_equal(part.labels, whole.labels[chosen])
    np.testing.assert_array_equal(part.canary, whole.canary[chosen])
    assert part.gradient_norm is None
    assert np.shares_memory(part.scores, whole.scores) == first


def test_read_only_arrays_cannot_be_written_to_and_the_originals_can():
    whole = ScoreSet(np.zeros((2, 3, 1)), np.zeros((2, 3), bool), None, "test")
    guarded = score_set.read_only(whole)
    with pytest.raises(ValueError, match="read-only"):
        guarded.scores[0] = 1
    whole.scores[0] = 1
    assert guarded.scores[0].all()


def test_a_logit_that_is_not_finite_is_named():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 3))
    logits[1, 2, 0] = -np.inf
    keep = np.array([[True, False] * 2, [False, True] * 2])
    whole = ScoreSet(rng.normal(size=(2, 4, 1)), keep, 2, "file.npz", np.zeros(4, int), logits)
    with pytest.raises(InputError, match="`logits` is -inf at model 1, example 2, class 0"):
        score_set.check(whole)


KINDS = ("?", "i1", "<i8", ">i4", "u8", "f2", ">f4", "f8", "g", "c8", "M8[s]", "m8[s]", "S3", "U2")
SHAPES = ((), (0,), (6,), (4, 6), (4, 6, 2), (4, 6, 3), (4, 0, 2), (4, 6, 0), (0, 6), (4, 1, 6, 2))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_the_arrays_are_they_are_usable_or_refused(data):
    name = data.draw(st.sampled_from([*arrays(), *OPTIONAL]))
    kind, shape = np.dtype(data.draw(st.sampled_from(KINDS))), data.draw(st.sampled_from(SHAPES))
    size = int(np.prod(shape)) * kind.itemsize
    content = data.draw(st.sampled_from([b"\0", b"\1", b"\xff", b"\x7e", b"\0\1"]))
    array = np.frombuffer((content * size)[:size], kind).reshape(shape)
    with tempfile.TemporaryDirectory() as folder, suppress(InputError):
        score_set = check(read_npz(saved(Path(folder), **{name: array})))
        scores = [score_set.scores, score_set.logits]
        assert all(np.isfinite(np.square(part, dtype=np.float32)).all() for part in scores)
        assert score_set.labels.min() >= 0
        assert score_set.keep.view(np.uint8).max() == 1


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null"])
def test_pipes_and_devices_are_not_opened(tmp_path, kind):
    path = tmp_path / "scores.npz"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    assert "not a file; save it by np.savez" in refusal(read_npz, path)
