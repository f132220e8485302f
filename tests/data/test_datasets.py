"""Which images stay: `skip`, `limit` and `leave_out`; and the digest of all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from tests.data.synthetic import arrays, check, named, refused, write_parquet


def test_limit_takes_the_first_training_images(tmp_path: Path) -> None:
    train, test = arrays(6, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    write_parquet(tmp_path / "train.parquet", *train)
    write_parquet(tmp_path / "test.parquet", *test)
    full = datasets.load(DataConfig(path=str(tmp_path)))
    dataset = datasets.load(DataConfig(path=str(tmp_path), limit=4))
    check(dataset, (train[0][:4], train[1][:4]), test, ["0", "1", "2"])
    assert isinstance(dataset.x_train, np.memmap)
    assert dataset.digest != full.digest
    assert datasets.load(DataConfig(path=str(tmp_path), limit=6)).digest == full.digest
    refused(DataConfig(path=str(tmp_path), limit=7), "data.limit = 7", "6 training images")
    refused(DataConfig(path=str(tmp_path), limit=1), "data.limit = 1", "one class")


def test_digest_follows_the_content_not_the_source(tmp_path: Path) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    np.savez(tmp_path / "same.npz", x_train=x, y_train=y.astype(np.uint8))
    digests = [
        datasets.load(DataConfig(path=str(path))).digest
        for path in (tmp_path, tmp_path / "same.npz")
    ]
    x[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y)
    assert digests[0] == digests[1]
    assert datasets.load(DataConfig(path=str(tmp_path / "other.npz"))).digest != digests[0]


@pytest.mark.parametrize("leave_out", ["cat", "1", " cat ,", "1,"])
def test_left_out_classes_are_in_no_split_and_the_others_are_numbered_anew(
    tmp_path: Path, leave_out: str
) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    full = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, leave_out=leave_out))
    splits = []
    for x, y in ((full.x_train, full.y_train), (full.x_test, full.y_test)):
        splits.append((x[y != 1], np.array([{0: 0, 2: 1}[label] for label in y[y != 1]])))
    check(dataset, *splits, ["bird", "dog"])
    np.testing.assert_array_equal(dataset.x_held_out, splits[1][0])
    np.testing.assert_array_equal(dataset.x_left_out, full.x_test[full.y_test == 1], strict=True)
    # Skip and limit count what is left.
    part = datasets.load(DataConfig(path=path, leave_out=leave_out, skip=1, limit=4))
    check(part, (splits[0][0][1:5], splits[0][1][1:5]), splits[1], ["bird", "dog"])


def test_nothing_left_out_changes_nothing(tmp_path: Path) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    full = datasets.load(DataConfig(path=path))
    assert full.x_left_out.shape == (0, 4, 4, 3)
    assert isinstance(full.x_train, np.memmap)
    assert full.digest == datasets.load(DataConfig(path=path, leave_out=" ,")).digest
    # The formula that runs on disk were made with.
    expected = hashlib.sha256(b"3 classes")
    for array in (full.x_train, full.y_train, full.x_test, full.y_test):
        expected.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    assert full.digest == expected.hexdigest()


def test_without_test_images_of_left_out_classes_their_training_images_are_taken(
    tmp_path: Path,
) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"), test=0)
    full = datasets.load(DataConfig(path=path))
    dataset = datasets.load(DataConfig(path=path, leave_out="dog", limit=2))
    np.testing.assert_array_equal(dataset.x_left_out, full.x_train[full.y_train == 2])


def test_a_class_name_that_looks_like_a_number_wins_over_the_number(tmp_path: Path) -> None:
    path = named(tmp_path, ("2", "1", "zero"))
    assert datasets.load(DataConfig(path=path, leave_out="2")).classes == ("1", "zero")
    assert datasets.load(DataConfig(path=path, leave_out="0")).classes == ("1", "zero")


def test_classes_are_left_out_without_decoding_again(tmp_path: Path, decoded: list[str]) -> None:
    path = named(tmp_path, ("bird", "cat", "dog"))
    datasets.load(DataConfig(path=path))
    assert len(decoded) == 21
    datasets.load(DataConfig(path=path, leave_out="cat"))
    assert len(decoded) == 21


@pytest.mark.parametrize(
    ("leave_out", "parts"),
    [
        ("cow", ["cow is no class", "bird, cat, dog, dog"]),
        ("cats", ["cats is no class", "did you mean `cat`?"]),
        ("4", ["4 is no class"]),
        ("-1", ["-1 is no class"]),
        ("dog", ["dog is the name of classes 2, 3", "give their numbers"]),
        ("cat, bird, 1", ["1 is the same class as cat"]),
        ("bird, cat, 2", ["training images of 1 of its classes"]),
        ("0, 1, 2, 3", ["training images of 0 of its classes"]),
    ],
)
def test_bad_classes_to_leave_out(tmp_path: Path, leave_out: str, parts: list[str]) -> None:
    path = named(tmp_path, ("bird", "cat", "dog", "dog"))
    config = DataConfig(path=path, leave_out=leave_out)
    refused(config, f'data.leave_out = "{leave_out}"', *parts)


def test_of_many_classes_some_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=arrays(40, (2, 2))[0], y_train=np.arange(40))
    message = refused(DataConfig(path=str(tmp_path / "data.npz"), leave_out="x"), "0…39")
    assert len(message) < 300 + len(str(tmp_path))
