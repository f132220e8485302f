from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lira_jax.networks.layers import GroupNorm, groups_of, normalisation


def both(features):
    """Ours and Flax's, with the same random variables."""
    ours = normalisation("batch", features, dtype=jnp.float32, rngs=nnx.Rngs(0))
    flax = nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for name in ("scale", "bias", "mean", "var"):
        values = jnp.asarray(random.uniform(0.5, 2, features), jnp.float32)
        for layer in (ours, flax):
            getattr(layer, name)[...] = values
    return ours, flax


@pytest.mark.accelerator
@pytest.mark.parametrize("training", [True, False])
def test_normalisation_equals_flaxs_in_values_gradients_and_statistics(training):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 7))
    dy = jax.random.normal(jax.random.key(1), x.shape)

    def evaluate(layer):
        layer.train() if training else layer.eval()
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def call(params, x):
            copy = jax.tree.map(jnp.array, rest)
            layer = nnx.merge(graph, params, copy)
            return layer(x), nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))

        y, pull_back, statistics = jax.vjp(jax.jit(call), params, x, has_aux=True)
        d_params, dx = pull_back(dy)
        return y, dx, nnx.to_pure_dict(d_params), statistics

    ours, flax = (evaluate(layer) for layer in both(7))
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_is_normalised_to_its_bias():
    layer = normalisation("batch", 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.train()
    layer.bias[...] = jnp.array([0.5, -1.0])
    y = layer(jnp.full((3, 4, 4, 2), 1e3))
    np.testing.assert_allclose(y, jnp.broadcast_to(layer.bias[...], y.shape), atol=0.5)


@pytest.mark.accelerator
@pytest.mark.parametrize("affine", [True, False])
def test_group_normalisation_equals_flaxs_in_values_and_gradients(affine):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 12))
    dy = jax.random.normal(jax.random.key(1), x.shape)
    options = {"epsilon": 1e-5, "use_scale": affine, "use_bias": affine, "rngs": nnx.Rngs(0)}
    results = []
    for kind in (GroupNorm, nnx.GroupNorm):
        layer = kind(12, 3, **options)
        if affine:
            layer.scale[...] = jnp.linspace(0.5, 2, 12)
            layer.bias[...] = jnp.linspace(-1, 1, 12)
        graph, params = nnx.split(layer)
        call = jax.jit(lambda params, x, graph=graph: nnx.merge(graph, params)(x))
        y, pull_back = jax.vjp(call, params, x)
        results.append((y, pull_back(dy)))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for got, want in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "groups"), [(1, 1), (4, 1), (8, 2), (12, 3), (16, 4), (64, 16), (640, 16), (7, 1)]
)
def test_groups_are_equal_at_most_16_and_of_four_features_or_more(features, groups):
    assert groups_of(features) == groups
