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

from lira_jax import ensemble, inference, random_streams, scoring, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import NetworkConfig, ScoreConfig
from lira_jax.data.views import Views, fixed_views
from lira_jax.errors import InputError
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.run import checkpoints, parts, run_dir, score_files
from lira_jax.run.shards import Shard
from lira_jax.scoring import logit_scaled, scores_of_model
from tests.conftest import files_of, refusal, with_train
from tests.precision import reordered


def reference(logits, labels):
    """φ = log p_y − log(1 − p_y) = z_y − log Σ_{k≠y} exp z_k, in float64."""
    z = np.asarray(logits, np.float64)
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, labels] = -np.inf
    return z[rows, labels] - logsumexp(others, axis=1)


@pytest.mark.accelerator
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


@pytest.mark.accelerator
def test_phi_does_not_saturate_where_float32_probabilities_do():
    logits = jnp.array([[90.0, 0.0, 0.0], [120.0, 0.0, 0.0], [0.0, 90.0, 90.0]])
    phi = logit_scaled(logits, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(phi, [90 - np.log(2), 120 - np.log(2), -90 - np.log(2)], rtol=1e-6)


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory):
    """A run of two linear models on 120 digits, trained and scored with 18 views."""
    pair = dataclasses.replace(pair, network=NetworkConfig("tests.small_networks:network"))
    run = tmp_path_factory.mktemp("scoring") / "run"
    training.train(pair, run, jax.devices()[:2])
    scoring.score(pair, run, jax.devices()[:2])
    return pair, run


def variables_of(experiment, run: Path):
    data = candidates(experiment)
    network = build_network(experiment, data)
    (group,) = checkpoints.saved_groups(run)
    return data, network, inference.restored(run, group, network)


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


@pytest.mark.accelerator
def test_saved_logits_are_those_of_the_identity_view(trained):
    experiment, run = trained
    data = candidates(experiment)
    logits = np.load(run / "logits.npy")
    assert logits.shape == (2, 120, 10)
    phi = np.load(run / "scores.npy")
    for model in (0, 1):
        np.testing.assert_allclose(
            phi[model, :, 0], reference(logits[model], data.labels), atol=1e-4
        )


@pytest.mark.accelerator
def test_the_scored_weights_are_the_moving_average_whose_accuracy_was_logged(trained):
    experiment, run = trained
    data = candidates(experiment)
    correct = np.load(run / "logits.npy").argmax(axis=2) == data.labels
    last = run_dir.read_log(run)[-1]
    for model in (0, 1):
        # 60 members, all of them evaluated: eval_examples is 60.
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


def test_width_and_images_a_step_are_measured_where_they_are_left_open(
    trained, tmp_path, monkeypatch, capsys
):
    """As on an accelerator, with small steps."""
    experiment, run = trained
    steps = (36, 90, 2000)
    monkeypatch.setattr(ensemble, "on_cpu", lambda _: False)
    monkeypatch.setattr(scoring, "ACCELERATOR_STEPS", steps)
    seen = []

    def as_measured(candidates, *_):
        seen.extend(map(str, candidates))
        trial = candidates[scoring.Inference(2, 90)]()
        trial.run(1)
        # Two models; a dispatch is some steps of whole examples, of 18 images each.
        assert trial.work == 2 * (256 // 5) * 5 * 18
        return {way: float(way == scoring.Inference(2, 90)) for way in candidates}, {}

    monkeypatch.setattr(scoring.tuning, "rates", as_measured)
    monkeypatch.setattr(scoring.tuning, "_remembered", lambda _: None)
    monkeypatch.setattr(scoring.tuning, "_remember", lambda *_: None)
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("scores.npy", "logits.npy"))
    open_score = dataclasses.replace(experiment.score, batch_size=0)
    scoring.score(dataclasses.replace(experiment, score=open_score), copy, jax.devices()[:1])
    assert seen == [f"width {w}, {n} images a step" for w in (1, 2) for n in steps]
    cuts = [scoring.Inference(1, images).cut(18) for images in steps]
    assert cuts == [(128, 2), (51, 5), (2, 111)], "steps, and examples of a step"
    assert "width 2, 90 images a step, 1 images/s, is the fastest of 6" in capsys.readouterr().out
    for name in ("scores.npy", "logits.npy"):
        np.testing.assert_allclose(np.load(copy / name), np.load(run / name), atol=1e-4)


