"""TensorFlow Datasets prepared on this disk, read without TensorFlow and without the network."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax.data import cifar
from lira_jax.data.arrays import Arrays
from lira_jax.data.cache import cached
from lira_jax.data.images import Example, stack
from lira_jax.errors import InputError, one_line


def read(name: str) -> Arrays:
    """TFDS data prepared on this disk, read without TensorFlow as `tfds.data_source` does."""
    where = f'data.name = "{name}"'
    try:
        import tensorflow_datasets as tfds  # only here: slow, and not needed otherwise

        # `builder_from_files` reads prepared files only. `tfds.data_source` would go on to the
        # data set's code, which asks Google Cloud Storage about data that is not prepared.
        from tensorflow_datasets.core import constants
        from tensorflow_datasets.core.read_only_builder import builder_from_files
    except ImportError as error:
        raise InputError(
            f"{where}: TensorFlow Datasets does not import ({one_line(error)}); "
            "run pip install tensorflow-datasets array_record importlib_resources. "
            + _without_tensorflow(name)
        ) from None

    with _quiet_absl():
        data_dir = constants.get_default_data_dir()  # $TFDS_DATA_DIR or ~/tensorflow_datasets
        try:
            # Any format, so that the wrong one can be named.
            builder = builder_from_files(name, data_dir=data_dir)
            info = builder.info
            formats = {str(item.value) for item in info.available_file_formats()}
        except tfds.core.DatasetNotFoundError:
            known = tfds.list_builders(with_community_datasets=False)
            if name.split("/")[0] not in known:
                near = difflib.get_close_matches(name, [*known, "digits"], 1)
                raise InputError(
                    f"{where}: not known to TFDS and not in {data_dir}; "
                    + (f"did you mean `{near[0]}`? Otherwise " if near else "")
                    + "give digits, a TFDS name, or package.module:function"
                ) from None
            raise InputError(
                f"{where}: not prepared in {data_dir}; {_how_to_prepare(name)}"
            ) from None
        except Exception as error:  # TFDS raises many kinds for a damaged folder or a wild name
            raise InputError(
                f"{where}: TFDS cannot open it in {data_dir} ({one_line(error)}); "
                f"if the name is right, {_how_to_prepare(name)}"
            ) from error
        folder = Path(builder.data_path)
        if "array_record" not in formats:
            raise InputError(
                f"{where}: prepared as {', '.join(sorted(formats))} in {folder}; "
                f"move that folder away, then {_how_to_prepare(name)}"
            )
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        return cached(files, lambda: _decode(builder, where, name))


def _decode(builder: Any, where: str, name: str) -> Arrays:
    features, splits = builder.info.features, builder.info.splits
    if not {"image", "label"} <= set(features):
        raise InputError(
            f"{where}: has features {', '.join(features)}; only sets with image and label are read"
        )
    counts = {split: splits[split].num_examples for split in splits if splits[split].shard_lengths}
    if "train" not in counts:
        raise InputError(f"{where}: has splits {', '.join(counts)} but no train; choose another")
    test = "test" if "test" in counts else "validation"

    def examples(split: str) -> Iterator[Example]:
        source = builder.as_data_source(split, file_format="array_record")
        for row in range(len(source)):
            try:
                example = source[row]
                image, label = np.asarray(example["image"]), int(example["label"])
            except Exception as error:  # from C++, protocol buffers or the image decoder
                raise InputError(
                    f"{where}: {builder.data_path}: {split} row {row} is not readable "
                    f"({one_line(error)}); move that folder away, then {_how_to_prepare(name)}"
                ) from error
            yield image, label, f"{where}: {split} row {row}"

    try:
        x_train, y_train = stack(examples("train"), counts["train"], "train")
        x_test, y_test = stack(examples(test) if test in counts else [], counts.get(test, 0), test)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{where}: {builder.data_path} is not readable ({one_line(error)}); "
            f"move that folder away, then {_how_to_prepare(name)}"
        ) from None
    classes = getattr(features["label"], "names", None)
    return Arrays(x_train, y_train, x_test, y_test, tuple(classes) if classes else None)


def _how_to_prepare(name: str) -> str:
    return (
        "run pip install tensorflow-cpu and then "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\". "
        + _without_tensorflow(name)
    )


def _without_tensorflow(name: str) -> str:
    if name.startswith("cifar"):
        url = cifar.url(name)
        return f"Without TensorFlow: download {url} and set data.path to {url.rsplit('/', 1)[-1]}"
    return "Without TensorFlow: set data.path to a folder of Parquet files or an .npz"


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silence absl's warnings, through which TFDS recommends OpenCV and the like."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
