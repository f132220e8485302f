"""Inputs that no model trained on (Hintersdorf et al., arXiv 2111.09076, section 4).

| kind       | images                                                       | labels             |
|------------|--------------------------------------------------------------|--------------------|
| test       | held-out images of the run's own data                        | their own          |
| permuted   | those of `test`, the pixels of each in an order of its own   | those of `test`    |
| scaled     | those of `test`, to be multiplied as the network's input     | those of `test`    |
| left_out   | images of the classes of `data.leave_out`                    | none               |
| uniform    | every value uniform on 0…255                                 | none               |
| gaussian   | normal values, as in each channel of the candidates          | none               |
| (a name)   | another data set                                             | by name, or none   |
| generated  | image files in a folder                                      | none               |

All have the size and channels of the run's images; see `matched`. Which images of a kind are taken,
and how they are altered, follows from the seed, the kind and the data alone: more examples keep the
first ones, and another kind beside it changes nothing.

No model trained on any of these as a member. With `defence.early_stopping` or `defence.adversarial`
held-out images had a say in training all the same.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from lira_jax import foreign
from lira_jax.config import (
    INPUT_KINDS,
    DataConfig,
    TrustConfig,
    other_data_sets,
)
from lira_jax.data import datasets
from lira_jax.data.datasets import Dataset
from lira_jax.data.images import FORMATS, decode_image
from lira_jax.errors import InputError
from lira_jax.fields import refusal
from lira_jax.random_streams import trust_inputs


@dataclass(frozen=True, eq=False)
class Inputs:
    """M images of one kind.

    Attributes:
        kind: unique, and fit for a file's name.
        title: for tables and legends.
        images: uint8 [M, H, W, C].
        labels: int32 [M], of the run's classes; −1 where there is none.
        scale: factor on the network's input.
    """

    kind: str
    title: str
    images: UInt8[np.ndarray, "M H W C"]
    labels: Int32[np.ndarray, " M"]
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Gathered:
    """All inputs of a run.

    Attributes:
        fit: held-out images on which temperatures are fitted, and which are in none of `kinds`;
            None if there are none.
        kinds: the inputs, in the order of this module's table.
        left_out: the kinds that `trust.inputs = "all"` could not make, and why.
    """

    fit: Inputs | None
    kinds: tuple[Inputs, ...]
    left_out: dict[str, str]


def gather(
    config: TrustConfig, data: Dataset, candidates: UInt8[np.ndarray, "E H W C"], seed: int
) -> Gathered:
    """All inputs that `config` asks for.

    Held-out images are shuffled. The first `config.fit` of them, at most half, are for
    temperatures; the next are `test`.

    Args:
        config: what to gather.
        data: of the run.
        candidates: of the run: the images that some of its models trained on.
        seed: of the run.

    Raises:
        InputError: a kind that is named but cannot be made, a source that cannot be read, or one
            whose images do not fit or are candidates, or whose classes cannot be matched; or more
            noise than memory holds.
    """
    order = trust_inputs(seed, "test").permutation(len(data.y_held_out))
    cut = min(config.fit, len(order) // 2)
    fit = _held_out(data, order[:cut], "fit", "images for temperatures")
    test = _held_out(data, order[cut:][: config.examples or None], "test", "test images")
    noise = (config.examples or len(test.labels) or len(candidates), *candidates.shape[1:])
    # Normal numbers are drawn as float32 and scaled as float64.
    for kind, size in (("uniform", 1), ("gaussian", 21)):
        if kind in config.inputs or config.inputs == ("all",):
            needed = size * math.prod(noise)
            words = f"trust.examples = {config.examples}: {kind} noise needs"
            foreign.check_memory(words, needed, "give fewer")
    scaled = {"kind": "scaled", "title": f"inputs × {config.scale:g}", "scale": config.scale}
    make: dict[str, Callable[[], Inputs]] = {
        "test": lambda: test,
        "permuted": lambda: _permuted(test, seed),
        "scaled": lambda: replace(test, **scaled),  # type: ignore[arg-type]
        "left_out": lambda: _left_out(config, data.x_left_out, seed),
        "uniform": lambda: _uniform(noise, seed),
        "gaussian": lambda: _gaussian(noise, candidates, seed),
    }
    missing: dict[str, str] = {}
    if not len(test.labels):
        reason = f"{data.name} has no test split, and data.limit leaves no training images over"
        missing |= dict.fromkeys(("test", "permuted", "scaled"), reason)
    if not len(data.x_left_out):
        missing["left_out"] = f"data.leave_out leaves out no images of {data.name}"
    named: Sequence[str] = INPUT_KINDS
    if config.inputs != ("all",):
        named = config.inputs
        for kind in named:
            if kind in missing:
                raise refusal("trust.inputs", named, f"no {kind}: {missing[kind]}")
        missing = {}
    kinds = [make[kind]() for kind in INPUT_KINDS if kind in named and kind not in missing]
    for name, source in other_data_sets(config).items():
        kinds.append(_other(config, name, source, data.classes, candidates, seed))
    if config.generated:
        kinds.append(_generated(config, candidates, seed))
    return Gathered(fit if cut else None, tuple(kinds), missing)


def digest(inputs: Inputs) -> str:
    """SHA-256 over images, labels and scale, in hex."""
    total = hashlib.sha256(f"scale {inputs.scale!r}".encode())
    for array in (inputs.images, inputs.labels):
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).data)
    return total.hexdigest()


def matched(
    images: UInt8[np.ndarray, "M h w c"], shape: tuple[int, int, int], where: str
) -> UInt8[np.ndarray, "M H W C"]:
    """Images with height, width and channels `shape`; those that have them already as they are.

    Each image is cropped about its centre to the new aspect ratio and resized by Pillow's bilinear
    filter, which averages over all pixels that a smaller image's pixel covers. Then three channels
    become one by Pillow's luma (ITU-R 601), or one becomes three equal ones.

    Args:
        where: what the images are, for messages.

    Raises:
        InputError: a number of channels that becomes no other.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    if images.shape[1:] == shape:
        return images
    if images.shape[3] != channels and {images.shape[3], channels} != {1, 3}:
        have, want = ("×".join(map(str, size)) for size in (images.shape[1:], shape))
        raise InputError(
            f"{where}: images are {have}, the run's {want} (height × width × channels); give "
            f"images with {channels} channels, since only 1 and 3 can become each other"
        )
    resized = np.empty((len(images), *shape), np.uint8)
    for row, image in zip(resized, images, strict=True):
        planes = [
            ImageOps.fit(Image.fromarray(plane), (width, height), Image.Resampling.BILINEAR)
            for plane in image.transpose(2, 0, 1)
        ]
        if len(planes) == 3 and channels == 1:
            planes = [Image.merge("RGB", planes).convert("L")]
        row[:] = np.stack([np.asarray(plane) for plane in planes], -1)
    return resized


