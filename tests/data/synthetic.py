"""Small sources of every kind, and what loading them must give."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lira_jax.config import DataConfig
from lira_jax.data import datasets
from lira_jax.errors import InputError


def arrays(count: int, shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Random uint8 images [count, *shape], and labels that run through the classes in turn."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    file: Path,
    images: Sequence[Any],
    labels: Any,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    """Images (arrays, or bytes as they are) in the Hugging Face layout, two rows a group."""
    cells = [{"bytes": png(x) if isinstance(x, np.ndarray) else x, "path": None} for x in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label = labels if isinstance(labels, pa.Array) else pa.array(np.asarray(labels))
    table = pa.table({columns[0]: pa.array(cells, struct), columns[1]: label})
    if names:
        about = {"info": {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=2)


def named(tmp_path: Path, names: Sequence[str], test: int = 9) -> str:
    """Twelve training and `test` test images of the classes in turn, in Parquet."""
    for split, count, seed in (("train", 12, 0), ("test", test, 1)):
        images, labels = arrays(count, (4, 4, 3), len(names), seed)
        if count:
            write_parquet(tmp_path / f"{split}.parquet", images, labels, names)
    return str(tmp_path)


def npz(tmp_path: Path, train: int, test: int) -> str:
    """Images that each differ from all others, as an .npz."""
    x, y = arrays(train + test, (4, 4, 3))
    split = {"x_train": x[:train], "y_train": y[:train], "x_test": x[train:], "y_test": y[train:]}
    np.savez(tmp_path / "data.npz", **split)
    return str(tmp_path / "data.npz")


def check(dataset: datasets.Dataset, train: Any, test: Any, classes: Sequence[str]) -> None:
    """`dataset` holds exactly these arrays, in the types that are promised."""
    for x, y, expected in (
        (dataset.x_train, dataset.y_train, train),
        (dataset.x_test, dataset.y_test, test),
    ):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(x, expected[0], strict=True)
        np.testing.assert_array_equal(y, expected[1])
    assert dataset.classes == tuple(classes)
    assert len(dataset.digest) == 64


def refused(config: DataConfig, *parts: str) -> str:
    """The message of the InputError: one line that holds all of `parts`."""
    with pytest.raises(InputError) as caught:
        datasets.load(config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message
