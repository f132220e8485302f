"""Parquet folders give the images that were put into them; bad ones get a single line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lira_jax import foreign
from lira_jax.config import DataConfig
from lira_jax.data import datasets
from tests.data.synthetic import arrays, check, png, refused, write_parquet

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = REPOSITORY.parent / "shared" / "data"


def test_parquet_grey(tmp_path: Path) -> None:
    train, test = arrays(7, (5, 4, 1)), arrays(3, (5, 4, 1), seed=1)
    write_parquet(tmp_path / "mine" / "train.parquet", *train, names=["a", "b", "c"])
    write_parquet(tmp_path / "mine" / "test.parquet", *test, names=["a", "b", "c"])
    write_parquet(tmp_path / "mine" / "latest.parquet", *test)  # no split's name: left alone
    dataset = datasets.load(DataConfig(path=str(tmp_path / "mine")))
    check(dataset, train, test, ["a", "b", "c"])


def test_parquet_sharded_as_on_the_hub(tmp_path: Path) -> None:
    """Shards in data/, columns img and fine_label, validation for test, no class names."""
    (x, y), test = arrays(9, (4, 4, 3)), arrays(3, (4, 4, 3), seed=1)
    columns = ("img", "fine_label")
    for shard, part in enumerate((slice(0, 5), slice(5, 9))):
        file = tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"
        write_parquet(file, x[part], y[part], columns=columns)
    file = tmp_path / "data" / "validation-00000-of-00001.parquet"
    write_parquet(file, *test, columns=columns)
    check(datasets.load(DataConfig(path=str(tmp_path))), (x, y), test, ["0", "1", "2"])
    (tmp_path / "data" / "train-00000-of-00002.parquet").unlink()
    refused(DataConfig(path=str(tmp_path)), "train-00001-of-00002.parquet", "2 shards, 1 are")


def test_parquet_converts_palette_images_to_rgb(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:2] = (255, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(colour).convert("P").save(buffer, "PNG")
    write_parquet(tmp_path / "train.parquet", [buffer.getvalue()] * 2, [0, 1])
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    np.testing.assert_array_equal(dataset.x_train, np.stack([colour, colour]))


@pytest.mark.skipif(not (REAL / "cifar10-jpeg").exists(), reason="no real CIFAR-10 beside here")
def test_real_cifar10(tmp_path: Path) -> None:
    """The smaller of the two real files, to be quick."""
    (tmp_path / "train.parquet").symlink_to(REAL / "cifar10-jpeg" / "test.parquet")
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    assert dataset.x_train.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.y_train), np.full(10, 1000))
    assert dataset.classes[0] == "airplane"
    assert 110 < dataset.x_train.mean() < 130  # CIFAR-10's mean is about 121


@pytest.mark.skipif(not (REAL / "mnist").exists(), reason="no real MNIST beside here")
def test_real_mnist(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").symlink_to(REAL / "mnist" / "test.parquet")
    dataset = datasets.load(DataConfig(path=str(tmp_path)))
    assert dataset.x_train.shape == (10_000, 28, 28, 1)
    assert np.bincount(dataset.y_train).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip


def test_bad_parquet_folders(tmp_path: Path) -> None:
    config = DataConfig(path=str(tmp_path))
    refused(config, str(tmp_path), "holds no train*.parquet")
    write_parquet(tmp_path / "plain_text" / "train.parquet", *arrays(6, (4, 4, 3)))
    refused(config, str(tmp_path), "there are Parquet files in plain_text")
    file = tmp_path / "plain_text" / "train.parquet"
    refused(DataConfig(path=str(file)), str(file), "the folder that holds")


def test_bad_parquet_files(tmp_path: Path) -> None:
    config, file = DataConfig(path=str(tmp_path)), tmp_path / "train.parquet"
    x, y = arrays(6, (4, 4, 3))

    write_parquet(file, x, y)
    whole = file.read_bytes()
    for content in (whole[:-9], b"", b"PAR1 and no more", b"\0" * 300 + whole[300:]):
        file.write_bytes(content)
        refused(config, str(tmp_path))
    write_parquet(file, x, y, columns=("picture", "label"))
    refused(config, str(file), "columns picture, label")
    pq.write_table(pa.table({"image": [png(i) for i in x], "label": y}), file)
    refused(config, str(file), "column image is binary")
    write_parquet(file, x, [f"class {label}" for label in y])
    refused(config, str(file), "column label is", "integers")
    write_parquet(file, x, pa.array([0, 1, None, 0, 1, 2]))
    refused(config, f"{file}: row 2", "no label")
    write_parquet(file, [*x[:3], None, *x[4:]], y)
    refused(config, f"{file}: row 3", "no image bytes")
    write_parquet(file, [*x[:5], b"not an image"], y)
    refused(config, f"{file}: row 5", "cannot be decoded")
    write_parquet(file, [*x[:4], png(x[4])[:60], x[5]], y)
    refused(config, f"{file}: row 4", "cannot be decoded")
    write_parquet(file, [*x[:4], x[4][:3], x[5]], y)
    refused(config, f"{file}: row 4", "(3, 4, 3)", "one size")
    write_parquet(file, [*x[:4], x[4][..., :1], x[5]], y)
    refused(config, f"{file}: row 4", "(4, 4, 1)", "one size")
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    write_parquet(file, [deep.getvalue()] * 6, y)
    refused(config, f"{file}: row 0", "8 bits")
    write_parquet(file, x, y, names=["a", "b"])
    refused(config, str(tmp_path), "train label 2 in row 2", "0…1")
    write_parquet(file, x[:0], y[:0])
    refused(config, str(tmp_path), "no training images")


def test_columns_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    config, file = DataConfig(path=str(tmp_path)), tmp_path / "train.parquet"
    x, y = arrays(6, (4, 4, 3))
    cells = pa.array([{"bytes": png(image)} for image in x])
    label = pa.array(y)
    pq.write_table(pa.Table.from_arrays([cells, label, label], ["image", "label", "label"]), file)
    refused(config, str(file), "two columns label")
    pq.write_table(pa.Table.from_arrays([cells, cells, label], ["image", "image", "label"]), file)
    refused(config, str(file), "two columns image")
    numbers = pa.array([{"bytes": 5}] * 6)
    pq.write_table(pa.table({"image": numbers, "label": label}), file)
    refused(config, str(file), "needed is struct {bytes, path}")
    write_parquet(file, x, pa.array(y.astype(np.uint64) + 2**63))
    refused(config, f"{file}: row 0: label 9223372036854775808 is beyond 32 bits")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff"])
def test_damaged_names_of_classes_are_refused(tmp_path: Path, text: str) -> None:
    x, y = arrays(6, (4, 4, 3))
    cells = pa.array([{"bytes": png(image)} for image in x])
    table = pa.table({"image": cells, "label": pa.array(y)})
    table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, tmp_path / "train.parquet")
    refused(DataConfig(path=str(tmp_path)), "train.parquet: not readable", "metadata")


@pytest.mark.parametrize("names", ["abc", [1, 2, 3], {"0": "a"}, []])
def test_names_that_are_no_list_of_texts_are_left_out(tmp_path: Path, names: Any) -> None:
    write_parquet(tmp_path / "train.parquet", *arrays(6, (4, 4, 3)), names=names)
    assert datasets.load(DataConfig(path=str(tmp_path))).classes == ("0", "1", "2")


def test_a_flipped_byte_in_a_page_with_a_checksum_is_refused(tmp_path: Path) -> None:
    x, y = arrays(64, (4, 4, 3))
    cells = pa.array([{"bytes": png(image)} for image in x])
    file = tmp_path / "train.parquet"
    table = pa.table({"label": pa.array(y), "image": cells})
    pq.write_table(table, file, write_page_checksum=True, use_dictionary=False, compression="none")
    whole = file.read_bytes()
    labels = y.astype("<i8").tobytes()
    place = whole.index(labels) + 80
    file.write_bytes(whole[:place] + b"\2" + whole[place + 1 :])
    refused(DataConfig(path=str(tmp_path)), str(file), "damaged")


def test_columns_that_claim_far_more_than_they_are_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "LARGE", 2**16)
    x, y = arrays(6, (4, 4, 3))
    cells = pa.array([{"bytes": png(image) + bytes(2**20)} for image in x])
    table = pa.table({"image": cells, "label": pa.array(y)})
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd")
    refused(DataConfig(path=str(tmp_path)), "that claim to be")
