"""Views of images that label-only attacks ask about: rotated, translated, noisy, flipped.

Choquette-Choo et al. (arXiv 2007.14321), sections 4.2 and 4.4. Like `views.take`, all go from the
uint8 data set to float32 images in [−1, 1] in one step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int32, Key, UInt8

from lira_jax.data.views import plain


def rotated(
    images: UInt8[Array, "E H W C"], index: Int32[Array, " B"], degrees: Float[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Images of the given index, turned about their centre as `scipy.ndimage.rotate` does.

    Bilinear interpolation; beyond the borders, edge pixels are repeated.

    Args:
        degrees: from the first axis towards the second; 0 gives the image itself.
    """
    height, width = images.shape[1:3]
    down = (jnp.arange(height) - (height - 1) / 2)[:, None]
    right = (jnp.arange(width) - (width - 1) / 2)[None]

    def of_image(image: Float[Array, "H W C"], angle: Float[Array, ""]) -> Float[Array, "H W C"]:
        cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
        rows = cos * down + sin * right + (height - 1) / 2
        columns = cos * right - sin * down + (width - 1) / 2

        def channel(plane: Float[Array, "H W"]) -> Float[Array, "H W"]:
            return map_coordinates(plane, [rows, columns], order=1, mode="nearest")

        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(of_image)(plain(images, index), degrees)


def translated(
    images: UInt8[Array, "E H W C"],
    index: Int32[Array, " B"],
    down: Int32[Array, " B"],
    right: Int32[Array, " B"],
) -> Float[Array, "B H W C"]:
    """Images of the given index, moved by whole pixels; edge pixels are repeated behind them."""
    height, width = images.shape[1:3]
    rows = jnp.clip(jnp.arange(height) - down[:, None], 0, height - 1)
    columns = jnp.clip(jnp.arange(width) - right[:, None], 0, width - 1)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def noisy(
    images: UInt8[Array, "E H W C"],
    index: Int32[Array, " B"],
    key: Key[Array, ""],
    strengths: tuple[float, ...],
    copies: int,
) -> Float[Array, "B S T H W C"]:
    """T copies of each image with Gaussian noise of each strength, clipped to [−1, 1].

    Args:
        key: each copy's noise is a function of it and of the numbers of the example, the strength
            and the copy.
        strengths: S standard deviations, in units of images in [0, 1].
        copies: T.
    """
    # Of the network's input, which spans 2.
    deviation = 2 * jnp.array(strengths, jnp.float32)

    def altered(key: Array, image: Array, strength: Array) -> Array:
        return jnp.clip(image + strength * jax.random.normal(key, image.shape), -1, 1)

    return _copies(altered, key, plain(images, index), index, deviation, copies)


def flipped(
    images: UInt8[Array, "E H W C"],
    index: Int32[Array, " B"],
    key: Key[Array, ""],
    probabilities: tuple[float, ...],
    copies: int,
    values: tuple[int, int],
) -> Float[Array, "B P T H W C"]:
    """T copies of each image with each feature flipped with each probability.

    Args:
        key: as for `noisy`.
        probabilities: P of them.
        copies: T.
        values: the two values of all features; one becomes the other, −1 and 1 if they are 0
            and 255.
    """
    both = sum(values) / 127.5 - 2.0

    def altered(key: Array, image: Array, probability: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, probability, image.shape), both - image, image)

    chances = jnp.array(probabilities, jnp.float32)
    return _copies(altered, key, plain(images, index), index, chances, copies)


def _copies(
    altered: Callable[[Array, Array, Array], Array],
    key: Key[Array, ""],
    x: Float[Array, "B H W C"],
    index: Int32[Array, " B"],
    strengths: Float[Array, " S"],
    copies: int,
) -> Float[Array, "B S T H W C"]:
    """`one(key, image, strength)` for every example, strength and copy, with a key of its own."""

    def of_example(number: Array, image: Array) -> Array:
        def of_copy(strength: Array, copy: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, number), strength)
            return altered(jax.random.fold_in(own, copy), image, strengths[strength])

        of_strength = jax.vmap(of_copy, (None, 0))
        return jax.vmap(of_strength, (0, None))(jnp.arange(len(strengths)), jnp.arange(copies))

    return jax.vmap(of_example)(index, x)
