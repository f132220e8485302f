"""A 2-D convolution that is fast on CPU, forward and backward, alone and inside `lax.scan`.

XLA:CPU rewrites gradient convolutions into its fast NHWC form only in a program's entry
computation; inside a loop they fall back to naive loops, about 25 times slower. So on CPU both
gradients are written here from operations that are fast anywhere. Elsewhere (GPU, TPU) the ordinary
convolution and gradients are used, which cuDNN and XLA recognise; where models are vectorised, the
gradients can be written in two ways (`CONV_GRADIENTS`).

Measured on one AVX-512 core, ms for 64 images with a 3×3 kernel, here ← NHWC convolutions:

    forward, 32×32, 3 → 16 channels           0.6 ← 3.5
    forward, 32×32, 16 → 16                   2.1 ← 3.4
    input gradient, 32×32, 16 → 32, stride 2  1.3 ← 4.5
    weight gradient, 32×32, 16 → 16           3.0 ← 4.2
    weight gradient, 16×16, 32 → 32           2.5 ← 4.0
    weight gradient, 8×8, 128 → 128           7.5 ← 12

3×3 kernels of many channels at stride 1 are left to `winograd.py`, which needs fewer products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from lira_jax.networks import winograd

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], ...]
Gradients = Literal["vmap", "grouped"]


class Options(NamedTuple):
    """How a window moves over an image, and with how many digits; rows before columns."""

    strides: tuple[int, int]
    padding: Padding
    precision: Any = None


def conv_general_dilated(
    lhs: Float[Array, "B H W I"],
    rhs: Float[Array, "kh kw _I O"],
    window_strides: tuple[int, ...],
    padding: str | Padding,
    *,
    gradients: Gradients = "vmap",
    **options: Any,
) -> Float[Array, "B h w O"]:
    """`lax.conv_general_dilated` for plain 2-D convolutions; give it to Flax as
    `conv_general_dilated=`.

    Args:
        gradients: how the gradients of vectorised models are written on accelerators:
            `vmap`, each of the two vectorised by JAX's own rule, or `grouped`, as the gradients of
            the one grouped convolution that the vectorised models are. The same sums, rounded
            otherwise; without `jax.vmap`, and on CPU, the same operations.

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
    padding = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, Options(strides, padding, precision), gradients)


# What Flax takes for each way of writing gradients.
CONV_GRADIENTS: dict[Gradients, Callable[..., Array]] = {
    "vmap": conv_general_dilated,
    "grouped": partial(conv_general_dilated, gradients="grouped"),
}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, w: Array, options: Options, gradients: Gradients) -> Array:
    del gradients
    of_options = {"cpu": _on_cpu, "default": _ordinary}
    ways = {name: partial(way, options=options) for name, way in of_options.items()}
    return lax.platform_dependent(x, w, **ways)


def _forward(x: Array, w: Array, *options: Any) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, *options), (x, w)