def _unlabelled(kind: str, title: str, images: np.ndarray) -> Inputs:
    return Inputs(kind, title, images, np.full(len(images), -1, np.int32))


def _held_out(data: Dataset, index: np.ndarray, kind: str, title: str) -> Inputs:
    return Inputs(kind, title, data.x_held_out[index], data.y_held_out[index])


def _permuted(test: Inputs, seed: int) -> Inputs:
    """Channels stay together, so that each image keeps its colours."""
    random, (count, *size, channels) = trust_inputs(seed, "permuted"), test.images.shape
    flat = test.images.reshape(count, -1, channels)
    moved = np.stack([image[random.permutation(len(image))] for image in flat])
    return Inputs("permuted", "permuted pixels", moved.reshape(count, *size, channels), test.labels)


def _left_out(config: TrustConfig, images: np.ndarray, seed: int) -> Inputs:
    order = trust_inputs(seed, "left_out").permutation(len(images))[: config.examples or None]
    return _unlabelled("left_out", "left-out classes", images[order])


def _uniform(shape: tuple[int, ...], seed: int) -> Inputs:
    values = trust_inputs(seed, "uniform").integers(0, 256, shape, np.uint8)
    return _unlabelled("uniform", "uniform noise", values)


def _gaussian(shape: tuple[int, ...], candidates: np.ndarray, seed: int) -> Inputs:
    # Counted in parts: candidates may be a memory map, and a deviation at once would hold them all
    # as float64.
    counts = np.zeros((shape[-1], 256), np.int64)
    for start in range(0, len(candidates), 1000):
        part = candidates[start : start + 1000].reshape(-1, shape[-1])
        counts += [np.bincount(channel, minlength=256) for channel in part.T]
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256)
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    noise = trust_inputs(seed, "gaussian").standard_normal(shape, np.float32)
    noise = np.rint(mean + deviation * noise).clip(0, 255).astype(np.uint8)
    return _unlabelled("gaussian", "Gaussian noise", noise)


