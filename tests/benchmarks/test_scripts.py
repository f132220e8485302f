"""Every benchmark runs at a toy size and prints its table. Nothing here looks at a time."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)

needs_art = pytest.mark.skipif(
    importlib.util.find_spec("art") is None, reason="ART is not installed"
)


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options],
        cwd=ROOT,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": os.environ["LIRA_JAX_TEST_CACHE"],
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("sketched")
def test_attack(tmp_path, monkeypatch, capsys):
    # As a script has it, but last: two of our own have the name of one there.
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    attack, real = importlib.import_module("benchmarks.attack"), subprocess.run

    def started(command, **settings):
        """Processes of their own, but for the stage, whose figures are only sketched here."""
        if "stage" not in command:
            return real(command, **settings)
        found = attack.measure("stage", tmp_path, 50, 0)
        return subprocess.CompletedProcess(command, 0, json.dumps(found))

    size = ("--models", "16", "--examples", "300", "--queries", "2")
    options = (*size, "--repeats", "1", "--loop-pairs", "50", "--dir", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setattr(sys, "argv", ["attack.py", *options])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    attack.main()
    text = capsys.readouterr().out
    for word in (
        "N = 16, E = 300, Q = 2",
        "lira",
        "default",
        "attacks",
        "stage",
        "single decisions",
        "loop / lira:",
        "CPU seconds",
    ):
        assert word in text
    assert (tmp_path / "attack/metrics.json").exists()
    difference = text.partition("largest difference from the loop's scores: ")[2].split()[0]
    assert float(difference) < 1e-6

    folder, names = tmp_path / "scores", {"keep", "labels", "scores"}
    for scores_alone, more in ((True, set()), (False, {"logits", "merlin", "gradient_norm"})):
        attack.make(folder, 16, 300, 2, scores_alone)
        assert {path.stem for path in folder.iterdir()} == names | more


def test_score():
    size = ("--images", "8", "--batches", "2", "--repeats", "1")
    text = run("score.py", "--cases", "digits", "--views", "1", "2", *size)
    rows = [line.split()[:2] for line in text.splitlines()[3:]]
    assert rows == [["digits", "1"], ["digits", "2"]]


def test_defences():
    size = ("--cases", "8x8x1", "--members", "64", "--repeats", "1")
    text = run("defences.py", *size, "--defences", "transfer, last layer")
    assert "8x8x1 " in text
    rows = [line.rsplit(maxsplit=2) for line in text.splitlines()[4:]]
    assert [name for name, *_ in rows] == ["plain", "transfer, last layer"]
    assert rows[0][2] == "1.00", "of plain training to itself"
    assert all(float(number) > 0 for row in rows for number in row[1:])


@needs_torch
def test_end_to_end():
    text = run(
        "end_to_end.py", "--cases", "digits", "--models", "2", "--epochs", "1", "--repeats", "1"
    )
    assert "digits: 2 models, 1 epochs" in text
    for word in ("lira_jax ", "PyTorch ", "lira_jax / PyTorch:"):
        assert word in text


@needs_art
def test_label_only():
    size = ("--images", "2", "--blocks", "2", "--iterations", "1", "--epochs", "3")
    text = run("label_only.py", "--cases", "digits", *size)
    assert "digits: 8×8×1, ResNet-8 of width 4; 2 × 2 images" in text
    for word in ("ours ", "ART in predict ", "20 × ART: ", "as ART returns it: ", "mean distance"):
        assert word in text
