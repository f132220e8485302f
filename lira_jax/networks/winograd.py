"""3×3 convolutions by Winograd's F(4×4, 3×3) (Lavin & Gray 2016, arXiv 1509.09308), for CPUs.

A tile of 4×4 outputs is Aᵀ[(G w Gᵀ) ⊙ (Bᵀ x B)]A, where x are the 6×6 inputs it sees: 36 products
per pair of channels instead of 144. Over all tiles these are 36 matrix products, and so are both
gradients. Sums are rounded differently: errors are about 2e-6 of a layer's root mean square.

Measured on one AVX2 core by `benchmarks/convolutions.py`, CPU ms for 64 images, here ← directly, as
`conv.py` does it otherwise (PyTorch channels_last):

    forward, 32×32, 32 → 32             14 ← 23   (15)
    forward, 16×16, 64 → 64            9.5 ← 19   (16)
    forward, 8×8, 64 → 64              3.4 ← 6.5  (5.0)
    forward, 8×8, 128 → 128            9.1 ← 21   (14)
    weight gradient, 32×32, 32 → 32     20 ← 28   (31)
    weight gradient, 16×16, 64 → 64     11 ← 22   (20)
    weight gradient, 8×8, 64 → 64      3.2 ← 5.9  (5.8)
    weight gradient, 8×8, 128 → 128    8.9 ← 20   (21)
    forward, 32×32, 16 → 16             10 ← 8.6  (5.7), so not used

Input gradients take as long as forward. The price is compilation, about four times as long a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

TILE = 4
# Fewer channels make the matrix products too small to pay for the transforms (16: 10 ms ← 8.6).
CHANNELS = 32
# Images are taken in pieces of so many numbers, half a megabyte, which stay in the cache.
PIECE = 2**17

# The transforms for the points 0, 1, −1, 2, −2 and ∞.
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def applies(
    x: Float[Array, "B H W I"],
    w: Any,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], ...],
) -> bool:
    """Whether this is such a convolution, and one that is faster so."""
    return (
        w.shape[:2] == (3, 3)
        and strides == (1, 1)
        and tuple(padding) == ((1, 1), (1, 1))
        and x.shape[1] % TILE == x.shape[2] % TILE == 0
        and min(w.shape[2:]) >= CHANNELS
        and x.dtype == jnp.float32  # the transforms cost digits that bfloat16 lacks
    )


def enough_tiles(x: Float[Array, "B H W I"]) -> bool:
    """Whether the weight gradient, too, is faster so: not for one small image."""
    return x.shape[0] * x.shape[1] * x.shape[2] >= 16 * TILE**2


def convolve(
    x: Float[Array, "B H W I"], w: Float[Array, "3 3 I O"], precision: Any
) -> Float[Array, "B H W O"]:
    """The convolution with one row and column of zeros around x."""
    batch, height, width, channels = x.shape
    images = _images_at_once(x, w.shape[3])
    kernels = _combine(_G, list(_combine(_G, list(w), 0).swapaxes(0, 1)), 1).reshape(
        36, *w.shape[2:]
    )

    def piece(x: Array) -> Array:
        products = jnp.matmul(_inputs(x), kernels, precision=precision)
        return _outputs(products, (images, height // TILE, width // TILE))

    pieces = lax.map(piece, x.reshape(-1, images, height, width, channels))
    return pieces.reshape(batch, height, width, -1)


def input_gradient(
    dy: Float[Array, "B H W O"], w: Float[Array, "3 3 I O"], precision: Any
) -> Float[Array, "B H W I"]:
    """The gradient of x: the convolution of dy with the kernel turned round."""
    turned = lax.optimization_barrier(w[::-1, ::-1].transpose(0, 1, 3, 2))
    return convolve(dy, turned, precision)


def weight_gradient(
    x: Float[Array, "B H W I"], dy: Float[Array, "B H W O"], precision: Any
) -> Float[Array, "3 3 I O"]:
    """The gradient of w."""
    channels, features = x.shape[3], dy.shape[3]
    images = _images_at_once(x, features)

    def accumulate(total: Array, first: Array) -> tuple[Array, None]:
        cut = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=images)
        product = lax.dot_general(
            _inputs(cut(x)),
            _output_gradients(cut(dy)),
            (((1,), (1,)), ((0,), (0,))),
            precision=precision,
        )
        return total + product, None

    sums, _ = lax.scan(
        accumulate, jnp.zeros((36, channels, features), x.dtype), jnp.arange(0, len(x), images)
    )
    rows = _combine(_G.T, list(sums.reshape(6, 6, channels, features)), 1)
    return _combine(_G.T, list(rows), 1)


def _images_at_once(x: Float[Array, "B H W I"], features: int) -> int:
    batch, height, width, channels = x.shape
    most = max(1, PIECE // (height * width * max(channels, features)))
    return max(n for n in range(1, min(batch, most) + 1) if batch % n == 0)


def _inputs(x: Float[Array, "b H W I"]) -> Float[Array, "36 T I"]:
    """Bᵀ x B of the tiles."""
    b, height, width, channels = x.shape
    h, w = height // TILE, width // TILE
    # A tile sees two pixels of the next one: there is one tile more, of zeros, in either direction.
    edges = (1, TILE - 1, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), edges, edges, (0, 0, 0)])
    x = x.reshape(b, h + 1, TILE, width + TILE, channels)
    x = _combine(_BT, [x[:, k // TILE : k // TILE + h, k % TILE] for k in range(6)], 0)
    x = x.reshape(6, b, h, w + 1, TILE, channels)
    x = _combine(_BT, [x[:, :, :, k // TILE : k // TILE + w, k % TILE] for k in range(6)], 1)
    return x.reshape(36, -1, channels)


def _outputs(
    products: Float[Array, "36 T O"], tiles: tuple[int, int, int]
) -> Float[Array, "b H W O"]:
    """Aᵀ products A of the tiles, put together."""
    b, h, w = tiles
    rows = _combine(_AT, list(products.reshape(6, 6, b, h, w, -1)), 2)
    y = _combine(_AT, list(rows), 4)
    return y.swapaxes(1, 2).reshape(b, h * TILE, w * TILE, -1)


def _output_gradients(dy: Float[Array, "b H W O"]) -> Float[Array, "36 T O"]:
    """A dy Aᵀ of the tiles."""
    b, height, width, features = dy.shape
    h, w = height // TILE, width // TILE
    dy = dy.reshape(b, h, TILE, width, features)
    dy = _combine(_AT.T, [dy[:, :, k] for k in range(TILE)], 0)
    dy = dy.reshape(6, b, h, w, TILE, features)
    dy = _combine(_AT.T, [dy[:, :, :, :, k] for k in range(TILE)], 1)
    return dy.reshape(36, -1, features)


def _combine(matrix: np.ndarray, parts: Sequence[Array], axis: int) -> Array:
    """The sums Σₖ matrix[a, k]·parts[k], stacked along an axis."""
    sums = []
    for row in matrix:
        terms = [float(c) * part for c, part in zip(row, parts, strict=True) if c]
        sums.append(reduce(add, terms))
    # Not to be fused with the next sums, which would make every one of these several times.
    return lax.optimization_barrier(jnp.stack(sums, axis))
