"""What is timed in PyTorch is the engine's step; a way that fails does not stop the rest."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks.recipes import TOY_NETWORKS, recipe
from lira_jax import networks, optimization
from lira_jax.config import TrainConfig
from lira_jax.data import views
from tests.benchmarks.torch_weights import copy, in_torch, random_variables

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks import torch_networks, torch_step, torch_training  # noqa: E402

TOY = ["--toy", "--steps", "1", "--repeats", "1"]


def run(tmp_path, *more):
    out = tmp_path / "rows.jsonl"
    torch_step.main([*TOY, *more, "--out", str(out)])
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def without_compiler(monkeypatch):
    """Traced as one graph with its gradient, but not compiled, which takes a minute."""
    compile_ = torch.compile

    def traced(module, *, mode, **settings):
        return compile_(module, backend="aot_eager", **settings)

    monkeypatch.setattr(torch, "compile", traced)


@pytest.mark.usefixtures("without_compiler")
def test_every_way_of_every_case_is_a_row_and_a_line(tmp_path, capsys):
    rows = run(tmp_path, "--ways", "eager", "compile", "--dtypes", "bfloat16")
    assert [(row["case"], row["way"]) for row in rows] == [
        (case, way) for case in TOY_NETWORKS for way in ("eager", "compile")
    ]
    for row in rows:
        assert row["error"] is None
        assert (row["dtype"], row["batch"], row["dispatches"]) == ("bfloat16", 8, 1)
        experiment, members = recipe(row["case"], "float32", 8, True)
        hours = row["ms_per_step"] / 3.6e6 * experiment.train.total_steps(members)
        assert row["models_per_hour"] == pytest.approx(1 / hours)
        assert (row["compile_seconds"] is None) == (row["way"] == "eager")
        assert row["memory_bytes"] is None or row["device"] != "cpu"
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in printed[2:]] == [
        [row["case"], "bfloat16", "8", row["way"]] for row in rows
    ]


def test_a_failure_is_a_row_that_says_why_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find\n C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    size = ("--cases", "resnet8", "--dtypes", "float32")
    rows = run(tmp_path, *size, "--ways", "compile", "eager")
    assert rows[0]["error"] == "RuntimeError: Failed to find C compiler"
    assert rows[0]["ms_per_step"] is None
    assert rows[1]["error"] is None
    assert "RuntimeError: Failed to find C compiler" in capsys.readouterr().out

    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch_step, "measure", full)
    assert run(tmp_path, *size)[-1]["error"] == "out of memory"


def test_what_the_time_limit_leaves_out_is_named(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def measure(blank, *_):
        clock.now += 40
        return dataclasses.replace(
            blank, ms_per_step=1.0, models_per_hour=1.0, compile_seconds=1.0, memory_bytes=1
        )

    monkeypatch.setattr(torch_step, "time", clock)
    monkeypatch.setattr(torch_step, "measure", measure)
    rows = run(tmp_path, "--seconds", "60", "--dtypes", "float32")
    assert [row["error"] for row in rows] == [None, None, "left out, 60 s are over"]


def test_a_batch_larger_than_the_members_is_left_out(tmp_path):
    rows = run(tmp_path, "--cases", "resnet8", "--dtypes", "float32", "--batches", "1251")
    assert rows[0]["error"] == "left out, a model has only 1250 members"


@pytest.mark.parametrize("case", ["resnet8", "speed_net"])
def test_a_step_is_that_of_the_engine(case):
    steps, batch, shape = 10, 16, (8, 8, 3)
    train = dataclasses.replace(
        recipe(case, "float32", batch, True)[0].train,
        mirror=False,
        shift=0,
        label_smoothing=0.1,
        # The paper's begins with a step of size 0.
        schedule="constant" if case == "resnet8" else "one_cycle",
    )
    network = networks.build(TOY_NETWORKS[case], shape, 10)
    begin = jax.jit(lambda key: optimization.new_state(key, network, train, steps))
    state = dataclasses.replace(begin(jax.random.key(0)), variables=random_variables(network))
    model = torch_networks.build(TOY_NETWORKS[case], shape, 10)
    copy(state.variables, model)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(40, *shape), dtype=np.uint8)
    labels = rng.integers(10, size=40, dtype=np.int32)
    index = rng.permutation(40)[:batch].astype(np.int32)

    step = jax.jit(optimization.train_step(network, train, steps))
    after, (loss, _) = step(state, views.plain(images, index), labels[index], jax.random.key(0))
    trainer = torch_training.Trainer(model.train(), train, steps)
    shared = torch.from_numpy(images), torch.from_numpy(labels).long()
    module = torch_step.Loss(model, train, *shared)
    found = module(torch.from_numpy(index), torch_step.draw(train, (batch,), shared[0]))
    trainer.update(found)

    assert found.item() == pytest.approx(float(loss), rel=1e-5)
    moved = 0.0
    before = dict(in_torch(state.variables))
    names = list(model.state_dict())
    averages = dict(zip(names, trainer.averages, strict=True))
    for what, tensors in (("variables", model.state_dict()), ("ema", averages)):
        for name, array in in_torch(getattr(after, what)):
            # PyTorch's running variances divide by n − 1.
            rtol = 1 / (batch - 1) if name.endswith("running_var") else 1e-5
            np.testing.assert_allclose(
                tensors[name].detach(), array, rtol=rtol, atol=1e-5, err_msg=f"{what} {name}"
            )
            moved = max(moved, np.abs(array - before[name]).max())
    assert moved > 0.01


@pytest.mark.parametrize("schedule", ["paper", "one_cycle"])
def test_rates_are_those_of_the_engine(schedule):
    train = TrainConfig(learning_rate=0.3, schedule=schedule)
    schedules = {
        "paper": optimization.paper_schedule,
        "one_cycle": optimization.one_cycle_schedule,
    }
    rate = schedules[schedule](0.3, 500)
    for step in (0, 1, 4, 99, 100, 499):
        expected = float(rate(step))
        assert torch_training.learning_rate(train, step, 500) == pytest.approx(expected, rel=1e-5)


def test_views_are_those_of_the_engine():
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(5, 9, 7, 3), dtype=np.uint8)
    index = rng.integers(5, size=32, dtype=np.int32)
    mirror = rng.random(32) < 0.5
    down, right = rng.integers(-4, 5, size=(2, 32), dtype=np.int32)
    expected = views.take(images, index, mirror, down, right)
    choices = [torch.from_numpy(array) for array in (images, index, mirror, down, right)]
    np.testing.assert_array_equal(torch_step.take(*choices), expected)

    train = TrainConfig(mirror=True, shift=4, cutout=3)
    zeros = torch.zeros(32, dtype=torch.long)
    draws = torch_step.Draws(*choices[2:], zeros, zeros + 3)
    expected = np.array(expected)
    expected[:, :2, 2:5] = 0
    batch = torch_step.augmented(*choices[:2], draws, train)
    np.testing.assert_array_equal(batch, expected.transpose(0, 3, 1, 2))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_of_the_recipe():
    images = torch.zeros(1, 9, 7, 3, dtype=torch.uint8)
    draws = torch_step.draw(TrainConfig(mirror=True, shift=2), (4, 500), images)
    assert 0.4 < draws.mirror.float().mean() < 0.6
    for choice, values in zip(draws[1:], ([-2, 2], [-2, 2], [0, 8], [0, 6]), strict=True):
        assert [choice.min(), choice.max()] == values
        assert choice.shape == (4, 500)
    draws = torch_step.draw(TrainConfig(mirror=False, shift=0), (500,), images)
    assert not draws.mirror.any()
    assert not draws.down.any()
