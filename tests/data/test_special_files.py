"""What is no regular file is refused wherever data are read, and nothing waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lira_jax.config import DataConfig
from tests.data.synthetic import arrays, refused, write_parquet
from tests.data.test_tfds import write_tfds


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = pytest.mark.parametrize("make", [pipe, device, listening])


@SPECIAL
@pytest.mark.parametrize("name", ["data", "data.npz", "cifar-10-binary.tar.gz"])
def test_as_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(Path(name))
    refused(DataConfig(path=name), f"{name}: is a ", "not a file")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/dev/null"])
def test_a_device_itself(path: str) -> None:
    refused(DataConfig(path=path), f"{path}: is a ", "not a file")


@pytest.mark.parametrize("path", ["~no-such-user/x", "a\0b", "x" * 5000])
def test_no_path_at_all(path: str) -> None:
    refused(DataConfig(path=path), "check data.path")


@SPECIAL
def test_among_parquet_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_parquet(Path("train-0.parquet"), *arrays(6, (4, 4, 3)))
    make(Path("train-1.parquet"))
    refused(DataConfig(path="."), "train-1.parquet: is a ", "not a file")
    Path("train-1.parquet").unlink()
    Path("test.parquet").mkdir()
    refused(DataConfig(path="."), "test.parquet: is a folder, not a file")


@SPECIAL
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "tiny-train.x", "sub/x"])
def test_in_a_folder_of_tfds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], name: str
) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    folder = tmp_path / "tfds" / "tiny" / "1.0.0"
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder)
    Path(name).unlink(missing_ok=True)
    make(Path(name))
    refused(DataConfig(name="tiny"), f"{name}: is a ", "not a file; remove it")


def test_beside_the_versions_of_a_folder_of_tfds(tmp_path: Path) -> None:
    write_tfds(tmp_path / "tfds", {"train": arrays(6, (4, 4, 3))}, ["a", "b", "c"])
    (tmp_path / "tfds" / "tiny" / ".config").mkdir()
    pipe(tmp_path / "tfds" / "tiny" / ".config" / "metadata.json")
    refused(DataConfig(name="tiny"), "metadata.json: is a pipe, not a file")
