from __future__ import annotations

import dataclasses
import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lira_jax import (
    ensemble,
    inference,
    networks,
    scoring,
    shadow_models,
    training,
    training_width,
    tuning,
)
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.errors import InputError
from lira_jax.interrupts import Stopped, StopRequest
from lira_jax.run import checkpoints, run_dir
from lira_jax.run.checkpoints import Group
from tests.conftest import with_train
from tests.precision import assert_same

CONVOLUTION = NetworkConfig("tests.small_networks:Convolution", width=8)


def trained_weights(experiment: Experiment, run: Path) -> dict[int, np.ndarray]:
    """Every model's scored variables as one vector, read from the checkpoints."""
    data = candidates(experiment)
    network = build_network(experiment, data)
    weights = {}
    steps = experiment.train.total_steps(int(data.keep[0].sum()))
    for group in checkpoints.saved_groups(run):
        assert group.step == steps
        tree = inference.restored(run, group, network)
        leaves = [leaf.reshape(group.size, -1) for leaf in jax.tree.leaves(tree)]
        for row, vector in enumerate(np.concatenate(leaves, axis=1)):
            weights[group.first + row] = vector
    return weights


@pytest.fixture(scope="module")
def eight() -> Experiment:
    """Eight models, 20 steps each."""
    return Experiment(
        seed=5,
        data=DataConfig(limit=80),
        network=CONVOLUTION,
        train=TrainConfig(
            models=8, epochs=4, batch_size=8, shift=1, ema=0.9, eval_examples=8, group=8
        ),
    )


@pytest.fixture(scope="module")
def alone(eight, tmp_path_factory) -> dict[int, np.ndarray]:
    """The weights of eight models, each trained alone on one device."""
    run = tmp_path_factory.mktemp("alone") / "run"
    training.train(with_train(eight, group=1), run, jax.devices()[:1])
    return trained_weights(eight, run)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_model_is_bitwise_the_same_alone_in_a_group_and_over_devices(
    eight, alone, devices, tmp_path
):
    training.train(eight, tmp_path / "run", jax.devices()[:devices])
    together = trained_weights(eight, tmp_path / "run")
    assert sorted(together) == list(range(8))
    for model, weights in alone.items():
        np.testing.assert_array_equal(together[model], weights)


def test_at_full_width_weights_agree_after_20_steps(eight, alone, tmp_path):
    wide = with_train(eight, width=8)
    training.train(wide, tmp_path / "run", jax.devices()[:1])
    vectorised = trained_weights(wide, tmp_path / "run")
    for model, weights in alone.items():
        difference = np.linalg.norm(vectorised[model] - weights) / np.linalg.norm(weights)
        assert difference < 1e-4


def test_models_differ_in_initial_weights_data_order_and_members(eight, alone):
    assert len({weights.tobytes() for weights in alone.values()}) == 8
    data = candidates(eight)
    network = build_network(eight, data)
    init = shadow_models.init_model(eight, network, 20, 10)
    first, second = (
        np.asarray(init(np.int32(model)).variables["params"]["stem"]["kernel"]) for model in (0, 1)
    )
    assert np.abs(first - second).max() > 0.01


class StopAfter(StopRequest):
    """A signal that comes during the given dispatch, counted over all groups."""

    def __init__(self, dispatches: int):
        self.left = dispatches

    @property
    def signum(self) -> int:  # read once a dispatch
        self.left -= 1
        return 2 if self.left <= 0 else 0


def stop_training(experiment: Experiment, run: Path, dispatches: int, seconds: float = 2.0) -> None:
    """Train on one device until a signal comes, during the given dispatch of about so long."""

    @contextmanager
    def stopping():
        yield StopAfter(dispatches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "stop_requests", stopping)
        patch.setattr(training, "DISPATCH_SECONDS", seconds)
        with pytest.raises(Stopped):
            training.train(experiment, run, jax.devices()[:1])


@pytest.fixture(scope="module")
def two(tiny) -> Experiment:
    """Two models, one after the other."""
    return with_train(dataclasses.replace(tiny, network=CONVOLUTION), group=1)


