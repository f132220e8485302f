"""Images and labels, by name or by path.

Every source ends in the same `Dataset` of uint8 images and int32 labels, through the same checks:

| `[data]`                                    | what is read                                       |
|---------------------------------------------|----------------------------------------------------|
| name = "digits"                             | 1,797 8×8 images from scikit-learn; no test split  |
| name = "package.module:function"            | the arrays that the function returns               |
| name = any other                            | TFDS data prepared on this disk as array_record    |
| path = `cifar-10-binary.tar.gz`, `-100-`    | the official archive, as downloaded                |
| path = folder of Parquet files              | the Hugging Face image layout                      |
| path = `.npz`                               | x_train, y_train, x_test, y_test                   |

What must be decoded (archives, Parquet, TFDS) is decoded once and kept as `.npy` files in
`$XDG_CACHE_HOME/lira_jax/datasets` (default `~/.cache`), under a key made from the source's file
names and contents: an edited source is decoded again, copies of one source share an entry.
Nothing here uses the network.

`leave_out` then removes whole classes, before `skip` and `limit` count: the other classes keep
their order and their names, and are numbered 0, 1, … anew.

`canaries` adds points made to be memorised (LiRA, figure 13):

| `canary_kind` | images                                            | labels                      |
|---------------|---------------------------------------------------|-----------------------------|
| mislabelled   | n of the first of these that has n: test images,  | any class but the right one |
|               | training images beyond `limit`, the last training |                             |
|               | images, which are then taken from the examples    |                             |
| noise         | uniform random pixels                             | any class                   |

So no image is there twice, with its right label and with a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lira_jax.config import DataConfig, entries
from lira_jax.data import membership
from lira_jax.errors import InputError
from lira_jax.user_code import failure, import_function


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images. The membership of the training images is in question.

    Attributes:
        name: a title.
        x_train: uint8 [E, H, W, C], often a read-only memory map.
        y_train: int32 [E].
        x_test: uint8 [T, H, W, C]; T may be 0.
        y_test: int32 [T].
        classes: the K class names; "0", "1", … if the source has none. Without those of
            `data.leave_out`, so that class k may be called "3".
        digest: SHA-256 over the arrays of examples, test images and canaries, and K, in hex. Equal
            for equal data from any source.
        x_canary: uint8 [I, H, W, C], images to add to the training images; I may be 0.
        y_canary: int32 [I].
        x_held_out: uint8 [H, …], images that are no candidates, for defences that need some: the
            test split or, where there is none, the training images beyond `data.limit`; without
            those whose mislabelled copies are canaries. H may be 0.
        y_held_out: int32 [H].
        x_left_out: uint8 [L, H, W, C], images of the classes of `data.leave_out`: those of the test
            split or, where it has none, of the training images. L may be 0.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    digest: str
    x_canary: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8)
    )
    y_canary: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    x_held_out: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8)
    )
    y_held_out: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    x_left_out: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty((0, 0, 0, 0), np.uint8)
    )


_Labelled = tuple[np.ndarray, np.ndarray]  # uint8 [E, H, W, C] and int32 [E]


class _Arrays(NamedTuple):
    """What a source gives, before the checks; None stands for absent."""

    x_train: Any
    y_train: Any
    x_test: Any = None
    y_test: Any = None
    classes: tuple[str, ...] | None = None


def load(config: DataConfig, seed: int = 0) -> Dataset:
    """The data set that `config` names; `config.path`, if not empty, wins over `config.name`.

    Args:
        config: what to load, and which canaries to add.
        seed: of the canaries, which follow from it and the data alone.

    Raises:
        InputError: no such source, or one that is truncated, foreign, or fails a check.
    """
    if config.path:
        path = Path(config.path).expanduser()
        # With a path, `name` is only a title, and the default would be a false one.
        name = path.name if config.name == DataConfig.name else config.name
        where, arrays = str(path), _from_path(path)
    else:
        name, where = config.name, f'data.name = "{config.name}"'
        arrays = _from_name(config.name)
    x_train, y_train, x_test, y_test, classes = _checked(arrays, where)
    x_left_out = x_train[:0]
    if out := _left_out(config.leave_out, classes, where):
        stay = [label for label in range(len(classes)) if label not in out]
        (x_train, y_train), left_train = _with_classes((x_train, y_train), stay)
        (x_test, y_test), left_test = _with_classes((x_test, y_test), stay)
        x_left_out = left_test if len(left_test) else left_train
        classes = tuple(classes[label] for label in stay)
        if len(np.unique(y_train)) < 2:
            raise InputError(
                f'data.leave_out = "{config.leave_out}": {where} then has training images of '
                f"{len(np.unique(y_train))} of its classes; leave fewer out, so that two remain"
            )
    beyond = x_train[:0], y_train[:0]
    if config.skip:
        if config.skip >= len(x_train):
            raise InputError(
                f"data.skip = {config.skip}: {where} has {len(x_train)} training images; "
                "give fewer, so that some are left"
            )
        x_train, y_train = x_train[config.skip :], y_train[config.skip :]
    if config.limit:
        if config.limit > len(x_train):
            raise InputError(
                f"data.limit = {config.limit}: {where} has {len(x_train)} training images"
                + f" beyond the first {config.skip}" * bool(config.skip)
                + "; give at most that many, or 0 for all"
            )
        beyond = x_train[config.limit :], y_train[config.limit :]
        x_train, y_train = x_train[: config.limit], y_train[: config.limit]
        if len(np.unique(y_train)) < 2:
            raise InputError(
                f"data.limit = {config.limit}: the first {config.limit} training images of {where} "
                "are all of one class; give a larger limit"
            )
    x_canary, y_canary = x_train[:0], y_train[:0]
    pools = [(x_test, y_test), beyond]
    if config.canaries:
        (x_train, y_train), (x_canary, y_canary), pools = _with_canaries(
            config, seed, (x_train, y_train), pools, len(classes), where
        )
    held_out = next((pool for pool in pools if len(pool[1])), beyond)
    held = [x_train, y_train, x_test, y_test] + [x_canary, y_canary] * bool(config.canaries)
    digest = hashlib.sha256(f"{len(classes)} classes".encode())
    for array in held:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return Dataset(
        name, x_train, y_train, x_test, y_test, classes, digest.hexdigest(),
        x_canary, y_canary, *held_out, x_left_out,
    )  # fmt: skip


def candidates(data: Dataset, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels whose membership is in question: training images, then canaries.

    The last few training images are left out, so that `block` folds share the rest and the
    canaries equally.

    Returns:
        uint8 [E, H, W, C] and int32 [E].

    Raises:
        InputError: too few images.
    """
    canaries = len(data.x_canary)
    examples = membership.usable_examples(len(data.x_train) + canaries, block)
    if examples <= canaries:
        raise InputError(
            f"{data.name}: {len(data.x_train)} training images"
            + f" and {canaries} canaries" * bool(canaries)
            + f" cannot be cut into {block} folds"
        )
    images, labels = data.x_train[: examples - canaries], data.y_train[: examples - canaries]
    if canaries:  # else the images may stay a memory map
        images = np.concatenate([images, data.x_canary])
        labels = np.concatenate([labels, data.y_canary])
    return images, labels


