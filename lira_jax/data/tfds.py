"""TensorFlow Datasets prepared on this disk, read without TensorFlow and without the network.

A prepared folder is described by its own files, and TFDS imports the modules of the classes that
they name as types of features; so a folder may name the classes of TFDS alone. Of an example only
its image and label are taken, and decoded here.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lira_jax import foreign
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

        # These read prepared files only. `tfds.data_source` would go on to the data set's code,
        # which asks Google Cloud Storage about data that is not prepared.
        from tensorflow_datasets.core import constants
        from tensorflow_datasets.core.read_only_builder import (
            _find_builder_dir,  # `builder_from_files` finds and imports at once
        )
        from tensorflow_datasets.core.utils.error_utils import reraise_with_context
    except ImportError as error:
        raise InputError(
            f"{where}: TensorFlow Datasets does not import ({one_line(error)}); "
            "run pip install tensorflow-datasets array_record importlib_resources. "
            + _without_tensorflow(name)
        ) from None

    with _quiet_absl():
        data_dir = constants.get_default_data_dir()  # $TFDS_DATA_DIR or ~/tensorflow_datasets
        metadata = Path(data_dir) / name.split("/")[0] / ".config" / "metadata.json"
        foreign.check_regular(metadata, "remove it")  # which is read to find the folder
        advice = f"if the name is right, {_how_to_prepare(name)}"
        with (
            foreign.reading(where, advice, f"TFDS cannot open it in {data_dir}"),
            reraise_with_context(tfds.core.DatasetNotFoundError),
        ):
            builder_dir = _find_builder_dir(name, data_dir=data_dir)
        if builder_dir is None:
            known = tfds.list_builders(with_community_datasets=False)
            if name.split("/")[0] not in known:
                near = difflib.get_close_matches(name, [*known, "digits"], 1)
                raise InputError(
                    f"{where}: not known to TFDS and not in {data_dir}; "
                    + (f"did you mean `{near[0]}`? Otherwise " if near else "")
                    + "give digits, a TFDS name, or package.module:function"
                )
            raise InputError(f"{where}: not prepared in {data_dir}; {_how_to_prepare(name)}")
        folder = Path(builder_dir)
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if not f.is_dir()}
        builder = _builder(folder, files.values(), where, name)
        return cached(files, lambda: _decode(builder, where, name))


def _builder(folder: Path, files: Collection[Path], where: str, name: str) -> Any:
    """What TFDS reads a prepared folder with, which has only these files.

    Raises:
        InputError: one that is no regular file, a class of features that is not TFDS's own, another
            format, or shards elsewhere.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_directory

    for file in files:
        foreign.check_regular(file, "remove it")
    anew = f"move that folder away, then {_how_to_prepare(name)}"
    _refuse_unknown_classes(folder, _class_names(tfds.features), anew)
    with foreign.reading(where, anew, f"TFDS cannot open it in {folder}"):
        # Any format, so that the wrong one can be named.
        builder = builder_from_directory(folder)
        formats = {str(item.value) for item in builder.info.available_file_formats()}
        shards = {
            Path(path)
            for split in builder.info.splits.values()
            for path in (split.filepaths if split.shard_lengths else ())
        }
    if "array_record" not in formats:
        raise InputError(f"{where}: prepared as {', '.join(sorted(formats))} in {folder}; {anew}")
    if missing := sorted(shards - set(files)):
        raise InputError(f"{where}: {folder} holds no {missing[0]}, which it names; {anew}")
    return builder


def _class_names(module: Any) -> set[str]:
    """The names that TFDS gives to its own types of features."""
    types = [item for item in vars(module).values() if isinstance(item, type)]
    names = {f"{item.__module__}.{item.__name__}" for item in types}
    return names.union(*(vars(item).get("ALIASES", ()) for item in types))


def _refuse_unknown_classes(folder: Path, known: Collection[str], advice: str) -> None:
    """Refuse a folder that names any other class, of which TFDS would import the module."""
    for name in ("features.json", "dataset_info.json"):
        file = folder / name
        about = foreign.read_json(file, advice)
        if name != "features.json":
            about = about.get("features") if isinstance(about, dict) else None
        # Two older ways to name a class: under `type`, and in JSON within a text.
        parts = [about]
        while parts:
            part = parts.pop()
            if isinstance(part, list):
                parts += part
            if not isinstance(part, dict):
                continue
            parts += part.values()
            for key, value in part.items():
                if key in ("pythonClassName", "python_class_name"):
                    wrong = value not in known
                else:
                    wrong = key in ("jsonFeature", "json_feature") or "/" in key
                    wrong |= key == "type" and (part is about or isinstance(value, str))
                if wrong:
                    raise InputError(
                        f"{file}: {key} is {value!r:.100}, no class of TFDS itself, and its module "
                        f"would be imported; {advice}"
                    )


def _decode(builder: Any, where: str, name: str) -> Arrays:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.decode import DeserializeMethod
    from tensorflow_datasets.proto import tf_example_pb2

    features, splits = builder.info.features, builder.info.splits
    if not {"image", "label"} <= set(features):
        raise InputError(
            f"{where}: has features {', '.join(features)}; only sets with image and label are read"
        )
    image = features["image"]
    if not isinstance(image, tfds.features.Image) or image.shape[-1] not in (1, 3):
        raise InputError(
            f"{where}: its feature image is {image!r:.100}; only images of 1 or 3 channels are read"
        )
    counts = {split: splits[split].num_examples for split in splits if splits[split].shard_lengths}
    if "train" not in counts:
        raise InputError(f"{where}: has splits {', '.join(counts)} but no train; choose another")
    test = "test" if "test" in counts else "validation"

    def examples(split: str) -> Iterator[Example]:
        # Raw, as decoding would decode every feature, and images by any reader that there is.
        with foreign.reading(place, advice):
            source = builder.as_data_source(
                split, file_format="array_record", deserialize_method=DeserializeMethod.RAW_BYTES
            )
            rows = len(source)
        for row in range(rows):
            with foreign.reading(f"{place}: {split} row {row}", advice):
                fields = tf_example_pb2.Example.FromString(source[row]).features.feature
                (content,), (label,) = (
                    fields["image"].bytes_list.value, fields["label"].int64_list.value,
                )  # fmt: skip
            yield content, label, f"{where}: {split} row {row}"

    place = f"{where}: {builder.data_path}"
    advice = f"move that folder away, then {_how_to_prepare(name)}"
    x_train, y_train = stack(examples("train"), counts["train"], "train")
    x_test, y_test = stack(examples(test) if test in counts else [], counts.get(test, 0), test)
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