@pytest.fixture(scope="module")
def undisturbed(two, tmp_path_factory) -> Path:
    """A run of the two models; not to be changed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    training.train(two, run, jax.devices()[:1])
    return run


@pytest.mark.parametrize(("checks", "seconds"), [(1, 0.0), (7, 0.0), (3, 2.0)])
def test_a_stopped_run_goes_on_to_the_same_weights(two, undisturbed, checks, seconds, tmp_path):
    """Stopped after some dispatches: of one step each, so within an epoch, or longer ones."""
    stop_training(two, tmp_path / "parts", checks, seconds)
    begun = checkpoints.saved_groups(tmp_path / "parts")
    if not seconds:
        assert sum(group.step for group in begun) == checks
    assert begun
    training.train(two, tmp_path / "parts", jax.devices()[:1])
    expected = trained_weights(two, undisturbed)
    for model, weights in trained_weights(two, tmp_path / "parts").items():
        np.testing.assert_array_equal(weights, expected[model])
    log = run_dir.read_log(tmp_path / "parts")
    epochs = [(*line["models"], line["epoch"]) for line in log]
    assert epochs == [(model, model, epoch) for model in (0, 1) for epoch in range(1, 5)]
    for line, other in zip(log, run_dir.read_log(undisturbed), strict=True):
        assert line | {"seconds": 0} == other | {"seconds": 0}


class WithDropout(nnx.Module):
    """A user's own network with random streams and no normalisation."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        self.hidden = nnx.Linear(int(np.prod(image_shape)), 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(x))


@pytest.mark.parametrize("ema", [0.0, pytest.param(0.9, marks=pytest.mark.accelerator)])
def test_a_users_network_with_dropout_trains_goes_on_and_scores(tiny, ema, tmp_path):
    network = dataclasses.replace(tiny.network, arch=f"{__name__}:WithDropout")
    experiment = with_train(dataclasses.replace(tiny, network=network), ema=ema)
    one = jax.devices()[:1]
    training.train(with_train(experiment, group=2), tmp_path / "whole", one)
    stop_training(with_train(experiment, group=1), tmp_path / "parts", 2)
    training.train(with_train(experiment, group=1), tmp_path / "parts", one)
    expected = trained_weights(experiment, tmp_path / "whole")
    for model, weights in trained_weights(experiment, tmp_path / "parts").items():
        assert_same(weights, expected[model])
    scoring.score(experiment, tmp_path / "parts", one)
    again = np.load(tmp_path / "parts" / "scores.npy")
    scoring.score(experiment, tmp_path / "whole", one)
    np.testing.assert_allclose(np.load(tmp_path / "whole" / "scores.npy"), again, atol=1e-4)


def test_dropout_differs_from_step_to_step_and_is_off_in_evaluation(tiny):
    network_config = dataclasses.replace(tiny.network, arch=f"{__name__}:WithDropout")
    network = networks.build(network_config, (8, 8, 1), 10)
    variables = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    one, other = (network.apply_train(variables, x, jax.random.key(seed))[0] for seed in (2, 3))
    assert float(np.abs(one - other).max()) > 1e-3
    np.testing.assert_array_equal(network.apply(variables, x), network.apply(variables, x))


def test_a_group_begun_keeps_its_extent_when_the_group_size_changes(tmp_path):
    run = tmp_path
    (run / "checkpoints").mkdir()
    for group in (Group(0, 3, 9), Group(6, 7, 2)):
        (run / "checkpoints" / f"{group.name}_step_{group.step}.npz").touch()
    finished, todo = checkpoints.plan(run, 12, 9, 3)
    assert finished == [Group(0, 3, 9)]
    assert todo == [Group(4, 5), Group(6, 7, 2), Group(8, 10), Group(11, 11)]