def shared(images: np.ndarray, others: np.ndarray) -> list[int]:
    """The numbers of those images, uint8 [E, H, W, C], that are also among `others`, bit by bit."""
    if images.shape[1:] != others.shape[1:]:
        return []
    known = {hashlib.sha256(image.tobytes()).digest() for image in others}
    return [
        number
        for number, image in enumerate(images)
        if hashlib.sha256(image.tobytes()).digest() in known
    ]


def _left_out(text: str, classes: tuple[str, ...], where: str) -> frozenset[int]:
    """The numbers of the classes in `data.leave_out`; what is a name is no number."""
    found: dict[int, str] = {}
    for entry in entries(text):
        named = [label for label, name in enumerate(classes) if name == entry]
        if not named and entry.isdecimal() and int(entry) < len(classes):
            named = [int(entry)]
        at = f'data.leave_out = "{text}": {entry}'
        if not named:
            near = difflib.get_close_matches(entry, classes, 1)
            raise InputError(
                f"{at} is no class of {where}; "
                + (f"did you mean `{near[0]}`? Its classes are " if near else "its classes are ")
                + ", ".join(classes[:20])
                + f", … ({len(classes)}; by number, 0…{len(classes) - 1})" * (len(classes) > 20)
            )
        if len(named) > 1:
            numbers = ", ".join(map(str, named))
            raise InputError(
                f"{at} is the name of classes {numbers} of {where}; give their numbers"
            )
        if named[0] in found:
            raise InputError(
                f"{at} is the same class as {found[named[0]]} before it; leave one of them out"
            )
        found[named[0]] = entry
    return frozenset(found)


