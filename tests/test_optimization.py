from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lira_jax.config import DefenceConfig, NetworkConfig, TrainConfig
from lira_jax.networks import Network, build
from lira_jax.optimization import (
    cross_entropy,
    evaluated_variables,
    new_state,
    one_cycle_schedule,
    optimizer,
    paper_schedule,
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

    def apply_tuned(variables, x, key):
        return apply(variables, x)

    return Network(init, apply_train, apply, apply_tuned, *[lambda variables, x: x] * 2)


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


def gradient(kernel, bias, x, y, smoothing=0.0):
    """Mean cross-entropy and its gradient, by hand, in float64."""
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    target = (1 - smoothing) * np.eye(p.shape[1])[y] + smoothing / p.shape[1]
    loss = -(target * np.log(p)).sum(axis=1).mean()
    p = (p - target) / len(y)
    return loss, x.T @ p, p.sum(axis=0)


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("optimizer", "momentum", "smoothing"),
    [("sgd", 0.0, 0.0), ("momentum", 0.9, 0.0), ("nesterov", 0.9, 0.0), ("momentum", 0.9, 0.2)],
)
def test_steps_equal_sgd_by_hand_with_decay_on_kernels_only(optimizer, momentum, smoothing):
    config = dataclasses.replace(
        PLAIN,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=0.1,
        label_smoothing=smoothing,
    )
    states, x, y, losses = run_steps(config, 5)
    kernel = np.asarray(states[0].variables["params"]["kernel"], np.float64)
    bias, speed_kernel, speed_bias = np.ones(2), 0.0, 0.0
    for batch, labels, measured in zip(x, y, losses, strict=True):
        loss, d_kernel, d_bias = gradient(kernel, bias, batch, labels, smoothing)
        assert measured == pytest.approx(loss, rel=1e-5)
        d_kernel += 0.1 * kernel
        speed_kernel = momentum * speed_kernel + d_kernel
        speed_bias = momentum * speed_bias + d_bias
        if optimizer == "nesterov":
            kernel = kernel - 0.5 * (d_kernel + momentum * speed_kernel)
            bias = bias - 0.5 * (d_bias + momentum * speed_bias)
        else:
            kernel, bias = kernel - 0.5 * speed_kernel, bias - 0.5 * speed_bias
    params = states[-1].variables["params"]
    np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-4)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-4)


@pytest.mark.accelerator
def test_adams_first_step_moves_every_weight_by_the_learning_rate():
    config = dataclasses.replace(PLAIN, optimizer="adam", learning_rate=0.01)
    states, *_ = run_steps(config, 1)
    before, after = (state.variables["params"]["kernel"] for state in states)
    np.testing.assert_allclose(np.abs(after - before), 0.01, rtol=1e-3)


@pytest.mark.accelerator
def test_the_papers_schedule_warms_up_over_a_hundredth_and_ends_at_a_fifth():
    rate = paper_schedule(0.1, 1000)
    assert rate(0) == 0
    assert rate(5) == pytest.approx(0.05 * np.cos(7 * np.pi / 16 * 0.005), rel=1e-5)
    assert rate(500) == pytest.approx(0.1 * np.cos(7 * np.pi / 32), rel=1e-5)
    assert rate(1000) == pytest.approx(0.1 * np.cos(7 * np.pi / 16), rel=1e-5)


@pytest.mark.accelerator
def test_one_cycle_rises_for_a_fifth_and_falls_to_zero_in_straight_lines():
    rate = one_cycle_schedule(0.5, 1000)
    assert rate(0) == pytest.approx(0.5 * 0.0005 / 0.2)
    assert rate(99.5) == pytest.approx(0.25)
    assert rate(199.5) == pytest.approx(0.5)
    assert rate(599.5) == pytest.approx(0.25)
    assert rate(999) == pytest.approx(0.5 * 0.0005 / 0.8)
    rates = np.array([rate(step) for step in range(1000)])
    assert rates.min() > 0
    assert rates.mean() == pytest.approx(0.25, rel=1e-4)


def test_a_single_step_of_one_cycle_still_moves():
    assert 0 < one_cycle_schedule(1.0, 1)(0) <= 1


