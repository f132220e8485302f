from __future__ import annotations

import dataclasses
import math
import sys
import time

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lira_jax import training
from lira_jax.analysis import analyse
from lira_jax.config import DefenceConfig, Experiment, NetworkConfig, TrainConfig, check
from lira_jax.defences import dp_sgd
from lira_jax.networks import build, layers
from lira_jax.run import run_dir
from tests.conftest import refusal, with_train
from tests.test_training import trained_weights

# jax-privacy 2.0 calls it.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated")

CLIPPED = DefenceConfig(dp_clip=0.5)


def squares(params, x, y, key):
    """½ Σ_i w_i (x·k + b − y)² of a batch, and its mean prediction."""
    prediction = x @ params["kernel"] + params["bias"]
    return 0.5 * jnp.mean((prediction - y) ** 2), prediction.mean()


PARAMS = {"kernel": jnp.array([0.3, -0.2]), "bias": jnp.array(0.1)}


def batch(size=16, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(size, 2)).astype(np.float32)
    return x, random.normal(size=size).astype(np.float32)


def clipped_by_hand(x, y, clip):
    """Sum over examples of residual · (x, 1), each shortened to the norm `clip`, in float64."""
    total = np.zeros(3)
    for row, target in zip(x.astype(np.float64), y, strict=True):
        residual = row @ np.asarray(PARAMS["kernel"]) + 0.1 - target
        gradient = residual * np.append(row, 1)
        total += gradient * min(1, clip / np.linalg.norm(gradient))
    return total


def as_vector(tree):
    return np.append(np.asarray(tree["kernel"]), np.asarray(tree["bias"]))


@pytest.mark.parametrize("clip", [0.05, 0.5, 1e3])
def test_the_gradient_is_the_sum_of_clipped_ones_by_hand_over_the_expected_batch(clip):
    x, y = batch()
    padding = np.arange(16) >= 11
    x[padding] = np.nan  # what padding holds does not matter
    private = dp_sgd.value_and_gradient(squares, DefenceConfig(dp_clip=clip), 8)
    (loss, told), gradient = jax.jit(private)(PARAMS, x, y, jax.random.key(0), padding)
    expected = clipped_by_hand(x[:11], y[:11], clip) / 8
    np.testing.assert_allclose(as_vector(gradient), expected, rtol=1e-5, atol=1e-7)
    plain_loss, plain_told = squares(PARAMS, x[:11], y[:11], None)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-5)
    assert float(told) == pytest.approx(float(plain_told), rel=1e-4)


def test_microbatches_of_accelerators_give_the_same_sum(monkeypatch):
    x, y = batch(32)
    padding = np.arange(32) >= 19
    sums = []
    for together in (1, 16):
        monkeypatch.setattr(dp_sgd, "TOGETHER_ON_CPU", together)
        private = dp_sgd.value_and_gradient(squares, CLIPPED, 8)
        _, gradient = jax.jit(private)(PARAMS, x, y, jax.random.key(0), padding)
        sums.append(as_vector(gradient))
    np.testing.assert_allclose(*sums, rtol=1e-5, atol=1e-7)


def test_an_empty_batch_gives_noise_alone_and_no_loss():
    x, y = batch()
    private = dp_sgd.value_and_gradient(squares, DefenceConfig(dp_clip=1.0, dp_noise=1.0), 4)
    (loss, _), gradient = private(PARAMS, x, y, jax.random.key(0), np.ones(16, bool))
    assert float(loss) == 0
    assert np.isfinite(as_vector(gradient)).all()
    assert (as_vector(gradient) != 0).all()


@settings(max_examples=20, deadline=None)
@given(
    size=st.floats(1e-3, 1e18),
    target=st.floats(-1e6, 1e6),
    seed=st.integers(0, 5),
    who=st.integers(0, 15),
)
def test_no_member_moves_the_sum_by_more_than_the_clipping_norm(size, target, seed, who):
    x, y = batch(seed=seed)
    x[who] *= size
    y[who] = target
    with_member, without = np.zeros(16, bool), np.arange(16) == who
    sums = [
        as_vector(PRIVATE(PARAMS, x, y, jax.random.key(0), padding)[1])
        for padding in (with_member, without)
    ]
    assert np.isfinite(sums).all()
    assert np.linalg.norm(sums[0] - sums[1]) <= 0.5 * (1 + 1e-4)


