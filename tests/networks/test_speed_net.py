from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from lira_jax.config import NetworkConfig
from lira_jax.networks import build
from lira_jax.networks.layers import Layers
from lira_jax.networks.speed_net import Activation, cosine_patches, max_pool, pass_on


@pytest.mark.parametrize("width", [8, 64])
def test_speed_nets_have_the_parameters_of_their_plan(width):
    network = build(NetworkConfig("speed_net", 8, width), (32, 32, 3), 10)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    count, n_in = 0, 24
    for n_out in (width, 2 * width, 4 * width):
        count += 9 * n_in * n_out + 9 * n_out**2 + 2 * n_out  # two kernels, two biases
        n_in = n_out
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == count + n_in * 10 + 10


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_keep_all_there_is_in_an_image(channels):
    kernels = cosine_patches(channels).reshape(4 * channels, -1)
    np.testing.assert_allclose(kernels.T @ kernels, np.eye(4 * channels), atol=1e-5)


def test_the_first_patch_is_brightness_and_the_others_do_not_see_it():
    brightness = cosine_patches(3).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(brightness, [np.sqrt(12)] + 11 * [0], atol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 5), (4, 4), (6, 2)])
def test_the_first_filters_pass_on_the_first_channels_unchanged(n_in, n_out):
    kernel = pass_on(jax.random.key(0), (3, 3, n_in, n_out), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, n_in))
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    same = min(n_in, n_out)
    np.testing.assert_allclose(y[..., :same], x[..., :same], rtol=1e-5, atol=1e-6)
    assert all(jnp.any(kernel[..., channel] != 0) for channel in range(same, n_out))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 6, 6, 3),
        pytest.param((1, 7, 4, 2), marks=pytest.mark.accelerator),
        (1, 1, 5, 1),
        (3, 1, 1, 2),
    ],
)
def test_max_pool_takes_the_maximum_of_each_whole_window(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    window = (1, min(2, shape[1]), min(2, shape[2]), 1)
    expected = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
    np.testing.assert_array_equal(max_pool(x), expected)


def test_biases_count_eightfold_so_that_sgd_moves_them_64_times_as_fast():
    norm = Activation(2, Layers("batch", jnp.float32, nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))

    def mean_output(bias):
        norm.bias[...] = bias
        return jnp.mean(norm(x), axis=(0, 1, 2))

    normed = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    expected = jnp.mean(jax.nn.gelu(normed + 0.8), axis=(0, 1, 2))
    np.testing.assert_allclose(mean_output(jnp.full(2, 0.1)), expected, rtol=1e-4)
