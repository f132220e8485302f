"""Images decoded from files' bytes, and stacked into one array."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from lira_jax.errors import InputError, one_line

Example = tuple[np.ndarray, int, str]  # image [H, W, C], label, place for messages


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
            f"{place}: image cannot be decoded ({one_line(error)}); replace or remove it"
        ) from error
    return pixels[..., None] if grey else pixels


def stack(examples: Iterable[Example], count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
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
