from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from benchmarks import accelerator
from lira_jax.config_file import load

ROOT = Path(__file__).resolve().parents[2]
TOY = ["--toy", "--cases", "speed_net", "--dtypes", "float32"]


def run(tmp_path, *more):
    out = tmp_path / "sweep.json"
    accelerator.main([*TOY, *more, "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8"))


def without_compiling(monkeypatch, largest, seconds=0.0, clock=None):
    """Models that take no time, and no memory beyond a width of `largest`; compiling takes some."""

    def prepare(row, *_):
        if clock is not None:
            clock.now += seconds
        if row.width > largest:
            raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        compiled = dataclasses.replace(row, compile_seconds=0.0, memory_bytes=0)
        return accelerator.Width(compiled, lambda: None)

    monkeypatch.setattr(accelerator, "prepare", prepare)
    monkeypatch.setattr(accelerator, "forward_flops", lambda *_: 1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only compiling moves on, one program at a time."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr(accelerator, "time", clock)
    monkeypatch.setattr(accelerator, "os", SimpleNamespace(cpu_count=lambda: 1))
    return clock


@pytest.mark.usefixtures("quick_to_compile")
def test_a_sweep_trains_real_models_and_reports_each_width(tmp_path, capsys):
    report = run(tmp_path, "--devices", "2")
    assert report["devices"] == 2
    ways = [(row["width"], row["gradients"]) for row in report["rows"]]
    assert ways == [(1, "grouped"), (2, "grouped"), (2, "vmap")]
    recipe = load(ROOT / "configs" / "cifar10_fast.toml").train
    for row in report["rows"]:
        steps = 25_000 // row["batch"] * recipe.epochs
        hours = row["ms_per_model_step"] / 3.6e6 * steps
        assert row["models_per_hour"] == pytest.approx(1 / hours)
        peak = report["peaks"]["float32"]["flops_per_second"] * 2
        assert row["utilisation"] == pytest.approx(row["flops_per_second"] / peak)
        assert row["memory_bytes"] > 0
        assert row["compile_seconds"] > 0
    fastest = max(report["rows"], key=lambda row: row["models_per_hour"])
    assert report["best"] == [fastest]
    printed = capsys.readouterr().out
    assert f"a model: {recipe.epochs} epochs of 25000 members" in printed
    assert f"speed_net float32 batch 8: width {fastest['width']}, " in printed
    assert printed.count("grouped") == 1 + (fastest["gradients"] == "grouped") * (
        2 * (fastest["width"] > 1)
    )


ONE = ("--gradients", "vmap")


def test_a_width_that_does_not_fit_is_a_row(tmp_path, monkeypatch, capsys):
    without_compiling(monkeypatch, largest=2)
    report = run(tmp_path, *ONE, "--widths", "8", "1", "4", "2")
    errors = [(row["width"], row["error"]) for row in report["rows"]]
    assert errors == [(1, None), (2, None), (4, "out of memory"), (8, "out of memory")]
    assert report["best"][0]["width"] in (1, 2)
    assert "    4 vmap       out of memory" in capsys.readouterr().out


def test_when_not_even_one_model_fits_there_is_no_best_width(tmp_path, monkeypatch):
    without_compiling(monkeypatch, largest=0)
    report = run(tmp_path, "--widths", "1")
    assert [row["width"] for row in report["rows"]] == [1]
    assert report["best"] == []


def test_the_most_promising_come_first():
    assert accelerator.candidates([1, 2, 8, 16, 64], ["grouped", "vmap"]) == [
        (16, "grouped"), (1, "grouped"), (16, "vmap"), (8, "grouped"), (8, "vmap"),
        (2, "grouped"), (2, "vmap"), (64, "grouped"), (64, "vmap"),
    ]  # fmt: skip
    assert accelerator.candidates([1], ["vmap"]) == [(1, "vmap")]


def test_what_the_time_limit_leaves_out_is_named(tmp_path, monkeypatch, capsys, clock):
    without_compiling(monkeypatch, largest=8, seconds=40, clock=clock)
    report = run(tmp_path, *ONE, "--minutes", "1", "--widths", "1", "2", "4", "8")
    assert [row["width"] for row in report["rows"]] == [1, 8]
    missing = ["4 vmap", "2 vmap"]
    assert report["left_out"] == [{"sweep": "speed_net float32 batch 8", "widths": missing}]
    assert "widths 4 vmap, 2 vmap left out" in capsys.readouterr().out


def test_sweeps_share_the_time_that_is_left_evenly(tmp_path, monkeypatch, clock):
    without_compiling(monkeypatch, largest=8, seconds=10, clock=clock)
    options = ("--minutes", "1", "--widths", *"12345", "--batches", "8", "16", "32")
    report = run(tmp_path, *ONE, *options)
    batches = [row["batch"] for row in report["rows"]]
    assert {batch: batches.count(batch) for batch in batches} == {8: 2, 16: 2, 32: 2}
    assert [len(one["widths"]) for one in report["left_out"]] == [3, 3, 3]


def test_a_batch_larger_than_the_members_is_left_out(monkeypatch, capsys):
    without_compiling(monkeypatch, largest=8)
    accelerator.main([*TOY, "--batches", "25001"])
    assert "left out, a model has only 25000 members" in capsys.readouterr().out


def test_a_matrix_product_has_a_rate_of_random_data_that_stays_finite():
    assert 1e6 < accelerator.matrix_rate(jax.devices()[0], "float32", 64) < 1e15


def test_every_published_peak_is_for_bfloat16_at_least_that_of_float32():
    assert all(np.all(bfloat16 >= float32) for bfloat16, float32 in accelerator.PEAKS.values())


def test_it_runs_where_only_jax_and_its_kin_are_installed():
    absent = ["tyro", "tensorflow_datasets", "sklearn", "matplotlib", "array_record"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import benchmarks.accelerator"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