def _with_classes(split: _Labelled, stay: list[int]) -> tuple[_Labelled, np.ndarray]:
    """What stays of a split, the classes `stay` numbered 0, 1, …; and the other images."""
    (x, y), here = split, np.isin(split[1], stay)
    return (x[here], np.searchsorted(stay, y[here]).astype(np.int32)), x[~here]


def _with_canaries(
    config: DataConfig,
    seed: int,
    train: _Labelled,
    pools: list[_Labelled],
    classes: int,
    where: str,
) -> tuple[_Labelled, _Labelled, list[_Labelled]]:
    """The training images that stay, the canaries, and what stays of the pools."""
    count, (x_train, y_train) = config.canaries, train
    # A stream of its own: masks are of (seed, block), probes of (seed, model, 1).
    random = np.random.default_rng((seed, 0, 2))
    if config.canary_kind == "noise":
        pixels = random.integers(0, 256, (count, *x_train.shape[1:]), np.uint8)
        return train, (pixels, random.integers(0, classes, count, np.int32)), pools
    place = next((place for place, pool in enumerate(pools) if len(pool[1]) >= count), None)
    if place is None:
        left = max(len(y_train) - count, 0)
        if len(np.unique(y_train[:left])) < 2:
            raise InputError(
                f"data.canaries = {count}: they would be taken from the {len(y_train)} training "
                f"images of {where}, of which too few would be left; give fewer"
            )
        pool, train = (x_train[left:], y_train[left:]), (x_train[:left], y_train[:left])
    else:
        pool = pools[place]
    chosen = np.sort(random.choice(len(pool[1]), count, replace=False))
    wrong = (pool[1][chosen] + random.integers(1, classes, count)) % classes
    if place is not None:
        rest = np.delete(pool[0], chosen, 0), np.delete(pool[1], chosen)
        pools = [*pools[:place], rest, *pools[place + 1 :]]
    return train, (pool[0][chosen], wrong.astype(np.int32)), pools


# The checks, the same for every source.


def _checked(arrays: _Arrays, where: str) -> tuple[Any, Any, Any, Any, tuple[str, ...]]:
    """x_train, y_train, x_test, y_test, classes in the types that `Dataset` promises."""
    x_train, y_train = _checked_split(arrays.x_train, arrays.y_train, f"{where}: train")
    if not len(x_train):
        raise InputError(f"{where}: no training images; give a source that holds some")
    if not all(x_train.shape[1:]):
        raise InputError(f"{where}: train images have shape {x_train.shape[1:]}: no pixels")
    x_test, y_test = arrays.x_test, arrays.y_test
    if (x_test is None) != (y_test is None):
        raise InputError(f"{where}: has one of x_test and y_test; give both or neither")
    if x_test is None or (np.size(x_test) == 0 and np.size(y_test) == 0):
        x_test, y_test = np.empty((0, *x_train.shape[1:]), np.uint8), np.empty(0, np.int32)
    x_test, y_test = _checked_split(x_test, y_test, f"{where}: test")
    if x_test.shape[1:] != x_train.shape[1:]:
        raise InputError(
            f"{where}: test images are {x_test.shape[1:]}, training images {x_train.shape[1:]} "
            "(height, width, channels); make them one size"
        )

    present = np.unique(np.concatenate([np.unique(y_train), np.unique(y_test)]))
    classes = arrays.classes
    if classes is None:
        # A guard against identifiers taken for labels, and against overflow below.
        if present[-1] >= len(x_train):
            raise InputError(
                f"{where}: labels reach {present[-1]}, with {len(x_train)} training images; "
                "number the classes 0, 1, …, K-1"
            )
        classes = tuple(str(label) for label in range(max(int(present[-1]), 0) + 1))
    if present[0] < 0 or present[-1] >= len(classes):
        bad = present[0] if present[0] < 0 else present[-1]
        split, labels = ("train", y_train) if bad in y_train else ("test", y_test)
        raise InputError(
            f"{where}: {split} label {bad} in row {int(np.argmax(labels == bad))} is outside the "
            f"classes 0…{len(classes) - 1}; correct it or remove that image"
        )
    if len(np.unique(y_train)) < 2:
        raise InputError(
            f"{where}: the training images are all of one class; a classifier needs two or more"
        )
    return x_train, np.array(y_train, np.int32), x_test, np.array(y_test, np.int32), classes