PRIVATE = jax.jit(dp_sgd.value_and_gradient(squares, CLIPPED, 1))


class Small(nnx.Module):
    """A convolution, group normalisation, mean over pixels, dense: fast to compile."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.conv = layers.conv(image_shape[-1], 8, stride=2, dtype=dtype, rngs=rngs)
        self.norm = layers.normalisation("group", 8, dtype=dtype, rngs=rngs)
        self.dense = layers.dense(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.dense(jax.nn.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


SMALL = NetworkConfig(f"{__name__}:Small")


def test_the_clipped_gradient_of_a_network_is_that_of_a_loop_over_its_images():
    network = build(SMALL, (8, 8, 1), 10)
    variables = jax.jit(network.init)(jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (16, 8, 8, 1)), jnp.arange(16) % 10
    padding = jnp.arange(16) >= 5

    def loss_of(params, images, labels, key):
        logits, rest = network.apply_train({**variables, "params": params}, images, key)
        one_hot = jax.nn.one_hot(labels, 10)
        return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), 1)), rest

    private = jax.jit(dp_sgd.value_and_gradient(loss_of, CLIPPED, 5))
    _, got = private(variables["params"], x, y, jax.random.key(2), padding)
    gradient_of = jax.jit(jax.grad(loss_of, has_aux=True))
    total, norms = 0.0, []
    for image, label in zip(x[:5], y[:5], strict=True):
        one, _ = gradient_of(variables["params"], image[None], label[None], jax.random.key(2))
        vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one)])
        norms.append(np.linalg.norm(vector))
        total = total + vector * min(1, 0.5 / norms[-1])
    assert max(norms) > 0.5
    ours = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got)])
    np.testing.assert_allclose(ours, total / 5, rtol=1e-4, atol=1e-5)


def test_noise_is_normal_with_deviation_noise_times_clip_over_the_expected_batch():
    params = {"kernel": jnp.zeros((100, 100)), "bias": jnp.zeros(10_000)}
    defence = DefenceConfig(dp_clip=0.5, dp_noise=3.0)

    def flat(params, x, y, key):
        return 0.0 * (params["kernel"].sum() + params["bias"].sum()), ()

    private = jax.jit(dp_sgd.value_and_gradient(flat, defence, 4))
    images, labels = np.zeros((16, 1), np.float32), np.zeros(16)
    draws = []
    for seed in range(2):
        _, gradient = private(params, images, labels, jax.random.key(seed), np.zeros(16, bool))
        draws += [np.ravel(leaf) / (3.0 * 0.5 / 4) for leaf in jax.tree.leaves(gradient)]
    for draw in draws:
        assert stats.kstest(draw, "norm").pvalue > 1e-4
    correlations = np.corrcoef(draws)[np.triu_indices(4, 1)]  # of weights, and of steps
    assert np.abs(correlations).max() < 0.05


@pytest.mark.parametrize(("batch_size", "count"), [(20, 100), (90, 100), (8, 12)])
def test_every_member_joins_a_batch_by_itself_with_the_stated_probability(batch_size, count):
    members = jnp.arange(count, dtype=jnp.int32) + 7
    draw = jax.jit(jax.vmap(lambda key: dp_sgd.poisson_batch(key, members, batch_size)))
    index, padding = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    assert index.shape[1] == dp_sgd.slots(batch_size, count)
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()  # padding comes last
    joined = np.zeros((2000, count), bool)
    for row, real, mask in zip(index, ~padding, joined, strict=True):
        assert len(set(row[real])) == real.sum()
        mask[row[real] - 7] = True
    rate = batch_size / count
    assert np.abs(joined.mean(axis=0) - rate).max() < 5 * math.sqrt(rate * (1 - rate) / 2000)
    sizes = joined.sum(axis=1)
    assert sizes.mean() == pytest.approx(batch_size, rel=0.02)
    assert sizes.var() == pytest.approx(batch_size * (1 - rate), rel=0.2)


def test_a_batch_of_all_members_holds_them_all():
    index, padding = dp_sgd.poisson_batch(jax.random.key(0), jnp.arange(10), 10)
    assert sorted(np.asarray(index)[~np.asarray(padding)]) == list(range(10))


def test_of_too_large_a_batch_a_subset_at_random_is_taken(monkeypatch):
    monkeypatch.setattr(dp_sgd, "slots", lambda batch_size, members: 4)
    draw = jax.vmap(lambda key: dp_sgd.poisson_batch(key, jnp.arange(20), 19))
    index, padding = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    assert not padding.any()
    counts = np.bincount(index.ravel(), minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-4


def private(experiment: Experiment, **changes: object) -> Experiment:
    """The experiment with group normalisation and DP-SGD."""
    settings = {"dp_clip": 1.0, "dp_noise": 1.0} | changes
    return dataclasses.replace(
        experiment,
        network=dataclasses.replace(experiment.network, norm="group"),
        defence=DefenceConfig(**settings),  # type: ignore[arg-type]
    )


def epsilon(noise, batch_size, members, epochs, delta=1e-5):
    train = TrainConfig(batch_size=batch_size, epochs=epochs)
    defence = DefenceConfig(dp_clip=1.0, dp_noise=noise, dp_delta=delta)
    return dp_sgd.epsilon(Experiment(train=train, defence=defence), members)


@pytest.mark.parametrize(
    ("noise", "batch_size", "members", "epochs"), [(1.5, 64, 898, 2), (2.0, 256, 25_000, 3)]
)
def test_epsilon_lies_between_that_of_renyi_divergences_and_a_single_step(
    noise, batch_size, members, epochs
):
    found = epsilon(noise, batch_size, members, epochs)
    step = dp_accounting.PoissonSampledDpEvent(
        batch_size / members, dp_accounting.GaussianDpEvent(noise)
    )
    steps = members // batch_size * epochs
    renyi = dp_accounting.rdp.RdpAccountant().compose(step, steps).get_epsilon(1e-5)
    # An accountant of losses may only be tighter, and never by much.
    assert 0.7 * renyi < found < renyi
    # Losses rounded down bound from below: the two agree to three digits.
    below = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-3)
    near = below.compose(step, steps).get_epsilon(1e-5)
    assert found == pytest.approx(near, rel=5e-3)


def test_epsilon_of_one_full_batch_is_the_gaussian_mechanisms_closed_form():
    found = epsilon(1.5, 10, 10, 1)
    # Balle and Wang 2018, theorem 8, for sensitivity 1.
    a, b = 1 / (2 * 1.5), found * 1.5
    delta = stats.norm.cdf(a - b) - math.exp(found) * stats.norm.cdf(-a - b)
    assert delta == pytest.approx(1e-5, rel=1e-2)
    assert delta < 1e-5 * (1 + 1e-9)  # rounded up


def test_with_little_noise_epsilon_is_soon_told_and_an_upper_bound_still():
    start = time.monotonic()
    found = epsilon(0.1, 10, 10, 1)
    assert epsilon(0.001, 20, 100, 2) > 1e5
    assert time.monotonic() - start < 20
    a, b = 1 / (2 * 0.1), found * 0.1  # as in the closed form above
    delta = stats.norm.cdf(a - b) - math.exp(found + stats.norm.logcdf(-a - b))
    assert 0.9e-5 < delta < 1e-5


def test_cutting_batches_costs_epsilon_nothing_at_six_deviations_but_much_at_none(monkeypatch):
    whole = epsilon(3.0, 20, 400, 1)
    monkeypatch.setattr(dp_sgd, "slots", lambda batch_size, members: members)
    assert epsilon(3.0, 20, 400, 1) == pytest.approx(whole, rel=1e-3)
    monkeypatch.setattr(dp_sgd, "slots", lambda batch_size, members: batch_size)
    assert epsilon(3.0, 20, 400, 1) > 1.2 * whole


@pytest.mark.parametrize(("batch_size", "members"), [(64, 898), (256, 25_000), (7, 7), (1, 3)])
def test_the_sampling_rate_is_at_least_the_share_and_exact_in_32_bits(batch_size, members):
    rate = dp_sgd.sampling_rate(batch_size, members)
    assert 0 <= rate - batch_size / members < 2**-23
    assert float(np.float32(rate)) == rate
    assert (rate * 2**23).is_integer()


def test_clipping_alone_has_no_finite_epsilon():
    assert epsilon(0.0, 10, 100, 1) == math.inf
    assert "no finite ε" in dp_sgd.in_words(math.inf, 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dp_clip": 1.0}, 'set network.norm = "group"'),
        ({"dp_noise": 1.0}, "give defence.dp_clip too"),
        ({"dp_delta": 0.0}, "defence.dp_delta = 0.0: must be above 0 and below 1"),
        ({"dp_delta": 1.0}, "above 0 and below 1"),
    ],
)
def test_what_would_not_be_private_is_refused(changes, message):
    assert message in refusal(None, lambda: check(Experiment(defence=DefenceConfig(**changes))))


def test_adversarial_regularisation_is_refused_beside_it_and_a_network_without_norm_is_not():
    adversarial = private(Experiment(), adversarial=1.0)
    assert "defence.adversarial" in refusal(None, lambda: check(adversarial))
    convnet = dataclasses.replace(Experiment(), network=NetworkConfig("convnet"), defence=CLIPPED)
    assert check(convnet) is convnet
    assert check(private(Experiment(), early_stopping=3))


def own_network(image_shape, classes, depth, width, dtype, rngs):
    features = int(np.prod(image_shape))
    return nnx.Sequential(
        lambda x: x.reshape(len(x), -1),
        nnx.BatchNorm(features, rngs=rngs),
        nnx.Linear(features, classes, rngs=rngs),
    )


def test_a_users_network_that_keeps_statistics_of_batches_is_refused(tiny, tmp_path):
    experiment = dataclasses.replace(
        tiny, network=NetworkConfig(f"{__name__}:own_network"), defence=CLIPPED
    )
    message = refusal(tmp_path, lambda: training.train(experiment, tmp_path / "run"))
    assert "keeps statistics of its batches" in message


def test_a_missing_library_is_named_with_its_extra(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    message = refusal(tmp_path, lambda: training.train(private(tiny), tmp_path / "run"))
    assert "pip install 'lira_jax[dp]'" in message


def test_a_run_with_dp_sgd_is_bitwise_the_same_in_groups_and_keeps_its_epsilon(
    tiny, tmp_path, capsys
):
    experiment = dataclasses.replace(private(tiny, dp_noise=4.0), network=SMALL)
    weights = []
    for group, devices in ((1, 1), (2, 2)):
        run = tmp_path / f"{group}-{devices}"
        training.train(with_train(experiment, group=group), run, jax.devices()[:devices])
        weights.append(trained_weights(experiment, run))
    for model, vector in weights[0].items():
        assert np.isfinite(vector).all()
        np.testing.assert_array_equal(weights[1][model], vector)
    assert not np.array_equal(weights[0][0], weights[0][1])
    expected = dp_sgd.epsilon(experiment, 60)
    kept = float(run_dir.read_versions(run)["dp_epsilon"])
    assert kept == pytest.approx(expected, rel=1e-5)
    said = capsys.readouterr().out
    assert said.count(f"ε = {expected:.4g} at δ = 1e-05") == 4  # announced, and at the end
    about = analyse.about_run(run, experiment)
    assert "dp_epsilon" in about.versions
    assert np.isfinite(about.loss_ranges).all()


def test_clipping_without_noise_trains_and_says_that_epsilon_is_infinite(tiny, tmp_path):
    quiet = private(with_train(tiny, epochs=1, models=2), dp_noise=0.0)
    quiet = dataclasses.replace(quiet, network=SMALL)
    training.train(quiet, tmp_path / "quiet", jax.devices()[:1])
    assert run_dir.read_versions(tmp_path / "quiet")["dp_epsilon"] == "inf"
