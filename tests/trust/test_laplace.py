"""Most of it against dense float64 computations of the posterior of a tiny last layer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from lira_jax.config import NetworkConfig
from lira_jax.networks import build
from lira_jax.trust import laplace
from tests.conftest import refusal
from tests.precision import reordered

F, K, SCALE = 4, 3, 0.7


def layer(seed: int, members: int = 30, features: int = F, classes: int = K):
    """Inputs of members, kernel and bias of a last layer, and its logits."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(members, features)).astype(np.float32)
    kernel = random.normal(size=(features, classes)).astype(np.float32)
    bias = random.normal(size=classes).astype(np.float32)
    return inputs, kernel, bias, SCALE * (inputs @ kernel + bias)


@partial(jax.jit, static_argnames="scale")
def total(inputs, logits, counts, scale) -> laplace.Factors:
    def add(sums, row):
        return laplace.add_factors(sums, row[0], row[1], scale, row[2]), None

    none = laplace.no_factors(inputs.shape[-1], logits.shape[-1])
    return jax.lax.scan(add, none, (inputs, logits, counts))[0]


def factors_of(inputs, logits, scale=SCALE, batch=8) -> laplace.Factors:
    """In batches, the last of them filled up with copies of the first member."""
    steps = -(-len(inputs) // batch)
    order = np.zeros(steps * batch, int)
    order[: len(inputs)] = np.arange(len(inputs))
    counts = (np.arange(len(order)) < len(inputs)).astype(np.float32)
    rows = (part[order].reshape(steps, batch, -1) for part in (inputs, logits))
    return total(*rows, counts.reshape(steps, batch), scale)


posterior_of = jax.jit(laplace.posterior, static_argnums=3)
sampled = jax.jit(laplace.sampled, static_argnames="samples")
probit = jax.jit(laplace.probit)


def dense_factors(inputs, logits, scale=SCALE):
    """A and B in float64; Λ's diagonal from the other classes, so that it is exact for any p."""
    phi = scale * np.c_[inputs, np.ones(len(inputs))].astype(np.float64)
    p = softmax(logits.astype(np.float64), axis=1)
    others = p @ (1 - np.eye(p.shape[1]))
    curvature = -np.einsum("nk,nl->kl", p, p)
    np.fill_diagonal(curvature, (p * others).sum(axis=0))
    return phi.T @ phi, curvature / len(p)


def dense_covariance(inputs, logits, prior):
    """(A ⊗ B + δI)⁻¹ of weights [D, K], flattened."""
    a, b = dense_factors(inputs, logits)
    return np.linalg.inv(np.kron(a, b) + prior * np.eye(a.shape[0] * b.shape[0]))


def logit_covariance(posterior, inputs, scale=SCALE):
    u, v = np.asarray(posterior.classes), laplace._variances(posterior, inputs, scale)
    return np.einsum("kl,nl,ml->nkm", u, v, u)


@pytest.mark.accelerator
def test_the_covariance_of_logits_is_that_of_the_inverse_of_the_whole_precision():
    prior = 0.5
    inputs, kernel, bias, logits = layer(0)
    posterior = posterior_of(factors_of(inputs, logits), kernel, bias, prior)
    new = layer(1, 5)[0]
    phi = SCALE * np.c_[new, np.ones(5)]
    jacobian = np.einsum("nd,kl->nkdl", phi, np.eye(K)).reshape(5, K, -1)
    sigma = dense_covariance(inputs, logits, prior)
    expected = np.einsum("nki,ij,nmj->nkm", jacobian, sigma, jacobian)
    within = reordered(1e-4, 1e-3)
    np.testing.assert_allclose(logit_covariance(posterior, new), expected, rtol=within, atol=1e-6)
    # MacKay's probit approximation, by its formula.
    variance = np.einsum("nkk->nk", expected)
    got = probit(posterior, new, new @ kernel + bias, SCALE)
    np.testing.assert_allclose(
        got, (new @ kernel + bias) / np.sqrt(1 + np.pi * variance / 8), rtol=within
    )


@pytest.mark.accelerator
def test_of_one_member_the_factors_are_the_hessian_of_its_loss():
    inputs, kernel, bias, logits = layer(2, 1)

    def loss(weights):
        return -jax.nn.log_softmax(SCALE * jnp.append(inputs[0], 1) @ weights)[1]

    factors = factors_of(inputs, logits, batch=1)
    by_class = np.diag(factors.products.sum(axis=1)) - factors.products
    got = np.einsum("ad,bd,kl->akbl", factors.root.T, factors.root.T, by_class)
    hessian = jax.jit(jax.hessian(loss))(jnp.vstack([kernel, bias]))
    np.testing.assert_allclose(got, hessian, atol=reordered(1e-6, 1e-5))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), size=st.floats(-3, 2), members=st.sampled_from([3, 30]))