def _checked_split(x: Any, y: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 [E, H, W, C] and labels as integers [E]."""
    try:
        x, y = np.asanyarray(x), np.asanyarray(y)
    except ValueError:
        raise InputError(f"{where} images or labels are ragged; make all of one shape") from None
    if np.issubdtype(x.dtype, np.floating):
        raise InputError(
            f"{where} images are {x.dtype}; give uint8 0…255 (values in [0, 1]: "
            "multiply by 255, round and store as uint8)"
        )
    if x.dtype != np.uint8:
        raise InputError(f"{where} images are {x.dtype}; give uint8, values 0…255")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4:
        raise InputError(
            f"{where} images have shape {x.shape}; "
            "give [images, height, width, channels] or [images, height, width]"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise InputError(f"{where} labels are {y.dtype}; give integers 0, 1, …, K-1")
    if y.ndim != 1:
        raise InputError(f"{where} labels have shape {y.shape}; give one number per image")
    if len(x) != len(y):
        raise InputError(f"{where} has {len(x)} images but {len(y)} labels; give one per image")
    return x, y


# Sources by name.


def _from_name(name: str) -> _Arrays:
    if name == "digits":
        from sklearn.datasets import load_digits  # slow to import

        digits: Any = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return _Arrays(images, digits.target, classes=tuple(map(str, digits.target_names)))
    if ":" in name:
        return _from_function(name)
    if not re.fullmatch(r"\w+(/[\w.+-]+)?", name) or Path(name).is_file():
        raise InputError(
            f'data.name = "{name}": not a name; give digits, a TFDS name such as cifar10, or '
            "package.module:function (a file or folder goes into data.path)"
        )
    return _from_tfds(name)


def _from_function(name: str) -> _Arrays:
    """What the user's own "package.module:function" returns."""
    where = f'data.name = "{name}"'
    function = import_function(name, "data.name")
    try:
        result = function()
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises is bad input to us
        raise failure(where, error, "it must work without arguments") from error
    if isinstance(result, Dataset):
        arrays = (result.x_train, result.y_train, result.x_test, result.y_test)
        return _Arrays(*arrays, classes=tuple(result.classes))
    if isinstance(result, Mapping) and {"x_train", "y_train"} <= set(result):
        return _Arrays(*(result.get(field) for field in _Arrays._fields[:4]))
    if isinstance(result, (tuple, list)) and len(result) == 4:
        return _Arrays(*result)
    raise InputError(
        f"{where}: returned {type(result).__name__}; return (x_train, y_train, x_test, y_test), "
        "a mapping with these keys, or a lira_jax.data.datasets.Dataset"
    )


def _from_tfds(name: str) -> _Arrays:
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
            f"{where}: TensorFlow Datasets does not import ({_line(error)}); "
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
                f"{where}: TFDS cannot open it in {data_dir} ({_line(error)}); "
                f"if the name is right, {_how_to_prepare(name)}"
            ) from error
        folder = Path(builder.data_path)
        if "array_record" not in formats:
            raise InputError(
                f"{where}: prepared as {', '.join(sorted(formats))} in {folder}; "
                f"move that folder away, then {_how_to_prepare(name)}"
            )
        files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        return _cached(files, lambda: _decode_tfds(builder, where, name))


def _decode_tfds(builder: Any, where: str, name: str) -> _Arrays:
    features, splits = builder.info.features, builder.info.splits
    if not {"image", "label"} <= set(features):
        raise InputError(
            f"{where}: has features {', '.join(features)}; only sets with image and label are read"
        )
    counts = {split: splits[split].num_examples for split in splits if splits[split].shard_lengths}
    if "train" not in counts:
        raise InputError(f"{where}: has splits {', '.join(counts)} but no train; choose another")
    test = "test" if "test" in counts else "validation"

    def examples(split: str) -> Iterator[_Example]:
        source = builder.as_data_source(split, file_format="array_record")
        for row in range(len(source)):
            try:
                example = source[row]
                image, label = np.asarray(example["image"]), int(example["label"])
            except Exception as error:  # from C++, protocol buffers or the image decoder
                raise InputError(
                    f"{where}: {builder.data_path}: {split} row {row} is not readable "
                    f"({_line(error)}); move that folder away, then {_how_to_prepare(name)}"
                ) from error
            yield image, label, f"{where}: {split} row {row}"

    try:
        x_train, y_train = _stack(examples("train"), counts["train"], "train")
        x_test, y_test = _stack(examples(test) if test in counts else [], counts.get(test, 0), test)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{where}: {builder.data_path} is not readable ({_line(error)}); "
            f"move that folder away, then {_how_to_prepare(name)}"
        ) from None
    classes = getattr(features["label"], "names", None)
    return _Arrays(x_train, y_train, x_test, y_test, tuple(classes) if classes else None)


