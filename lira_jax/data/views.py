"""Random training augmentation, and the fixed views that scoring queries.

Both move pixels by index: a shifted, reflect-padded, mirrored image is a gather from the original,
so a batch goes from the uint8 data set to the network in one gather.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt8

from lira_jax.errors import InputError


class Views(NamedTuple):
    """One fixed transform per query: mirror first, then shift with reflected borders.

    Attributes:
        mirror: [Q], true where the image is flipped left to right.
        down: [Q], pixels by which the window moves down.
        right: [Q], pixels by which the window moves right.
    """

    mirror: Bool[np.ndarray, "Q"]
    down: Int32[np.ndarray, "Q"]
    right: Int32[np.ndarray, "Q"]


def fixed_views(count: int) -> Views:
    """The first `count` of 162 fixed views; the same for every model and example.

    View 0 is the image, view 1 its mirror, views 0–17 mirror × shifts of at most 1 pixel, views
    0–161 mirror × shifts of at most 4 pixels (LiRA, section VI-C: 1, 2, 18 and 162 queries).
    Shifts are ordered by their larger coordinate, so each set begins with the smaller ones.
    """
    shifts = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]
    shifts.sort(key=lambda shift: (max(map(abs, shift)), shift))
    views = [(mirror, *shift) for shift in shifts for mirror in (False, True)]
    mirror, down, right = zip(*views[:count], strict=True)
    return Views(np.array(mirror), np.array(down, np.int32), np.array(right, np.int32))


def check_shift(shift: int, image_shape: tuple[int, ...], key: str) -> None:
    """Refuse shifts that reflected borders cannot fill.

    Raises:
        InputError: the shift is not below the smaller side of the image.
    """
    if shift >= min(image_shape[:2]):
        raise InputError(
            f"{key}: a shift of {shift} pixels does not fit images of "
            f"{image_shape[0]}×{image_shape[1]}; it must be below the smaller side"
        )


def _reflect(index: Int[Array, "..."], size: int) -> Int[Array, "..."]:
    """Index into an axis whose borders mirror, for −size < index < 2·size − 1."""
    return (size - 1) - jnp.abs(size - 1 - jnp.abs(index))


def take(
    images: UInt8[Array, "E H W C"],
    index: Int32[Array, "B"],
    mirror: Bool[Array, "B"],
    down: Int32[Array, "B"],
    right: Int32[Array, "B"],
) -> Float[Array, "B H W C"]:
    """Images of the given index, mirrored, shifted and scaled to float32 in [−1, 1]."""
    height, width = images.shape[1:3]
    rows = _reflect(jnp.arange(height) + down[:, None], height)
    columns = _reflect(jnp.arange(width) + right[:, None], width)
    columns = jnp.where(mirror[:, None], width - 1 - columns, columns)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def plain(images: UInt8[Array, "E H W C"], index: Int32[Array, "B"]) -> Float[Array, "B H W C"]:
    """Images of the given index, scaled to float32 in [−1, 1]."""
    return images[index].astype(jnp.float32) / 127.5 - 1.0


def augmented(
    images: UInt8[Array, "E H W C"],
    index: Int32[Array, "B"],
    key: Key[Array, ""],
    *,
    mirror: bool,
    shift: int,
    cutout: int,
) -> Float[Array, "B H W C"]:
    """A training batch: random mirror, random shift with reflected borders, cutout.

    The cutout is a square of side `cutout` around a uniform pixel, clipped at the border and set
    to mid grey (DeVries & Taylor 2017).
    """
    key_mirror, key_shift, key_cutout = jax.random.split(key, 3)
    batch, (height, width) = index.shape[0], images.shape[1:3]
    flips = jnp.zeros(batch, bool)
    moves = jnp.zeros((2, batch), jnp.int32)
    if mirror:
        flips = jax.random.bernoulli(key_mirror, shape=(batch,))
    if shift:
        moves = jax.random.randint(key_shift, (2, batch), -shift, shift + 1)
    x = take(images, index, flips, *moves) if mirror or shift else plain(images, index)
    if cutout:
        centre = jax.random.randint(key_cutout, (2, batch), 0, jnp.array([[height], [width]]))
        low = centre - cutout // 2
        hides = [
            (jnp.arange(size) >= start[:, None]) & (jnp.arange(size) < start[:, None] + cutout)
            for size, start in zip((height, width), low, strict=True)
        ]
        hole = hides[0][:, :, None, None] & hides[1][:, None, :, None]
        x = jnp.where(hole, 0.0, x)
    return x
