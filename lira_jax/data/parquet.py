"""Folders of Parquet files in the Hugging Face image layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax.data.arrays import Arrays
from lira_jax.data.cache import cached
from lira_jax.data.images import Example, decode_image, stack
from lira_jax.errors import InputError, one_line


def read(folder: Path) -> Arrays:
    """Parquet files named after their splits, in `folder` or in its `data/` as on the hub."""
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    # The first split name in the file's own: train.parquet, cifar-test.parquet,
    # validation-00000-of-00002.parquet; but not the "test" in latest.parquet.
    splits: dict[str, list[Path]] = {"train": [], "test": [], "valid": []}
    for file in files:
        if split := re.search(r"(?<![a-z])(train|test|valid)", file.name.lower()):
            splits[split[0]].append(file)
    if not splits["train"]:
        below = sorted({str(file.parent.relative_to(folder)) for file in folder.rglob("*.parquet")})
        seen = f"; there are Parquet files in {', '.join(below)}" if below else ""
        raise InputError(
            f"{folder}: holds no train*.parquet{seen}; set data.path to a folder of Parquet files "
            "named train… and test… or validation…"
        )
    train, test = splits["train"], splits["test"] or splits["valid"]
    for shards in (train, test):
        totals = [re.search(r"-\d+-of-0*(\d+)", file.name) for file in shards]
        if totals and totals[0] and int(totals[0][1]) != len(shards):
            raise InputError(
                f"{shards[0]}: one of {totals[0][1]} shards, {len(shards)} are there; "
                "download the rest into the same folder"
            )
    used = {str(file.relative_to(folder)): file for file in (*train, *test)}
    return cached(used, lambda: _decode(train, test))


def _decode(train: Sequence[Path], test: Sequence[Path]) -> Arrays:
    import pyarrow as pa  # slow to import, and not needed once the cache is filled
    import pyarrow.parquet as pq

    def opened(file: Path) -> tuple[Any, str, str]:
        """The file and the names of its image and label columns."""
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        image = next((name for name in ("image", "img") if name in schema.names), None)
        label = next((name for name in ("label", "fine_label") if name in schema.names), None)
        if image is None or label is None:
            raise InputError(
                f"{file}: has columns {', '.join(schema.names)}; needed are image (or img) and "
                "label (or fine_label)"
            )
        kind = schema.field(image).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise InputError(f"{file}: column {image} is {kind}; needed is struct {{bytes, path}}")
        if not pa.types.is_integer(schema.field(label).type):
            raise InputError(
                f"{file}: column {label} is {schema.field(label).type}; needed are integers 0…K-1"
            )
        return parquet, image, label

    def examples(files: Sequence[Path]) -> Iterator[Example]:
        for file in files:
            parquet, image, label = opened(file)
            row = 0
            for batch in parquet.iter_batches(batch_size=512, columns=[image, label]):
                cells, labels = batch.column(image).to_pylist(), batch.column(label).to_pylist()
                for cell, value in zip(cells, labels, strict=True):
                    place = f"{file}: row {row}"
                    if cell is None or cell["bytes"] is None or value is None:
                        raise InputError(f"{place} has no image bytes or no label; remove the row")
                    yield decode_image(cell["bytes"], place), value, place
                    row += 1

    def split(files: Sequence[Path], name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = 0
        for file in files:
            try:
                rows += opened(file)[0].metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{file}: not readable as Parquet ({one_line(error)}); copy or download it "
                    "again"
                ) from None
        try:
            return stack(examples(files), rows, name)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{files[0].parent}: {name} Parquet files are damaged ({one_line(error)}); "
                "copy or download them again"
            ) from None

    x_train, y_train = split(train, "train")
    x_test, y_test = split(test, "test")
    parquet, _, label = opened(train[0])
    return Arrays(x_train, y_train, x_test, y_test, _class_names(parquet.schema_arrow, label))


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Class names in the Hugging Face schema metadata, if there are any."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