def _how_to_prepare(name: str) -> str:
    return (
        "run pip install tensorflow-cpu and then "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\". "
        + _without_tensorflow(name)
    )


def _without_tensorflow(name: str) -> str:
    if name.startswith("cifar"):
        url = _cifar_url(name)
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


# Sources by path.


def _from_path(path: Path) -> _Arrays:
    if not path.exists():
        hint = f"; download it from {_cifar_url(path.name)}" if "cifar" in path.name.lower() else ""
        raise InputError(f"{path}: no such file or folder{hint or '; check data.path'}")
    if path.is_dir():
        return _from_parquet(path)
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.suffix == ".parquet":
        raise InputError(f"{path}: set data.path to the folder that holds the Parquet files")
    return _cached({path.name: path}, lambda: _decode_cifar(path))


def _from_npz(path: Path) -> _Arrays:
    try:
        with path.open("rb") as handle:
            loaded = np.load(handle, allow_pickle=False)
            keys = getattr(loaded, "files", ())  # a plain .npy under this name has none
            found: dict[str, Any] = {key: loaded[key] for key in _Arrays._fields[:4] if key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not readable as .npz ({_line(error)}); "
            "write it again with numpy.savez(file, x_train=…, y_train=…, x_test=…, y_test=…)"
        ) from None
    if missing := [key for key in ("x_train", "y_train") if key not in found]:
        raise InputError(
            f"{path}: holds no {' and no '.join(missing)}; "
            "needed are x_train and y_train, and x_test and y_test if there is a test set"
        )
    return _Arrays(**found)


def _cifar_url(name: str) -> str:
    return (
        f"https://www.cs.toronto.edu/~kriz/cifar-{'100' if '100' in name else '10'}-binary.tar.gz"
    )


def _decode_cifar(path: Path) -> _Arrays:
    """The official archives: records of label byte(s), then 3 × 32 × 32 pixels, channels first."""
    wanted = re.compile(
        r"(data_batch_[1-5]|test_batch|train|test)\.bin|(batches\.meta|fine_label_names)\.txt"
    )
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                base = member.name.rsplit("/", 1)[-1]
                if wanted.fullmatch(base) and (handle := archive.extractfile(member)):
                    members[base] = handle.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error):
        raise InputError(
            f"{path}: truncated, or not a tar archive; data.path takes a folder of Parquet files, "
            "an .npz, or a CIFAR archive: if this is one, download it again from "
            + _cifar_url(path.name)
        ) from None

    # The label that counts is the record's last: CIFAR-100 has the coarse one before it.
    if "train.bin" in members or "fine_label_names.txt" in members:
        train, test, names, label_bytes = ["train.bin"], "test.bin", "fine_label_names.txt", 2
    else:
        train = [f"data_batch_{index}.bin" for index in range(1, 6)]
        test, names, label_bytes = "test_batch.bin", "batches.meta.txt", 1
    if missing := [base for base in (*train, test, names) if base not in members]:
        raise InputError(
            f"{path}: holds no {', '.join(missing)}, so it is not a complete CIFAR archive of the "
            f"binary version; download {_cifar_url(path.name)}"
        )

    def split(bases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        size = label_bytes + 3 * 32 * 32
        for base in bases:
            if len(members[base]) % size:
                raise InputError(
                    f"{path}: {base} has {len(members[base])} bytes, no multiple of {size}; "
                    f"download {_cifar_url(path.name)} again"
                )
        raw = b"".join(members[base] for base in bases)
        records = np.frombuffer(raw, np.uint8).reshape(-1, size)
        images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, label_bytes - 1].astype(np.int32)

    classes = tuple(members[names].decode("utf-8", "replace").split())
    return _Arrays(*split(train), *split([test]), classes)


def _from_parquet(folder: Path) -> _Arrays:
    """Parquet files named after their splits, in `folder` or in its `data/` as on the hub."""
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    # The first split name in the file's own: train.parquet, cifar-test.parquet,
    # validation-00000-of-00002.parquet; but not the "test" in latest.parquet.
    splits: dict[str, list[Path]] = {"train": [], "test": [], "valid": []}
    for file in files:
        if found := re.search(r"(?<![a-z])(train|test|valid)", file.name.lower()):
            splits[found[0]].append(file)
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
    return _cached(used, lambda: _decode_parquet(train, test))


