"""Models predict inputs from elsewhere exactly, whatever happens in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lira_jax import ensemble, inference, random_streams, scoring, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import (
    DataConfig,
    Experiment,
    NetworkConfig,
    ScoreConfig,
    TrainConfig,
    TrustConfig,
)
from lira_jax.interrupts import Stopped
from lira_jax.run import checkpoints, parts, score_files, shards
from lira_jax.run.shards import Shard
from lira_jax.trust import inputs, laplace, outputs
from lira_jax.trust import predicting as trust_scoring
from tests.conftest import files_of, refusal, with_train
from tests.precision import reordered
from tests.small_networks import Linear

E, M, DRAWS = 60, 30, 5
# Two parts of some products; the candidates' take two dispatches.
KINDS = {"fit", "test", "scaled", "uniform"}


class WithFeatures(Linear):
    """Few features, so that the Laplace approximation is cheap."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        super().__init__(image_shape, classes, depth, width, dtype, rngs)
        self.norm = nnx.BatchNorm(8, dtype=dtype, rngs=rngs)
        self.dense = nnx.Linear(8, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images):
        return self.dense(self.features(images))

    def features(self, images):
        return jnp.tanh(self.norm(images.mean(axis=(2, 3))))


def network(**settings):
    return WithFeatures(**settings)


def asking(experiment, **changes):
    config = dataclasses.replace(experiment.trust, **changes)
    return dataclasses.replace(experiment, trust=config)


