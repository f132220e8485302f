from __future__ import annotations

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from lira_jax import inference, networks, scoring, shadow_models, training
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, DefenceConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.defences import transfer
from lira_jax.run import checkpoints, run_dir
from tests.conftest import refusal, with_train
from tests.test_training import stop_training, trained_weights


class Body(nnx.Module):
    """A user's own network with BatchNorm, dropout and a last layer `head`; compiles fast."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.hidden = nnx.Linear(int(np.prod(image_shape)), width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        x = self.norm(jax.nn.relu(self.hidden(x.reshape(len(x), -1))))
        return self.head(self.dropout(x))


ONE = jax.devices()[:1]


def arrays(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> tuple:
    """A run on the first 60 digits, and its experiment."""
    run = tmp_path_factory.mktemp("source") / "run"
    experiment = Experiment(
        seed=1,
        data=DataConfig(limit=60),
        network=NetworkConfig(f"{__name__}:Body", width=8),
        train=TrainConfig(models=2, epochs=3, batch_size=10, shift=0, eval_examples=8, group=2),
    )
    training.train(experiment, run, ONE)
    return run, experiment


@pytest.fixture(scope="module")
def onward(source) -> Experiment:
    """Two models that begin with that run's weights, on the digits beyond."""
    run, experiment = source
    return dataclasses.replace(
        with_train(experiment, ema=0.9, weight_decay=0.01),
        seed=2,
        data=DataConfig(skip=60, limit=80),
        defence=DefenceConfig(transfer_from=str(run), transfer_tune="last"),
    )


def finished(run, experiment) -> dict[str, np.ndarray]:
    """The scored variables of all models of a run, in order."""
    network = build_network(experiment, candidates(experiment))
    parts = [
        arrays(inference.restored(run, group, network)) for group in checkpoints.saved_groups(run)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_tune(experiment: Experiment, tune: str) -> Experiment:
    defence = dataclasses.replace(experiment.defence, transfer_tune=tune)
    return dataclasses.replace(experiment, defence=defence)


@pytest.mark.parametrize("tune", ["last", "all"])
def test_models_begin_with_model_0_of_the_source_and_a_last_layer_of_their_own(
    source, onward, tune
):
    run, experiment = source
    onward = with_tune(onward, tune)
    data = candidates(onward)
    network = build_network(onward, data)
    initial = transfer.read(onward, network, data.images)
    expected = finished(run, experiment)
    begun = []
    for number in (0, 1):
        used = transfer.begun_from(network, initial, onward.defence)
        state = shadow_models.init_model(onward, used, 9, data.classes)(number)
        begun.append(arrays(transfer.whole(state.variables, initial, onward.defence)))
    plain = arrays(shadow_models.init_model(onward, network, 9, data.classes)(1).variables)
    assert begun[0].keys() == expected.keys() == plain.keys()
    for name, values in expected.items():
        if name.startswith("params/head/"):
            np.testing.assert_array_equal(begun[1][name], plain[name])
        else:
            np.testing.assert_array_equal(begun[0][name], values[0])
            np.testing.assert_array_equal(begun[1][name], values[0])
    head = "params/head/kernel"
    assert np.abs(begun[0][head] - begun[1][head]).max() > 0.01


@pytest.fixture(scope="module")
def whole(onward, tmp_path_factory):
    """Where the experiment was trained in one go, by what is tuned."""
    folder = tmp_path_factory.mktemp("whole")
    for tune in ("last", "all"):
        training.train(with_tune(onward, tune), folder / tune, ONE)
    return folder


def test_with_tune_last_only_the_last_layer_ever_moves(source, onward, whole):
    """Whatever weight decay, momentum and the moving average do; and it is what is scored."""
    run, expected = whole / "last", finished(*source)
    for name, values in finished(run, onward).items():
        if not name.startswith("params/head/"):
            np.testing.assert_array_equal(values, expected[name][[0, 0]])
    log = run_dir.read_log(run)
    assert np.mean(log[-1]["loss"]) < np.mean(log[0]["loss"])
    scored = dataclasses.replace(onward.score, views=1)
    scoring.score(dataclasses.replace(onward, score=scored), run, ONE)
    assert np.load(run / "scores.npy").shape == (2, 80, 1)


def test_with_tune_all_every_layer_moves(source, onward, whole):
    expected = finished(*source)
    for name, values in finished(whole / "all", onward).items():
        assert (np.abs(values - expected[name][[0, 0]]).max(axis=1) > 0).all(), name


def test_dropout_stays_on_and_batch_statistics_stay_as_they_are(onward):
    data = candidates(onward)
    network = build_network(onward, data)
    initial = transfer.read(onward, network, data.images)
    used = transfer.begun_from(network, initial, onward.defence)
    variables = used.init(jax.random.key(0))
    x = data.images[:6].astype(np.float32) / 127.5 - 1
    keys = jax.random.split(jax.random.key(1), 400)
    draws, rest = jax.jit(jax.vmap(lambda key: used.apply_train(variables, x, key)))(keys)
    assert rest == {}
    assert np.abs(draws[0] - draws[1]).max() > 1e-2
    # Dropout keeps the mean, so on average it is evaluation: with the source's statistics.
    np.testing.assert_allclose(draws.mean(axis=0), used.apply(variables, x), atol=0.5)
    alone = used.apply_train(variables, x[:1], jax.random.key(0))[0]
    assert np.isfinite(alone).all()


def test_models_are_the_same_in_a_group_and_where_training_goes_on(onward, whole, tmp_path):
    """With the last layer tuned, which alone is in a model's state; with all, it is as ever."""
    tune = "last"
    onward = with_tune(onward, tune)
    stop_training(with_train(onward, group=1), tmp_path / "parts", 5, seconds=0.0)
    training.train(with_train(onward, group=1), tmp_path / "parts", ONE)
    expected = trained_weights(onward, whole / tune)
    for model, weights in trained_weights(onward, tmp_path / "parts").items():
        np.testing.assert_array_equal(weights, expected[model])


def test_a_run_goes_on_only_with_the_weights_it_began_with(source, onward, whole, tmp_path):
    run, experiment = source
    shutil.copytree(whole / "last", tmp_path / "run")
    digest = run_dir.read_versions(tmp_path / "run")["transfer_digest"]
    assert len(digest) == 64
    # A copy elsewhere is the same; a source trained otherwise is not.
    other = tmp_path / "other"
    training.train(dataclasses.replace(experiment, seed=9), other, ONE)
    moved = dataclasses.replace(onward.defence, transfer_from=str(other))
    changed = dataclasses.replace(onward, defence=moved)
    message = refusal(tmp_path, lambda: training.train(changed, tmp_path / "run", ONE))
    assert "the weights of defence.transfer_from have changed since this run began" in message
    assert digest[:12] in message
    (tmp_path / "link").symlink_to(run)
    moved = dataclasses.replace(onward.defence, transfer_from=str(tmp_path / "link"))
    more = with_train(dataclasses.replace(onward, defence=moved), models=4)
    training.train(more, tmp_path / "run", ONE)
    assert run_dir.read_versions(tmp_path / "run")["transfer_digest"] == digest


def test_classes_may_differ_in_number(onward):
    """The last layer is drawn for the classes at hand."""
    data = candidates(onward)
    network = build_network(onward, dataclasses.replace(data, classes=7))
    initial = transfer.read(onward, network, data.images)
    used = transfer.begun_from(network, initial, onward.defence)
    assert used.init(jax.random.key(0))["params"]["head"]["kernel"].shape == (8, 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"network": NetworkConfig(f"{__name__}:Body", width=9)},
            ["its network.width is 8, not 9"],
        ),
        ({"network": NetworkConfig("convnet", width=8)}, ["its network.arch is", "not 'convnet'"]),
        ({"data": DataConfig(limit=80)}, ["60 of its candidates", "first example 0", "data.skip"]),
        (
            {"data": DataConfig(name=f"{__name__}:in_colour")},
            ["its images have 1 channel, those", "here 3"],
        ),
    ],
)
def test_a_source_that_does_not_fit_is_refused(onward, change, words, tmp_path):
    other = dataclasses.replace(onward, **change)
    message = refusal(tmp_path, lambda: training.train(other, tmp_path / "run", ONE))
    for word in words:
        assert word in message


