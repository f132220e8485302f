"""Loss traces come out the same however training was cut up, and training does not notice them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from lira_jax import ensemble, loss_tracing, shadow_models, storage, training
from lira_jax.analysis import loss_traces as analysis
from lira_jax.candidates import build_network, candidates
from lira_jax.config import DataConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.run import checkpoints, loss_traces
from lira_jax.run.checkpoints import Group
from lira_jax.run.shards import Shard
from tests.conftest import files_of, refusal, with_train
from tests.test_training import stop_training

EPOCHS, STEPS, MEMBERS, CANARIES = 4, 20, 63, 6


@pytest.fixture(scope="module")
def four() -> Experiment:
    """Four models of 20 steps, one after the other; the last examples are canaries."""
    return Experiment(
        seed=3,
        data=DataConfig(limit=120, canaries=CANARIES),
        network=NetworkConfig("tests.small_networks:network"),
        train=TrainConfig(
            models=4, epochs=EPOCHS, batch_size=12, mirror=False, shift=0, ema=0.9,
            eval_examples=16, group=1,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _programs_made_once():
    """One set of programs for all runs of an experiment on the same devices."""
    made: dict[object, shadow_models.Programs] = {}

    def programs(experiment, data, mesh, *others, real=training.programs):
        key = with_train(experiment, models=0, group=0, checkpoint_minutes=0.0), mesh
        if key not in made:
            made[key] = real(experiment, data, mesh, *others)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "programs", programs)
        yield


def train(experiment: Experiment, run: Path, devices: int = 1, **more) -> Path:
    training.train(experiment, run, jax.devices()[:devices], **more)
    return run


def kept(run: Path) -> dict[str, bytes]:
    """The traces of a run and the list of examples, as files."""
    return {
        name: content
        for name, content in files_of(run).items()
        if name.startswith(loss_traces.FOLDER) or name == loss_tracing.LIKELY
    }


@pytest.fixture(scope="module")
def undisturbed(four, tmp_path_factory) -> Path:
    """A run of the four models; not to be changed."""
    return train(four, tmp_path_factory.mktemp("undisturbed") / "run")


def losses_by_epoch(experiment: Experiment, model: int) -> np.ndarray:
    """A model's losses on its members after each epoch, in float64 from its logits: [epochs, M]."""
    data = candidates(experiment)
    mesh = ensemble.models_mesh(jax.devices()[:1])
    on_mesh = training.programs(experiment, data, mesh)
    inputs = shadow_models.group_inputs(experiment, data.keep, Group(model, model), mesh)
    both = (on_mesh.begin(inputs["number"]), inputs)
    network = build_network(experiment, data)
    members = np.flatnonzero(data.keep[model])
    images, labels = data.images[members] / np.float32(127.5) - 1, data.labels[members]
    rows = []
    for start in range(0, STEPS, 5):
        both = on_mesh.advance(both, np.int32(start), np.int32(start + 5))
        variables = jax.tree.map(lambda leaf: leaf[0], on_mesh.finish(both[0]))
        logits = np.asarray(network.apply(variables, images), np.float64)
        rows.append(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels])
    return np.array(rows)


