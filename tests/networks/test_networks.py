from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lira_jax.config import NetworkConfig
from lira_jax.errors import InputError
from lira_jax.networks import build
from lira_jax.trust.laplace import last_layer_weights
from tests.precision import reordered


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


ARCHITECTURES = {
    "resnet": NetworkConfig("resnet", 8, 4),
    "wide_resnet": NetworkConfig("wide_resnet", 10, 1),
    "convnet": NetworkConfig("convnet", 8, 2),
    "speed_net": NetworkConfig("speed_net", 8, 4),
}


@pytest.mark.parametrize("arch", ["resnet", "speed_net"])
def test_with_group_normalisation_no_image_sees_another_and_nothing_is_kept_of_a_batch(arch):
    network = build(dataclasses.replace(ARCHITECTURES[arch], norm="group"), (8, 8, 1), 10)
    variables = jax.jit(network.init)(jax.random.key(0))
    assert not jax.tree.leaves(variables["rest"])
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    train = jax.jit(lambda x: network.apply_train(variables, x, jax.random.key(2))[0])
    moved = x.at[2].set(5 * x[2] + 1)
    np.testing.assert_array_equal(train(x)[:2], train(moved)[:2])
    np.testing.assert_allclose(train(x), jax.jit(network.apply)(variables, x), atol=1e-5)
    assert float(jnp.std(train(x))) > 0.01  # it does not normalise all away


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("resnet", 16),
        pytest.param("wide_resnet", 64, marks=pytest.mark.accelerator),
        pytest.param("convnet", 16, marks=pytest.mark.accelerator),
        ("speed_net", 16),
    ],
)
def test_logits_are_linear_in_the_last_layers_inputs_in_evaluation_mode(arch, width):
    # Of 24 pixels, 3 are left before the convnet's last convolution, which so meets borders.
    side = 24 if arch == "convnet" else 8
    network = build(ARCHITECTURES[arch], (side, side, 1), 10, dropout=0.5)
    variables = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, side, side, 1))

    @jax.jit
    def answers(x):
        functions = (network.apply, network.features, network.head_inputs)
        return [function(variables, x) for function in functions]

    logits, features, inputs = answers(x)
    assert features.dtype == inputs.dtype == jnp.float32
    kernel, bias = last_layer_weights(variables, arch)
    expected = (inputs @ kernel + bias) / (9 if arch == "speed_net" else 1)
    np.testing.assert_allclose(logits, expected, atol=reordered(1e-5))
    assert network.head_scale == (1 / 9 if arch == "speed_net" else 1)
    # A convolution's features are what its kernel's centre meets, the fifth of nine pixels.
    assert features.shape == (3, width)
    middle = inputs[:, 4 * width : 5 * width] if arch == "convnet" else inputs
    np.testing.assert_allclose(features, middle, rtol=reordered(1e-6))


@pytest.mark.parametrize("arch", ["resnet", "convnet"])
def test_dropout_changes_neither_initial_weights_nor_evaluation(arch):
    plain, dropped = (build(ARCHITECTURES[arch], (8, 8, 1), 10, dropout=p) for p in (0.0, 0.5))
    variables, same = (jax.jit(net.init)(jax.random.key(0)) for net in (plain, dropped))
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(same)))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    logits, unchanged = (jax.jit(net.apply)(variables, x) for net in (plain, dropped))
    np.testing.assert_array_equal(logits, unchanged)


@pytest.mark.parametrize("arch", ["resnet", "convnet"])
def test_dropout_drops_its_share_of_the_last_layers_inputs_by_the_steps_key(arch):
    config = dataclasses.replace(ARCHITECTURES[arch], norm="group")
    network = build(config, (8, 8, 1), 10, dropout=0.25)
    variables = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    train = jax.jit(lambda key: network.apply_train(variables, x, key)[0][0])
    keys = jax.random.split(jax.random.key(2), 3000)
    logits = jax.lax.map(train, keys)
    np.testing.assert_array_equal(logits[0], train(keys[0]))
    assert len(np.unique(np.asarray(logits), axis=0)) > 100
    # Linear after it: the mean over masks is the network in evaluation mode.
    error = np.asarray(logits).std(axis=0) / np.sqrt(3000)
    difference = np.asarray(logits).mean(axis=0) - np.asarray(network.apply(variables, x)[0])
    assert (np.abs(difference) < 5 * error).all()
    if arch == "resnet":  # variance of inverted dropout: f² w² p / (1 − p), summed
        f = np.asarray(network.features(variables, x))[0]
        w = np.asarray(variables["params"]["dense"]["kernel"])
        expected = np.sqrt((f**2 @ w**2) / 3)
        np.testing.assert_allclose(np.asarray(logits).std(axis=0), expected, rtol=0.15)


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
    with pytest.raises(InputError, match="has no method features"):
        network.features(variables, jnp.ones((2, 4, 4, 1)))
    with pytest.raises(InputError, match=r"has no method features.*--trust\.laplace False"):
        network.head_inputs(variables, jnp.ones((2, 4, 4, 1)))


@pytest.mark.parametrize(
    ("norm", "dropout", "message"),
    [("group", 0.0, "leave network.norm out"), ("batch", 0.5, "leave defence.dropout out")],
)
def test_a_users_own_module_settles_norm_and_dropout_itself(norm, dropout, message):
    config = NetworkConfig(f"{__name__}:Linear", 1, 1, norm)
    with pytest.raises(InputError, match=message):
        build(config, (4, 4, 1), 3, dropout=dropout)


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
