from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_expit, softmax

from lira_jax import optimization, shadow_models, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, DefenceConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.defences import adversarial
from lira_jax.networks import Network
from lira_jax.run import checkpoints
from tests.conftest import refusal, with_train
from tests.test_training import stop_training, trained_weights

K = 4
BEGIN, STEP = jax.jit(adversarial.begin, static_argnums=1), jax.jit(adversarial.step)


def answers(seed: int, count: int = 64, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Logits and labels; the larger the scale, the more confident in the label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, K, count).astype(np.int32)
    logits = random.normal(size=(count, K)).astype(np.float32)
    logits[np.arange(count), labels] += scale
    return jnp.asarray(logits), jnp.asarray(labels)


def by_hand(params, logits, labels) -> np.ndarray:
    """log(h / (1 − h)) in NumPy, float64."""

    def layers(name, x, last=False):
        held = [(np.float64(one["kernel"]), np.float64(one["bias"])) for one in params[name]]
        for number, (kernel, bias) in enumerate(held, 1):
            x = x @ kernel + bias
            x = x if last and number == len(held) else np.maximum(x, 0)
        return x

    p = softmax(np.float64(logits), axis=1)
    joined = [layers("outputs", p), layers("label", np.eye(K)[labels])]
    return layers("joint", np.concatenate(joined, axis=1), last=True)[:, 0]


def test_the_gain_is_that_of_the_paper_by_hand():
    params = BEGIN(jax.random.key(0), K).params
    members, others = answers(1, scale=3), answers(2)
    expected = log_expit(by_hand(params, *members)).mean()
    assert float(adversarial.member_gain(params, members)) == pytest.approx(expected, rel=1e-5)
    expected = (expected + log_expit(-by_hand(params, *others)).mean()) / 2
    assert float(adversarial.gain(params, members, others)) == pytest.approx(expected, rel=1e-5)
    assert np.std(by_hand(params, *members)) > 0.05, "not blind to begin with"


def test_an_inference_network_learns_to_tell_and_has_nothing_to_learn_where_all_are_alike():
    ends = {}
    for scale_of_others in (1.0, 4.0):
        adversary = BEGIN(jax.random.key(0), K)
        for number in range(200):
            members = answers(2 * number, 256, 4.0)
            adversary = STEP(adversary, members, answers(2 * number + 1, 256, scale_of_others))
        fresh = answers(9000, 2000, 4.0), answers(9001, 2000, scale_of_others)
        ends[scale_of_others] = float(adversarial.gain(adversary.params, *fresh))
    assert -0.45 < ends[1.0] < 0
    assert -0.75 < ends[4.0] < -np.log(2) + 0.005


def linear_network() -> Network:
    """Logits = x · kernel on images [B, 1, 1, 3]."""

    def init(key):
        return {"params": {"kernel": jax.random.normal(key, (3, K))}, "rest": {}}

    def apply(variables, x):
        return x[:, 0, 0] @ variables["params"]["kernel"]

    def apply_train(variables, x, key):
        return apply(variables, x), {}

    return Network(init, apply_train, *[apply] * 4)


