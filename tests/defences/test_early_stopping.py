from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax import ensemble, shadow_models, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, DefenceConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.defences import early_stopping
from lira_jax.networks import Network
from lira_jax.run import checkpoints, run_dir
from tests.conftest import refusal, with_train
from tests.test_training import stop_training, trained_weights

EPOCHS, PATIENCE = 14, 2


@pytest.fixture(scope="module")
def stopping() -> Experiment:
    """Four models of a network that compiles fast and is soon past its best."""
    return Experiment(
        seed=5,
        data=DataConfig(limit=80),
        network=NetworkConfig("tests.test_training:WithDropout"),
        defence=DefenceConfig(early_stopping=PATIENCE),
        train=TrainConfig(
            models=4, epochs=EPOCHS, batch_size=8, learning_rate=0.2, schedule="constant",
            shift=0, mirror=False, ema=0.5, eval_examples=8, group=1,
        ),
    )  # fmt: skip


def undefended(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, defence=DefenceConfig())


@pytest.fixture(scope="module")
def alone(stopping, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    training.train(stopping, run, jax.devices()[:1])
    return run


@pytest.fixture(scope="module")
def by_epoch(stopping) -> tuple[np.ndarray, list[dict[int, np.ndarray]]]:
    """Without the defence: held-out accuracy [epochs, N], and every model's weights, by epoch."""
    experiment = undefended(stopping)
    data = candidates(experiment)
    held_out = candidates(stopping).held_out
    network = build_network(experiment, data)
    mesh = ensemble.models_mesh(jax.devices()[:1])
    on_mesh = shadow_models.programs(experiment, data, mesh)
    group = checkpoints.Group(0, 3)
    inputs = shadow_models.group_inputs(experiment, data.keep, group, mesh)
    both = (on_mesh.begin(inputs["number"]), inputs)
    index = early_stopping.held_out_index(experiment.seed, len(held_out[1]))
    images, labels = held_out[0][index] / np.float32(127.5) - 1, held_out[1][index]
    answer = jax.jit(lambda variables: jnp.argmax(network.apply(variables, images), 1))
    accuracies, weights = [], []
    for epoch in range(EPOCHS):
        both = on_mesh.advance(both, np.int32(5 * epoch), np.int32(5 * epoch + 5))
        variables = ensemble.on_host(on_mesh.finish(both[0]), 4)
        rows = [jax.tree.map(lambda leaf, n=n: leaf[n], variables) for n in range(4)]
        accuracies.append([np.mean(np.asarray(answer(row)) == labels) for row in rows])
        weights.append(
            dict(enumerate(np.concatenate([v.ravel() for v in jax.tree.leaves(r)]) for r in rows))
        )
    return np.array(accuracies), weights


def expected(accuracy: np.ndarray) -> tuple[int, int]:
    """Best epoch and the one after which training stops (0: it does not), from 1."""
    best = 0
    for epoch, value in enumerate(accuracy):
        if value > accuracy[best]:
            best = epoch
        if epoch - best >= PATIENCE:
            return best + 1, epoch + 1
    return best + 1, 0


def test_the_weights_of_the_best_epoch_are_kept_and_training_stops_in_time(
    stopping, alone, by_epoch
):
    accuracies, weights = by_epoch
    kept = trained_weights(stopping, alone)
    log = run_dir.read_log(alone)
    ends = []
    for model in range(4):
        best, stopped = expected(accuracies[:, model])
        np.testing.assert_array_equal(kept[model], weights[best - 1][model])
        lines = [line for line in log if line["models"] == [model, model]]
        assert len(lines) == (stopped or EPOCHS)
        np.testing.assert_allclose(
            [line["held_out_accuracy"][0] for line in lines],
            accuracies[: len(lines), model],
            atol=1e-6,
        )
        assert (lines[-1]["best_epoch"], lines[-1]["stopped_epoch"]) == ([best], [stopped])
        ends.append((best, stopped))
    assert len(set(ends)) > 1, "a test of models that differ"
    assert any(0 < stopped < EPOCHS for _, stopped in ends)


def test_a_model_that_stopped_takes_no_more_steps_and_is_the_same_in_a_group(
    stopping, alone, by_epoch, tmp_path
):
    together = with_train(stopping, group=4)
    training.train(together, tmp_path / "run", jax.devices()[:2])
    kept = trained_weights(together, tmp_path / "run")
    for model, weights in trained_weights(stopping, alone).items():
        np.testing.assert_array_equal(kept[model], weights)
    for model in (0, 1):
        trace = f"loss_traces/model_{model:05d}.npy"
        np.testing.assert_array_equal(np.load(tmp_path / "run" / trace), np.load(alone / trace))
    ends = [expected(by_epoch[0][:, model])[1] or EPOCHS for model in range(4)]
    log = run_dir.read_log(tmp_path / "run")
    assert len(log) == max(ends)
    early = int(np.argmin(ends))
    assert ends[early] < max(ends)
    frozen = {line["held_out_accuracy"][early] for line in log[ends[early] - 1 :]}
    assert len(frozen) == 1
    finished, todo = checkpoints.plan(tmp_path / "run", 4, 5 * EPOCHS, 4)
    assert [group.size for group in finished] == [4]
    assert todo == []


def test_a_stopped_run_goes_on_to_the_same_weights(stopping, alone, tmp_path):
    run = tmp_path / "run"
    stop_training(with_train(stopping, group=2), run, 17, seconds=0.0)
    training.train(with_train(stopping, group=2), run, jax.devices()[:1])
    kept = trained_weights(stopping, run)
    for model, weights in trained_weights(stopping, alone).items():
        np.testing.assert_array_equal(kept[model], weights)


def test_a_loss_trace_ends_where_the_model_stopped(alone, by_epoch):
    for model in (0, 1):
        stopped = expected(by_epoch[0][:, model])[1] or EPOCHS
        trace = np.load(alone / f"loss_traces/model_{model:05d}.npy")
        assert len(trace) == EPOCHS
        assert np.isfinite(trace[:stopped]).all()
        assert np.isnan(trace[stopped:]).all()
        assert np.ptp(trace[:stopped], axis=0).min() > 0


def answers_of(right: list[int]) -> Network:
    """A network that gives `right[step]` of the images, numbered by their pixel, the label 0."""

    def apply(variables, images):
        number = jnp.round(images[:, 0, 0, 0] * 127.5 + 127.5)
        wrong = number >= jnp.array(right)[variables["params"]["step"]]
        return jax.nn.one_hot(wrong.astype(int), 2)

    return Network(None, None, apply, None, None, None)


@pytest.mark.parametrize(
    ("right", "patience", "best", "stopped"),
    [
        ([3, 5, 5, 4, 9], 2, 2, 4),  # of equals the first
        ([3, 5, 5, 4, 9], 3, 5, 0),
        ([0, 0, 0], 1, 1, 2),
        ([130, 131, 130, 132], 2, 4, 0),  # a part of a batch counts
    ],
)
def test_of_equal_epochs_the_first_is_kept(right, patience, best, stopped):
    total = 150
    network = answers_of(right)
    images = jnp.arange(total, dtype=jnp.uint8)[:, None, None, None]
    labels = jnp.zeros(total, jnp.int32)
    variables = {"params": {"step": jnp.int32(0)}}
    kept = early_stopping.begin(variables)
    for epoch, count in enumerate(right, 1):
        start, end = jnp.int32(7), jnp.int32(9)
        if kept.last_step(start, end) == end:
            variables = {"params": {"step": jnp.int32(epoch - 1)}}
        number = jnp.int32(epoch)
        kept = early_stopping.judge(network, kept, variables, number, patience, images, labels)
        if not kept.stopped_epoch:
            assert float(kept.logged(total)["held_out_accuracy"]) == pytest.approx(count / total)
    assert (int(kept.best_epoch), int(kept.stopped_epoch)) == (best, stopped)
    assert int(kept.variables["params"]["step"]) == best - 1


def test_no_held_out_images_are_refused(stopping, tmp_path):
    everything = dataclasses.replace(stopping, data=DataConfig())
    message = refusal(tmp_path, lambda: training.train(everything, tmp_path / "run"))
    assert "defence.early_stopping = 2: needs held-out images, and digits has no test" in message
    assert "set data.limit" in message


def test_at_most_a_thousand_images_judge_and_they_follow_from_the_seed():
    few, many = (early_stopping.held_out_index(1, n) for n in (30, 5000))
    np.testing.assert_array_equal(few, np.arange(30))
    assert len(set(many.tolist())) == len(many) == early_stopping.IMAGES
    np.testing.assert_array_equal(many, early_stopping.held_out_index(1, 5000))
    assert not np.array_equal(many, early_stopping.held_out_index(2, 5000))
