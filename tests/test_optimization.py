from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax.config import NetworkConfig, TrainConfig
from lira_jax.networks import Network, build
from lira_jax.optimization import (
    evaluated_variables,
    new_state,
    optimizer,
    paper_schedule,
    steps_per_epoch,
    train_step,
)

PLAIN = TrainConfig(
    optimizer="sgd", schedule="constant", learning_rate=0.5, weight_decay=0.0, ema=0.0
)


def linear_network() -> Network:
    """Logits = x · kernel + bias, with one counter that grows by 1 with every training step."""

    def init(key):
        kernel = jax.random.normal(key, (3, 2))
        return {
            "params": {"kernel": kernel, "bias": jnp.ones(2)},
            "rest": {"count": jnp.zeros(())},
        }

    def apply(variables, x):
        return x @ variables["params"]["kernel"] + variables["params"]["bias"]

    def apply_train(variables, x, key):
        return apply(variables, x), {"count": variables["rest"]["count"] + 1}

    return Network(init, apply_train, apply)


def run_steps(config: TrainConfig, steps: int):
    network = linear_network()
    state = jax.jit(lambda key: new_state(key, network, config, steps))(jax.random.key(0))
    step = jax.jit(train_step(network, config, steps))
    x = jax.random.normal(jax.random.key(1), (steps, 8, 3))
    y = jax.random.randint(jax.random.key(2), (steps, 8), 0, 2)
    states, losses = [state], []
    for batch, labels in zip(x, y, strict=True):
        state, (loss, _) = step(state, batch, labels, jax.random.key(0))
        states.append(state)
        losses.append(float(loss))
    return states, np.asarray(x, np.float64), np.asarray(y), losses


def gradient(kernel, bias, x, y):
    """Mean cross-entropy and its gradient, by hand, in float64."""
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    return loss, x.T @ p, p.sum(axis=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_equal_momentum_sgd_by_hand_with_decay_on_kernels_only(momentum):
    config = dataclasses.replace(
        PLAIN, optimizer="momentum" if momentum else "sgd", momentum=momentum, weight_decay=0.1
    )
    states, x, y, losses = run_steps(config, 5)
    kernel = np.asarray(states[0]["variables"]["params"]["kernel"], np.float64)
    bias, speed_kernel, speed_bias = np.ones(2), 0.0, 0.0
    for batch, labels, measured in zip(x, y, losses, strict=True):
        loss, d_kernel, d_bias = gradient(kernel, bias, batch, labels)
        assert measured == pytest.approx(loss, rel=1e-5)
        speed_kernel = momentum * speed_kernel + d_kernel + 0.1 * kernel
        speed_bias = momentum * speed_bias + d_bias
        kernel, bias = kernel - 0.5 * speed_kernel, bias - 0.5 * speed_bias
    params = states[-1]["variables"]["params"]
    np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-4)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-4)


def test_adams_first_step_moves_every_weight_by_the_learning_rate():
    config = dataclasses.replace(PLAIN, optimizer="adam", learning_rate=0.01)
    states, *_ = run_steps(config, 1)
    before, after = (state["variables"]["params"]["kernel"] for state in states)
    np.testing.assert_allclose(np.abs(after - before), 0.01, rtol=1e-3)


def test_the_papers_schedule_warms_up_over_a_hundredth_and_ends_at_a_fifth():
    rate = paper_schedule(0.1, 1000)
    assert rate(0) == 0
    assert rate(5) == pytest.approx(0.05 * np.cos(7 * np.pi / 16 * 0.005))
    assert rate(500) == pytest.approx(0.1 * np.cos(7 * np.pi / 32))
    assert rate(1000) == pytest.approx(0.1 * np.cos(7 * np.pi / 16))


def test_the_schedule_reaches_the_optimiser():
    config = dataclasses.replace(PLAIN, schedule="paper", learning_rate=1.0)
    transform = optimizer(config, 100)
    params = {"kernel": jnp.zeros(1)}
    state = transform.init(params)
    rates = []
    for _ in range(100):
        update, state = transform.update({"kernel": jnp.ones(1)}, state, params)
        rates.append(-float(update["kernel"][0]))
    expected = [float(paper_schedule(1.0, 100)(step)) for step in range(100)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_moving_average_is_debiased_and_covers_normalisation_statistics():
    config = dataclasses.replace(PLAIN, ema=0.8)
    states, *_ = run_steps(config, 4)
    weights = 0.8 ** np.arange(3, -1, -1)
    for part, name in (("params", "kernel"), ("rest", "count")):
        values = np.array([np.asarray(state["variables"][part][name]) for state in states[1:]])
        expected = np.tensordot(weights / weights.sum(), values, axes=1)
        got = evaluated_variables(states[-1], config)[part][name]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_without_a_moving_average_the_last_weights_are_evaluated():
    states, *_ = run_steps(PLAIN, 3)
    assert evaluated_variables(states[-1], PLAIN) is states[-1]["variables"]


def test_normalisation_parameters_and_biases_have_no_decay():
    network = build(NetworkConfig("resnet", 8, 4), (8, 8, 1), 10)
    config = dataclasses.replace(PLAIN, learning_rate=1.0, weight_decay=0.5)
    state = jax.jit(lambda key: new_state(key, network, config, 1))(jax.random.key(0))
    params = state["variables"]["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    update, _ = jax.jit(optimizer(config, 1).update)(zero, state["optimizer"], params)
    for path, change in jax.tree_util.tree_leaves_with_path(update):
        decayed = path[-1].key == "kernel"
        assert bool(jnp.any(change != 0)) == decayed, path


def test_the_rest_of_a_shuffle_is_left_out():
    assert steps_per_epoch(898, 32) == 28
    assert steps_per_epoch(32, 32) == 1
