"""Images decoded from files' bytes, and stacked into one array.

What an image's header says, its size and kind, is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from lira_jax import foreign
from lira_jax.errors import InputError

Example = tuple[bytes, int, str]  # an image file's content, label, place for messages
Shape = tuple[int, int, int]

# Pillow's readers that parse pixels and nothing else: the one of EPS, for instance, runs a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ADVICE = "replace or remove it"


def decode_image(data: bytes, place: str) -> np.ndarray:
    """The image in a file's bytes: uint8 [H, W, 1] if it is grey, [H, W, 3] if it is not.

    Args:
        data: of a file of one of FORMATS.
        place: where it comes from, for messages.

    Raises:
        InputError: no such image, a damaged one, one with more than 8 bits a channel, or one that
            is larger than memory or than Pillow's limit.
    """
    image, shape = _opened(data, place)
    foreign.check_memory(f"{place}: the image needs", _needed(shape), _ADVICE)
    return _pixels(image, shape, place)


def stack(examples: Iterable[Example], count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Examples as images uint8 [count, H, W, C] and labels int64 [count], with a bar.

    Raises:
        InputError: more or fewer examples than `count`, images of several sizes, more of them than
            memory holds, or one that `decode_image` would refuse.
    """
    images, labels = np.empty((0, 1, 1, 1), np.uint8), np.empty(0, np.int64)
    bar = tqdm(examples, f"decoding {split}", count, unit=" images", leave=False, disable=None)
    row = -1
    for row, (data, label, place) in enumerate(bar):
        image, shape = _opened(data, place)
        if row == 0:
            needed = count * (math.prod(shape) + 8) + _needed(shape)
            words = f"{place}: with the {count} images of {split} of that size, it needs"
            foreign.check_memory(words, needed, "give fewer or smaller images")
            images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int64)
        if shape != images.shape[1:]:
            raise InputError(
                f"{place}: image is {shape}, the first was {images.shape[1:]} "
                "(height, width, channels); make all images one size"
            )
        if row >= count:
            raise InputError(f"{place}: one more than the {count} that are announced; {_ADVICE}")
        if not -(2**31) <= label < 2**31:
            raise InputError(f"{place}: label {label} is beyond 32 bits; number classes 0…K-1")
        images[row], labels[row] = _pixels(image, shape, place), label
    if row + 1 != count:
        raise InputError(
            f"{split}: {row + 1} images, where {count} are announced; make the files again"
        )
    return images, labels


def _opened(data: bytes, place: str) -> tuple[Any, Shape]:
    """The image, of which the header alone is read, and the shape that `decode_image` gives it."""
    from PIL import Image

    with foreign.reading(place, _ADVICE, "image cannot be decoded"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "PNG":  # decoding it would pass over the checksums within
            image.verify()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{place}: image has more than 8 bits a channel; store it with 8")
    return image, (image.height, image.width, 1 if image.mode in ("1", "L", "LA") else 3)


def _pixels(image: Any, shape: Shape, place: str) -> np.ndarray:
    with foreign.reading(place, _ADVICE, "image cannot be decoded"):
        return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


def _needed(shape: Shape) -> int:
    """Bytes to decode one image: Pillow's own, converted, and as an array."""
    return 12 * shape[0] * shape[1]
