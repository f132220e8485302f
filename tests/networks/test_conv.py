from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lira_jax.config import NetworkConfig
from lira_jax.networks import build
from lira_jax.networks.conv import CONV_GRADIENTS, Options, conv_general_dilated, ordinary_gradients
from tests.precision import reordered


def by_hand(x, w, dy, strides, padding):
    """The convolution as a sum of shifted products, and its gradients (dx, dw), in float64."""
    (top, bottom), (left, right) = padding
    edges = [(max(0, side), max(0, other)) for side, other in padding]
    x = np.pad(np.float64(x), ((0, 0), *edges, (0, 0)))
    cut = tuple(slice(max(0, -low), n - max(0, -high)) for n, low, high in (
        (x.shape[1], top, bottom), (x.shape[2], left, right),
    ))  # fmt: skip
    x = x[:, cut[0], cut[1]]
    dx, dw, y = np.zeros_like(x), np.zeros(w.shape), np.zeros(dy.shape)
    for i, j in np.ndindex(w.shape[:2]):
        rows = slice(i, i + (dy.shape[1] - 1) * strides[0] + 1, strides[0])
        columns = slice(j, j + (dy.shape[2] - 1) * strides[1] + 1, strides[1])
        y += x[:, rows, columns] @ np.float64(w[i, j])
        dx[:, rows, columns] += np.float64(dy) @ np.float64(w[i, j]).T
        dw[i, j] = np.einsum("bhwi,bhwo->io", x[:, rows, columns], dy)
    return y, dx, dw


def on_accelerators(*case):
    return pytest.param(*case, marks=pytest.mark.accelerator)


def check_by_hand(batch, size, kernel, channels, strides, padding):
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, *size, channels[0])).astype(np.float32)
    w = random.normal(size=(*kernel, *channels)).astype(np.float32)
    sides = [
        (n + low + high - k) // stride + 1
        for n, k, stride, (low, high) in zip(size, kernel, strides, padding, strict=True)
    ]
    dy = random.normal(size=(batch, *sides, channels[1])).astype(np.float32)

    @jax.jit
    def ours(x, w, dy):
        y, pull_back = jax.vjp(lambda x, w: conv_general_dilated(x, w, strides, padding), x, w)
        return y, *pull_back(dy)

    y, *gradients = ours(x, w, dy)
    expected, dx, dw = by_hand(x, w, dy, strides, padding)
    np.testing.assert_allclose(y, expected, atol=2e-6 * np.sqrt(w.size), rtol=1e-4)
    # What lies in the padding has no gradient; what negative padding cuts off has none of 0.
    (top, _), (left, _) = padding
    whole = np.zeros((batch, *(n + 2 * 16 for n in size), channels[0]))
    whole[:, 16 - top : 16 - top + dx.shape[1], 16 - left : 16 - left + dx.shape[2]] = dx
    dx = whole[:, 16 : 16 + size[0], 16 : 16 + size[1]]
    for got, want in zip(gradients, (dx, dw), strict=True):
        np.testing.assert_allclose(got, want, atol=reordered(1e-5) * np.abs(want).max())


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [(8, 8, 3, 1), (8, 8, 3, 2), (7, 10, 3, 1), (7, 10, 3, 3), (9, 5, 1, 2), (6, 6, 2, 1)],
)
def test_values_and_gradients_equal_a_sum_of_shifted_products(
    height, width, kernel, stride, padding
):
    check_by_hand(3, (height, width), (kernel, kernel), (4, 5), (stride, stride), padding)


@pytest.mark.parametrize(
    ("batch", "size", "kernel", "channels", "strides"),
    [
        (2, (8, 8), (3, 3), (1, 16), (1, 1)),
        (2, (8, 8), (3, 3), (3, 8), (1, 1)),
        on_accelerators(2, (8, 8), (3, 3), (16, 16), (1, 1)),
        (2, (8, 6), (3, 3), (16, 16), (1, 1)),
        (2, (8, 7), (3, 3), (16, 16), (1, 1)),
        (2, (8, 8), (3, 3), (32, 32), (1, 1)),
        (2, (8, 8), (3, 3), (16, 32), (2, 2)),
        (2, (8, 8), (3, 3), (8, 8), (2, 2)),
        on_accelerators(2, (9, 7), (3, 3), (32, 8), (2, 2)),
        on_accelerators(2, (8, 8), (1, 1), (16, 32), (2, 2)),
        (2, (8, 8), (1, 1), (32, 4), (1, 1)),
        (2, (9, 8), (5, 3), (8, 4), (3, 2)),
        (2, (8, 8), (1, 3), (4, 4), (2, 1)),
        (2, (8, 8), (3, 1), (4, 4), (1, 2)),
        on_accelerators(5, (32, 32), (3, 3), (4, 8), (1, 1)),
        (6, (24, 20), (3, 3), (32, 8), (2, 2)),
        (3, (2, 2), (3, 3), (4, 5), (1, 1)),
        (3, (2, 2), (3, 3), (4, 5), (2, 2)),
        (3, (1, 4), (3, 3), (4, 5), (1, 1)),
        (3, (2, 2), (5, 1), (4, 5), (1, 2)),
    ],
)
def test_every_way_of_computing_it_gives_the_same(batch, size, kernel, channels, strides):
    check_by_hand(batch, size, kernel, channels, strides, "SAME")


@pytest.mark.parametrize(("channels", "strides"), [((3, 8), (1, 3)), ((32, 4), (1, 2))])
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
def test_padding_may_be_negative_or_larger_than_the_kernel(
    size, kernel, padding, strides, channels
):
    for stride in strides:
        check_by_hand(2, size, kernel, channels, (stride, stride), padding)