def test_networks_learn_their_members_and_the_log_says_so(tmp_path):
    experiment = Experiment(data=DataConfig(limit=400))
    experiment = with_train(
        experiment, models=2, epochs=15, batch_size=20, shift=0, mirror=False, ema=0.9
    )
    experiment = dataclasses.replace(
        experiment, network=dataclasses.replace(experiment.network, width=8)
    )
    training.train(experiment, tmp_path / "run", jax.devices()[:2])
    log = run_dir.read_log(tmp_path / "run")
    assert len(log) == 15
    assert min(log[-1]["member_accuracy"]) > 0.97
    assert min(log[-1]["nonmember_accuracy"]) > 0.75
    assert max(log[-1]["loss"]) < min(log[0]["loss"]) / 4
    assert all(record["seconds"] > 0 for record in log)


@pytest.mark.parametrize(
    ("optimizer", "augmentation"),
    [
        ("sgd", {"mirror": False, "shift": 0}),
        pytest.param("adam", {"cutout": 3}, marks=pytest.mark.accelerator),
    ],
)
def test_every_optimiser_and_augmentation_trains_in_bfloat16(
    two, augmentation, optimizer, tmp_path
):
    experiment = with_train(
        two,
        group=2,
        optimizer=optimizer,
        learning_rate=0.01,
        dtype="bfloat16",
        epochs=3,
        **augmentation,
    )
    training.train(experiment, tmp_path / "run", jax.devices()[:2])
    log = run_dir.read_log(tmp_path / "run")
    assert np.mean(log[-1]["loss"]) < np.mean(log[0]["loss"])


@pytest.fixture(scope="module")
def small(eight) -> Experiment:
    """Eight models of a network that compiles fast."""
    network = dataclasses.replace(eight.network, arch=f"{__name__}:WithDropout")
    return dataclasses.replace(eight, network=network)


@pytest.fixture(scope="module")
def small_alone(small, tmp_path_factory) -> dict[int, np.ndarray]:
    """The weights of these eight models, each trained alone."""
    run = tmp_path_factory.mktemp("small") / "run"
    training.train(with_train(small, group=1), run, jax.devices()[:1])
    return trained_weights(small, run)


@pytest.mark.accelerator
def test_more_models_leave_the_first_ones_bit_for_bit(small, small_alone, tmp_path):
    run = tmp_path / "run"
    training.train(with_train(small, models=2, group=2), run, jax.devices()[:1])
    training.train(with_train(small, models=4, group=2), run, jax.devices()[:1])
    weights = trained_weights(small, run)
    assert sorted(weights) == [0, 1, 2, 3]
    for model, vector in weights.items():
        assert_same(vector, small_alone[model])


def with_memory_for(models: int, real=training.programs):
    """`training.programs` of a device that holds so many models: XLA:CPU has no such error."""

    def programs(*arguments):
        usual = real(*arguments)

        def advance(group, start, stop):
            if jax.tree.leaves(group)[0].shape[0] > models:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9.9GiB.")
            return usual.advance(group, start, stop)

        return dataclasses.replace(usual, advance=advance)

    return programs


@pytest.mark.parametrize("begun", [False, True])
def test_a_group_too_large_for_memory_is_halved(
    small, small_alone, begun, tmp_path, monkeypatch, capsys
):
    """Begun on a device that held all eight, or not."""
    run, one = tmp_path / "run", jax.devices()[:1]
    if begun:
        stop_training(small, run, 2)
    monkeypatch.setattr(training, "programs", with_memory_for(2))
    training.train(small, run, one)
    out = capsys.readouterr().out
    assert f"{run}: 8 models do not fit into memory together; going on with 4\n" in out
    assert f"{run}: 4 models do not fit into memory together; going on with 2\n" in out
    assert [group.size for group in checkpoints.saved_groups(run)] == [2, 2, 2, 2]
    for model, weights in trained_weights(small, run).items():
        np.testing.assert_array_equal(weights, small_alone[model])


def test_one_model_too_large_for_memory_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "programs", with_memory_for(0))
    with pytest.raises(InputError, match=r"one model alone does not fit into memory \(RESOURCE"):
        training.train(with_train(small, group=2), tmp_path / "run", jax.devices()[:1])


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """As on an accelerator: the width is found by measuring, and remembered in a new folder."""
    choose, ours = training_width.ways, NetworkConfig()  # these networks are users' own

    def ways(experiment, share, _):
        return choose(dataclasses.replace(experiment, network=ours), share, on_cpu=False)

    monkeypatch.setattr(training_width, "ways", ways)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    monkeypatch.setattr(tuning, "SECONDS", 0.01)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("measured")