def test_devices_make_the_next_results_while_the_host_takes_the_last(
    trained, tmp_path, monkeypatch
):
    experiment, run = trained
    copy, events = tmp_path / "run", []
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("scores.npy", "logits.npy"))
    call, fetch = ensemble.Program.__call__, ensemble.on_host

    def dispatched(self, *own):
        events.append("begun")
        return call(self, *own)

    def taken(tree, models):
        events.append("taken")
        return fetch(tree, models)

    monkeypatch.setattr(ensemble.Program, "__call__", dispatched)
    monkeypatch.setattr(ensemble, "on_host", taken)
    monkeypatch.setattr(inference, "DISPATCH", 20)
    scoring.score(experiment, copy, jax.devices()[:2])
    assert events == ["begun"] * 3 + ["taken", "begun"] * 3 + ["taken"] * 3
    for name in ("scores.npy", "logits.npy"):
        np.testing.assert_array_equal(np.load(copy / name), np.load(run / name))


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


def test_progress_does_not_count_what_did_not_fit_into_memory(trained, tmp_path, monkeypatch):
    """The second dispatch of two models fails, and the first is made again."""
    experiment, run = trained
    copy, steps, calls = tmp_path / "run", [], []
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("scores.npy", "logits.npy"))

    def on_host(tree, models, real=ensemble.on_host):
        calls.append(models)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9.9GiB.")
        return real(tree, models)

    def advance(self, units, text, real=Progress.advance):
        real(self, units, text)
        steps.append((self.done, self.seconds_left(self.last_line)))

    monkeypatch.setattr(ensemble, "on_host", on_host)
    monkeypatch.setattr(Progress, "advance", advance)
    monkeypatch.setattr(inference, "DISPATCH", 60)
    scoring.score(experiment, copy, jax.devices()[:2])
    assert len(calls) == 2 + 2 * 2
    total = 2 * 120 * 18
    dones = [done / total for done, _ in steps]
    assert max(dones) == dones[-1] == 1
    assert steps[-1][1] == 0
    assert (copy / "scores.npy").read_bytes() == (run / "scores.npy").read_bytes()


def test_only_missing_models_are_scored_again(trained, tmp_path):
    experiment, run = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    phi, logits = np.load(run / "scores.npy"), np.load(run / "logits.npy")
    for name in ("scores.npy", "logits.npy"):
        (copy / name).unlink()
    parts.write_part(copy, score_files.phi(18, 10), 0, np.full_like(phi[:1], 123), logits[:1])
    scoring.score(experiment, copy, jax.devices()[:1])
    again = np.load(copy / "scores.npy")
    assert (again[0] == 123).all()
    np.testing.assert_array_equal(again[1], phi[1])


# Noisy queries and gradient norms, on a network that compiles fast.

QUERIES, SIGMA = 7, 0.3
NETWORK = Network(*[lambda *_: None] * 6)


