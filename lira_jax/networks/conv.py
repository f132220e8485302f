"""A convolution whose gradients stay fast inside `lax.scan` and `lax.map` on CPU.

XLA:CPU rewrites gradient convolutions into its fast NHWC form only in a program's entry
computation; inside a loop they fall back to naive loops, about 25 times slower. So the gradients
are written here as NHWC/HWIO/NHWC convolutions from the start. Elsewhere (GPU, TPU) the ordinary
gradients are used, which cuDNN and XLA recognise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], ...]


def conv_general_dilated(
    lhs: Float[Array, "B H W I"],
    rhs: Float[Array, "kh kw I O"],
    window_strides: tuple[int, ...],
    padding: str | Padding,
    **options: Any,
) -> Float[Array, "B h w O"]:
    """`lax.conv_general_dilated` for plain 2-D convolutions; give it to Flax as
    `conv_general_dilated=`.

    Raises:
        NotImplementedError: grouped or dilated convolution, or another layout than NHWC/HWIO/NHWC.
    """
    plain = (
        options.pop("lhs_dilation", (1, 1)) == (1, 1)
        and options.pop("rhs_dilation", (1, 1)) == (1, 1)
        and options.pop("feature_group_count", 1) == 1
        and lhs.ndim == 4
    )
    options.pop("dimension_numbers", None)  # Flax always means NHWC/HWIO/NHWC
    precision = options.pop("precision", None)
    if not plain or any(value is not None for value in options.values()):
        raise NotImplementedError("only plain 2-D convolutions; leave conv_general_dilated= out")
    strides = (window_strides[0], window_strides[1])
    if isinstance(padding, str):
        padding = tuple(lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding))
    return _conv(lhs, rhs, strides, tuple((low, high) for low, high in padding), precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, w: Array, strides: tuple[int, int], padding: Padding, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=_DIMENSIONS, precision=precision
    )


def _forward(
    x: Array, w: Array, strides: tuple[int, int], padding: Padding, precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, strides, padding, precision), (x, w)


def _backward(
    strides: tuple[int, int],
    padding: Padding,
    precision: Any,
    residuals: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    x, w = residuals
    conv = partial(lax.conv_general_dilated, dimension_numbers=_DIMENSIONS, precision=precision)

    def nhwc(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        pads_x, pads_w = [], []
        for axis in (0, 1):
            size, kernel = x.shape[axis + 1], w.shape[axis]
            span = (dy.shape[axis + 1] - 1) * strides[axis]  # dilated dy, less one
            low = kernel - 1 - padding[axis][0]
            pads_x.append((low, size + kernel - 2 - span - low))
            pads_w.append((padding[axis][0], kernel + span - size - padding[axis][0]))
        flipped = w[::-1, ::-1].transpose(0, 1, 3, 2)
        # Negative padding is cut off beforehand: XLA:CPU may read past the array for it.
        if min(min(pads_x)) < 0:
            dy_cut, pads_x = _cut(dy, pads_x, strides)
            dx = conv(dy_cut, flipped, (1, 1), pads_x)
        else:
            dx = conv(dy, flipped, (1, 1), pads_x, lhs_dilation=strides)
        x, pads_w = _cut(x, pads_w, (1, 1))
        # Weight gradient: input channels take the place of the batch, the batch that of channels.
        dw = conv(
            x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), pads_w, rhs_dilation=strides
        )
        return dx, dw.transpose(1, 2, 0, 3)

    def ordinary(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        _, pull_back = jax.vjp(lambda x, w: conv(x, w, strides, padding), x, w)
        return pull_back(dy)

    return lax.platform_dependent(x, w, dy, cpu=nhwc, default=ordinary)


def _cut(
    x: Array, pads: list[tuple[int, int]], dilation: tuple[int, int]
) -> tuple[Array, list[tuple[int, int]]]:
    """Dilate the pixels and apply negative padding; the padding that is left is at least 0."""
    edges = [
        (min(low, 0), min(high, 0), step - 1)
        for (low, high), step in zip(pads, dilation, strict=True)
    ]
    left = [(max(low, 0), max(high, 0)) for low, high in pads]
    if any(low or high or between for low, high, between in edges):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return x, left


_conv.defvjp(_forward, _backward)