@pytest.mark.accelerator
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_the_cross_entropy_with_smoothed_targets(smoothing):
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 30, (16, 5)), random.integers(5, size=16)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(target * log_p).sum(axis=1).mean()
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_without_smoothing_the_program_is_that_of_plain_cross_entropy():
    shapes = jax.ShapeDtypeStruct((4, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)

    def plain(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    programs = [
        jax.jit(loss).lower(*shapes).as_text()
        for loss in (lambda logits, labels: cross_entropy(logits, labels, 0.0), plain)
    ]
    assert programs[0].replace("_lambda", "plain") == programs[1]


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("schedule", "function"), [("paper", paper_schedule), ("one_cycle", one_cycle_schedule)]
)
def test_the_schedule_reaches_the_optimiser(schedule, function):
    config = dataclasses.replace(PLAIN, schedule=schedule, learning_rate=1.0)
    transform = optimizer(config, 100)
    params = {"kernel": jnp.zeros(1)}
    state = transform.init(params)
    rates = []
    for _ in range(100):
        update, state = transform.update({"kernel": jnp.ones(1)}, state, params)
        rates.append(-float(update["kernel"][0]))
    expected = [float(function(1.0, 100)(step)) for step in range(100)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.accelerator
def test_the_moving_average_is_debiased_and_covers_normalisation_statistics():
    config = dataclasses.replace(PLAIN, ema=0.8)
    states, *_ = run_steps(config, 4)
    weights = 0.8 ** np.arange(3, -1, -1)
    for part, name in (("params", "kernel"), ("rest", "count")):
        values = np.array([np.asarray(state.variables[part][name]) for state in states[1:]])
        expected = np.tensordot(weights / weights.sum(), values, axes=1)
        got = evaluated_variables(states[-1], config)[part][name]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_without_a_moving_average_the_last_weights_are_evaluated():
    states, *_ = run_steps(PLAIN, 3)
    assert evaluated_variables(states[-1], PLAIN) is states[-1].variables


def test_normalisation_parameters_and_biases_have_no_decay():
    network = build(NetworkConfig("tests.small_networks:Convolution", width=4), (8, 8, 1), 10)
    config = dataclasses.replace(PLAIN, learning_rate=1.0, weight_decay=0.5)
    state = jax.jit(lambda key: new_state(key, network, config, 1))(jax.random.key(0))
    params = state.variables["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    update, _ = jax.jit(optimizer(config, 1).update)(zero, state.optimizer, params)
    for path, change in jax.tree_util.tree_leaves_with_path(update):
        decayed = path[-1].key == "kernel"
        assert bool(jnp.any(change != 0)) == decayed, path


@pytest.mark.accelerator
def test_the_l1_penalty_adds_the_gradient_of_the_sum_of_absolute_kernels():
    params = {"kernel": jnp.array([1.5, -0.5]), "bias": jnp.array([2.0])}
    slopes = {"kernel": jnp.array([0.1, 0.2]), "bias": jnp.array([0.4])}
    config = dataclasses.replace(PLAIN, learning_rate=1.0, weight_decay=0.5)
    transform = optimizer(config, 1, DefenceConfig(l1=0.01))
    update, _ = transform.update(slopes, transform.init(params), params)
    penalty = jax.grad(lambda k: 0.01 * jnp.abs(k).sum() + 0.25 * (k**2).sum())(params["kernel"])
    np.testing.assert_allclose(-update["kernel"], slopes["kernel"] + penalty, rtol=1e-5)
    np.testing.assert_allclose(-update["bias"], slopes["bias"], rtol=1e-6)


def test_an_l1_penalty_pulls_weights_without_use_to_zero_and_l2_does_not():
    def end(config, defence):
        transform = optimizer(config, 100, defence)
        params = {"kernel": jnp.array([0.3])}
        state = transform.init(params)
        for _ in range(100):
            update, state = transform.update({"kernel": jnp.zeros(1)}, state, params)
            params = optax.apply_updates(params, update)
        return float(jnp.abs(params["kernel"][0]))

    config = dataclasses.replace(PLAIN, learning_rate=0.1)
    assert end(config, DefenceConfig(l1=0.1)) < 0.011
    assert end(dataclasses.replace(config, weight_decay=0.1), DefenceConfig()) > 0.1


def test_the_rest_of_a_shuffle_is_left_out():
    assert TrainConfig(batch_size=32).steps_per_epoch(898) == 28
    assert TrainConfig(batch_size=32, epochs=3).total_steps(32) == 3