def in_colour():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (80, 8, 8, 3), np.uint8), np.arange(80) % 10, None, None


@pytest.mark.parametrize("names", [(), ("dense", "head")])
def test_a_network_that_does_not_name_its_last_layer_is_refused(names):
    variables = {"params": {name: {} for name in ("hidden", *names)}, "rest": {}}
    message = refusal(None, lambda: networks.last_layer(variables, "mine:Net", "some.key"))
    assert (
        'some.key: network.arch = "mine:Net" does not tell its last layer; name the attribute'
        in message
    )


def test_a_source_that_is_no_run_or_not_trained_is_refused(source, onward, tmp_path):
    def begun(path):
        defence = dataclasses.replace(onward.defence, transfer_from=str(path))
        other = dataclasses.replace(onward, defence=defence)
        return refusal(tmp_path, lambda: training.train(other, tmp_path / "run", ONE))

    assert "holds no run" in begun(tmp_path / "nothing")
    _, experiment = source
    data = candidates(experiment)
    versions = {"data_digest": data.digest}
    run_dir.prepare(tmp_path / "bare", experiment, data.keep, data.labels, versions)()
    message = begun(tmp_path / "bare")
    assert "model 0, whose weights defence.transfer_from asks for, is not trained yet" in message


@pytest.mark.parametrize("name", ["config.toml", "keep.npy", "checkpoints/x.npz"])
def test_a_source_with_a_pipe_for_a_file_is_refused(onward, tmp_path, name):
    data = candidates(onward)
    network = build_network(onward, data)
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / name)
    for path, words in (
        (str(tmp_path), f"{tmp_path / name}: is a pipe, not a file; remove it"),
        ("/dev/zero", "/dev/zero"),
        ("~no-such-user/x", "defence.transfer_from"),
    ):
        defence = dataclasses.replace(onward.defence, transfer_from=path)
        other = dataclasses.replace(onward, defence=defence)
        assert words in refusal(None, lambda o=other: transfer.read(o, network, data.images))


def test_the_last_layers_of_our_networks_are_known():
    for arch in networks.ARCHITECTURES:
        network = networks.build(
            NetworkConfig(arch, 16 if arch == "wide_resnet" else 8, 1), (8, 8, 1), 5
        )
        params = jax.eval_shape(network.init, jax.random.key(0))
        last = params["params"][networks.last_layer(params, arch, "some.key")]
        assert last["kernel"].shape[-1] == last["bias"].shape[-1] == 5


def test_a_digest_tells_names_types_shapes_and_values_apart():
    a = np.arange(6, dtype=np.float32)
    trees = [
        {"a": a}, {"b": a}, {"a": a.reshape(2, 3)}, {"a": a.astype(np.int32)}, {"a": a + 1},
        {"a": a[:3], "b": a[3:]},
    ]  # fmt: skip
    assert len({transfer.digest(tree) for tree in trees}) == len(trees)
    assert transfer.digest({"a": a.reshape(2, 3).T}) == transfer.digest(
        {"a": a.reshape(2, 3).T.copy()}
    )