def test_a_step_of_the_classifier_follows_its_loss_and_the_gain_of_h_after_its_own_step():
    """Finite differences of cross-entropy + λ · mean log h, with h as the step leaves it."""
    network, weight, rate = linear_network(), 0.7, 0.3
    config = TrainConfig(
        optimizer="sgd", schedule="constant", learning_rate=rate, weight_decay=0.0, ema=0.0
    )
    defence = DefenceConfig(adversarial=weight)
    state = optimization.new_state(jax.random.key(0), network, config, 5, defence)
    state = dataclasses.replace(state, adversary=BEGIN(jax.random.key(1), K))
    random = np.random.default_rng(0)
    x, others = random.normal(size=(2, 16, 1, 1, 3)).astype(np.float32)
    y, y_others = random.integers(0, K, (2, 16)).astype(np.int32)
    step = jax.jit(optimization.train_step(network, config, 5, defence))
    key = jax.random.key(2)
    after, (loss, _) = step(state, x, y, key, held_out=(others, y_others, key))
    kernel = np.float64(state.variables["params"]["kernel"])

    alone = STEP(state.adversary, (x[:, 0, 0] @ kernel, y), (others[:, 0, 0] @ kernel, y_others))
    h = after.adversary.params
    for found, expected in zip(jax.tree.leaves(h), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def objective(kernel: np.ndarray, weight: float) -> float:
        logits = np.float64(x[:, 0, 0]) @ kernel
        cross_entropy = -np.log(softmax(logits, axis=1)[np.arange(16), y]).mean()
        return cross_entropy + weight * log_expit(by_hand(h, logits, y)).mean()

    slope, small = np.zeros_like(kernel), 1e-5
    for place in np.ndindex(kernel.shape):
        moved = np.zeros_like(kernel)
        moved[place] = small
        up, down = objective(kernel + moved, weight), objective(kernel - moved, weight)
        slope[place] = (up - down) / (2 * small)
    moved = (kernel - np.float64(after.variables["params"]["kernel"])) / rate
    np.testing.assert_allclose(moved, slope, atol=2e-5)
    assert float(loss) == pytest.approx(objective(kernel, 0.0), rel=1e-5), "logged without the gain"


class Linear(nnx.Module):
    """A user's own network that compiles fast."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.head = nnx.Linear(int(np.prod(image_shape)), classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


def of(tiny: Experiment, weight: float) -> Experiment:
    """Two models of a linear network."""
    network, defence = NetworkConfig(f"{__name__}:Linear"), DefenceConfig(adversarial=weight)
    return dataclasses.replace(tiny, network=network, defence=defence)


def test_models_are_the_same_in_a_group_and_where_training_goes_on(tiny, tmp_path):
    one = jax.devices()[:1]
    experiment = of(tiny, 1.0)
    training.train(with_train(experiment, group=2), tmp_path / "whole", one)
    stop_training(with_train(experiment, group=1), tmp_path / "parts", 7, seconds=0.0)
    [begun] = checkpoints.saved_groups(tmp_path / "parts")
    with np.load(tmp_path / "parts" / "checkpoints" / f"{begun.name}_step_7.npz") as held:
        assert any(name.startswith("adversary/optimizer/") for name in held)
    training.train(with_train(experiment, group=1), tmp_path / "parts", one)
    expected = trained_weights(experiment, tmp_path / "whole")
    for model, weights in trained_weights(experiment, tmp_path / "parts").items():
        np.testing.assert_array_equal(weights, expected[model])


def test_held_out_images_move_the_inference_network_and_not_the_classifier(tiny):
    """With almost no weight the classifier is that of plain training, whatever is held out."""

    def trained(weight: float, *picks: slice) -> list[optimization.State]:
        """Each with other images held out, if any."""
        experiment = of(tiny, weight)
        data = candidates(experiment)
        network = build_network(experiment, data)
        steps = shadow_models.steps_of_model(experiment, network, 20)
        state = jax.jit(shadow_models.init_model(experiment, network, 20, data.classes))(0)
        model = {"number": np.int32(0), "members": np.flatnonzero(data.keep[0]).astype(np.int32)}
        shared = jnp.asarray(data.images), jnp.asarray(data.labels)
        bounds, steps = (np.int32(0), np.int32(3)), jax.jit(steps)
        if not data.held_out:
            return [steps((state, model), *bounds, *shared)[0]]
        others = [tuple(jnp.asarray(part[pick]) for part in data.held_out) for pick in picks]
        return [steps((state, model), *bounds, *shared, held_out)[0] for held_out in others]

    [plain] = trained(0.0)
    some, others = trained(1e-30, slice(200), slice(200, 400))
    for state in (some, others):
        for found, expected in zip(
            jax.tree.leaves(state.variables), jax.tree.leaves(plain.variables), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    first, second = (optax.tree.norm(state.adversary.params) for state in (some, others))
    assert float(first) != float(second)
    assert plain.adversary is None


def test_no_held_out_images_are_refused(tiny, tmp_path):
    everything = dataclasses.replace(of(tiny, 0.5), data=DataConfig())
    message = refusal(tmp_path, lambda: training.train(everything, tmp_path / "run"))
    assert "defence.adversarial = 0.5: needs held-out images" in message
