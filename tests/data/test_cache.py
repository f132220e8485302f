"""Decoded arrays are kept, by content; what is damaged is made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_jax import storage
from lira_jax.config import DataConfig
from lira_jax.data import datasets, parquet
from tests.data.synthetic import arrays, check, write_parquet


def test_cache_is_keyed_by_content(tmp_path: Path, cache: Path, decoded: list[str]) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "a" / "train.parquet", x, y, names=["a", "b", "c"])
    first = datasets.load(DataConfig(path=str(tmp_path / "a")))
    again = datasets.load(DataConfig(path=str(tmp_path / "a")))
    assert len(decoded) == 6
    assert again.digest == first.digest
    check(again, (x, y), (first.x_test, first.y_test), ["a", "b", "c"])
    assert isinstance(again.x_train, np.memmap)
    assert not again.x_train.flags.writeable

    # A copy elsewhere shares the entry; an edit in place does not.
    write_parquet(tmp_path / "b" / "train.parquet", x, y, names=["a", "b", "c"])
    datasets.load(DataConfig(path=str(tmp_path / "b")))
    assert len(decoded) == 6
    write_parquet(tmp_path / "a" / "train.parquet", x[::-1], y, names=["a", "b", "c"])
    edited = datasets.load(DataConfig(path=str(tmp_path / "a")))
    assert len(decoded) == 12
    np.testing.assert_array_equal(edited.x_train, x[::-1])
    assert len(list(cache.iterdir())) == 2  # no scratch folder stays behind


def truncate(folder: Path) -> None:
    file = folder / "x_train.npy"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_pixel(folder: Path) -> None:
    file = folder / "x_train.npy"
    content = bytearray(file.read_bytes())
    content[-200] ^= 1  # the checksum is what follows the pixels
    file.write_bytes(content)


def rename_a_class(folder: Path) -> None:
    file = folder / "about.json"
    file.write_bytes(file.read_bytes().replace(b"null", b'["a"]'))


def take_the_labels_of_another(folder: Path) -> None:
    storage.write_array(folder / "y_train.npy", np.zeros(5, np.int64))


def empty(folder: Path) -> None:
    (folder / "x_test.npy").write_bytes(b"")


def forget(folder: Path) -> None:
    (folder / "about.json").unlink()


def garble(folder: Path) -> None:
    storage.write_checked(folder / "about.json", lambda file: file.write(b"[" * 100_000))


def wait(folder: Path) -> None:
    (folder / "y_test.npy").unlink()
    os.mkfifo(folder / "y_test.npy")


@pytest.mark.parametrize("damage",
    [
        truncate, flip_a_pixel, rename_a_class, take_the_labels_of_another, empty, forget, garble,
        wait,
    ],
)  # fmt: skip
def test_damaged_cache_is_rebuilt(
    tmp_path: Path,
    cache: Path,
    decoded: list[str],
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    datasets.load(DataConfig(path=str(tmp_path)))
    (folder,) = cache.iterdir()
    damage(folder)
    capfd.readouterr()
    for _ in range(2):  # the second time from the repaired entry
        np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)
    assert len(decoded) == 12
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"{folder}: damaged cache" in said
    assert list(cache.iterdir()) == [folder]


def test_cache_tolerates_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process puts its folder in place while this one decodes."""
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    original = parquet._decode

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(parquet, "_decode", original)
        other = datasets.load(DataConfig(path=str(tmp_path)))
        np.testing.assert_array_equal(other.x_train, x)
        return original(*args)

    monkeypatch.setattr(parquet, "_decode", overtaken)
    np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)


def test_goes_on_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = arrays(6, (4, 4, 3))
    write_parquet(tmp_path / "train.parquet", x, y)
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(datasets.load(DataConfig(path=str(tmp_path))).x_train, x)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "not cached" in said
