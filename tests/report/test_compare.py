"""Runs beside each other: one table, two figures, and refusals of one line."""

from __future__ import annotations

import csv
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lira_jax import config, config_file
from lira_jax.errors import InputError
from lira_jax.report.compare import compare
from lira_jax.run import continuing
from tests import synthetic_findings
from tests.conftest import refusal
from tests.trust import synthetic

GRIDS = sorted((Path(__file__).resolve().parents[2] / "configs/grids").glob("*.toml"))
FILES = ["accuracy.pdf", "accuracy.png", "compare.csv", "compare.md", "compare.tex", "roc.pdf",
         "roc.png"]  # fmt: skip


@cache
def small(leak):
    return synthetic_findings.findings(leak, 4, 80, names=["yeom", "lira-online-shrinkage"])


def written(folder):
    """The names of what a folder holds, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock-attack")


def write_run(run, leak=1.0, results="attack", **changes):
    """A run directory with attack results of schema 2; keyword arguments replace metrics."""
    findings = small(leak)
    metrics = findings.metrics | changes
    folder = run / results
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    arrays = {
        f"{name}.{rate}": getattr(curve.roc, rate)
        for name, curve in findings.curves.items()
        for rate in ("fpr", "tpr")
    }
    np.savez(folder / "roc.npz", **arrays)
    return metrics


def settings(**changes):
    names = {"arch": "network.arch", "width": "network.width", "group": "train.group"}
    flat = config.flatten(config.Experiment())
    return flat | {names[key]: value for key, value in changes.items()}


@pytest.fixture
def two(tmp_path):
    first = write_run(tmp_path / "small", 0.3, settings=settings(arch="convnet", group=1))
    second = write_run(tmp_path / "large_$x$", 1.5, settings=settings(arch="resnet", group=2))
    return tmp_path / "small", tmp_path / "large_$x$", first, second


def rows(out):
    with (out / "compare.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_writes_table_and_figures_the_same_twice(two, tmp_path):
    for out in ("one", "two"):
        text = compare(two[:2], tmp_path / out)
        assert written(tmp_path / out) == FILES
        assert text.endswith(f"Written to {tmp_path / out}: compare.csv, compare.md, compare.tex, "
                             "accuracy.pdf, accuracy.png, roc.pdf, roc.png")  # fmt: skip
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.usefixtures("sketched")
def test_the_table_holds_the_figures_of_each_run_and_the_settings_that_differ(two, tmp_path):
    compare(two[:2], tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["run"] for row in found] == ["small", "large_$x$"]
    assert [row["network.arch"] for row in found] == ["convnet", "resnet"]
    assert not {"network.width", "train.group"} & set(found[0])
    for row, metrics in zip(found, two[2:], strict=True):
        entry = next(one for one in metrics["attacks"] if one["name"] == "lira-online-shrinkage")
        assert float(row["auc"]) == entry["auc"]
        assert float(row["tpr_at_fpr_0.01_hi"]) == entry["tpr_at_fpr_ci"]["0.01"][1]
        assert row["few_false_positives_0.001"] == "True"
        others = np.array([one["nonmember"] for one in metrics["accuracy"]])
        low, high = stats.t.interval(0.95, 3, others.mean(), stats.sem(others))
        assert float(row["accuracy"]) == pytest.approx(others.mean())
        assert float(row["accuracy_lo"]) == pytest.approx(low)
        assert float(row["accuracy_hi"]) == pytest.approx(high)
        members = np.mean([one["member"] for one in metrics["accuracy"]])
        assert float(row["gap"]) == pytest.approx(members - others.mean())
    assert r"large\_\$x\$" in (tmp_path / "out/compare.md").read_text()
    assert r"large\_\$x\$" in (tmp_path / "out/compare.tex").read_text()


@pytest.mark.usefixtures("sketched")
def test_settings_are_read_from_the_run_where_the_results_hold_none(tmp_path):
    for name, width in (("a", 16), ("b", 32)):
        write_run(tmp_path / name, settings=None)
        experiment = config.Experiment(network=config.NetworkConfig(width=width))
        (tmp_path / name / "config.toml").write_text(config_file.to_toml(experiment, {}))
    compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert [row["network.width"] for row in rows(tmp_path / "out")] == ["16", "32"]


@pytest.mark.usefixtures("sketched")
def test_folders_of_results_are_compared_too_and_named_by_their_run(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    compare([tmp_path / "a/attack", tmp_path / "b"], tmp_path / "out")
    assert [row["run"] for row in rows(tmp_path / "out")] == ["a", "b"]


@pytest.mark.usefixtures("sketched")
def test_without_accuracy_the_figure_of_it_is_not_drawn_and_the_text_says_so(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, accuracy=None, settings=None)
    text = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("accuracy.*"))
    assert "No run knows its accuracy" in text
    assert rows(tmp_path / "out")[0]["gap"] == ""


def label_only(**accuracies):
    """Results of label-only attacks; the last one is the strongest."""
    attacks = []
    for name, value in accuracies.items():
        decision = {
            "balanced_accuracy": value,
            "balanced_accuracy_ci": [value - 0.02, value + 0.02],
        }
        attacks.append({"name": name, "decision": decision})
    return {"attacks": attacks, "strongest": attacks[-1]["name"]}


def test_label_only_attacks_are_compared_where_runs_have_them(tmp_path):
    write_run(tmp_path / "plain", 1.5, label_only=label_only(confidence=0.8, gap=0.7, boundary=0.9))
    write_run(tmp_path / "unasked", 1.0)
    guarded = label_only(confidence=0.5, gap=0.71, combined=0.72)
    write_run(tmp_path / "dp", 0.1, label_only=guarded, versions={"dp_epsilon": "7.5312"})
    text = compare([tmp_path / name for name in ("plain", "unasked", "dp")], tmp_path / "out")
    assert written(tmp_path / "out") == sorted([*FILES, "defences.pdf", "defences.png"])
    assert "so not in defences.png: unasked; make them with" in text
    assert "dp (ε = 7.53)" in text
    found = rows(tmp_path / "out")
    assert [row["strongest_label_only"] for row in found] == ["boundary", "", "combined"]
    assert [row["label_only_balanced_accuracy"] for row in found] == ["0.9", "", "0.72"]
    assert [row["gap_balanced_accuracy"] for row in found] == ["0.7", "", "0.71"]
    assert float(found[0]["confidence_balanced_accuracy_lo"]) == pytest.approx(0.78)
    assert [row["dp_epsilon"] for row in found] == ["", "", "7.5312"]


@pytest.mark.usefixtures("sketched")
def test_runs_without_label_only_results_have_no_columns_of_them(two, tmp_path):
    text = compare(two[:2], tmp_path / "out")
    assert "label" not in text.split("Written to")[0]
    assert "gap_balanced_accuracy" not in rows(tmp_path / "out")[0]


def test_refuses_damaged_label_only_results(two, tmp_path):
    broken = ([{"decision": {}}], [{"name": "gap", "decision": {}}], [{"name": "gap"}], 3)
    for place, attacks in enumerate(broken):
        odd = tmp_path / f"odd{place}"
        write_run(odd, label_only={"attacks": attacks, "strongest": None})
        message = refusal(tmp_path, lambda odd=odd: compare([two[0], odd], tmp_path / "out"))
        assert "damaged" in message


def test_calibrations_of_runs_are_compared_where_runs_have_them(tmp_path):
    trust = synthetic.findings().metrics["trust"]
    write_run(tmp_path / "plain", trust=trust, settings=settings(arch="convnet"))
    write_run(tmp_path / "unasked")
    fewer = trust | {"calibrations": trust["calibrations"][:1]}
    write_run(tmp_path / "smooth_$x$", trust=fewer, settings=settings(arch="resnet"))
    names = ("plain", "unasked", "smooth_$x$")
    text = compare([tmp_path / name for name in names], tmp_path / "out")
    assert written(tmp_path / "out") == sorted(
        [*FILES, *(f"trade_off.{ending}" for ending in ("csv", "md", "pdf", "png", "tex"))]
    )
    assert "so not in trade_off.png: unasked; make them with" in text
    with (tmp_path / "out/trade_off.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["run"], row["calibration"], row["network.arch"]) for row in found] == [
        ("plain", "plain", "convnet"),
        ("plain", "temperature-fit", "convnet"),
        ("smooth_$x$", "plain", "resnet"),
    ]
    for row, one in zip(found[:2], trust["calibrations"], strict=True):
        attacks = {entry["name"]: entry for entry in one["attacks"]}
        online, largest = attacks["lira-online"], attacks["max-score"]
        assert float(row["ece"]) == one["nonmembers"]["ece"]
        assert float(row["ece_hi"]) == one["nonmembers"]["ece_ci"][1]
        assert float(row["max_score_fpr"]) == largest["decision"]["fpr"]
        assert float(row["max_score_auc_lo"]) == largest["auc_ci"][0]
        assert float(row["lira_auc"]) == online["auc"]
        assert float(row["lira_tpr"]) == online["tpr_at_fpr"]["0.001"]
        assert row["few_false_positives"] == "True"
    lines = (tmp_path / "out/trade_off.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| plain", "| ", r"| smooth\_\$x\$"]


def test_refuses_a_damaged_part_on_trust(two, tmp_path):
    whole = synthetic.findings().metrics["trust"]["calibrations"][0]
    without = {key: value for key, value in whole.items() if key != "nonmembers"}
    for place, part in enumerate(([without], [whole | {"attacks": []}], 3)):
        odd = tmp_path / f"odd{place}"
        write_run(odd, trust={"calibrations": part})
        message = refusal(tmp_path, lambda odd=odd: compare([two[0], odd], tmp_path / "out"))
        assert "damaged" in message


def test_refuses_a_run_without_results_with_the_command_that_makes_them(two, tmp_path):
    (tmp_path / "bare").mkdir()
    message = refusal(tmp_path, lambda: compare([two[0], tmp_path / "bare"], tmp_path / "out"))
    assert "no attack results" in message
    assert message.endswith(f"python attack.py --run {tmp_path / 'bare'}")


def test_refuses_fewer_than_two_runs_and_one_given_twice(two, tmp_path):
    assert "two or more" in refusal(tmp_path, lambda: compare(two[:1], tmp_path / "out"))
    same = [two[0], two[0] / "../small"]
    assert "given twice" in refusal(tmp_path, lambda: compare(same, tmp_path / "out"))


def test_refuses_two_runs_of_one_name(two, tmp_path):
    write_run(tmp_path / "other/small")
    runs = [two[0], tmp_path / "other/small"]
    assert "both called 'small'" in refusal(tmp_path, lambda: compare(runs, tmp_path / "out"))


def test_refuses_results_of_another_schema(two, tmp_path):
    write_run(tmp_path / "old", schema=1)
    message = refusal(tmp_path, lambda: compare([two[0], tmp_path / "old"], tmp_path / "out"))
    assert "schema 1, not 2" in message


def test_refuses_results_without_the_attack_that_is_compared(two, tmp_path):
    write_run(tmp_path / "other", attacks=[])
    message = refusal(tmp_path, lambda: compare([two[0], tmp_path / "other"], tmp_path / "out"))
    assert "no attack lira-online-shrinkage" in message


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 2}', '{"schema": 2, "attacks": 3}', "\0", "[" * 100_000]
)
def test_refuses_damaged_results(two, tmp_path, text):
    (two[1] / "attack/metrics.json").write_text(text)
    message = refusal(tmp_path, lambda: compare(two[:2], tmp_path / "out"))
    assert "metrics.json" in message


@pytest.mark.parametrize("content", [b"", b"PK\3\4broken", b"\x93NUMPY"])
def test_refuses_damaged_curves(two, tmp_path, content):
    (two[1] / "attack/roc.npz").write_bytes(content)
    message = refusal(tmp_path, lambda: compare(two[:2], tmp_path / "out"))
    assert f"roc.npz: {'one bare array' if b'NUMPY' in content else 'truncated'}" in message
    assert f"make it anew with: python attack.py --run {two[1]}" in message


@pytest.mark.parametrize(
    "rates",
    [
        {}, {"fpr": np.array([0.5, np.nan])}, {"fpr": np.array([0, 1])}, {"tpr": np.eye(2)},
        {"tpr": np.array([0.5, 1.5])}, {"tpr": np.array([0.5, 0.4])}, {"fpr": np.empty(0)},
        {"fpr": np.linspace(0, 1, 7)},
    ],
)  # fmt: skip
def test_refuses_curves_that_are_none(two, tmp_path, rates):
    file = two[1] / "attack/roc.npz"
    with np.load(file) as arrays:
        curves = dict(arrays)
    if not rates:
        curves = {"other": np.zeros(2)}
    curves |= {f"lira-online-shrinkage.{rate}": array for rate, array in rates.items()}
    np.savez(file, **curves)
    message = refusal(tmp_path, lambda: compare(two[:2], tmp_path / "out"))
    assert message.startswith(f"{file}: ")


@pytest.mark.parametrize("name", ["metrics.json", "roc.npz"])
def test_refuses_a_pipe(two, tmp_path, name):
    (two[1] / "attack" / name).unlink()
    os.mkfifo(two[1] / "attack" / name)
    with pytest.raises(InputError, match=f"{name}: is a pipe, not a file; make it anew"):
        compare(two[:2], tmp_path / "out")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_cell_of_the_grids_loads_and_names_itself_in_its_commands(path):
    experiment = config.check(config_file.load(path))
    assert experiment.train.models == 16
    grid, _, cell = path.stem.partition("_")
    header = path.read_text().split("seed =")[0]
    assert cell in header.split("for cell in ")[1].split(";")[0].split()
    assert f"configs/grids/{grid}_$cell.toml" in header


def test_cells_of_a_grid_differ_only_in_what_it_is_about():
    about = {
        "architecture": {"network.arch", "network.depth", "network.width"},
        "augmentation": {"train.mirror", "train.shift", "train.cutout"},
        "optimizer": {"train.optimizer", "train.learning_rate"},
    }
    for grid, fields in about.items():
        cells = [config_file.load(path) for path in GRIDS if path.stem.startswith(grid)]
        assert len(cells) >= 3
        for cell in cells[1:]:
            changed = {name for name, _, _ in continuing.differences(cells[0], cell)}
            assert changed
            assert changed <= fields
