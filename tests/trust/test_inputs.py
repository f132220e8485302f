"""Inputs from elsewhere are what the table says, whatever they come from; bad ones get one line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image, ImageOps

from lira_jax.config import TrustConfig
from lira_jax.data.datasets import Dataset
from lira_jax.trust import inputs
from lira_jax.trust.inputs import Gathered, Inputs
from tests.conftest import refusal

OWN = ("test", "permuted", "scaled", "left_out", "uniform", "gaussian")


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images [count, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def data(held_out: int = 12, left_out: int = 5, shape: tuple[int, int, int] = (4, 4, 3)) -> Dataset:
    """Images that each differ from all others; held-out image i has label i mod 3."""
    candidates = images(30, *shape)
    labels = (np.arange(30) % 3).astype(np.int32)
    return Dataset(
        "mine", candidates, labels, candidates[:0], labels[:0], ("bird", "cat", "dog"), "",
        x_held_out=images(held_out, *shape, seed=1),
        y_held_out=(np.arange(held_out) % 3).astype(np.int32),
        x_left_out=images(left_out, *shape, seed=2),
    )  # fmt: skip


def gather(found: Dataset | None = None, seed: int = 7, **changes: Any) -> Gathered:
    found = found or data()
    return inputs.gather(TrustConfig(**changes), found, found.x_train, seed)


def by_kind(gathered: Gathered) -> dict[str, Inputs]:
    return {item.kind: item for item in gathered.kinds}


def contents(found: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in found]


# The run's own data.


def test_all_is_every_kind_in_the_types_that_are_promised() -> None:
    gathered = gather(fit=4)
    assert tuple(by_kind(gathered)) == OWN
    assert gathered.left_out == {}
    assert gathered.fit is not None
    for item in (gathered.fit, *gathered.kinds):
        assert (item.images.dtype, item.labels.dtype) == (np.uint8, np.int32)
        assert item.images.shape == (len(item.labels), 4, 4, 3)
        assert item.scale == (255 if item.kind == "scaled" else 1)
        labelled = item.kind in ("fit", "test", "permuted", "scaled")
        assert (item.labels >= 0).all() if labelled else (item.labels == -1).all()
    assert len({item.title for item in gathered.kinds}) == len(OWN)


@pytest.mark.parametrize(("fit", "expected"), [(0, 0), (4, 4), (6, 6), (1000, 6)])
def test_held_out_images_are_split_between_temperatures_and_test(fit: int, expected: int) -> None:
    found = data(held_out=13)
    gathered = gather(found, fit=fit, inputs="test")
    (test,) = gathered.kinds
    parts = [test] if gathered.fit is None else [gathered.fit, test]
    assert len(test.labels) == 13 - expected
    assert (gathered.fit is None) == (expected == 0)
    there = [
        pair for item in parts for pair in zip(contents(item.images), item.labels, strict=True)
    ]
    assert sorted(there) == sorted(zip(contents(found.x_held_out), found.y_held_out, strict=True))
    assert contents(test.images) != contents(found.x_held_out[-len(test.labels) :])


def test_permuted_images_keep_their_pixels_each_in_an_order_of_its_own() -> None:
    # One image repeated: what differs between the copies is the order alone.
    one = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    found = dataclasses.replace(data(), x_held_out=np.repeat(one, 12, 0))
    kinds = by_kind(gather(found, inputs="permuted, test"))
    permuted, test = kinds["permuted"], kinds["test"]
    np.testing.assert_array_equal(permuted.labels, test.labels)
    for image in permuted.images:
        pixels = image.reshape(16, 3)
        np.testing.assert_array_equal(pixels[np.argsort(pixels[:, 0])], one.reshape(16, 3))
    assert len(set(contents(permuted.images))) == len(permuted.images)


def test_scaled_inputs_are_the_test_images_with_a_factor() -> None:
    kinds = by_kind(gather(scale=2.5))
    np.testing.assert_array_equal(kinds["scaled"].images, kinds["test"].images)
    np.testing.assert_array_equal(kinds["scaled"].labels, kinds["test"].labels)
    assert (kinds["scaled"].scale, kinds["scaled"].title) == (2.5, "inputs × 2.5")


def test_noise_has_the_distribution_that_is_stated() -> None:
    found = data(shape=(8, 8, 2))
    found.x_train[..., 0] = 100 + found.x_train[..., 0] // 16
    kinds = by_kind(gather(found, examples=400))
    uniform = np.bincount(kinds["uniform"].images.ravel(), minlength=256)
    assert 120 < uniform.min() <= uniform.max() < 290  # 200 expected
    noise = kinds["gaussian"].images[..., 0].astype(float)
    there = found.x_train[..., 0].astype(float)
    np.testing.assert_allclose(noise.mean(), there.mean(), atol=0.15)
    np.testing.assert_allclose(noise.std(), np.hypot(there.std(), 12**-0.5), rtol=0.02)
    # The other channel's spread reaches beyond what a pixel holds: Φ(−1.72) = 4.3 % on either side.
    ends = np.bincount(kinds["gaussian"].images[..., 1].ravel(), minlength=256)[[0, 255]]
    np.testing.assert_allclose(ends / noise.size, 0.043, atol=0.006)


def test_gaussian_noise_of_constant_images_is_constant() -> None:
    found = data()
    found.x_train[:] = np.array([0, 77, 255], np.uint8)
    (noise,) = gather(found, inputs="gaussian").kinds
    assert (noise.images == [0, 77, 255]).all()


def test_left_out_images_are_shuffled() -> None:
    found = data(left_out=40)
    (item,) = gather(found, inputs="left_out").kinds
    assert sorted(contents(item.images)) == sorted(contents(found.x_left_out))
    assert contents(item.images) != contents(found.x_left_out)


def write_sources(folder: Path) -> dict[str, str]:
    """Settings that name another data set and a folder of generated images."""
    np.savez(folder / "other.npz", x_train=images(9, 5, 5), y_train=np.arange(9) % 2)
    (folder / "gan").mkdir()
    for number, image in enumerate(images(9, 5, 5)):
        Image.fromarray(image).save(folder / "gan" / f"{number}.png")
    return {"data_sets": f"other={folder / 'other.npz'}", "generated": str(folder / "gan")}


def test_more_examples_keep_the_first_and_other_kinds_change_nothing(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    few, many = gather(examples=3, **sources), gather(examples=0, **sources)
    assert [item.kind for item in few.kinds] == [*OWN, "other", "generated"]
    for short, long in zip(few.kinds, many.kinds, strict=True):
        assert len(short.labels) == 3 < len(long.labels)
        np.testing.assert_array_equal(short.images, long.images[:3])
        np.testing.assert_array_equal(short.labels, long.labels[:3])
    for kind in OWN:
        (alone,) = gather(examples=3, inputs=kind).kinds
        assert inputs.digest(alone) == inputs.digest(by_kind(few)[kind])


def test_inputs_are_a_function_of_the_seed(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    one, again, other = (
        [inputs.digest(item) for item in gather(seed=seed, **sources).kinds] for seed in (1, 1, 2)
    )
    assert one == again
    assert not set(one) & set(other)


def test_all_examples_are_of_noise_as_many_as_of_test_or_as_candidates() -> None:
    assert {len(item.labels) for item in gather(fit=4, examples=0).kinds} == {8, 5}
    (noise,) = gather(data(held_out=0), examples=0, inputs="uniform").kinds
    assert len(noise.labels) == 30


def test_all_leaves_out_what_the_data_do_not_allow_and_says_why() -> None:
    gathered = gather(data(held_out=0, left_out=0))
    assert tuple(by_kind(gathered)) == ("uniform", "gaussian")
    assert gathered.fit is None
    assert set(gathered.left_out) == {"test", "permuted", "scaled", "left_out"}
    assert "data.limit" in gathered.left_out["test"]
    assert "data.leave_out" in gathered.left_out["left_out"]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("test", "data.limit"),
        ("permuted", "data.limit"),
        ("scaled", "data.limit"),
        ("left_out", "data.leave_out"),
    ],
)
def test_kinds_that_are_named_but_cannot_be_made_are_refused(kind: str, part: str) -> None:
    message = refusal(None, lambda: gather(data(held_out=0, left_out=0), inputs=f"uniform, {kind}"))
    assert f'trust.inputs = "uniform, {kind}": no {kind}' in message
    assert part in message


def test_the_digest_follows_images_labels_and_scale() -> None:
    (item,) = gather(inputs="test").kinds
    moved = np.roll(item.images, 1)
    changed = [
        dataclasses.replace(item, images=moved),
        dataclasses.replace(item, labels=item.labels + 1),
        dataclasses.replace(item, scale=2.0),
    ]
    copy = dataclasses.replace(item, images=item.images.copy(), title="another title")
    assert inputs.digest(copy) == inputs.digest(item)
    assert len({inputs.digest(other) for other in (item, *changed)}) == 4


# Size and channels.


def test_images_of_the_right_size_pass_bit_by_bit() -> None:
    found = images(3, 4, 5, 2)
    assert inputs.matched(found, (4, 5, 2), "") is found


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (3, 3), (12, 7), (7, 12)])
def test_resizing_is_pillows_about_the_centre(
    channels: int, mode: str, height: int, width: int
) -> None:
    found = images(2, height, width, channels)
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    for image, result in zip(found, inputs.matched(found, (6, 6, channels), ""), strict=True):
        before = Image.fromarray(image.squeeze(), mode=None)
        assert before.mode == mode
        after = before.resize(
            (6, 6), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        np.testing.assert_array_equal(result.squeeze(), np.asarray(after))


def test_shrinking_a_ramp_averages_it() -> None:
    """A pixel is the mean of a tent about its centre: on a ramp, the value there."""
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None, :], 64, 0)[None, ..., None]
    small = inputs.matched(ramp, (8, 8, 1), "")[0, :, :, 0]
    np.testing.assert_array_equal(small[:, 1:-1], np.tile(7 + 16 * np.arange(1, 7), (8, 1)))


def test_antialiasing_turns_a_fine_chessboard_grey() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None, ..., None]
    small = inputs.matched(board, (8, 8, 1), "")
    assert (abs(small.astype(int) - 127) <= 1).all()


def test_the_crop_is_about_the_centre() -> None:
    wide = np.zeros((1, 4, 12, 1), np.uint8)
    wide[:, :, 4:8] = 200
    np.testing.assert_array_equal(inputs.matched(wide, (4, 4, 1), ""), np.full((1, 4, 4, 1), 200))


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma() -> None:
    grey = images(2, 4, 4, 1)
    np.testing.assert_array_equal(inputs.matched(grey, (4, 4, 3), ""), grey.repeat(3, -1))
    colour = images(2, 4, 4, 3)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(inputs.matched(colour, (4, 4, 1), "")[..., 0], luma, atol=0.51)


sides = st.integers(1, 40)


@given(
    arrays_of.array_shapes(min_dims=2, max_dims=2, max_side=60),
    st.tuples(sides, sides),
    st.sampled_from([(1, 1), (1, 3), (3, 1), (3, 3), (2, 2), (4, 4)]),
    st.integers(0, 255),
)
@example((1, 60), (40, 1), (3, 1), 255)
@settings(max_examples=100, deadline=None)
def test_any_size_becomes_any_other_and_constant_images_stay_constant(
    size: tuple[int, ...], wanted: tuple[int, int], channels: tuple[int, int], value: int
) -> None:
    found = np.full((2, *size, channels[0]), value, np.uint8)
    result = inputs.matched(found, (*wanted, channels[1]), "")
    assert (result.shape, result.dtype) == ((2, *wanted, channels[1]), np.uint8)
    assert (result == value).all()


@pytest.mark.parametrize(("have", "want"), [(4, 3), (2, 1), (1, 2), (3, 4)])
def test_other_numbers_of_channels_are_refused(have: int, want: int) -> None:
    message = refusal(None, lambda: inputs.matched(images(1, 5, 6, have), (7, 8, want), "here"))
    assert f"here: images are 5×6×{have}, the run's 7×8×{want}" in message


# Other data sets.


def write(file: Path, train: np.ndarray, test: np.ndarray | None = None, classes: int = 2) -> str:
    """An .npz with labels that run through the classes in turn."""
    arrays = {"x_train": train, "y_train": np.arange(len(train)) % classes}
    if test is not None:
        arrays |= {"x_test": test, "y_test": np.arange(len(test)) % classes}
    np.savez(file, **arrays)
    return str(file)


@pytest.mark.parametrize("split", ["test", "train"])
def test_of_another_data_set_the_test_split_is_taken_if_there_is_one(
    tmp_path: Path, split: str
) -> None:
    train, test = images(8, 4, 4, 3, seed=3), images(6, 4, 4, 3, seed=4)
    path = write(tmp_path / "a.npz", train, test if split == "test" else None)
    (item,) = gather(inputs="", data_sets=f"elsewhere = {path}").kinds
    assert (item.kind, item.title, item.scale) == ("elsewhere", "elsewhere", 1)
    assert sorted(contents(item.images)) == sorted(contents(test if split == "test" else train))
    assert (item.labels == -1).all()


def test_a_source_is_a_path_if_there_is_one_or_it_looks_like_one_else_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {"inputs": "", "examples": 2}
    by_name = gather(**wanted, data_sets="it=digits").kinds[0]
    assert by_name.images.shape == (2, 4, 4, 3)
    assert (by_name.images[..., :1] == by_name.images).all()
    write(tmp_path / "file.npz", images(8, 4, 4, 3, seed=3))
    (tmp_path / "file.npz").rename("digits.npz")
    for source in ("digits.npz", "./digits.npz", str(tmp_path / "digits.npz")):
        item = gather(**wanted, data_sets=f"it={source}").kinds[0]
        assert set(contents(item.images)) <= set(contents(images(8, 4, 4, 3, seed=3)))
    for source in ("./nothing", "~/nothing-here", "/nothing/here"):
        message = refusal(tmp_path, lambda s=source: gather(**wanted, data_sets=f"it={s}"))
        assert f"trust.data_sets: it={source}: " in message
        assert "no such file or folder" in message
        assert "as a name" not in message
    message = refusal(tmp_path, lambda: gather(**wanted, data_sets="it=no-name"))
    assert "no such file or folder, and as a name: " in message


def write_parquet_named(folder: Path, names: list[str]) -> str:
    from tests.data.test_datasets import write_parquet

    write_parquet(folder / "train.parquet", images(8, 6, 6, 3), np.arange(8) % len(names), names)
    return str(folder)


@pytest.mark.parametrize("names", [["dog", "bird", "cat"], ["cat", "dog"]])
def test_labels_of_the_same_classes_are_matched_by_name(tmp_path: Path, names: list[str]) -> None:
    path = write_parquet_named(tmp_path, names)
    taken = {"inputs": "", "data_sets": f"a={path}, b={path}"}
    a, b = gather(**taken, same_classes="b").kinds
    assert (a.labels == -1).all()
    resized = inputs.matched(images(8, 6, 6, 3), (4, 4, 3), "")
    theirs = dict(zip(contents(resized), np.arange(8) % len(names), strict=True))
    for image, label in zip(b.images, b.labels, strict=True):
        assert ("bird", "cat", "dog")[label] == names[theirs[image.tobytes()]]
    # Streams are of names, not of places.
    assert contents(a.images) != contents(b.images)
    (alone,) = gather(inputs="", data_sets=f"b={path}").kinds
    np.testing.assert_array_equal(alone.images, b.images)


def test_classes_that_cannot_be_matched_are_refused(tmp_path: Path) -> None:
    path = write_parquet_named(tmp_path, ["cat", "cow", "emu"])
    wanted = {"inputs": "", "data_sets": f"a={path}", "same_classes": "a"}
    assert "trust.same_classes: a: no one class of the run has the name cow, emu;" in refusal(
        tmp_path, lambda: gather(**wanted)
    )
    numbers = dataclasses.replace(data(), classes=("0", "1", "2"))
    taken = wanted | {"data_sets": f"a={write(tmp_path / 'a.npz', images(8, 4, 4, 3, seed=5))}"}
    message = refusal(tmp_path, lambda: gather(numbers, **taken))
    assert "its 2 classes and the run's 3 have numbers for names" in message
    same = dataclasses.replace(data(), classes=("0", "1"))
    assert set(gather(same, **taken).kinds[0].labels) == {0, 1}
    twice = dataclasses.replace(data(), classes=("cat", "cow", "emu", "emu"))
    assert "has the name emu;" in refusal(tmp_path, lambda: gather(twice, **wanted))


def test_images_that_are_candidates_are_refused(tmp_path: Path) -> None:
    found = data()
    mixed = np.concatenate([images(6, 4, 4, 3, seed=9), found.x_train[3:5]])
    path = write(tmp_path / "a.npz", mixed)
    message = refusal(tmp_path, lambda: gather(found, data_sets=f"again={path}"))
    assert message.startswith("trust.data_sets: again=")
    assert "2 of the 8 images" in message
    Image.fromarray(found.x_train[0]).save(tmp_path / "copy.png")
    message = refusal(tmp_path, lambda: gather(found, generated=str(tmp_path)))
    assert message.startswith("trust.generated = ")
    assert "1 of the 1 images" in message


# Generated images.


def test_generated_images_are_read_from_all_folders_whatever_their_size(tmp_path: Path) -> None:
    (tmp_path / "below" / ".hidden").mkdir(parents=True)
    colour, grey, large = images(1, 4, 4, 3)[0], images(1, 4, 4)[0], images(1, 9, 8, 3)[0]
    Image.fromarray(colour[::-1]).save(tmp_path / "a.PNG")
    Image.fromarray(grey).save(tmp_path / "below" / "b.bmp")
    Image.fromarray(large).convert("RGBA").save(tmp_path / "below" / "c.webp", lossless=True)
    for name in ("below/notes.txt", "below/.hidden/d.png", ".e.png", "f.npz", "README"):
        (tmp_path / name).write_text("no image")
    (item,) = gather(inputs="", generated=str(tmp_path)).kinds
    assert (item.kind, item.title) == ("generated", "generated images")
    small = ImageOps.fit(Image.fromarray(large), (4, 4), Image.Resampling.BILINEAR)
    expected = [colour[::-1], grey[..., None].repeat(3, -1), np.asarray(small)]
    assert sorted(contents(item.images)) == sorted(contents(np.stack(expected)))
    assert (item.labels == -1).all()


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def deepen(file: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file)


@pytest.mark.parametrize(
    ("change", "part"),
    [(damage, "cannot be decoded"), (deepen, "8 bits")],
)
def test_damaged_files_are_named(tmp_path: Path, change: Callable[[Path], None], part: str) -> None:
    Image.fromarray(images(1, 9, 9, 3)[0]).save(tmp_path / "a.png")
    change(tmp_path / "a.png")
    message = refusal(tmp_path, lambda: gather(generated=str(tmp_path)))
    assert str(tmp_path / "a.png") in message
    assert part in message


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    for folder, part in ((tmp_path, "holds no image files"), (tmp_path / "no", "no such folder")):
        message = refusal(tmp_path, lambda f=folder: gather(generated=str(f)))
        assert f'trust.generated = "{folder}": {part}' in message


def test_special_files_among_generated_images_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    message = refusal(tmp_path, lambda: gather(generated=str(tmp_path)))
    assert message == f"{tmp_path / 'a.png'}: is a pipe, not a file; remove it"
    for folder in ("~no-such-user/x", "a\0b", "/dev/zero"):
        message = refusal(None, lambda f=folder: gather(generated=f))
        assert message.startswith("trust.generated = ")
        assert "no such folder" in message


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_more_noise_than_memory_holds_is_refused_before_it_is_drawn(kind: str) -> None:
    message = refusal(None, lambda: gather(inputs=kind, examples=10**12))
    assert message.startswith(f"trust.examples = 1000000000000: {kind} noise needs")
    assert message.endswith("give fewer")
