from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from lira_jax import checkpoints, ensemble, run_dir, scoring, training
from lira_jax.config import ScoreConfig
from lira_jax.errors import InputError
from lira_jax.scoring import logit_scaled, scores_of_model
from lira_jax.views import Views, fixed_views
from tests.conftest import with_train


def reference(logits, labels):
    """φ = log p_y − log(1 − p_y) = z_y − log Σ_{k≠y} exp z_k, in float64."""
    z = np.asarray(logits, np.float64)
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, labels] = -np.inf
    return z[rows, labels] - logsumexp(others, axis=1)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (16, 7), elements=st.floats(-200, 200, width=32)),
    hnp.arrays(np.int32, 16, elements=st.integers(0, 6)),
)
def test_phi_agrees_with_float64_for_logits_up_to_200(logits, labels):
    np.testing.assert_allclose(
        logit_scaled(jnp.asarray(logits), jnp.asarray(labels)),
        reference(logits, labels),
        rtol=1e-5,
        atol=1e-5,
    )


def test_phi_does_not_saturate_where_float32_probabilities_do():
    logits = jnp.array([[90.0, 0.0, 0.0], [120.0, 0.0, 0.0], [0.0, 90.0, 90.0]])
    phi = logit_scaled(logits, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(phi, [90 - np.log(2), 120 - np.log(2), -90 - np.log(2)], rtol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two models on 120 digits, trained and scored with 18 views."""
    from lira_jax.config import DataConfig, Experiment, NetworkConfig, TrainConfig

    experiment = Experiment(
        seed=3,
        data=DataConfig(limit=120),
        network=NetworkConfig("resnet", 8, 4),
        train=TrainConfig(models=2, epochs=4, batch_size=12, shift=1, ema=0.9, group=2),
        score=ScoreConfig(views=18, batch_size=50),
    )
    run = tmp_path_factory.mktemp("scoring") / "run"
    training.train(experiment, run, jax.devices()[:2])
    scoring.score(experiment, run, jax.devices()[:2])
    return experiment, run


def variables_of(experiment, run: Path):
    data = training.candidates(experiment)
    network = training.build_network(experiment, data)
    (group,) = checkpoints.saved_groups(run)
    return data, network, checkpoints.restore(run, group, scoring._like(network, group.size))


def test_scores_are_those_of_the_saved_weights_in_evaluation_mode_view_by_view(trained):
    experiment, run = trained
    data, network, stored = variables_of(experiment, run)
    phi = np.load(run / "scores.npy")
    assert phi.shape == (2, 120, 18)
    assert phi.dtype == np.float32
    views = fixed_views(18)
    for model in (0, 1):
        variables = jax.tree.map(lambda leaf, n=model: leaf[n], stored)
        for query in (0, 1, 7, 17):
            view = Views(*(part[query : query + 1] for part in views))
            one, logits = scores_of_model(network, view)(
                variables,
                np.arange(120).reshape(1, 120),
                jnp.asarray(data.images),
                jnp.asarray(data.labels),
            )
            np.testing.assert_allclose(phi[model, :, query], one[0, :, 0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(one[0, :, 0], reference(logits[0], data.labels), atol=1e-4)


def test_saved_logits_are_those_of_the_identity_view(trained):
    experiment, run = trained
    data = training.candidates(experiment)
    logits = np.load(run / "logits.npy")
    assert logits.shape == (2, 120, 10)
    phi = np.load(run / "scores.npy")
    for model in (0, 1):
        np.testing.assert_allclose(
            phi[model, :, 0], reference(logits[model], data.labels), atol=1e-4
        )


def test_the_scored_weights_are_the_moving_average_whose_accuracy_was_logged(trained):
    experiment, run = trained
    data = training.candidates(experiment)
    correct = np.load(run / "logits.npy").argmax(axis=2) == data.labels
    last = run_dir.read_log(run)[-1]
    for model in (0, 1):
        # 60 members, all of them evaluated: eval_examples is above 60.
        member = correct[model][data.keep[model]].mean()
        assert member == pytest.approx(last["member_accuracy"][model], abs=1e-6)


def test_shuffling_or_rebatching_the_examples_changes_no_score(trained):
    experiment, run = trained
    data, network, stored = variables_of(experiment, run)
    variables = jax.tree.map(lambda leaf: leaf[0], stored)
    score = jax.jit(scores_of_model(network, fixed_views(2)))
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    def phi(index: np.ndarray) -> np.ndarray:
        return np.asarray(score(variables, index, images, labels)[0]).reshape(120, 2)

    expected = phi(np.arange(120).reshape(1, 120))
    order = np.random.default_rng(0).permutation(120)
    shuffled = phi(order.reshape(1, 120))
    np.testing.assert_allclose(shuffled, expected[order], rtol=1e-5, atol=1e-5)
    for batches in (5, 15, 120):
        rebatched = phi(np.arange(120).reshape(batches, -1))
        np.testing.assert_allclose(rebatched, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [7, 120, 1000])
def test_the_batch_size_of_scoring_changes_no_score(trained, batch_size, tmp_path):
    experiment, run = trained
    before = np.load(run / "scores.npy")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "scores.npy").unlink()
    again = dataclasses.replace(experiment, score=ScoreConfig(views=18, batch_size=batch_size))
    scoring.score(again, copy, jax.devices()[:1])
    np.testing.assert_allclose(np.load(copy / "scores.npy"), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("views", [1, 2])
def test_a_smaller_view_set_gives_the_first_columns_of_a_larger_one(trained, views, tmp_path):
    experiment, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "scores.npy").unlink()
    fewer = dataclasses.replace(experiment, score=ScoreConfig(views=views, batch_size=60))
    scoring.score(fewer, copy, jax.devices()[:1])
    expected = np.load(run / "scores.npy")[..., :views]
    np.testing.assert_allclose(np.load(copy / "scores.npy"), expected, rtol=1e-5, atol=1e-5)


def test_all_162_views_are_written(trained, tmp_path):
    experiment, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "scores.npy").unlink()
    scoring.score(
        dataclasses.replace(experiment, score=ScoreConfig(views=162, batch_size=60)), copy
    )
    phi = np.load(copy / "scores.npy")
    assert phi.shape == (2, 120, 162)
    assert np.isfinite(phi).all()
    np.testing.assert_allclose(phi[..., :18], np.load(run / "scores.npy"), rtol=1e-5, atol=1e-5)


def test_scores_are_bitwise_the_same_over_devices(trained, tmp_path):
    """The run has two models, trained and scored on two devices; here are two more."""
    experiment, run = trained
    four = with_train(experiment, models=4, group=4)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for name in ("scores.npy", "logits.npy"):
        (copy / name).unlink()
    training.train(four, copy, jax.devices()[:4])
    scoring.score(four, copy, jax.devices()[:4])
    for name in ("scores.npy", "logits.npy"):
        np.testing.assert_array_equal(np.load(copy / name)[:2], np.load(run / name))


def test_models_too_many_for_memory_are_scored_in_halves(trained, tmp_path, monkeypatch, capsys):
    """XLA:CPU has no such error: one is raised for more than one model."""
    experiment, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "scores.npy").unlink()

    def over_models(*arguments, real=ensemble.over_models):
        usual = real(*arguments)

        def lifted(models, *shared):
            if jax.tree.leaves(models)[0].shape[0] > 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9.9GiB.")
            return usual(models, *shared)

        return lifted

    monkeypatch.setattr(ensemble, "over_models", over_models)
    scoring.score(experiment, copy, jax.devices()[:2])
    assert "2 models do not fit into memory together; going on with 1" in capsys.readouterr().out
    assert (copy / "scores.npy").read_bytes() == (run / "scores.npy").read_bytes()


def test_only_missing_models_are_scored_again(trained, tmp_path):
    experiment, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    phi, logits = np.load(run / "scores.npy"), np.load(run / "logits.npy")
    for name in ("scores.npy", "logits.npy"):
        (copy / name).unlink()
    run_dir.write_part(copy, run_dir.phi(18, 10), 0, np.full_like(phi[:1], 123), logits[:1])
    scoring.score(experiment, copy, jax.devices()[:1])
    again = np.load(copy / "scores.npy")
    assert (again[0] == 123).all()
    np.testing.assert_array_equal(again[1], phi[1])


def test_weights_that_give_no_finite_score_are_named(tiny, tmp_path):
    run = tmp_path / "run"
    experiment = with_train(tiny, epochs=1, group=2)
    training.train(experiment, run, jax.devices()[:1])
    _, _, stored = variables_of(experiment, run)
    stored["params"]["dense"]["kernel"] = stored["params"]["dense"]["kernel"].copy()
    stored["params"]["dense"]["kernel"][1] = np.nan
    (group,) = checkpoints.saved_groups(run)
    shutil.rmtree(run / "checkpoints")
    checkpoints.save(run, group, stored)
    with pytest.raises(InputError, match="model 1 gives a score that is not finite"):
        scoring.score(experiment, run, jax.devices()[:1])


def test_views_that_do_not_fit_the_image_are_refused(tiny, tmp_path):
    from lira_jax.views import check_shift

    with pytest.raises(InputError, match=r"score\.views = 162"):
        check_shift(4, (4, 4, 1), "score.views = 162")