def test_a_width_left_open_is_measured_once_recorded_and_changes_only_rounding(
    small, small_alone, tmp_path, capsys
):
    run, one = tmp_path / "run", jax.devices()[:1]
    rates = {
        "width 1": 1.0,
        "width 4 with grouped gradients": 3.0,
        "width 8 with vmap gradients": 2,
    }

    def as_measured(candidates, *_):
        """Each is compiled and run; how fast, is not looked at."""
        assert [str(way) for way in candidates] == [
            "width 1",
            "width 4 with grouped gradients",
            "width 4 with vmap gradients",
            "width 8 with grouped gradients",
            "width 8 with vmap gradients",
        ]
        chosen = [way for way in candidates if str(way) in rates]
        found, failed = measure({way: candidates[way] for way in chosen})
        assert sorted(map(str, found)) == sorted(rates)
        assert not failed
        return {way: rates[str(way)] for way in found}, {}

    measure = tuning.rates
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "rates", as_measured)
        training.train(small, run, one)
    assert f"{run}: width 4 with grouped gradients, 3 model-steps/s, is the fastest of 5 ways" in (
        capsys.readouterr().out
    )
    assert {(line["width"], line["conv_gradients"]) for line in run_dir.read_log(run)} == {
        (4, "grouped")
    }
    assert run_dir.read_config(run).train.width == 0, "what was asked for, not what was found"
    for model, weights in trained_weights(small, run).items():
        np.testing.assert_allclose(weights, small_alone[model], atol=2e-4)
    again = tmp_path / "again"
    training.train(small, again, one)
    assert f"{again}: width 4 with grouped gradients, found fastest here before" in (
        capsys.readouterr().out
    )
    for model, weights in trained_weights(small, again).items():
        np.testing.assert_array_equal(weights, trained_weights(small, run)[model])


@pytest.mark.usefixtures("measured")
def test_a_width_that_is_given_is_not_measured(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "rates", lambda *_: pytest.fail("measured"))
    experiment = with_train(small, models=2, group=2, epochs=1, width=2)
    training.train(experiment, tmp_path / "run", jax.devices()[:1])
    (line,) = run_dir.read_log(tmp_path / "run")
    assert (line["width"], line["conv_gradients"]) == (2, "grouped")
    assert "fastest" not in capsys.readouterr().out


def test_on_cpu_one_model_at_a_time_is_not_a_question():
    assert training_width.ways(Experiment(), 16, on_cpu=True) == [training_width.Way(1, "grouped")]


def test_a_users_own_network_is_tried_with_one_kind_of_gradients():
    experiment = Experiment(network=NetworkConfig("package.module:function"))
    assert [str(way) for way in training_width.ways(experiment, 4, on_cpu=False)] == [
        "width 1",
        "width 4 with vmap gradients",
    ]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_program_compiled_ahead_is_the_one_that_runs(small, devices):
    """To the letter, so that it is found among the compiled ones; one device has two names for
    where its arrays lie."""
    experiment = with_train(small, models=2, group=2)
    data, mesh = candidates(experiment), ensemble.models_mesh(jax.devices()[:devices])
    on_mesh = shadow_models.programs(experiment, data, mesh)
    inputs = shadow_models.group_inputs(experiment, data.keep, Group(0, 1), mesh)

    def text(both):
        bounds = (np.int32(0), np.int32(1))
        return on_mesh.advance.function.lower(both, *bounds, *on_mesh.advance.shared).as_text()

    ahead = text(on_mesh.shapes(inputs))
    both = (on_mesh.begin(inputs["number"]), inputs)
    assert text(both) == ahead
    after = on_mesh.advance(both, np.int32(0), np.int32(1))
    assert text(after) == ahead