@pytest.fixture(scope="module", autouse=True)
def _same_devices():
    """JAX already has the devices of conftest.py, which a script would set anew; and dispatches are
    short, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "set_up", shards.parse)
        patch.setattr(inference, "DISPATCH", 40)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four models on 60 digits, trained and scored; not to be changed."""
    experiment = Experiment(
        seed=3,
        data=DataConfig(limit=E),
        network=NetworkConfig("tests.trust.test_predicting:network"),
        train=TrainConfig(
            models=4, epochs=4, batch_size=10, mirror=False, shift=0, ema=0.9, group=4
        ),
        score=ScoreConfig(views=1, batch_size=20),
        trust=TrustConfig(
            inputs="test, scaled, uniform", examples=M, fit=12, laplace_samples=DRAWS
        ),
    )
    run = tmp_path_factory.mktemp("trust") / "run"
    training.train(experiment, run, jax.devices()[:1])
    scoring.score(experiment, run, jax.devices()[:1])
    return experiment, run


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The same run with its predictions elsewhere, without a disturbance; not to be changed."""
    experiment, run = trained
    run = shutil.copytree(run, tmp_path_factory.mktemp("made") / "run")
    trust_scoring.score(experiment, run, jax.devices()[:1])
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "run")


@pytest.fixture(scope="module")
def brute(trained):
    """Data, network, and the variables of each model."""
    experiment, run = trained
    data = candidates(experiment)
    net = build_network(experiment, data)
    (group,) = checkpoints.saved_groups(run)
    stored = inference.restored(run, group, net)
    return data, net, [jax.tree.map(lambda leaf, n=n: leaf[n], stored) for n in range(4)]


@pytest.fixture(scope="module")
def gathered(trained, brute):
    experiment, data = trained[0], brute[0]
    source = trust_scoring.datasets.load(experiment.data, experiment.seed)
    found = inputs.gather(experiment.trust, source, data.images, experiment.seed)
    return {one.kind: one for one in (found.fit, *found.kinds)}


def files(run):
    """Every file of the predictions but locks."""
    found = files_of(run / "trust")
    return {name: content for name, content in found.items() if not name.startswith(".lock")}


def load(run, name):
    return np.load(run / "trust" / f"{name}.npy")


def network_input(images, scale=1.0):
    return (jnp.asarray(images, jnp.float32) / 127.5 - 1) * np.float32(scale)


# What is predicted.


@pytest.mark.accelerator
def test_logits_are_those_of_the_models_on_the_inputs(made, brute, gathered):
    _, net, variables = brute
    assert set(gathered) == KINDS
    assert len(gathered["fit"].images) == 12
    for kind, one in gathered.items():
        found = load(made, kind)
        x = network_input(one.images, one.scale)
        expected = np.stack([net.apply(model, x) for model in variables])
        within = reordered(1e-5)
        np.testing.assert_allclose(found, expected, rtol=within, atol=within)
        np.testing.assert_array_equal(load(made, f"{kind}_labels"), one.labels)
        np.testing.assert_array_equal(load(made, f"{kind}_samples"), one.images[:8])
    assert gathered["scaled"].scale == 255
    assert np.abs(load(made, "scaled") - load(made, "test")).max() > 0.1


def test_the_candidates_asked_as_inputs_at_scale_1_give_the_runs_own_logits_bitwise(
    trained, run, monkeypatch
):
    def gather(config, data, candidates, seed):
        one = inputs.Inputs("test", "candidates", np.asarray(candidates), data.y_train)
        return inputs.Gathered(None, (one,), {})

    monkeypatch.setattr(inputs, "gather", gather)
    trust_scoring.score(asking(trained[0], laplace=False), run, jax.devices()[:1])
    np.testing.assert_array_equal(load(run, "test"), np.load(run / "logits.npy"))


@pytest.mark.accelerator
def test_laplace_predictions_are_those_of_each_models_own_members(trained, made, brute, gathered):
    (experiment, _), (data, net, variables) = trained, brute
    model = 2
    own, key = variables[model], jax.random.key(experiment.seed)
    key = jax.random.fold_in(jax.random.fold_in(key, random_streams.LAPLACE), model)
    kernel, bias = laplace.last_layer_weights(own, experiment.network.arch)

    def about(x):
        return net.head_inputs(own, x), net.apply(own, x), net.head_scale

    @jax.jit
    def fitted(members):
        nothing = laplace.no_factors(*kernel.shape)
        factors = laplace.add_factors(nothing, *about(members), jnp.ones(len(members)))
        return laplace.posterior(factors, kernel, bias, 0.0)

    @jax.jit
    def predicted(posterior, x):
        index = jnp.arange(len(x), dtype=jnp.int32)
        return (
            laplace.probit(posterior, *about(x)),
            laplace.sampled(posterior, *about(x), index, key, DRAWS),
        )

    posterior = fitted(network_input(data.images[data.keep[model]]))
    for kind, images, scale in (
        ("candidates", data.images, 1.0),
        ("scaled", gathered["scaled"].images, 255.0),
    ):
        x = network_input(images, scale)
        probit, drawn = predicted(posterior, x)
        found = load(made, f"{kind}_probit")[model]
        np.testing.assert_allclose(found, probit, rtol=1e-3, atol=1e-4)
        assert np.abs(found - net.apply(own, x)).max() > 1e-3
        found = load(made, f"{kind}_sampled")[model]
        np.testing.assert_allclose(found, drawn, rtol=1e-3, atol=1e-3)
    assert "fit_probit" not in {name.split(".")[0] for name in files(made)}


def test_files_tell_what_was_asked(made, gathered):
    told = {path.stem: json.loads(path.read_text()) for path in (made / "trust").glob("*.json")}
    assert set(told) == KINDS | {f"{kind}_probit" for kind in (KINDS - {"fit"}) | {"candidates"}}
    for kind, one in gathered.items():
        assert told[kind] == {
            "title": one.title, "examples": len(one.images), "scale": one.scale,
            "digest": inputs.digest(one), "whole": 4,
        }  # fmt: skip
    assert told["test_probit"] == {
        "prior": 0.0, "samples": DRAWS, "digest": inputs.digest(gathered["test"]), "whole": 4,
    }  # fmt: skip


# Whatever happens in between.


def test_neither_the_number_of_devices_nor_a_stop_after_any_part_changes_a_bit(
    trained, made, run, monkeypatch
):
    experiment, written = trained[0], []

    def write_part(*arguments, real=parts.write_part):
        real(*arguments)
        written.append(arguments[1])
        if len(written) in (1, 5, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(parts, "write_part", write_part)
    # Each stop is noticed at the next dispatch, whose part is not written.
    for devices in (1, 4, 2):
        with pytest.raises(Stopped, match="run the same command again to go on") as caught:
            trust_scoring.score(experiment, run, jax.devices()[:devices])
        assert caught.value.exit_code == 143
    assert len(written) == 6
    trust_scoring.score(experiment, run, jax.devices()[:1])
    assert files(run) == files(made)
    before = len(written)
    trust_scoring.score(experiment, run)
    assert len(written) == before
    assert files(run) == files(made)


def test_shards_share_the_models_and_the_last_puts_all_together(trained, made, run, capsys):
    experiment = trained[0]
    trust_scoring.score(experiment, run, jax.devices()[:1], Shard(1, 2))
    assert "models 0–1 are still missing" in capsys.readouterr().out
    assert outputs.read(run, score_files.read_score_set(run)) is None
    trust_scoring.score(experiment, run, jax.devices()[:1], Shard(0, 2))
    assert files(run) == files(made)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(
        f"4 models have predicted 12 images for temperatures, {M} test images, {M} inputs × 255, "
        f"{M} uniform noise, and by a Laplace approximation; run python attack.py --run {run}"
    )


def test_more_models_later_leave_the_rows_of_the_first(trained, made, tmp_path):
    more = with_train(trained[0], models=6)
    run = shutil.copytree(made, tmp_path / "run")
    training.train(more, run, jax.devices()[:1])
    trust_scoring.score(more, run, jax.devices()[:1])
    held = score_files.read_score_set(run)
    assert outputs.read(run, held).candidates["probit"].shape == (6, E, 10)
    for name in [path.stem for path in (made / "trust").glob("*.npy")]:
        found, before = load(run, name), load(made, name)
        if "labels" not in name and "samples" not in name:
            assert len(found) == 6
        np.testing.assert_array_equal(found[: len(before)], before)


def test_models_too_many_for_memory_are_asked_in_halves(trained, made, run, monkeypatch, capsys):
    def over_models(*arguments, real=ensemble.over_models):
        usual = real(*arguments)

        def lifted(models, *shared):
            if jax.tree.leaves(models)[0].shape[0] > 1:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9.9GiB.")
            return usual(models, *shared)

        return lifted

    monkeypatch.setattr(ensemble, "over_models", over_models)
    trust_scoring.score(trained[0], run, jax.devices()[:2])
    assert "2 models do not fit into memory together; going on with 1" in capsys.readouterr().out
    assert files(run) == files(made)


def test_damage_is_refused_and_made_anew_with_repair(trained, made, run, tmp_path):
    shutil.copytree(made / "trust", run / "trust")
    path = run / "trust" / "test_sampled.npy"
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    message = refusal(run, lambda: trust_scoring.score(trained[0], run))
    assert "test_sampled.npy: damaged" in message
    assert message.endswith("give score.py --trust --repair True")
    trust_scoring.score(trained[0], run, jax.devices()[:1], repair=True)
    assert files(run) == files(made)


@pytest.mark.parametrize("name", ["test_labels.npy", "uniform_samples.npy"])
def test_lost_labels_and_samples_are_written_again(trained, made, run, name):
    shutil.copytree(made / "trust", run / "trust")
    (run / "trust" / name).unlink()
    held = score_files.read_score_set(run)
    message = refusal(run, lambda: outputs.read(run, held))
    assert message.endswith(f"run python score.py --run {run} --trust again")
    trust_scoring.score(trained[0], run)
    assert files(run) == files(made)


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": 20}, "test.npy: made with examples = 30, not 20; ask for the same to go on"),
        ({"fit": 10}, "fit.npy: made with examples = 12, not 10; ask for the same"),
        ({"scale": 2.0}, "scaled.npy: made with title = inputs × 255, not inputs × 2; ask for"),
        ({"laplace_samples": 9}, "candidates_probit.npy: made with samples = 5, not 9; ask for"),
        ({"laplace_prior": 1.0}, "candidates_probit.npy: made with prior = 0.0, not 1.0; ask for"),
        ({"inputs": "left_out"}, 'trust.inputs = "left_out": no left_out'),
        ({"generated": "nowhere"}, 'trust.generated = "nowhere": no such folder'),
    ],
)
def test_other_settings_are_refused_by_name_and_leave_files_as_they_are(
    trained, made, changes, message
):
    experiment = asking(trained[0], **changes)
    assert message in refusal(made, lambda: trust_scoring.score(experiment, made))


def test_another_seed_of_inputs_is_refused(trained, made, monkeypatch):
    real = inputs.gather

    def gather(config, data, candidates, seed):
        return real(config, data, candidates, seed + 1)

    monkeypatch.setattr(inputs, "gather", gather)
    message = refusal(made, lambda: trust_scoring.score(trained[0], made))
    assert "fit.npy: made with digest = " in message


def test_more_kinds_later_leave_what_is_there(trained, made, run):
    shutil.copytree(made / "trust", run / "trust")
    before = files(run)
    experiment = asking(trained[0], inputs="gaussian", laplace=False)
    trust_scoring.score(experiment, run, jax.devices()[:1])
    after = files(run)
    assert set(after) - set(before) == {
        "gaussian.npy", "gaussian.json", "gaussian_labels.npy", "gaussian_samples.npy",
    }  # fmt: skip
    assert {name: after[name] for name in before} == before


def test_memguard_is_refused(trained, run):
    guarded = dataclasses.replace(
        trained[0], score=dataclasses.replace(trained[0].score, memguard=True)
    )
    message = refusal(run, lambda: trust_scoring.score(guarded, run))
    assert message.startswith("score.memguard: MemGuard makes up every prediction score")


def test_models_that_are_not_trained_are_named_before_anything_is_written(trained, run):
    shutil.rmtree(run / "checkpoints")
    message = refusal(run, lambda: trust_scoring.score(trained[0], run))
    assert f"models 0–3 of 4 not trained yet; run python train.py --run {run}" in message


def test_another_process_at_work_on_the_same_models_is_noticed(trained, run):
    (run / "trust").mkdir()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab');"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run / "trust" / ".lock-trust")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        experiment = asking(trained[0], laplace=False)
        message = refusal(run, lambda: trust_scoring.score(experiment, run))
        assert "another score.py is at work on models among 0–3; wait for it or stop it" in message
        trust_scoring.score(experiment, run, jax.devices()[:1], Shard(0, 2))
        other.communicate(b"\n")


def test_a_network_whose_logits_do_not_follow_from_its_features_is_refused(
    trained, run, monkeypatch
):
    def build(experiment, data, real=build_network):
        net = real(experiment, data)
        return dataclasses.replace(net, apply=lambda v, x: net.apply(v, x) ** 3)

    monkeypatch.setattr(trust_scoring, "build_network", build)
    with pytest.raises(
        trust_scoring.InputError, match=r"mend its method features, or give --trust"
    ):
        trust_scoring.score(asking(trained[0], inputs="", fit=0), run, jax.devices()[:1])


def test_inputs_that_no_model_can_take_are_named(trained, run, monkeypatch):
    def build(experiment, data, real=build_network):
        net = real(experiment, data)
        return dataclasses.replace(net, apply=lambda v, x: net.apply(v, x) * jnp.exp(jnp.max(x)))

    monkeypatch.setattr(trust_scoring, "build_network", build)
    experiment = asking(trained[0], inputs="scaled", fit=0, laplace=False)
    with pytest.raises(trust_scoring.InputError) as caught:
        trust_scoring.score(experiment, run, jax.devices()[:1])
    message = str(caught.value)
    assert "gives a logit that is not finite on input 0 of scaled.npy; leave scaled out" in message
    assert "\n" not in message


# On the command line.


def test_the_flag_predicts_after_scoring_what_is_missing(made, run, capsys):
    from lira_jax.commands import score  # needs more packages than the other tests here

    before = (run / "scores.npy").read_bytes()
    (run / "scores.npy").unlink()
    score.main(["--trust", "--trust-code", "--run", str(run), "--trust.laplace", "False"])
    assert (run / "scores.npy").read_bytes() == before
    found = files(run)
    assert found == {name: content for name, content in files(made).items() if name in found}
    assert {f"{kind}.npy" for kind in KINDS} <= set(found)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(f"{M} uniform noise; run python attack.py --run {run}")
    )


@pytest.mark.usefixtures("sketched")
def test_attacks_take_the_predictions_of_the_run(made, run, monkeypatch):
    from lira_jax.commands import attack  # likewise

    shutil.copytree(made / "trust", run / "trust")
    attack.main(["--run", str(run), "--attack.temperatures", "fit"])
    found = json.loads((run / "attack" / "metrics.json").read_text())["trust"]
    assert [kind["name"] for kind in found["kinds"]] == ["test", "scaled", "uniform"]
    assert [one["name"] for one in found["calibrations"]] == [
        "plain", "temperature-fit", "laplace-probit", "laplace-sampled",
    ]  # fmt: skip
    held = score_files.read_score_set(run)
    logits = load(run, "test")
    right = (logits.argmax(axis=2) == load(run, "test_labels")).mean()
    assert found["kinds"][0]["accuracy"] == pytest.approx(right)
    right = held.logits.argmax(axis=2) == held.labels
    plain = found["calibrations"][0]
    each = [mine[mask].mean() for mine, mask in zip(right, held.keep, strict=True)]
    assert plain["members"]["accuracy"] == pytest.approx(np.mean(each))
