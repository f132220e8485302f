"""What the commands say of loss traces, from training to the report."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from lira_jax import storage
from lira_jax.commands import attack, train

pytestmark = pytest.mark.usefixtures("few_attacks", "sketched")


def likely(run):
    with (run / "likely_exposed.csv").open(newline="") as file:
        return [int(row["example"]) for row in csv.DictReader(file)]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_attack_tells_how_good_the_guess_of_training_was(run, call):
    assert call(attack, "--run", run).code == 0
    told = metrics(run / "attack")
    with (run / "attack" / "vulnerability.csv").open(newline="") as file:
        ranked = [int(row["example"]) for row in csv.DictReader(file)]
    traces = told["loss_traces"]
    assert traces["attack"] == told["vulnerability"]["attack"]
    assert traces["precision"]["0.05"]["named"] == 6
    assert traces["precision"]["0.05"]["hits"] == len(set(likely(run)[:6]) & set(ranked[:6]))
    page = (run / "attack" / "report.html").read_text()
    assert "Foretold by training alone" in page
    assert "<td" in page.split("Foretold by training alone")[1]


def test_train_ends_with_the_examples_most_likely_to_be_exposed(call, toml, tmp_path):
    run = tmp_path / "run"
    out = call(train, toml, "--run", run, "--train.models", 2).out
    named = ", ".join(map(str, likely(run)[:5]))
    assert f"{run}: most likely to be exposed, as their loss moved most" in out
    assert f"examples {named}; all in likely_exposed.csv" in out
    assert call(train, "--run", run).out == f"{run}: all 2 models are trained\n"


def test_without_traces_nothing_is_said_of_them(run, call):
    storage.remove(run / "loss_traces")
    assert call(attack, "--run", run).code == 0
    assert metrics(run / "attack")["loss_traces"] is None
    assert "Foretold" not in (run / "attack" / "report.html").read_text()


def test_a_trace_under_another_models_name_is_refused_until_it_is_deleted(run, call, refused):
    first, second = (run / "loss_traces" / f"model_0000{model}.npy" for model in (0, 1))
    shutil.copy(first, second)
    for command in (attack, train):
        message = refused(command, "--run", run)
        assert message.startswith(f"{second}: its holds are loss_traces/model_00000.npy, not")
        assert message.endswith("delete it and run train.py again, which goes on without it")
    second.unlink()
    outcome = call(train, "--run", run)
    assert outcome.code == 0
    assert "likely" not in outcome.out