def _backward(
    options: Options, gradients: Gradients, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    def on_cpu(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        if _tiny(x, dy):
            _, pull_back = jax.vjp(lambda x, w: _dense(x, w, options), x, w)
            return pull_back(dy)
        if winograd.applies(x, w, options.strides, options.padding):
            dx = winograd.input_gradient(dy, w, options.precision)
            if winograd.enough_tiles(x):
                return dx, winograd.weight_gradient(x, dy, options.precision)
        else:
            dx = _input_gradient(dy, w, (x.shape[1], x.shape[2]), options)
        return dx, _weight_gradient(x, dy, (w.shape[0], w.shape[1]), options)

    ordinary = ordinary_gradients(options, gradients)
    return lax.platform_dependent(*residuals, dy, cpu=on_cpu, default=ordinary)


_conv.defvjp(_forward, _backward)


def _ordinary(x: Array, w: Array, options: Options, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        options.strides,
        options.padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
        precision=options.precision,
    )


def ordinary_gradients(
    options: Options, gradients: Gradients
) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    """The function (x [B, H, W, I], w [kh, kw, I, O], dy [B, h, w, O]) ↦ gradients (dx, dw) of the
    ordinary convolution, and how `jax.vmap` vectorises it.

    JAX vectorises the weight gradient, a convolution by itself, as one whose groups are models and
    whose kernel is as large as the image. Written as the weight gradient of a grouped convolution
    it has `batch_group_count` instead, a form that accelerators' libraries know.
    """

    def alone(x: Array, w: Array, dy: Array) -> tuple[Array, Array]:
        _, pull_back = jax.vjp(lambda x, w: _ordinary(x, w, options), x, w)
        return pull_back(dy)

    if gradients == "vmap":
        return alone

    def of_models(
        models: int, batched: Sequence[bool], x: Array, w: Array, dy: Array
    ) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        if not all(batched):  # what models share, JAX's rule does not repeat for each
            axes = tuple(0 if own else None for own in batched)
            return jax.vmap(alone, axes)(x, w, dy), (True, True)

        def together(x: Array, w: Array) -> Array:
            return _apart(_ordinary(_side_by_side(x), _side_by_side(w), options, models), models)

        _, pull_back = jax.vjp(together, x, w)
        return pull_back(dy), (True, True)

    vectorised = custom_vmap(alone)
    vectorised.def_vmap(of_models)
    return vectorised


def _side_by_side(array: Float[Array, "N *rest C"]) -> Float[Array, "*rest NC"]:
    moved = jnp.moveaxis(array, 0, -2)
    return moved.reshape(*moved.shape[:-2], -1)


def _apart(array: Float[Array, "*rest NC"], models: int) -> Float[Array, "N *rest C"]:
    return jnp.moveaxis(array.reshape(*array.shape[:-1], models, -1), -2, 0)


def _on_cpu(
    x: Float[Array, "B H W I"], w: Float[Array, "kh kw I O"], options: Options
) -> Float[Array, "B h w O"]:
    """The convolution, made several columns at once where that is faster."""
    strides, padding, precision = options
    y = jax.eval_shape(partial(_ordinary, options=options), x, w)
    if _tiny(x, y):
        return _dense(x, w, options)
    if winograd.applies(x, w, strides, padding):
        return winograd.convolve(x, w, precision)
    stride, width = strides[1], y.shape[2]
    p = _columns_at_once(1, width, w) if stride == 1 else 1
    # For output column b of a block, the window's column t meets kernel column t − stride·b.
    taps = np.arange(w.shape[1] + (p - 1) * stride)[:, None] - stride * np.arange(p)
    top, left = padding[0][0], padding[1][0]
    bottom = (y.shape[1] - 1) * strides[0] + w.shape[0] - x.shape[1] - top
    start = ((top, bottom), -left)
    return _blockwise(x, w, taps, (strides[0], stride * p), start, width, precision)


def _tiny(x: Any, y: Any) -> bool:
    """At most four pixels before and after, for which XLA:CPU convolves 20 times slower than it
    multiplies with the matrix of the convolution."""
    return max(x.shape[1] * x.shape[2], y.shape[1] * y.shape[2]) <= 4


def _dense(
    x: Float[Array, "B H W I"], w: Float[Array, "kh kw I O"], options: Options
) -> Float[Array, "B h w O"]:
    """The convolution as one matrix product, with x as rows of H·W·I."""
    meets = []  # per axis 0/1 [size in, size out, kernel]: which kernel element joins which pixels
    axes = (x.shape[1:3], w.shape[:2], options.strides, options.padding)
    for size, k, stride, (low, high) in zip(*axes, strict=True):
        out = (size + low + high - k) // stride + 1
        tap = np.arange(size)[:, None] + low - stride * np.arange(out)
        meets.append((tap[:, :, None] == np.arange(k)).astype(np.float32))
    matrix = jnp.einsum("Hhk,Wwl,klio->HWihwo", *meets, w, optimize=[(0, 1), (0, 1)])
    h, w_out = matrix.shape[3:5]
    rows = x.reshape(x.shape[0], -1)
    kernel = matrix.reshape(rows.shape[1], -1).astype(x.dtype)
    y = jnp.matmul(rows, kernel, precision=options.precision)
    return y.reshape(x.shape[0], h, w_out, w.shape[3])


def _input_gradient(
    dy: Float[Array, "B h w O"],
    w: Float[Array, "kh kw I O"],
    size: tuple[int, int],
    options: Options,
) -> Float[Array, "B H W I"]:
    """Gradient of the input of the given size: a convolution for each of the rows 0 … stride − 1
    modulo stride, which together need no zeros between the rows of dy."""
    strides, padding, precision = options
    height, width = size
    kh, kw = w.shape[:2]
    w = w.transpose(0, 1, 3, 2)
    (step, stride), (top, left) = strides, (padding[0][0], padding[1][0])
    # Input column b of a block meets kernel column j at column (b + left − j) / stride of dy.
    p = stride * _columns_at_once(stride, width, w)
    meet = [b + left - j for b in range(p) for j in range(kw)]
    first, last = (pick(m // stride for m in meet if m % stride == 0) for pick in (min, max))
    taps = left + np.arange(p) - stride * np.arange(first, last + 1)[:, None]
    rows = -(-height // step)
    phases = []
    for a in range(step):
        i = range((a + top) % step, kh, step)[::-1]  # kernel rows that meet these input rows
        if not len(i):
            phases.append(jnp.zeros((dy.shape[0], rows, width, w.shape[3]), dy.dtype))
            continue
        up = (a + top - i[0]) // step
        rows_padding = (-up, rows - 1 + len(i) + up - dy.shape[1])
        kernel = w[i[-1] :: step][::-1]
        blocks = (1, p // stride)
        phases.append(_blockwise(dy, kernel, taps, blocks, (rows_padding, first), width, precision))
    if step == 1:
        return phases[0]
    dx = jnp.stack(phases, axis=2)
    return dx.reshape(dy.shape[0], rows * step, width, -1)[:, :height]


def _columns_at_once(stride: int, width: int, w: Float[Array, "kh kw I O"]) -> int:
    """Blocks of how many columns (times `stride`) to make at once.

    The matrix kernels below a convolution run at half their rate or less when they make fewer than
    32 channels. A window that holds p columns' windows, with the kernel in p places and zeros
    elsewhere, makes p·O channels, and in memory [w/p, p·O] is [w, O].
    """
    kw, channels, features = w.shape[1:]
    channels_wanted = 64 if channels <= 4 else 32  # from few channels, zeros cost little
    p = 1
    while kw > 1 and 2 * p * stride * features <= channels_wanted and width % (2 * p * stride) == 0:
        p *= 2
    return p


def _blockwise(
    x: Float[Array, "B H W I"],
    w: Float[Array, "kh kw I O"],
    taps: np.ndarray,
    strides: tuple[int, int],
    start: tuple[tuple[int, int], int],
    width: int,
    precision: Any,
) -> Float[Array, "B h w O"]:
    """A convolution that makes blocks of p output columns.

    Args:
        taps: int [T, p], the column of `w` that the window's column t has for column b of a block;
            outside of `w` means zero.
        strides: by which the window moves from row to row and from block to block.
        start: padding of the rows, up to the end of the last window; the input column where the
            first window begins.
        width: output columns.
    """
    length, p = taps.shape
    blocks = -(-width // p)
    first = start[1]
    end = (blocks - 1) * strides[1] + length + first - x.shape[2]
    x, padding = _cut(x, (start[0], (-first, end)), strides)
    y = _ordinary(x, _spread(w, taps), Options(strides, padding, precision))
    y = y.reshape(*y.shape[:2], blocks * p, -1)
    return y if blocks * p == width else y[:, :, :width]


def _spread(w: Float[Array, "kh kw I O"], taps: np.ndarray) -> Float[Array, "kh T I pO"]:
    kh, kw, channels, features = w.shape
    length, p = taps.shape
    if p == 1 and length == kw:
        return w if taps[0] == 0 else w[:, ::-1]
    zero = jnp.zeros((kh, channels, features), w.dtype)
    columns = [
        jnp.stack([w[:, j] if 0 <= j < kw else zero for j in row], axis=2).reshape(kh, channels, -1)
        for row in taps
    ]
    return jnp.stack(columns, axis=1)


def _cut(
    x: Float[Array, "B H W C"], padding: Padding, strides: tuple[int, int]
) -> tuple[Float[Array, "B h w C"], Padding]:
    """Cut negative padding off, for which XLA:CPU may read past the array; the last window is to
    end with the padding."""
    # Less than one stride more makes no window more.
    padding = tuple(
        (low, 0 if -stride < high < 0 else high)
        for (low, high), stride in zip(padding, strides, strict=True)
    )
    if min(min(padding)) < 0:
        edges = [(min(low, 0), min(high, 0), 0) for low, high in padding]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        padding = tuple((max(low, 0), max(high, 0)) for low, high in padding)
    return x, padding


def _weight_gradient(
    x: Float[Array, "B H W I"],
    dy: Float[Array, "B h w O"],
    kernel: tuple[int, int],
    options: Options,
) -> Float[Array, "kh kw I O"]:
    """Sum over images of matrix products of shifted x and shifted dy.

    All rows i of the kernel are windows of x. Its columns j are shifts of dy at stride 1, so that
    each side is copied kh or kw times only, and windows of x otherwise. One product takes about
    1,024 pixels, which stay in the cache.
    """
    (kh, kw), (step, stride), padding = kernel, options.strides, options.padding
    (batch, height, width, channels), (h, w, features) = x.shape, dy.shape[1:]
    top, left = padding[0][0], padding[1][0]
    on_dy = stride == 1
    columns = width if on_dy else w
    transposed = channels >= 32  # faster products, which then pay for turning x round
    zero = jnp.zeros((), x.dtype)

    def product(x: Array, dy: Array) -> Array:
        rows, cols = (2, 3) if transposed else (1, 2)
        if transposed:
            x = lax.optimization_barrier(x.transpose(3, 0, 1, 2))
        edges = [(0, 0, 0)] * 4
        edges[rows] = (top, (h - 1) * step + kh - height - top, 0)
        if on_dy:
            # Column X of x meets column X + left − j of dy.
            ends = (kw - 1 - left, width - w + left, 0)
            shifted = lax.pad(dy, zero, [(0, 0, 0), (0, 0, 0), ends, (0, 0, 0)])
            dy = jnp.concatenate([shifted[:, :, j : j + width] for j in range(kw)[::-1]], axis=3)
        else:
            edges[cols] = (left, (w - 1) * stride + kw - width - left, 0)
        x = lax.pad(x, zero, edges)
        windows = [lax.slice_in_dim(x, i, i + (h - 1) * step + 1, step, rows) for i in range(kh)]
        if not on_dy:
            windows = [
                lax.slice_in_dim(rows_i, j, j + (w - 1) * stride + 1, stride, cols)
                for rows_i in windows
                for j in range(kw)
            ]
        x = jnp.concatenate(windows, axis=0 if transposed else 3)
        x = x.reshape(x.shape[0], -1) if transposed else x.reshape(-1, x.shape[3])
        return lax.dot_general(
            x,
            dy.reshape(-1, dy.shape[3]),
            (((1 if transposed else 0,), (0,)), ((), ())),
            precision=options.precision,
            preferred_element_type=jnp.float32,
        )

    images = max(
        n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * h * columns <= 1024)
    )

    def add(total: Array, first: Array) -> tuple[Array, None]:
        cut = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=images)
        return total + product(cut(x), cut(dy)), None

    if images == batch:
        dw = product(x, dy)
    else:
        shape = jax.eval_shape(product, x[:images], dy[:images]).shape
        dw, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), jnp.arange(0, batch, images))
    dw = dw.astype(x.dtype)
    if on_dy:
        return dw.reshape(kh, channels, kw, features).transpose(0, 2, 1, 3)
    return dw.reshape(kh, kw, channels, features)