def test_a_trace_is_the_loss_of_each_member_after_each_epoch(four, undisturbed):
    assert sorted(kept(undisturbed)) == [
        "likely_exposed.csv", "loss_traces/model_00000.npy", "loss_traces/model_00001.npy",
    ]  # fmt: skip
    for model in (0, 1):
        trace = np.load(undisturbed / f"loss_traces/model_{model:05d}.npy")
        assert (trace.dtype, trace.shape) == (np.float32, (EPOCHS, MEMBERS))
        np.testing.assert_allclose(trace, losses_by_epoch(four, model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("group", "devices"), [(2, 1), (4, 4)])
def test_groups_and_devices_change_no_bit_of_a_trace(four, undisturbed, group, devices, tmp_path):
    """Members are shared out to devices that would have no model to evaluate."""
    run = train(with_train(four, group=group), tmp_path / "run", devices)
    assert kept(run) == kept(undisturbed)


def test_more_models_leave_traces_as_they_are(four, undisturbed, tmp_path):
    run = train(with_train(four, models=2), tmp_path / "run")
    assert kept(run) == kept(undisturbed)
    train(four, run)
    assert kept(run) == kept(undisturbed)


@pytest.mark.parametrize("dispatches", [3, 5, 27])
def test_a_stopped_run_goes_on_to_the_same_traces(four, undisturbed, dispatches, tmp_path):
    """Within an epoch, at its end, in the second model, and after both."""
    stop_training(four, tmp_path / "run", dispatches, seconds=0.0)
    train(four, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(undisturbed)


@pytest.mark.parametrize("reading", [5, 6, 13])
def test_a_signal_during_evaluation_leaves_the_row_for_later(
    four, undisturbed, reading, tmp_path, monkeypatch
):
    """With three dispatches, between which a signal is looked for, after each epoch of five."""
    monkeypatch.setattr(loss_tracing, "DISPATCH_IMAGES", 24)
    stop_training(four, tmp_path / "run", reading, seconds=0.0)
    [group] = checkpoints.saved_groups(tmp_path / "run")
    trace = tmp_path / "run" / "loss_traces" / "model_00000.npy"
    rows = len(np.load(trace)) if trace.exists() else 0
    assert (group.step % 5, rows) == (0, group.step // 5 - 1), "else the test tests nothing"
    train(four, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(undisturbed)


@pytest.mark.parametrize("where", ["checkpoints.save", "loss_traces.write"])
@pytest.mark.parametrize("writes", [1, 4, 7])
def test_a_kill_between_two_files_neither_loses_nor_doubles_epochs(
    four, undisturbed, where, writes, tmp_path, monkeypatch
):
    """Each file before that one is whole, and none after it is there."""
    experiment, run = with_train(four, group=2, checkpoint_minutes=0.0), tmp_path / "run"
    module, name = {
        "checkpoints.save": (checkpoints, "save"), "loss_traces.write": (loss_traces, "write"),
    }[where]  # fmt: skip
    usual, left = getattr(module, name), [writes]

    def killed(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, run)
    train(experiment, run)
    assert kept(run) == kept(undisturbed)


def test_whichever_shard_is_last_with_the_first_block_names_the_examples(
    four, undisturbed, tmp_path, capsys
):
    run = tmp_path / "run"
    for index, told in ((1, False), (3, False), (0, True), (2, False)):
        train(four, run, shard=Shard(index, 4))
        assert ("most likely to be exposed" in capsys.readouterr().out) == told
        assert (loss_tracing.LIKELY in kept(run)) == (index in (0, 2))
    assert kept(run) == kept(undisturbed)


def test_a_run_that_began_without_traces_goes_on_without(four, undisturbed, tmp_path):
    run = tmp_path / "run"
    stop_training(four, run, 12, seconds=0.0)
    storage.remove(run / loss_traces.FOLDER)
    train(four, run)
    assert sorted(kept(run)) == ["loss_traces/model_00001.npy"], "which began with this version"
    assert analysis.of_run(run, four) is None
    assert {name for name in files_of(run) if name.startswith("checkpoints")} == {
        name for name in files_of(undisturbed) if name.startswith("checkpoints")
    }


@pytest.mark.parametrize(("most", "epochs"), [(3, [2, 4]), (1, [])])
def test_no_more_epochs_are_kept_than_planned_and_one_alone_not_at_all(
    four, most, epochs, tmp_path, monkeypatch
):
    """One has no range."""
    monkeypatch.setattr(loss_traces, "MOST_EPOCHS", most)
    run = train(with_train(four, models=2), tmp_path / "run")
    assert len(kept(run)) == (3 if epochs else 0)
    if epochs:
        trace = np.load(run / "loss_traces/model_00000.npy")
        expected = losses_by_epoch(four, 0)[[epoch - 1 for epoch in epochs]]
        np.testing.assert_allclose(trace, expected, rtol=1e-4, atol=1e-5)


def test_canaries_are_listed_and_not_named(four, undisturbed):
    lines = (undisturbed / loss_tracing.LIKELY).read_text().splitlines()
    assert lines[0] == "rank,example,label,iqr,canary"
    assert sum(line.endswith(",1") for line in lines) == CANARIES
    natural = [line.split(",")[1] for line in lines[1:] if line.endswith(",0")]
    named = loss_tracing.name_likely(four, undisturbed, candidates(four))
    assert [str(example) for example in named] == natural[:5]


def test_a_damaged_trace_is_refused_and_repair_goes_on_without_it(four, tmp_path, capsys):
    run = tmp_path / "run"
    stop_training(four, run, 12, seconds=0.0)
    path = run / "loss_traces" / "model_00000.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    message = refusal(run / "checkpoints", lambda: train(four, run))
    assert message.startswith(f"{path}: damaged: ")
    train(four, run, repair=True)
    assert f"removed: {path}: damaged" in capsys.readouterr().out
    assert sorted(kept(run)) == ["loss_traces/model_00001.npy"]


def test_a_model_that_is_trained_again_has_its_trace_made_again(four, undisturbed, tmp_path):
    run = train(four, tmp_path / "run")
    [path] = (run / "checkpoints").glob("models_00000-*")
    path.write_bytes(b"")
    train(four, run, repair=True)
    assert kept(run) == kept(undisturbed)
