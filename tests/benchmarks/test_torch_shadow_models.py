"""The PyTorch models of the comparison are the JAX models: same network, same training."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax import networks, optimization
from lira_jax.config import NetworkConfig, TrainConfig

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def shadow_models(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import torch_shadow_models

    return torch_shadow_models


def both(shadow_models, shape, classes=10):
    """The JAX network, variables with random statistics, and a PyTorch model that holds them."""
    network = networks.build(NetworkConfig("resnet", 8, 8), shape, classes)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * np.abs(rng.normal(size=leaf.shape)), jnp.float32),
        network.init(jax.random.key(0)),
    )
    model = shadow_models.ResNet(shape[-1], classes, depth=8, width=8)
    copy(variables, model)
    return network, variables, model


def copy(variables, model):
    state = model.state_dict()
    names = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    leaves = jax.tree_util.tree_leaves_with_path([variables["params"], variables["rest"]])
    for path, leaf in leaves:
        *layer, kind = [str(getattr(key, "key", key)) for key in path[1:]]
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        name = ".".join([*layer, names.get(kind, kind)])
        tensor = state.pop(name)
        tensor.copy_(torch.from_numpy(np.array(leaf).transpose(order)))
    assert all(name.endswith("num_batches_tracked") for name in state)


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (9, 7, 3)])
def test_same_weights_give_the_same_logits(shadow_models, shape):
    network, variables, model = both(shadow_models, shape)
    images = np.random.default_rng(1).uniform(-1, 1, (5, *shape)).astype(np.float32)
    expected = np.asarray(network.apply(variables, images))
    with torch.no_grad():
        got = model.eval()(nchw(images)).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_same_batches_give_the_same_averaged_model(shadow_models):
    # Schedule, momentum, weight decay, BatchNorm statistics and the debiased average, in 6 steps.
    recipe = TrainConfig(learning_rate=0.05, weight_decay=0.01, ema=0.9)
    network, variables, model = both(shadow_models, (8, 8, 1))
    rng = np.random.default_rng(2)
    images = rng.uniform(-1, 1, (6, 32, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 10, (6, 32)).astype(np.int32)

    state = optimization.new_state(jax.random.key(0), network, recipe, 6)
    state = {**state, "variables": variables}
    step = jax.jit(optimization.train_step(network, recipe, 6))
    trainer = shadow_models.Trainer(model.train(), recipe, 6)
    for x, y in zip(images, labels, strict=True):
        state, _ = step(state, x, y, jax.random.key(0))
        trainer.step(nchw(x), torch.from_numpy(y).long())
    after = optimization.evaluated_variables(state, recipe)

    expected = np.asarray(network.apply(after, images[0]))
    with torch.no_grad():
        got = trainer.finish()(nchw(images[0])).numpy()
    untrained = np.asarray(network.apply(variables, images[0]))
    assert np.abs(expected - untrained).max() > 0.5
    # PyTorch's running variances divide by n − 1: up to 1/127 more in the layers of 2×2 pixels.
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
