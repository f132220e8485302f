"""Folders of Parquet files in the Hugging Face image layout."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import foreign
from lira_jax.data.arrays import Arrays
from lira_jax.data.cache import cached
from lira_jax.data.images import Example, stack
from lira_jax.errors import InputError

_ADVICE = "copy or download it again"
# Rows decoded at a time. A column may repeat one large value by reference, so few.
_ROWS = 64


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
        near = (*folder.glob("*/*.parquet"), *folder.glob("*/*/*.parquet"))
        below = sorted({str(file.parent.relative_to(folder)) for file in near})
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
    x_train, y_train = _split(train, "train")
    x_test, y_test = _split(test, "test")
    with _opened(train[0]) as (parquet, _, label):
        classes = _class_names(parquet.schema_arrow, label, train[0])
    return Arrays(x_train, y_train, x_test, y_test, classes)


def _split(files: Sequence[Path], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = 0
    for file in files:
        with _opened(file) as (parquet, *_):
            rows += parquet.metadata.num_rows
    return stack((example for file in files for example in _examples(file)), rows, name)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, str, str]]:
    """The file and the names of its image and label columns."""
    import pyarrow as pa  # slow to import, and not needed once the cache is filled
    import pyarrow.parquet as pq

    with foreign.reading(file, _ADVICE, "not readable as Parquet"):
        # Where pages have checksums; few writers write them, and then labels have none.
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        schema = parquet.schema_arrow
        # Not by column: where the statistics of one are damaged, Arrow ends the process.
        groups = range(parquet.metadata.num_row_groups)
        declared = sum(parquet.metadata.row_group(group).total_byte_size for group in groups)
    with parquet:
        foreign.check_size(file, declared, file.stat().st_size, _ADVICE)
        image = next((name for name in ("image", "img") if name in schema.names), None)
        label = next((name for name in ("label", "fine_label") if name in schema.names), None)
        if image is None or label is None:
            raise InputError(
                f"{file}: has columns {', '.join(schema.names)}; needed are image (or img) and "
                "label (or fine_label)"
            )
        for name in (image, label):
            if schema.names.count(name) > 1:
                raise InputError(f"{file}: has two columns {name}; remove one of them")
        kind = schema.field(image).type
        index = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
        if index < 0 or kind.field(index).type not in (pa.binary(), pa.large_binary()):
            raise InputError(f"{file}: column {image} is {kind}; needed is struct {{bytes, path}}")
        if not pa.types.is_integer(schema.field(label).type):
            raise InputError(
                f"{file}: column {label} is {schema.field(label).type}; needed are integers 0…K-1"
            )
        yield parquet, image, label


def _examples(file: Path) -> Iterator[Example]:
    row = 0
    with _opened(file) as (parquet, image, label):
        batches = parquet.iter_batches(batch_size=_ROWS, columns=[image, label])
        while True:
            with foreign.reading(file, _ADVICE, "damaged"):
                batch = next(batches, None)
                if batch is None:
                    return
                cells, labels = batch.column(image).to_pylist(), batch.column(label).to_pylist()
            for cell, value in zip(cells, labels, strict=True):
                place = f"{file}: row {row}"
                if cell is None or cell["bytes"] is None or value is None:
                    raise InputError(f"{place} has no image bytes or no label; remove the row")
                yield cell["bytes"], value, place
                row += 1


def _class_names(schema: Any, label: str, file: Path) -> tuple[str, ...] | None:
    """Class names in the Hugging Face schema metadata, if there are any."""
    with foreign.reading(file, "write it again, or without its `huggingface` metadata"):
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
    for key in ("info", "features", label, "names"):
        about = about.get(key) if isinstance(about, dict) else None
    if not isinstance(about, list) or not all(isinstance(name, str) for name in about):
        return None
    return tuple(about) or None
