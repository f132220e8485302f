"""The PyTorch networks of the comparisons are the functions that the Flax networks are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lira_jax import networks
from lira_jax.config import NetworkConfig
from tests.benchmarks.torch_weights import copy, in_torch, nchw, random_variables

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks import torch_networks  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RESNET = NetworkConfig("resnet", 8, 4)
WIDE_RESNET = NetworkConfig("wide_resnet", 10, 1)
SPEED_NET = NetworkConfig("speed_net", 8, 8)


@pytest.mark.parametrize("config", [RESNET, WIDE_RESNET, SPEED_NET], ids=lambda one: one.arch)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)], ids=["even", "odd"])
def test_same_weights_give_the_same_logits_and_statistics(config, shape):
    network = networks.build(config, shape, 10)
    variables = random_variables(network)
    model = torch_networks.build(config, shape, 10)
    copy(variables, model)
    images = np.random.default_rng(1).uniform(-1, 1, (16, *shape)).astype(np.float32)
    with torch.no_grad():
        evaluated, trained = model.eval()(nchw(images)), model.train()(nchw(images))

    expected, rest = jax.jit(network.apply_train)(variables, images, jax.random.key(0))
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        evaluated, jax.jit(network.apply)(variables, images), rtol=1e-4, atol=1e-5
    )
    state = model.state_dict()
    for name, array in in_torch({"rest": rest}):
        # PyTorch's running variances divide by n − 1: most where an image has become one pixel.
        loose = name.endswith("running_var")
        rtol = 1 / 15 if loose else 1e-4
        np.testing.assert_allclose(state[name], array, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("config", [RESNET, WIDE_RESNET, SPEED_NET], ids=lambda one: one.arch)
def test_initial_weights_are_distributed_alike(config):
    # Wide enough for the spread of a kernel to be known.
    config = NetworkConfig(config.arch, config.depth, 4 * config.width)
    variables = jax.jit(networks.build(config, (8, 8, 3), 10).init)(jax.random.key(0))
    state = torch_networks.build(config, (8, 8, 3), 10).state_dict()
    expected = dict(in_torch(variables))
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        tensor = state[name].numpy()
        assert tensor.shape == array.shape, name
        if tensor.ndim == 1:
            np.testing.assert_array_equal(tensor, array, err_msg=name)
        elif tensor.size > 1000:
            rtol = 5 / tensor.size**0.5
            for spread in (np.std, lambda x: np.abs(x).max()):
                np.testing.assert_allclose(spread(tensor), spread(array), rtol=rtol, err_msg=name)
            fixed = array == np.round(array)
            np.testing.assert_array_equal(tensor[fixed], array[fixed], err_msg=name)


def test_padding_all_sides_differs_at_even_sizes_only():
    model = torch_networks.build(WIDE_RESNET, (9, 9, 3), 10).eval()
    images = torch.rand(2, 3, 9, 9), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        same = [model(x) for x in images]
        torch_networks.pad_all_sides(model)
        odd, even = (torch.equal(model(x), y) for x, y in zip(images, same, strict=True))
    assert odd
    assert not even


def test_under_autocast_whitening_statistics_and_head_stay_in_float32():
    model = torch_networks.build(SPEED_NET, (8, 8, 3), 10)
    types = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: types.update({name: output.dtype})
        )
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(torch.rand(4, 3, 8, 8))
    logits = model.head(features)
    assert types["whiten"] == types["dense"] == logits.dtype == torch.float32
    assert types["blocks.0.conv1"] == types["blocks.2.norm2"] == torch.bfloat16
    assert model.whiten.running_var.dtype == torch.float32


def test_what_is_not_written_is_refused():
    for config in (NetworkConfig("convnet", 8, 4), NetworkConfig("resnet", 8, 4, norm="group")):
        with pytest.raises(ValueError, match=f"{config.arch} with {config.norm} normalisation"):
            torch_networks.build(config, (8, 8, 3), 10)


@pytest.mark.parametrize("script", ["torch_networks", "torch_step", "torch_shadow_models"])
def test_jax_is_not_imported_which_would_take_the_memory_of_the_accelerator(script):
    absent = ["jax", "flax", "tyro", "tensorflow_datasets"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {script}"
    path = f"import sys; sys.path[:0] = ['benchmarks', '.']; {code}"
    subprocess.run([sys.executable, "-c", path], cwd=ROOT, check=True)