def _decode_parquet(train: Sequence[Path], test: Sequence[Path]) -> _Arrays:
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

    def examples(files: Sequence[Path]) -> Iterator[_Example]:
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
                    f"{file}: not readable as Parquet ({_line(error)}); copy or download it again"
                ) from None
        try:
            return _stack(examples(files), rows, name)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{files[0].parent}: {name} Parquet files are damaged ({_line(error)}); "
                "copy or download them again"
            ) from None

    x_train, y_train = split(train, "train")
    x_test, y_test = split(test, "test")
    parquet, _, label = opened(train[0])
    return _Arrays(x_train, y_train, x_test, y_test, _class_names(parquet.schema_arrow, label))


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Class names in the Hugging Face schema metadata, if there are any."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def decode_image(data: bytes, place: str) -> np.ndarray:
    """The image in a file's bytes: uint8 [H, W, 1] if it is grey, [H, W, 3] if it is not.

    Args:
        place: where it comes from, for messages.

    Raises:
        InputError: no image, a damaged one, or one with more than 8 bits a channel.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{place}: image has more than 8 bits a channel; store it with 8")
        grey = image.mode in ("1", "L", "LA")
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds for a damaged image
        raise InputError(
            f"{place}: image cannot be decoded ({_line(error)}); replace or remove it"
        ) from error
    return pixels[..., None] if grey else pixels


_Example = tuple[np.ndarray, int, str]  # image [H, W, C], label, place for messages


def _stack(examples: Iterable[_Example], count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """`count` examples as images [count, H, W, C] and labels int64 [count], with a bar."""
    images, labels = np.empty((0, 1, 1, 1), np.uint8), np.empty(count, np.int64)
    bar = tqdm(examples, f"decoding {split}", count, unit=" images", leave=False, disable=None)
    for row, (image, label, place) in enumerate(bar):
        if image.dtype != np.uint8 or image.ndim != 3:
            raise InputError(
                f"{place}: image is {image.dtype} {image.shape}; "
                "needed is uint8 (height, width, channels)"
            )
        if row == 0:
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise InputError(
                f"{place}: image is {image.shape}, the first was {images.shape[1:]} "
                "(height, width, channels); make all images one size"
            )
        images[row], labels[row] = image, label
    return images, labels


# The cache of decoded arrays.

_CACHE_VERSION = 1  # raise it when a decoder's output changes

# What NumPy and json raise for missing, truncated and foreign files.
_DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError)


def _cached(files: Mapping[str, Path], decode: Callable[[], _Arrays]) -> _Arrays:
    """The decoded arrays of a source that consists of `files` (relative name: path).

    Images come back as read-only memory maps. Where the cache cannot be written, says so on
    stderr and returns the decoded arrays themselves.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "lira_jax" / "datasets" / _key(files)
    if folder.exists():
        try:
            return _read_cache(folder)
        except _DAMAGED as error:
            print(f"{folder}: damaged cache ({_line(error)}); decoding again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
    arrays = decode()
    try:
        _write_cache(folder, arrays)
        return _read_cache(folder)
    except _DAMAGED as error:
        print(f"{folder}: not cached ({_line(error)}); goes on without", file=sys.stderr)
        return arrays


def _key(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and contents of `files`, in hex."""
    key = hashlib.sha256(f"{_CACHE_VERSION}".encode())
    for name, file in sorted(files.items()):
        try:
            with file.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({_line(error)}); check its rights") from None
        key.update(f"\n{name}\n{content}".encode())
    return key.hexdigest()


def _write_cache(folder: Path, arrays: _Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        about: dict[str, Any] = {"classes": arrays.classes}
        for field in _Arrays._fields[:4]:
            array = getattr(arrays, field)
            np.save(new / f"{field}.npy", array)
            about[field] = [str(array.dtype), *array.shape]
        (new / "about.json").write_text(json.dumps(about), encoding="utf-8")
        # Where another process was faster the rename fails, and its folder has the same content.
        with contextlib.suppress(OSError):
            new.rename(folder)


def _read_cache(folder: Path) -> _Arrays:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    arrays = {}
    for field in _Arrays._fields[:4]:
        array = np.load(folder / f"{field}.npy", mmap_mode="r", allow_pickle=False)
        if [str(array.dtype), *array.shape] != about[field]:
            raise ValueError(f"{field}.npy is {array.dtype} {array.shape}, not {about[field]}")
        arrays[field] = array
    return _Arrays(**arrays, classes=about["classes"] and tuple(about["classes"]))


def _line(error: BaseException) -> str:
    """An exception of any library in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