def _other(
    config: TrustConfig,
    name: str,
    source: str,
    classes: Sequence[str],
    candidates: np.ndarray,
    seed: int,
) -> Inputs:
    """Images of another data set."""
    where = f"trust.data_sets: {name}={source}"
    is_path = source[0] in "./~" or os.path.exists(source)
    try:
        other = datasets.load(DataConfig(path=source) if is_path else DataConfig(name=source))
    except InputError as error:
        hint = "" if is_path else "no such file or folder, and as a name: "
        raise InputError(f"{where}: {hint}{error}") from None
    x, y = (other.x_test, other.y_test) if len(other.y_test) else (other.x_train, other.y_train)
    order = trust_inputs(seed, name).permutation(len(y))[: config.examples or None]
    images = matched(x[order], candidates.shape[1:], where)
    _refuse_members(images, candidates, where)
    if name not in config.same_classes:
        return _unlabelled(name, name, images)
    return Inputs(name, name, images, _new_numbers(name, other.classes, classes)[y[order]])


def _new_numbers(name: str, theirs: Sequence[str], ours: Sequence[str]) -> Int32[np.ndarray, "K"]:
    """The number that each class of another data set has among the run's."""
    where = f"trust.same_classes: {name}"
    if all(map(str.isdecimal, (*theirs, *ours))) and len(theirs) != len(ours):
        raise InputError(
            f"{where}: its {len(theirs)} classes and the run's {len(ours)} have numbers for names, "
            f"which does not tell which of them are the same; leave {name} out"
        )
    if unknown := [label for label in theirs if list(ours).count(label) != 1]:
        more = f", … ({len(unknown)})" * (len(unknown) > 20)
        raise InputError(
            f"{where}: no one class of the run has the name {', '.join(unknown[:20])}{more}; leave "
            f"{name} out, or give images of the run's classes alone"
        )
    return np.array([ours.index(label) for label in theirs], np.int32)


def _generated(config: TrustConfig, candidates: np.ndarray, seed: int) -> Inputs:
    """Image files in a folder and in folders below, without hidden ones."""
    from PIL import Image

    where = f'trust.generated = "{config.generated}"'
    with foreign.reading(where, "give one that holds image files", "no such folder"):
        folder = Path(config.generated).expanduser()
        if not folder.is_dir():
            raise InputError(f"{where}: no such folder; give one that holds image files")
    endings = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in endings
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not file.is_dir()
    )
    for file in files:
        foreign.check_regular(file, "remove it")
    if not files:
        raise InputError(f"{where}: holds no image files; give a folder of PNG or JPEG files")
    order = trust_inputs(seed, "generated").permutation(len(files))[: config.examples or None]
    images = []
    for file in (files[number] for number in order):
        with foreign.reading(file, "remove it", "cannot be read"):
            foreign.check_memory(f"{file}: holds", file.stat().st_size, "remove it")
            content = file.read_bytes()
        pixels = decode_image(content, str(file))
        images.append(matched(pixels[None], candidates.shape[1:], str(file)))
    generated = np.concatenate(images)
    _refuse_members(generated, candidates, where)
    return _unlabelled("generated", "generated images", generated)


def _refuse_members(images: np.ndarray, candidates: np.ndarray, where: str) -> None:
    if both := datasets.shared(images, candidates):
        raise InputError(
            f"{where}: {len(both)} of the {len(images)} images taken from it are candidates of the "
            "run, on which some of its models trained; give images that are not"
        )
