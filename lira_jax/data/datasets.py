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

Nothing here uses the network. `leave_out` removes whole classes, before `skip` and `limit` count:
the other classes keep their order and their names, and are numbered 0, 1, … anew. `canaries` adds
points made to be memorised.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lira_jax.config import DataConfig
from lira_jax.data import canaries, membership, sources
from lira_jax.data.arrays import checked
from lira_jax.data.canaries import FEWEST_NATURAL, Labelled
from lira_jax.errors import InputError
from lira_jax.fields import refusal


def _no_images() -> np.ndarray:
    return np.empty((0, 0, 0, 0), np.uint8)


def _no_labels() -> np.ndarray:
    return np.empty(0, np.int32)


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
    x_canary: np.ndarray = field(default_factory=_no_images)
    y_canary: np.ndarray = field(default_factory=_no_labels)
    x_held_out: np.ndarray = field(default_factory=_no_images)
    y_held_out: np.ndarray = field(default_factory=_no_labels)
    x_left_out: np.ndarray = field(default_factory=_no_images)


def load(config: DataConfig, seed: int = 0) -> Dataset:
    """The data set that `config` names; `config.path`, if not empty, wins over `config.name`.

    Args:
        config: what to load, and which canaries to add.
        seed: of the canaries, which follow from it and the data alone.

    Raises:
        InputError: no such source, or one that is truncated, foreign, or fails a check.
    """
    name, where, arrays = sources.read(config)
    x_train, y_train, x_test, y_test, classes = checked(arrays, where)
    x_left_out = x_train[:0]
    if out := _left_out(config.leave_out, classes, where):
        stay = [label for label in range(len(classes)) if label not in out]
        (x_train, y_train), left_train = _with_classes((x_train, y_train), stay)
        (x_test, y_test), left_test = _with_classes((x_test, y_test), stay)
        x_left_out = left_test if len(left_test) else left_train
        classes = tuple(classes[label] for label in stay)
        if (remain := len(np.unique(y_train))) < 2:
            reason = f"{where} then has training images of {remain} of its classes; leave fewer out"
            raise refusal("data.leave_out", config.leave_out, f"{reason}, so that two remain")
    train, beyond = _limited(config, (x_train, y_train), where)
    canary = x_train[:0], y_train[:0]
    pools = [(x_test, y_test), beyond]
    if config.canaries:
        train, canary, pools = canaries.insert(config, seed, train, pools, len(classes), where)
    held_out = next((pool for pool in pools if len(pool[1])), beyond)
    digest = hashlib.sha256(f"{len(classes)} classes".encode())
    for array in (*train, x_test, y_test, *(canary if config.canaries else ())):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return Dataset(
        name, *train, x_test, y_test, classes, digest.hexdigest(),
        x_canary=canary[0], y_canary=canary[1],
        x_held_out=held_out[0], y_held_out=held_out[1], x_left_out=x_left_out,
    )  # fmt: skip


def _limited(config: DataConfig, train: Labelled, where: str) -> tuple[Labelled, Labelled]:
    """The training images that `skip` and `limit` leave, and those beyond the limit."""
    x, y = train
    if config.skip and config.skip >= len(x):
        raise InputError(
            f"data.skip = {config.skip}: {where} has {len(x)} training images; give fewer, so that "
            "some are left"
        )
    x, y = x[config.skip :], y[config.skip :]
    if config.limit > len(x):
        raise InputError(
            f"data.limit = {config.limit}: {where} has {len(x)} training images"
            + f" beyond the first {config.skip}" * bool(config.skip)
            + "; give at most that many, or 0 for all"
        )
    limit = config.limit or len(x)
    if config.limit and len(np.unique(y[:limit])) < 2:
        raise InputError(
            f"data.limit = {limit}: the first {limit} training images of {where} are all of one "
            "class; give a larger limit"
        )
    return (x[:limit], y[:limit]), (x[limit:], y[limit:])


def in_equal_folds(data: Dataset, block: int) -> tuple[np.ndarray, np.ndarray]:
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
    fewest = FEWEST_NATURAL if canaries else 1
    if examples < canaries + fewest:
        raise InputError(
            f"{data.name}: {len(data.x_train)} training images"
            + f" and {canaries} canaries" * bool(canaries)
            + f" cannot be cut into {block} folds"
            + f" with {fewest} of the images among them" * bool(canaries)
            + "; give more images"
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


def _left_out(entries: Sequence[str], classes: Sequence[str], where: str) -> set[int]:
    """The numbers of the classes in `data.leave_out`; what is a name is no number."""
    numbers: dict[int, str] = {}
    for entry in entries:
        named = [label for label, name in enumerate(classes) if name == entry]
        if not named and entry.isdecimal() and int(entry) < len(classes):
            named = [int(entry)]
        if not named:
            near = difflib.get_close_matches(entry, classes, 1)
            reason = (
                f"is no class of {where}; "
                + (f"did you mean `{near[0]}`? Its classes are " if near else "its classes are ")
                + ", ".join(classes[:20])
                + f", … ({len(classes)}; by number, 0…{len(classes) - 1})" * (len(classes) > 20)
            )
        elif len(named) > 1:
            same = ", ".join(map(str, named))
            reason = f"is the name of classes {same} of {where}; give their numbers"
        elif named[0] in numbers:
            before = numbers[named[0]]
            reason = f"is the same class as {before} before it; leave one of them out"
        else:
            numbers[named[0]] = entry
            continue
        raise refusal("data.leave_out", entries, f"{entry} {reason}")
    return set(numbers)


def _with_classes(split: Labelled, stay: list[int]) -> tuple[Labelled, np.ndarray]:
    """What stays of a split, the classes `stay` numbered 0, 1, …; and the other images."""
    (x, y), here = split, np.isin(split[1], stay)
    return (x[here], np.searchsorted(stay, y[here]).astype(np.int32)), x[~here]
