"""Canaries: images that are nowhere else, with a wrong label; or noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from lira_jax.errors import InputError
from tests.data.synthetic import npz, refused


@pytest.mark.parametrize(
    ("test", "limit", "source"),
    [(8, 0, "test"), (4, 12, "beyond"), (4, 0, "last"), (0, 18, "last")],
)
def test_mislabelled_canaries_are_images_that_are_nowhere_else_with_a_wrong_label(
    tmp_path: Path, test: int, limit: int, source: str
) -> None:
    path = npz(tmp_path, 20, test)
    plain = datasets.load(DataConfig(path=path, limit=limit))
    config = DataConfig(path=path, limit=limit, canaries=5)
    dataset = datasets.load(config, seed=1)
    everything = datasets.load(DataConfig(path=path))
    right = {}
    for x, y in (
        (everything.x_train, everything.y_train),
        (everything.x_test, everything.y_test),
    ):
        right |= {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    wrong = [right[image.tobytes()] for image in dataset.x_canary]
    assert (dataset.y_canary != wrong).all()
    assert set(dataset.y_canary) <= {0, 1, 2}
    canaries, train = ({x.tobytes() for x in y} for y in (dataset.x_canary, dataset.x_train))
    assert len(canaries) == 5
    assert not canaries & train
    held = len(plain.x_train) - 5 * (source == "last")
    np.testing.assert_array_equal(dataset.x_train, plain.x_train[:held])
    np.testing.assert_array_equal(dataset.y_train, plain.y_train[:held])
    pools = {
        "test": everything.x_test,
        "beyond": everything.x_train[limit:],
        "last": plain.x_train[held:],
    }
    assert canaries <= {image.tobytes() for image in pools[source]}


@pytest.mark.parametrize("canaries", [0, 5])
@pytest.mark.parametrize(
    ("test", "limit", "source"),
    [(8, 12, "test"), (0, 12, "beyond"), (4, 0, "test"), (0, 0, "none")],
)
def test_held_out_images_are_neither_candidates_nor_copies_of_canaries(
    tmp_path: Path, test: int, limit: int, source: str, canaries: int
) -> None:
    """The test split or, without one, the training images beyond `limit`, with their labels."""
    path = npz(tmp_path, 20, test)
    everything = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, limit=limit, canaries=canaries), seed=1)
    x, y = {
        "test": (everything.x_test, everything.y_test),
        "beyond": (everything.x_train[12:], everything.y_train[12:]),
        "none": (everything.x_test, everything.y_test),
    }[source]
    used = {image.tobytes() for image in dataset.x_canary}
    stays = [image.tobytes() not in used for image in x]
    np.testing.assert_array_equal(dataset.x_held_out, x[stays])
    np.testing.assert_array_equal(dataset.y_held_out, y[stays])
    assert (dataset.x_held_out.dtype, dataset.y_held_out.dtype) == (np.uint8, np.int32)
    candidates = {image.tobytes() for image in datasets.in_equal_folds(dataset, 1)[0]}
    assert not candidates & {image.tobytes() for image in dataset.x_held_out}


def test_where_canaries_take_the_whole_test_split_images_beyond_the_limit_are_held_out(
    tmp_path: Path,
) -> None:
    path = npz(tmp_path, 20, 5)
    dataset = datasets.load(DataConfig(path=path, limit=12, canaries=5))
    np.testing.assert_array_equal(
        dataset.x_held_out, datasets.load(DataConfig(path=path)).x_train[12:]
    )


def test_mislabelled_canaries_get_every_wrong_label_and_noise_every_label(tmp_path: Path) -> None:
    path = npz(tmp_path, 10, 600)
    dataset = datasets.load(DataConfig(path=path, canaries=600))
    right = datasets.load(DataConfig(path=path)).y_test
    counts = np.bincount((dataset.y_canary - right) % 3, minlength=3)
    assert counts[0] == 0
    assert counts.min(initial=600, where=counts > 0) > 240
    noise = datasets.load(DataConfig(path=path, canaries=600, canary_kind="noise"))
    assert np.bincount(noise.y_canary, minlength=3).min() > 150
    assert noise.x_canary.shape == (600, 4, 4, 3)
    assert (noise.x_canary.dtype, noise.y_canary.dtype) == (np.uint8, np.int32)
    assert np.bincount(noise.x_canary.ravel(), minlength=256).min() > 60  # 112.5 expected
    assert len(noise.x_train) == 10


def test_canaries_are_a_function_of_the_seed_and_part_of_the_digest(tmp_path: Path) -> None:
    path = npz(tmp_path, 20, 40)
    plain = datasets.load(DataConfig(path=path))
    assert (plain.x_canary.shape, plain.y_canary.shape) == ((0, 4, 4, 3), (0,))
    digests = {plain.digest, datasets.load(DataConfig(path=path, canary_kind="noise")).digest}
    assert len(digests) == 1
    for kind in ("mislabelled", "noise"):
        config = DataConfig(path=path, canaries=5, canary_kind=kind)
        first, again, other = (datasets.load(config, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.x_canary, again.x_canary)
        np.testing.assert_array_equal(first.y_canary, again.y_canary)
        assert first.digest == again.digest
        assert not np.array_equal(first.x_canary, other.x_canary)
        digests |= {first.digest, other.digest}
    assert len(digests) == 5


def test_canaries_that_leave_fewer_than_ten_training_images_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, 14, 2)
    for canaries in (5, 6, 14, 1000):
        config = DataConfig(path=path, canaries=canaries)
        refused(config, f"canaries = {canaries}", "give at most 4 canaries")
    dataset = datasets.load(DataConfig(path=path, canaries=4))  # the remedy
    assert len(dataset.x_train) == 10
    few = npz(tmp_path, 9, 20)
    for kind in ("mislabelled", "noise"):
        config = DataConfig(path=few, canaries=5, canary_kind=kind)
        refused(config, "9 training images", "give more images, or no canaries")
    with pytest.raises(InputError, match="2 folds with 10 of the images"):
        datasets.in_equal_folds(dataclasses.replace(dataset, x_train=dataset.x_train[:9]), 2)


def test_noise_canaries_beyond_memory_are_refused_before_any_is_drawn(tmp_path: Path) -> None:
    config = DataConfig(path=npz(tmp_path, 20, 2), canaries=10**12, canary_kind="noise")
    refused(config, "data.canaries = 1000000000000: need 96,000.0 GB", "give fewer")


def test_canaries_get_labels_of_the_classes_that_stay() -> None:
    dataset = datasets.load(DataConfig(leave_out="3, 7", canaries=200, canary_kind="noise"))
    assert dataset.classes == tuple("01245689")
    assert set(dataset.y_canary) == set(range(8))
