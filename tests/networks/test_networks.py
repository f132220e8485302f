from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lira_jax.config import NetworkConfig
from lira_jax.errors import InputError
from lira_jax.networks import build


def parameters(config, image_shape=(32, 32, 3), classes=10):
    network = build(config, image_shape, classes)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def wide_resnet_parameters(depth, k, classes):
    """Counted by hand: kernels, two numbers per normalised channel, dense layer."""
    count, n_in = 3 * 9 * 16, 16
    for group in range(3):
        n_out = 16 * k * 2**group
        for block in range((depth - 4) // 6):
            count += 2 * n_in + 9 * n_in * n_out + 2 * n_out + 9 * n_out * n_out
            count += n_in * n_out if n_in != n_out or (block == 0 and group > 0) else 0
            n_in = n_out
    return count + 2 * n_in + n_in * classes + classes


@pytest.mark.parametrize(("depth", "k", "millions"), [(28, 2, 1.47), (28, 10, 36.5), (28, 1, 0.37)])
def test_wide_resnets_have_the_papers_number_of_parameters(depth, k, millions):
    count = parameters(NetworkConfig("wide_resnet", depth, k))
    assert count == wide_resnet_parameters(depth, k, 10)
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_resnet_20_has_the_papers_number_of_parameters():
    # He et al. 2016, Table 6: 0.27 M.
    assert parameters(NetworkConfig("resnet", 20, 16)) / 1e6 == pytest.approx(0.27, abs=0.005)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_convnets_have_the_parameters_of_their_plan(width):
    pairs = [(3, width)]
    for scale in range(3):
        pairs += [(width * 2**scale,) * 2, (width * 2**scale, width * 2 ** (scale + 1))]
    pairs += [(8 * width, 10)]
    assert parameters(NetworkConfig("convnet", 8, width)) == sum(9 * i * o + o for i, o in pairs)


@pytest.mark.parametrize("arch", ["wide_resnet", "resnet", "convnet", "speed_net"])
@pytest.mark.parametrize(("image_shape", "classes"), [((8, 8, 1), 10), ((5, 13, 3), 3)])
def test_any_image_size_and_class_count_works(arch, image_shape, classes):
    network = build(
        NetworkConfig(arch, 10 if arch == "wide_resnet" else 8, 1), image_shape, classes
    )
    variables = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    assert jax.eval_shape(network.apply, variables, x).shape == (2, classes)
    logits, rest = jax.eval_shape(network.apply_train, variables, x, jax.random.key(0))
    assert logits.dtype == jnp.float32
    assert jax.tree.structure(rest) == jax.tree.structure(variables["rest"])


def test_evaluation_treats_each_image_for_itself_and_training_uses_the_batch():
    network = build(NetworkConfig("resnet", 8, 4), (8, 8, 1), 10)
    variables = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    apply = jax.jit(network.apply)
    together = apply(variables, x)
    alone = jnp.concatenate([apply(variables, image[None]) for image in x])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    in_batch, rest = jax.jit(network.apply_train)(variables, x, jax.random.key(2))
    assert float(jnp.abs(in_batch - together).max()) > 1e-3
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), rest, variables["rest"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("arch", ["resnet", "speed_net"])
def test_bfloat16_computes_in_bfloat16_but_keeps_float32_weights_and_logits(arch):
    network = build(NetworkConfig(arch, 8, 4), (8, 8, 1), 10, "bfloat16")
    variables = jax.jit(network.init)(jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    x = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))
    exact = jax.jit(build(NetworkConfig(arch, 8, 4), (8, 8, 1), 10).apply)(variables, x)
    rounded = jax.jit(network.apply)(variables, x)
    assert rounded.dtype == jnp.float32
    difference = float(jnp.abs(rounded - exact).max() / jnp.abs(exact).max())
    assert 1e-6 < difference < 0.05


class Linear(nnx.Module):
    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.layer = nnx.Linear(int(np.prod(image_shape)), classes, rngs=rngs)

    def __call__(self, x):
        return self.layer(x.reshape(len(x), -1))


def test_a_users_own_module_is_built_from_its_name():
    config = NetworkConfig(f"{__name__}:Linear", 1, 1)
    network = build(config, (4, 4, 1), 3)
    variables = network.init(jax.random.key(0))
    assert network.apply(variables, jnp.ones((2, 4, 4, 1))).shape == (2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NetworkConfig("resnext", 8, 16), "choose one of wide_resnet, resnet, convnet"),
        (NetworkConfig("resnet", 9, 16), "6n\\+2"),
        (NetworkConfig("wide_resnet", 4, 2), "6n\\+4"),
        (NetworkConfig("no.such:module", 8, 2), "No module named 'no'"),
        (NetworkConfig("math:nothing", 8, 2), "math has no function 'nothing'"),
        (NetworkConfig("math:pi", 8, 2), "math has no function 'pi'"),
        (NetworkConfig("os:getcwd", 8, 2), "TypeError.*it takes image_shape, classes"),
        (NetworkConfig("builtins:dict", 8, 2), "returns a nnx.Module"),
    ],
)
def test_impossible_networks_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        build(config, (8, 8, 1), 10)