def test_the_prior_chosen_has_the_greatest_marginal_likelihood(seed, size, members):
    inputs, kernel, bias, logits = layer(seed, members)
    kernel, bias, logits = (np.float32(10**size) * part for part in (kernel, bias, logits))
    posterior = posterior_of(factors_of(inputs, logits), kernel, bias, 0.0)
    a, b = (np.maximum(np.linalg.eigvalsh(part), 0) for part in dense_factors(inputs, logits))
    curvature, squares = np.outer(a, b), float((kernel**2).sum() + (bias**2).sum())

    def loss(t):
        return np.exp(t) * squares / 2 + np.log1p(curvature * np.exp(-t)).sum() / 2

    grid = np.linspace(-60, 30, 901)
    near = grid[np.argmin([loss(t) for t in grid])]
    best = minimize_scalar(loss, bounds=(near - 0.2, near + 0.2), options={"xatol": 1e-9})
    np.testing.assert_allclose(np.log(posterior.prior), best.x, atol=1e-4)


def test_members_predicted_with_certainty_leave_a_prior_that_is_a_number():
    inputs, kernel, bias, _ = layer(3)
    logits = 1e4 * np.eye(K, dtype=np.float32)[np.arange(30) % K]
    posterior = posterior_of(factors_of(inputs, logits), kernel, bias, 0.0)
    assert 0 < posterior.prior < 1e-6
    assert np.isfinite(probit(posterior, inputs, logits, SCALE)).all()


@pytest.mark.accelerator
def test_float32_gives_the_variances_of_saturated_and_correlated_members():
    """64 features as a trained network has them: not below 0, most of their variation between
    classes, the rest over three orders of magnitude; p is within 1e-6 of 1 for nearly all."""
    random = np.random.default_rng(4)
    n, f, k = 12_500, 64, 10
    labels = random.integers(0, k, n)
    turn = np.linalg.qr(random.normal(size=(f, f)))[0] * np.logspace(-0.5, -3.5, f)
    inputs = np.abs(random.normal(size=(k, f)))[labels] + random.normal(size=(n, f)) @ turn.T
    margin = random.normal(14, 1, size=(n, 1)) * np.eye(k)[labels]
    inputs, logits = (
        part.astype(np.float32) for part in (inputs, margin + random.normal(size=(n, k)))
    )
    a, b = dense_factors(inputs, logits, 1.0)
    assert np.median(np.diag(b)) < 1e-5
    assert np.linalg.cond(a) > 1e7
    factors = factors_of(inputs, logits, 1.0, 500)
    new = np.abs(random.normal(size=(100, f))).astype(np.float32)
    (a, u), (b, v) = (np.linalg.eigh(part) for part in (a, b))
    along = np.square(np.c_[new, np.ones(100)] @ u)
    for prior in (1e-6, 1e-3, 1.0):
        posterior = posterior_of(factors, np.zeros((f, k)), np.zeros(k), prior)
        expected = along @ (1 / (np.outer(a, np.r_[0, b[1:]]) + prior)) @ np.square(v).T
        got = np.einsum("nkk->nk", logit_covariance(posterior, new, 1.0))
        np.testing.assert_allclose(got, expected, rtol=reordered(1e-3, 5e-3))


@pytest.mark.accelerator
def test_sampled_predictions_are_the_mean_over_draws_of_whole_weights():
    inputs, kernel, bias, logits = layer(5, 12)
    posterior = posterior_of(factors_of(inputs, logits), kernel, bias, 0.5)
    new = layer(6, 3)[0]
    at = SCALE * (new @ kernel + bias)
    key, draws = jax.random.key(0), 20_000
    got = np.exp(sampled(posterior, new, at, SCALE, jnp.arange(3), key, draws))
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-4)

    sigma = dense_covariance(inputs, logits, 0.5)
    weights = np.random.default_rng(0).multivariate_normal(
        np.vstack([kernel, bias]).ravel(), sigma, draws
    )
    phi = SCALE * np.c_[new, np.ones(3)]
    p = softmax(np.einsum("nd,sdk->snk", phi, weights.reshape(draws, F + 1, K)), axis=2)
    error = p.std(axis=0) * np.sqrt(2 / draws)
    assert (np.abs(got - p.mean(axis=0)) < 5 * error).all()
    assert (np.abs(got - softmax(at, axis=1)).max(axis=1) > 10 * error.max(axis=1)).all()


