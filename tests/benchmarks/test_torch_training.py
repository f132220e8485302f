"""Training in PyTorch is the training of the JAX models, over several steps."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lira_jax import networks, optimization
from lira_jax.config import NetworkConfig, TrainConfig
from tests.benchmarks.torch_weights import copy, nchw

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks import torch_networks, torch_training  # noqa: E402


def test_same_batches_give_the_same_averaged_model():
    # Schedule, momentum, weight decay, BatchNorm statistics and the debiased average, in 6 steps.
    recipe = TrainConfig(learning_rate=0.05, weight_decay=0.01, ema=0.9)
    plan = NetworkConfig("resnet", 8, 8)
    network = networks.build(plan, (8, 8, 1), 10)
    variables = network.init(jax.random.key(0))
    model = torch_networks.build(plan, (8, 8, 1), 10)
    copy(variables, model)
    rng = np.random.default_rng(2)
    images = rng.uniform(-1, 1, (6, 32, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 10, (6, 32)).astype(np.int32)

    state = optimization.new_state(jax.random.key(0), network, recipe, 6)
    state = dataclasses.replace(state, variables=variables)
    step = jax.jit(optimization.train_step(network, recipe, 6))
    trainer = torch_training.Trainer(model.train(), recipe, 6)
    for x, y in zip(images, labels, strict=True):
        state, _ = step(state, x, y, jax.random.key(0))
        labels_of = torch.from_numpy(y).long()
        trainer.update(torch.nn.functional.cross_entropy(model(nchw(x)), labels_of))
    after = optimization.evaluated_variables(state, recipe)

    expected = np.asarray(network.apply(after, images[0]))
    with torch.no_grad():
        got = trainer.finish()(nchw(images[0])).numpy()
    untrained = np.asarray(network.apply(variables, images[0]))
    assert np.abs(expected - untrained).max() > 0.5
    # PyTorch's running variances divide by n − 1: up to 1/127 more in the layers of 2×2 pixels.
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)