def with_score(experiment, **changes):
    return dataclasses.replace(experiment, score=dataclasses.replace(experiment.score, **changes))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of four models on 60 digits, trained and scored; not to be changed."""
    from lira_jax.config import DataConfig, Experiment, NetworkConfig, TrainConfig

    experiment = Experiment(
        seed=3,
        data=DataConfig(limit=60),
        network=NetworkConfig("tests.small_networks:network"),
        train=TrainConfig(
            models=4, epochs=4, batch_size=10, mirror=False, shift=0, ema=0.9, group=4
        ),
        score=ScoreConfig(views=2, batch_size=50),
    )
    run = tmp_path_factory.mktemp("small") / "run"
    training.train(experiment, run, jax.devices()[:2])
    scoring.score(experiment, run, jax.devices()[:2])
    return experiment, run


@pytest.fixture(scope="module")
def both(small, tmp_path_factory):
    """The same run with noisy queries and gradient norms asked for later; not to be changed."""
    experiment, run = small
    run = shutil.copytree(run, tmp_path_factory.mktemp("both") / "run")
    experiment = with_score(experiment, noisy_queries=QUERIES, noise=SIGMA, gradient_norm=True)
    scoring.score(experiment, run, jax.devices()[:2])
    return experiment, run


def test_asking_later_computes_only_what_is_missing(small, both, monkeypatch):
    before, after = files_of(small[1]), files_of(both[1])
    new = {f"{name}.{end}" for name in ("merlin", "gradient_norm") for end in ("npy", "json")}
    assert after.keys() - before.keys() == new
    assert {name: after[name] for name in before} == before

    def nothing(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(ensemble, "over_models", nothing)
    scoring.score(*both)
    scoring.score(*small)
    assert files_of(both[1]) == after


def test_without_a_score_file_all_three_are_made_at_once_to_the_same_bytes_of_models_read_once(
    both, tmp_path, monkeypatch
):
    experiment, run = both
    copy, read = shutil.copytree(run, tmp_path / "run"), []

    def read_checked(path, *others, real=checkpoints.read_checked):
        read.append(path.name)
        return real(path, *others)

    monkeypatch.setattr(checkpoints, "read_checked", read_checked)
    for name in ("scores.npy", "logits.npy", "merlin.npy", "merlin.json", "gradient_norm.npy"):
        (copy / name).unlink()
    scoring.score(experiment, copy, jax.devices()[:2])
    assert files_of(copy) == files_of(run)
    assert len(read) == 1


@pytest.mark.accelerator
def test_merlin_is_the_share_of_noisy_copies_with_a_greater_loss(both):
    experiment, run = both
    data, network, stored = variables_of(experiment, run)
    merlin = np.load(run / "merlin.npy")
    assert (merlin.shape, merlin.dtype) == ((4, 60), np.float32)
    stream = jax.random.fold_in(jax.random.key(experiment.seed), random_streams.NOISY_QUERIES)

    def loss(variables, x, label):
        logits = np.asarray(network.apply(variables, x[None])[0], np.float64)
        return logsumexp(logits) - logits[label]

    for example in (0, 17, 59):
        x = data.images[example].astype(np.float32) / 127.5 - 1
        key = jax.random.fold_in(stream, example)
        noise = [jax.random.normal(jax.random.fold_in(key, t), x.shape) for t in range(QUERIES)]
        for model in range(4):
            variables = jax.tree.map(lambda leaf, n=model: leaf[n], stored)
            label = data.labels[example]
            own = loss(variables, x, label)
            greater = [loss(variables, x + SIGMA * np.asarray(e), label) > own for e in noise]
            assert merlin[model, example] == pytest.approx(np.mean(greater), rel=1e-6)
    assert len(np.unique(merlin)) > QUERIES / 2


def test_noise_has_the_asked_deviation_in_units_of_the_input():
    """A network that gives the images themselves away: the loss rises where pixel 0 does."""
    seen = []

    def apply(variables, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.stack([-x[:, 0, 0, 0], jnp.zeros(len(x))], axis=1)

    network = dataclasses.replace(NETWORK, apply=apply)
    images = jnp.full((2, 16, 16, 3), 51, jnp.uint8)  # −0.6
    function = scoring.merlin_of_model(network, 0, 100, 0.02)
    (merlin,) = function({}, np.array([[0], [1]]), images, jnp.zeros(2, jnp.int32))
    jax.effects_barrier()
    x = np.stack(seen)
    assert x.shape == (2, 101, 16, 16, 3)
    np.testing.assert_allclose(x[:, 0], -0.6, rtol=1e-6)
    noise = x[:, 1:] + 0.6
    assert noise.std() == pytest.approx(0.02, rel=0.01)
    assert abs(noise.mean()) < 2e-4
    correlations = np.corrcoef(noise.reshape(200, -1)) - np.eye(200)
    assert abs(correlations).max() < 0.25  # 768 pixels: 7 standard errors
    np.testing.assert_allclose(merlin[:, 0], (noise[:, :, 0, 0, 0] > 0).mean(1), rtol=1e-6)


def test_more_noisy_queries_begin_with_the_same(small):
    experiment, run = small
    data, network, stored = variables_of(experiment, run)
    variables = jax.tree.map(lambda leaf: leaf[0], stored)

    def counts(queries):
        function = scoring.merlin_of_model(network, experiment.seed, queries, SIGMA)
        index = np.arange(60).reshape(6, 10)
        (share,) = jax.jit(function)(variables, index, data.images, jnp.asarray(data.labels))
        return np.round(np.asarray(share).ravel() * queries)

    five, six = counts(5), counts(6)
    assert set(six - five) == {0, 1}


@pytest.mark.accelerator
def test_the_gradient_norm_is_that_of_each_example_alone_in_evaluation_mode(both):
    experiment, run = both
    data, network, stored = variables_of(experiment, run)
    norms = np.load(run / "gradient_norm.npy")
    assert (norms.shape, norms.dtype) == ((4, 60), np.float32)

    @jax.jit
    @jax.grad
    def gradient(params, rest, image, label):
        x = image[None].astype(jnp.float32) / 127.5 - 1
        logits = network.apply({"params": params, "rest": rest}, x)
        return -jax.nn.log_softmax(logits)[0, label]

    for model in range(4):
        variables = jax.tree.map(lambda leaf, n=model: leaf[n], stored)
        for example in range(0, 60, 7):
            tree = gradient(
                variables["params"], variables["rest"], data.images[example], data.labels[example]
            )
            flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            expected = np.linalg.norm(flat.astype(np.float64))
            assert norms[model, example] == pytest.approx(expected, rel=1e-4)


@pytest.mark.accelerator
def test_the_gradient_norm_of_a_sure_example_does_not_round_to_zero():
    """Of logits (w, 0): the gradient by w is −(1 − p) = −sigmoid(−w)."""

    def apply(variables, x):
        return jnp.stack([variables["params"], jnp.zeros(())])[None]

    function = scoring.gradient_norm_of_model(dataclasses.replace(NETWORK, apply=apply))
    images, labels = jnp.zeros((1, 2, 2, 1), jnp.uint8), jnp.zeros(1, jnp.int32)
    for weight in (0.0, 5.0, 30.0, 60.0):
        (norm,) = function({"params": jnp.float32(weight)}, np.zeros((1, 1), int), images, labels)
        assert float(norm[0, 0]) == pytest.approx(np.exp(-np.logaddexp(0, weight)), rel=1e-5)


@pytest.mark.accelerator
def test_gradients_of_several_examples_at_once_are_the_same(small):
    experiment, run = small
    data, network, stored = variables_of(experiment, run)
    variables = jax.tree.map(lambda leaf: leaf[0], stored)
    function = jax.jit(scoring.gradient_norm_of_model(network))
    results = [
        function(variables, np.arange(60).reshape(-1, b), data.images, jnp.asarray(data.labels))[0]
        for b in (1, 4, 60)
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result.ravel(), results[0].ravel(), rtol=reordered(1e-5))


def test_optional_arrays_are_bitwise_the_same_over_devices_and_shards(both, tmp_path):
    experiment, run = both
    copy = shutil.copytree(run, tmp_path / "run")
    for name in ("merlin.npy", "merlin.json", "gradient_norm.npy"):
        (copy / name).unlink()
    for index, devices in ((0, 1), (2, 2), (1, 1)):
        scoring.score(experiment, copy, jax.devices()[:devices], Shard(index, 3))
    assert files_of(copy) == files_of(run)


@pytest.mark.parametrize("folder", ["merlin_parts", "gradient_norm_parts"])
def test_a_run_stopped_amid_an_optional_array_goes_on(both, folder, tmp_path, monkeypatch):
    experiment, run = both
    copy = shutil.copytree(run, tmp_path / "run")
    for name in ("merlin.npy", "merlin.json", "gradient_norm.npy"):
        (copy / name).unlink()
    real, written = parts.write_part, []

    def write_part(run, product, first, *arrays):
        if product.parts == folder and first:
            raise KeyboardInterrupt
        written.append((product.parts, first))
        real(run, product, first, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_part", write_part)
        with pytest.raises(KeyboardInterrupt):
            scoring.score(experiment, copy, jax.devices()[:1])
    held = len(written)
    assert written[-1] == (folder, 0)
    monkeypatch.setattr(
        parts,
        "write_part",
        lambda r, p, f, *a: (written.append((p.parts, f)), real(r, p, f, *a)),
    )
    scoring.score(experiment, copy, jax.devices()[:1])
    assert files_of(copy) == files_of(run)
    assert len(set(written)) == len(written) == 8 > held


def test_other_noise_is_refused_and_a_damaged_array_mended_on_request(both, tmp_path):
    experiment, run = both
    copy = shutil.copytree(run, tmp_path / "run")
    for changes in ({"noise": 0.1}, {"noisy_queries": 8}):
        other = with_score(experiment, **changes)
        message = refusal(copy, lambda other=other: scoring.score(other, copy))
        assert "merlin.npy: made with score.nois" in message
    for name in ("merlin.npy", "gradient_norm.npy"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    assert "damaged" in refusal(copy, lambda: scoring.score(experiment, copy))
    scoring.score(experiment, copy, jax.devices()[:2], repair=True)
    assert files_of(copy) == files_of(run)


def test_more_models_add_to_optional_arrays(both, tmp_path):
    experiment, run = both
    copy = shutil.copytree(run, tmp_path / "run")
    six = with_train(experiment, models=6)
    training.train(six, copy, jax.devices()[:2])
    scoring.score(six, copy, jax.devices()[:2])
    for name in ("merlin.npy", "gradient_norm.npy"):
        array = np.load(copy / name)
        assert array.shape == (6, 60)
        np.testing.assert_array_equal(array[:4], np.load(run / name))


def test_canaries_are_scored_like_any_example_and_left_out_of_the_accuracy(small, tmp_path, capsys):
    experiment, _ = small
    data = dataclasses.replace(experiment.data, canaries=30)
    experiment = with_train(dataclasses.replace(experiment, data=data), models=2, group=2)
    run = tmp_path / "run"
    training.train(experiment, run, jax.devices()[:2])
    capsys.readouterr()
    scoring.score(experiment, run, jax.devices()[:2])
    labels, keep, logits = (np.load(run / f"{n}.npy") for n in ("labels", "keep", "logits"))
    correct = (logits.argmax(axis=2) == labels)[:, :60]
    members, others = correct[keep[:, :60]].mean(), correct[~keep[:, :60]].mean()
    assert (
        f"accuracy {members:.2%} on members, {others:.2%} on non-members, 30 canaries left out"
        in capsys.readouterr().out
    )
    found = score_files.read_score_set(run)
    assert found.scores.shape == (2, 90, 2)
    assert np.flatnonzero(found.canary).tolist() == list(range(60, 90))


def test_weights_that_give_no_finite_score_are_named(small, tmp_path):
    experiment, run = small[0], shutil.copytree(small[1], tmp_path / "run")
    for name in ("scores.npy", "logits.npy"):
        (run / name).unlink()
    _, _, stored = variables_of(experiment, run)
    stored["params"]["dense"]["kernel"] = stored["params"]["dense"]["kernel"].copy()
    stored["params"]["dense"]["kernel"][1] = np.nan
    (group,) = checkpoints.saved_groups(run)
    shutil.rmtree(run / "checkpoints")
    checkpoints.save(run, group, stored)
    with pytest.raises(InputError, match="model 1 gives a score that is not finite"):
        scoring.score(experiment, run, jax.devices()[:1])


def test_views_that_do_not_fit_the_image_are_refused(tiny, tmp_path):
    from lira_jax.data.views import check_shift

    with pytest.raises(InputError, match=r"score\.views = 162"):
        check_shift(4, (4, 4, 1), "score.views = 162")
