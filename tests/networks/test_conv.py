from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lira_jax.networks.conv import conv_general_dilated


def by_slices(x, w, stride, padding):
    """The same convolution as a sum of shifted products, with autodiff's own gradients."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (stride, stride), padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((x.shape[axis + 1] - w.shape[axis]) // stride + 1 for axis in (0, 1))
    return sum(
        jnp.einsum(
            "bhwi,io->bhwo",
            x[:, i : i + height * stride : stride, j : j + width * stride : stride][
                :, :height, :width
            ],
            w[i, j],
        )
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(8, 8, 3), (7, 10, 3), (9, 5, 1), (6, 6, 2)]
)
def test_values_and_gradients_equal_a_sum_of_shifted_products(
    height, width, kernel, stride, padding
):
    random = np.random.default_rng(0)
    x = random.normal(size=(3, height, width, 4)).astype(np.float32)
    w = random.normal(size=(kernel, kernel, 4, 5)).astype(np.float32)
    ours = partial(conv_general_dilated, window_strides=(stride, stride), padding=padding)
    y, pull_back = jax.vjp(ours, x, w)
    expected, expected_pull_back = jax.vjp(partial(by_slices, stride=stride, padding=padding), x, w)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    dy = random.normal(size=y.shape).astype(np.float32)
    for got, want in zip(pull_back(dy), expected_pull_back(dy), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


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