def test_models_too_few_for_all_devices_leave_some_alone(small, small_alone, tmp_path, monkeypatch):
    """Six models in groups of four on four devices: the last two on two."""
    used = []

    def programs(experiment, data, mesh, *others, real=training.programs):
        used.append(mesh.size)
        return real(experiment, data, mesh, *others)

    monkeypatch.setattr(training, "programs", programs)
    run = tmp_path / "run"
    training.train(with_train(small, models=6, group=4), run, jax.devices()[:4])
    assert used == [4, 2]
    for model, weights in trained_weights(with_train(small, models=6), run).items():
        np.testing.assert_array_equal(weights, small_alone[model])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_model_epoch_and_cure(small, tmp_path):
    wild = with_train(small, learning_rate=1e9, schedule="constant", group=1)
    with pytest.raises(InputError, match=r"model 0: the loss is not finite in epoch 1; try a"):
        training.train(wild, tmp_path / "run", jax.devices()[:1])


def test_finished_models_stay_when_a_later_one_fails(two, tmp_path, monkeypatch):
    run = tmp_path / "run"
    usual = training._refuse_non_finite

    def fail_on_model_1(loss, group, epoch):
        usual(np.where(group.first == 1, np.nan, loss), group, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_refuse_non_finite", fail_on_model_1)
        with pytest.raises(InputError, match="model 1: the loss is not finite in epoch 1"):
            training.train(two, run, jax.devices()[:1])
    assert checkpoints.saved_groups(run) == [Group(0, 0, 20)]


def test_examples_that_make_no_equal_folds_are_left_out_and_named(two, tmp_path, capsys):
    odd = dataclasses.replace(two, data=DataConfig(limit=121))
    training.train(with_train(odd, epochs=1), tmp_path / "run", jax.devices()[:1])
    assert "the last 1 of 121 images left out: 2 folds share" in capsys.readouterr().out
    assert np.load(tmp_path / "run" / "keep.npy").shape == (2, 120)


@pytest.mark.parametrize("kind", ["mislabelled", "noise"])
@pytest.mark.parametrize("canaries", [6, 7])
def test_canaries_come_last_and_share_the_folds_with_the_other_examples(tiny, kind, canaries):
    """Of 120 digits, so that 126 or, with one digit left out, 126 examples make two folds."""
    config = DataConfig(limit=120, canaries=canaries, canary_kind=kind)
    data = candidates(dataclasses.replace(tiny, data=config))
    plain = candidates(tiny)
    ordinary = 126 - canaries
    assert (data.canaries, data.available, len(data.labels)) == (canaries, 120 + canaries, 126)
    np.testing.assert_array_equal(data.images[:ordinary], plain.images[:ordinary])
    np.testing.assert_array_equal(data.labels[:ordinary], plain.labels[:ordinary])
    np.testing.assert_array_equal(data.keep.sum(axis=0), 1)
    np.testing.assert_array_equal(data.keep.sum(axis=1), 63)
    assert 0 < data.keep[0, ordinary:].sum() < canaries
    assert plain.canaries == 0


def test_too_many_folds_for_the_examples_besides_canaries_are_refused(tiny):
    data = DataConfig(limit=120, canaries=300, canary_kind="noise")
    many = with_train(dataclasses.replace(tiny, data=data), keep="1/211", models=211)
    with pytest.raises(InputError, match="120 training images and 300 canaries cannot be cut into"):
        candidates(many)


def test_the_members_of_a_model_are_its_mask_and_nothing_else(tiny):
    data = candidates(tiny)
    inputs = shadow_models.group_inputs(
        tiny, data.keep, Group(0, 1), ensemble.models_mesh(jax.devices()[:1])
    )
    for model in (0, 1):
        np.testing.assert_array_equal(inputs["members"][model], np.flatnonzero(data.keep[model]))
        members, nonmembers = np.asarray(inputs["probe"][model])
        assert data.keep[model][members].all()
        assert not data.keep[model][nonmembers].any()
        assert len(set(members)) == len(members) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 61}, "each model has only 60 training examples"),
        ({"shift": 8}, "does not fit images of 8×8"),
        ({"models": 3}, "give a multiple of 2"),
        ({"keep": "1/200", "models": 200}, "cannot be cut into 200 folds"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    tiny, changes, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        training.train(with_train(tiny, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.rmtree(tmp_path)
