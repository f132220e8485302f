from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lira_jax.networks.conv import conv_general_dilated


def by_slices(x, w, strides, padding):
    """The same convolution as a sum of shifted products, with autodiff's own gradients."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    x = lax.pad(x, 0.0, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    height, width = (
        (x.shape[axis + 1] - w.shape[axis]) // stride + 1 for axis, stride in enumerate(strides)
    )
    return sum(
        jnp.einsum(
            "bhwi,io->bhwo",
            x[:, i :: strides[0], j :: strides[1]][:, :height, :width],
            w[i, j],
        )
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    )


def check_against_slices(batch, size, kernel, channels, strides, padding):
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, *size, channels[0])).astype(np.float32)
    w = random.normal(size=(*kernel, *channels)).astype(np.float32)
    options = {"strides": strides, "padding": padding}
    ours, theirs = (
        lambda x, w: conv_general_dilated(x, w, strides, padding),
        partial(by_slices, **options),
    )
    y, pull_back = jax.vjp(jax.jit(ours), x, w)
    expected, expected_pull_back = jax.vjp(jax.jit(theirs), x, w)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.sqrt(w.size), rtol=1e-4)
    dy = random.normal(size=y.shape).astype(np.float32)
    for got, want in zip(pull_back(dy), expected_pull_back(dy), strict=True):
        scale = float(jnp.abs(want).max())
        np.testing.assert_allclose(got, want, atol=1e-5 * scale)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(8, 8, 3), (7, 10, 3), (9, 5, 1), (6, 6, 2)]
)
def test_values_and_gradients_equal_a_sum_of_shifted_products(
    height, width, kernel, stride, padding
):
    check_against_slices(3, (height, width), (kernel, kernel), (4, 5), (stride, stride), padding)


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "channels", "strides"),
    [
        (2, (8, 8), (3, 3), (1, 16), (1, 1)),
        (2, (8, 8), (3, 3), (3, 8), (1, 1)),
        (2, (8, 8), (3, 3), (16, 16), (1, 1)),
        (2, (8, 6), (3, 3), (16, 16), (1, 1)),
        (2, (8, 7), (3, 3), (16, 16), (1, 1)),
        (2, (8, 8), (3, 3), (32, 32), (1, 1)),
        (2, (8, 8), (3, 3), (16, 32), (2, 2)),
        (2, (8, 8), (3, 3), (8, 8), (2, 2)),
        (2, (9, 7), (3, 3), (32, 8), (2, 2)),
        (2, (8, 8), (1, 1), (16, 32), (2, 2)),
        (2, (8, 8), (1, 1), (32, 4), (1, 1)),
        (2, (9, 8), (5, 3), (8, 4), (3, 2)),
        (2, (8, 8), (1, 3), (4, 4), (2, 1)),
        (2, (8, 8), (3, 1), (4, 4), (1, 2)),
        (5, (32, 32), (3, 3), (4, 8), (1, 1)),
        (6, (24, 20), (3, 3), (32, 8), (2, 2)),
        (3, (2, 2), (3, 3), (4, 5), (1, 1)),
        (3, (2, 2), (3, 3), (4, 5), (2, 2)),
        (3, (1, 4), (3, 3), (4, 5), (1, 1)),
        (3, (2, 2), (5, 1), (4, 5), (1, 2)),
    ],
)
def test_every_way_of_computing_it_gives_the_same(batch, size, kernel, channels, strides):
    check_against_slices(batch, size, kernel, channels, strides, "SAME")


@pytest.mark.parametrize("channels", [(3, 8), (32, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        ((8, 8), (3, 3), ((-1, -2), (-1, 0))),
        ((9, 9), (3, 3), ((-1, 0), (2, -2))),
        ((6, 7), (2, 3), ((3, 4), (4, 5))),
        ((6, 8), (1, 1), ((2, 3), (1, 4))),
        ((7, 8), (1, 1), ((-1, -2), (-3, 0))),
        ((4, 4), (3, 3), ((-1, 0), (-1, 1))),
        ((2, 2), (1, 1), ((0, -1), (0, 0))),
        ((2, 2), (2, 2), ((1, -1), (0, 1))),
    ],
)
def test_padding_may_be_negative_or_larger_than_the_kernel(size, kernel, padding, stride, channels):
    check_against_slices(2, size, kernel, channels, (stride, stride), padding)


def test_weight_gradients_in_bfloat16_are_summed_in_float32():
    x = jax.random.normal(jax.random.key(0), (64, 32, 32, 2)) + 1
    w = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))

    def loss(w, dtype):
        y = conv_general_dilated(x.astype(dtype), w.astype(dtype), (1, 1), "SAME")
        return jnp.mean(y.astype(jnp.float32))

    exact, rounded = (jax.grad(loss)(w, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(rounded, exact, rtol=0.01)


def test_gradients_agree_inside_a_mapped_loop_and_under_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 5))

    def loss(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, (2, 2), "SAME")))

    one_by_one = jnp.stack([jax.grad(loss, 1)(a, b) for a, b in zip(x, w, strict=True)])
    mapped = lax.map(lambda pair: jax.grad(loss, 1)(*pair), (x, w))
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss, 1))(x, w), one_by_one, atol=1e-5)


def test_grouped_and_dilated_convolutions_are_refused():
    x, w = jnp.zeros((1, 4, 4, 4)), jnp.zeros((3, 3, 2, 4))
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x, w, (1, 1), "SAME", rhs_dilation=(2, 2))