@pytest.mark.accelerator
def test_weight_gradients_in_bfloat16_are_summed_in_float32():
    x = jax.random.normal(jax.random.key(0), (64, 32, 32, 2)) + 1
    w = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))

    def loss(w, dtype):
        y = conv_general_dilated(x.astype(dtype), w.astype(dtype), (1, 1), "SAME")
        return jnp.mean(y.astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    exact, rounded = (gradient(w, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


@pytest.mark.accelerator
def test_gradients_agree_inside_a_mapped_loop_and_under_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4, 5))

    def loss(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, (2, 2), "SAME")))

    gradient = jax.jit(jax.grad(loss, 1))
    one_by_one = np.stack([gradient(a, b) for a, b in zip(x, w, strict=True)])
    mapped = lax.map(lambda pair: gradient(*pair), (x, w))
    within = reordered(1e-5)
    np.testing.assert_allclose(mapped, one_by_one, atol=within)
    np.testing.assert_allclose(jax.vmap(gradient)(x, w), one_by_one, atol=within)


def test_grouped_and_dilated_convolutions_are_refused():
    x, w = jnp.zeros((1, 4, 4, 4)), jnp.zeros((3, 3, 2, 4))
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(NotImplementedError):
        conv_general_dilated(x, w, (1, 1), "SAME", rhs_dilation=(2, 2))


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), "SAME"),
        ((8, 8), (3, 3), (2, 2), "SAME"),
        ((7, 10), (5, 3), (3, 2), ((2, 0), (1, 3))),
        ((9, 5), (3, 3), (2, 2), ((-1, 0), (2, -2))),
        ((9, 5), (1, 1), (2, 2), "VALID"),
        ((6, 7), (2, 2), (1, 1), "VALID"),
    ],
)
def test_gradients_as_those_of_one_grouped_convolution_equal_vectorised_ones(
    size, kernel, strides, padding
):
    """Exactly: small whole numbers leave nothing to round."""
    x, w, dy, padding = whole_numbers(size, kernel, strides, padding)
    got, want = (
        jax.jit(jax.vmap(ordinary_gradients(Options(strides, padding), way)))(x, w, dy)
        for way in ("grouped", "vmap")
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, 0), (0, 0, None)])
def test_gradients_as_those_of_a_grouped_convolution_may_share_an_array(axes):
    x, w, dy, padding = whole_numbers((4, 4), (3, 3), (1, 1), "SAME")
    arrays = [a if axis == 0 else a[0] for a, axis in zip((x, w, dy), axes, strict=True)]
    got, want = (
        jax.jit(jax.vmap(ordinary_gradients(Options((1, 1), padding), way), axes))(*arrays)
        for way in ("grouped", "vmap")
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def whole_numbers(size, kernel, strides, padding):
    """Images, kernels and output gradients of three models, and the padding in pixels."""
    if isinstance(padding, str):
        padding = tuple(lax.padtype_to_pads(size, kernel, strides, padding))
    random = np.random.default_rng(1)
    shapes = (3, 2, *size, 4), (3, *kernel, 4, 5)
    x, w = (random.integers(-4, 5, shape).astype(np.float32) for shape in shapes)
    y = jax.eval_shape(lambda x, w: conv_general_dilated(x, w, strides, padding), x[0], w[0])
    return x, w, random.integers(-4, 5, (3, *y.shape)).astype(np.float32), padding


def test_gradients_of_one_model_are_the_same_operations_in_either_way():
    x, w = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 5))
    dy = jnp.ones((2, 6, 6, 5))
    padding = ((1, 1), (1, 1))
    alone, grouped = (
        jax.jit(ordinary_gradients(Options((1, 1), padding), way))
        .lower(x, w, dy)
        .compile()
        .as_text()
        for way in ("vmap", "grouped")
    )
    assert alone.count(" convolution(") == grouped.count(" convolution(") == 2
    assert "group_count" not in grouped


def test_grouped_gradients_are_written_with_a_group_for_each_model():
    x, w = jnp.ones((3, 2, 6, 6, 4)), jnp.ones((3, 3, 3, 4, 5))
    dy = jnp.ones((3, 2, 6, 6, 5))
    gradients = jax.vmap(ordinary_gradients(Options((1, 1), ((1, 1), (1, 1))), "grouped"))
    counts = {
        (equation.params["feature_group_count"], equation.params["batch_group_count"])
        for equation in _convolutions(jax.make_jaxpr(gradients)(x, w, dy).jaxpr)
    }
    assert counts == {(3, 1), (1, 3)}


def _convolutions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _convolutions(inner)


@pytest.mark.accelerator
def test_a_network_of_vectorised_models_learns_the_same_by_either_way(monkeypatch):
    """As accelerators do it: without the convolutions written for CPUs."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    gradients = []
    for way in CONV_GRADIENTS:
        network = build(NetworkConfig("convnet", 8, 2), (8, 8, 3), 10, conv_gradients=way)
        variables = jax.vmap(network.init)(jax.random.split(jax.random.key(1), 2))

        def loss(params, rest, network=network):
            logits, _ = network.apply_train(
                {"params": params, "rest": rest}, images, jax.random.key(2)
            )
            return jnp.sum(jnp.sin(logits))

        gradient = jax.jit(jax.vmap(jax.grad(loss)))
        text = str(jax.make_jaxpr(gradient)(variables["params"], variables["rest"]))
        assert ("batch_group_count=2" in text) == (way == "grouped")
        gradients.append(gradient(variables["params"], variables["rest"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *gradients)