def test_a_firm_prior_gives_back_the_networks_own_predictions_small_ones_too():
    inputs, kernel, bias, logits = layer(7)
    posterior = posterior_of(factors_of(inputs, logits), kernel, bias, 1e12)
    far = np.array([[0, -50, -90], [30, 0, 0]], np.float32)
    got = sampled(posterior, inputs[:2], far, SCALE, jnp.arange(2), jax.random.key(0), 5)
    np.testing.assert_allclose(got, log_softmax(far, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(probit(posterior, inputs[:2], far, SCALE), far, rtol=1e-6)


def test_predictions_and_factors_do_not_depend_on_the_batch():
    inputs, kernel, bias, logits = layer(8)
    one, other = factors_of(inputs, logits, batch=5), factors_of(inputs[::-1], logits[::-1])
    np.testing.assert_allclose(
        one.root.T @ one.root, other.root.T @ other.root, rtol=2e-5, atol=1e-5
    )
    np.testing.assert_allclose(one.products, other.products, rtol=1e-5, atol=1e-5)
    assert one.members == other.members == 30

    posterior = posterior_of(one, kernel, bias, 1.0)
    number, key = jnp.arange(100, 130), jax.random.key(1)
    predict = partial(sampled, posterior, scale=SCALE, key=key, samples=3)
    whole = predict(inputs=inputs, logits=logits, index=number)
    some = np.array([4, 20, 11])
    part = predict(inputs=inputs[some], logits=logits[some], index=number[some])
    np.testing.assert_allclose(part, whole[some], rtol=1e-5, atol=1e-6)
    again = predict(inputs=inputs[some], logits=logits[some], index=number[some] + 1)
    assert not np.allclose(again, part, rtol=1e-2)


def test_models_side_by_side_are_each_like_alone():
    layers = [layer(seed) for seed in (9, 10)]
    inputs, kernel, bias, logits = (np.stack(parts) for parts in zip(*layers, strict=True))

    def predict(inputs, kernel, bias, logits):
        sums = laplace.add_factors(laplace.no_factors(F, K), inputs, logits, SCALE, jnp.ones(30))
        found = laplace.posterior(sums, kernel, bias, 0.0)
        draws = laplace.sampled(found, inputs, logits, SCALE, jnp.arange(30), jax.random.key(2), 2)
        return laplace.probit(found, inputs, logits, SCALE), draws

    together = jax.jit(jax.vmap(predict))(inputs, kernel, bias, logits)
    in_turn = jax.jit(lambda parts: jax.lax.map(lambda part: predict(*part), parts))(
        (inputs, kernel, bias, logits)
    )
    for one, other in zip(together, in_turn, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


class Own(nnx.Module):
    """A user's own network whose logits are `times` the last layer's, and whose features are its
    inputs after `before`."""

    times, use_bias, before = 1.0, True, staticmethod(lambda x: x)

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.dense = nnx.Linear(
            int(np.prod(image_shape)), classes, use_bias=self.use_bias, rngs=rngs
        )

    def features(self, x):
        return self.before(x.reshape(len(x), -1))

    def __call__(self, x):
        return self.times * self.dense(x.reshape(len(x), -1))


class Doubled(Own):
    times = 2.0


class Scaled(Doubled):
    head_scale = 2.0


class Rectified(Own):
    before = staticmethod(jax.nn.relu)


class Short(Own):
    before = staticmethod(lambda x: x[:, :3])


class NoBias(Own):
    use_bias = False


def checked(module: type) -> str:
    arch = f"{__name__}:{module.__name__}"
    network = build(NetworkConfig(arch, 1, 1), (2, 2, 1), 3)
    images = np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype(np.float32)
    laplace.check_last_layer(network, arch, network.init(jax.random.key(0)), images)
    return arch


@pytest.mark.parametrize("module", [Own, Scaled])
def test_a_users_own_network_with_a_last_layer_passes(module):
    checked(module)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Doubled, "are not features(images) @ kernel + bias of its last layer"),
        (Rectified, "are not features(images) @ kernel + bias of its last layer"),
        (Short, "are not features(images) @ kernel + bias of its last layer"),
        (NoBias, "its last layer dense has no kernel and bias"),
    ],
)
def test_a_users_own_network_without_such_a_last_layer_is_refused(module, says):
    assert says in refusal(None, lambda: checked(module))
