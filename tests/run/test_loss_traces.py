from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lira_jax.config import Experiment
from lira_jax.run import loss_traces
from tests.conftest import begin_run, refusal, with_train


@settings(max_examples=50)
@given(st.integers(1, 2000), st.integers(1, 2_000_000))
def test_a_plan_stays_within_its_bounds_and_is_no_coarser_than_it_must(epochs, members):
    plan = loss_traces.plan(with_train(Experiment(), epochs=epochs), members)
    most, largest = loss_traces.MOST_EPOCHS, loss_traces.MOST_NUMBERS
    assert plan.rows * plan.every <= epochs < (plan.rows + 1) * plan.every
    assert plan.rows <= most
    assert plan.rows * members <= largest
    if plan.every > 1:
        finer = epochs / (plan.every - 1)
        assert finer > most or finer * members > largest


def test_every_example_is_a_member_of_the_models_that_are_looked_at():
    assert loss_traces.plan(with_train(Experiment(), keep="3/8"), 3).models == range(8)


@pytest.fixture
def run(tmp_path):
    return begin_run(tmp_path / "run")


PLAN = loss_traces.Plan(range(2), members=5, every=1, rows=3)
TRACE = np.arange(10, dtype=np.float32).reshape(2, 5)


def test_what_is_written_is_read(run):
    assert loss_traces.read(run, 1, PLAN) is None
    loss_traces.write(run, 1, TRACE)
    np.testing.assert_array_equal(loss_traces.read(run, 1, PLAN), TRACE)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (TRACE[:, :4], r"holds float32 \[2, 4\] instead of float32 \[any, 5\]"),
        (np.concatenate([TRACE, TRACE]), "holds more epochs than training makes"),
        (np.where(TRACE == 3, np.nan, TRACE), "or losses that are not finite"),
        (np.where(TRACE == 3, np.inf, TRACE), "or losses that are not finite"),
    ],
)
def test_what_no_training_wrote_is_refused(run, written, reason):
    loss_traces.write(run, 0, written.astype(np.float32))
    message = refusal(run, lambda: loss_traces.read(run, 0, PLAN))
    assert message.startswith(f"{run}/loss_traces/model_00000.npy: ")
    assert re.search(reason, message)


def test_a_trace_of_another_model_or_run_is_refused(run, tmp_path):
    loss_traces.write(run, 0, TRACE)
    path = run / "loss_traces" / "model_00000.npy"
    path.rename(path.with_name("model_00001.npy"))
    assert "it was renamed" in refusal(run, lambda: loss_traces.read(run, 1, PLAN))
    other = begin_run(tmp_path / "other", seed=1)
    loss_traces.write(other, 0, TRACE)
    (other / "loss_traces" / "model_00000.npy").rename(path)
    assert "belongs to another run" in refusal(run, lambda: loss_traces.read(run, 0, PLAN))


def test_repair_removes_what_is_damaged_of_its_own_models_alone(run, capsys):
    for model in (0, 1):
        loss_traces.write(run, model, TRACE)
        path = run / "loss_traces" / f"model_{model:05d}.npy"
        path.write_bytes(path.read_bytes()[:-1])
    loss_traces.repair(run, range(1, 9), PLAN)
    assert capsys.readouterr().out.startswith(f"removed: {path}: damaged")
    assert [path.name for path in (run / "loss_traces").iterdir()] == ["model_00000.npy"]


def test_traces_count_once_all_models_have_them_whole(run):
    experiment = with_train(Experiment(), epochs=2, models=2)
    keep = np.zeros((2, 10), bool)
    keep[0, :5] = keep[1, 5:] = True
    loss_traces.write(run, 0, TRACE)
    assert loss_traces.read_all(run, experiment, keep) is None
    loss_traces.write(run, 1, TRACE[:1])
    assert loss_traces.read_all(run, experiment, keep) is None
    loss_traces.write(run, 1, TRACE)
    assert len(loss_traces.read_all(run, experiment, keep)) == 2
    longer = dataclasses.replace(experiment.train, epochs=3)
    assert loss_traces.read_all(run, dataclasses.replace(experiment, train=longer), keep) is None
