from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lira_jax.networks import winograd
from lira_jax.networks.conv import conv_general_dilated

PADDING = ((1, 1), (1, 1))


def exact(x, w):
    """The convolution in float64, by its definition."""
    height, width = x.shape[1:3]
    x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        x[:, i : i + height, j : j + width] @ w[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )


def exact_weight_gradient(x, dy):
    height, width = x.shape[1:3]
    x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [np.einsum("bhwi,bhwo->io", x[:, i : i + height, j : j + width], dy) for j in range(3)]
            for i in range(3)
        ]
    )


def close(got, expected):
    """To 1e-5 of the root mean square, on average."""
    error = np.sqrt(np.mean((np.asarray(got) - expected) ** 2) / np.mean(expected**2))
    assert error < 1e-5


@pytest.mark.parametrize("piece", [2**10, 2**17])
@pytest.mark.parametrize(
    ("batch", "size", "channels"),
    [(6, (8, 12), (32, 40)), (1, (4, 4), (48, 32)), (3, (16, 4), (32, 32))],
)
def test_values_and_gradients_are_exact_to_rounding(monkeypatch, batch, size, channels, piece):
    monkeypatch.setattr(winograd, "PIECE", piece)
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, *size, channels[0])).astype(np.float32)
    w = random.normal(size=(3, 3, *channels)).astype(np.float32)
    dy = random.normal(size=(batch, *size, channels[1])).astype(np.float32)
    close(jax.jit(partial(winograd.convolve, precision=None))(x, w), exact(x, w))
    turned = w[::-1, ::-1].transpose(0, 1, 3, 2)
    close(jax.jit(partial(winograd.input_gradient, precision=None))(dy, w), exact(dy, turned))
    dw = jax.jit(partial(winograd.weight_gradient, precision=None))(x, dy)
    close(dw, exact_weight_gradient(x, dy))


@pytest.mark.parametrize("batch", [2, 8])  # 8 and 32 tiles: a weight gradient of either kind
def test_the_convolution_uses_it_forward_and_backward(monkeypatch, batch):
    x = jax.random.normal(jax.random.key(0), (batch, 8, 8, 32))
    w = jax.random.normal(jax.random.key(1), (3, 3, 32, 32))

    dy = jax.random.normal(jax.random.key(2), x.shape)

    def call(x, w):
        y, pull_back = jax.vjp(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME"), x, w)
        return y, *pull_back(dy)

    calls = []
    for name in ("convolve", "input_gradient", "weight_gradient"):
        original = getattr(winograd, name)

        def spy(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(winograd, name, spy)
    fast = jax.jit(call)(x, w)
    assert {"convolve", "input_gradient"} <= set(calls)
    assert ("weight_gradient" in calls) == (batch == 8)
    monkeypatch.setattr(winograd, "applies", lambda *arguments: False)
    for got, expected in zip(fast, jax.jit(lambda *a: call(*a))(x, w), strict=True):
        close(got, np.asarray(expected))


def test_it_is_for_float32_3x3_stride_1_even_tiles_and_many_channels():
    x, w = jnp.zeros((2, 8, 8, 32)), jnp.zeros((3, 3, 32, 32))
    assert winograd.applies(x, w, (1, 1), PADDING)
    assert not winograd.applies(x.astype(jnp.bfloat16), w, (1, 1), PADDING)
    assert not winograd.applies(x[:, :6], w, (1, 1), PADDING)
    assert not winograd.applies(x, w, (2, 2), PADDING)
    assert not winograd.applies(x, w, (1, 1), ((0, 2), (1, 1)))
    assert not winograd.applies(x, w[:1], (1, 1), PADDING)
    assert not winograd.applies(x[..., :16], w[:, :, :16], (1, 1), PADDING)


def test_mapped_models_are_bitwise_those_alone():
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 32))
    w = jax.random.normal(jax.random.key(1), (2, 3, 3, 32, 32))

    def gradients(pair):
        def loss(x, w):
            return jnp.sum(jnp.sin(conv_general_dilated(x, w, (1, 1), "SAME")))

        return jax.grad(loss, (0, 1))(*pair)

    together = jax.jit(lambda pairs: lax.map(gradients, pairs))((x, w))
    for n in range(2):
        alone = jax.jit(lambda pairs: lax.map(gradients, pairs))((x[n : n + 1], w[n : n + 1]))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[n], b[0])
