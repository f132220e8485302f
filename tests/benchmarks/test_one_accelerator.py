"""What `one_accelerator.py` promises of its time, its files and its words. CI runs all of its parts
at toy size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import one_accelerator
from benchmarks.parts import headline, results, summary
from benchmarks.parts.results import Task
from benchmarks.parts.timing import in_best_way, stopped_at
from lira_jax.config import Experiment, NetworkConfig, TrainConfig
from lira_jax.interrupts import Stopped, stop_requests
from lira_jax.score_set import read_npz

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parts(monkeypatch):
    """Parts that do nothing but fail where a test says so, and the time each is given."""
    given = {}

    def run_part(part, args, scratch, seconds):
        given[part] = seconds
        return "broken" if part == "right" else ""

    monkeypatch.setattr(one_accelerator, "run_part", run_part)
    before = signal.getsignal(signal.SIGTERM)
    yield given
    signal.signal(signal.SIGTERM, before)


def test_parts_share_the_time_and_what_one_leaves_goes_to_the_next(parts, tmp_path, capsys):
    code = one_accelerator.main(["--toy", "--minutes", "9", "--out", str(tmp_path)])
    assert list(parts) == list(one_accelerator.PARTS)
    total = 9 * 60 - one_accelerator.LAST
    shares = np.array(list(one_accelerator.PARTS.values()), float)
    left = total * shares / np.cumsum(shares[::-1])[::-1]
    expected = [*left[:-1], left[-1] - one_accelerator.GRACE]
    assert list(parts.values()) == pytest.approx(expected, abs=5)
    assert code == 1, "a part failed"
    assert "- failed: right: broken" in (tmp_path / "summary.md").read_text()
    assert "- failed: right: broken" in capsys.readouterr().out


def test_parts_for_which_there_is_no_time_are_named(parts, tmp_path):
    one_accelerator.main(["--toy", "--minutes", "0.2", "--out", str(tmp_path)])
    assert list(parts) == []
    for part in one_accelerator.PARTS:
        assert f"left out: {part}" in (tmp_path / "summary.md").read_text()


def test_what_an_earlier_call_found_is_not_mixed_with_this_ones(parts, tmp_path):
    results.record(tmp_path, "good", "recipe", name="old")
    (tmp_path / "scores_3.npz").write_text("old")
    (tmp_path / "mine.txt").write_text("a user's")
    one_accelerator.main(["--toy", "--out", str(tmp_path), "--parts", "machine"])
    assert {one["part"] for one in results.read(tmp_path)} == {"machine"}
    assert not (tmp_path / "scores_3.npz").exists()
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "--data: give the folder"),
        (["--out", "x", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["--out", "x", "--toy", "--minutes", "0"], "--minutes 0: must be above 0"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        one_accelerator.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_part_that_does_not_end_is_killed_with_what_it_started(tmp_path, monkeypatch):
    child = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('begun', flush=True); time.sleep(600)"
    )
    real = subprocess.Popen
    started = []

    def popen(command, **settings):
        started.append(real([sys.executable, "-c", child], **settings))
        return started[-1]

    monkeypatch.setattr(one_accelerator.subprocess, "Popen", popen)
    monkeypatch.setattr(one_accelerator, "GRACE", 0.5)
    args = one_accelerator.options(["--toy", "--out", str(tmp_path)])
    failure = one_accelerator.run_part("machine", args, tmp_path, 2.0)
    assert failure.startswith("killed 0 s after its 2 s were over")
    assert (tmp_path / "log.txt").read_text() == "begun\n"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(started[0].pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("something of the part still runs")


def test_a_line_that_a_kill_has_cut_costs_that_line_alone(tmp_path):
    results.record(tmp_path, "machine", "copy rate", bytes_per_second=1e12)
    with (tmp_path / results.LINES).open("a") as file:
        file.write('{"part": "machine", "wh')
    assert results.read(tmp_path) == [
        {"part": "machine", "what": "copy rate", "bytes_per_second": 1e12}
    ]


def test_a_difference_beyond_its_tolerance_fails_and_is_named(tmp_path):
    good = {"name": "a", "ok": True, "difference": 1e-7, "tolerance": 1e-5}
    bad = {"name": "b", "ok": False, "difference": 1e-3, "tolerance": 1e-5}
    for check in (good, bad):
        results.record(tmp_path, "right", "check", **check)
    found = results.read(tmp_path)
    assert results.failures(found) == ["right: b: 0.001 > 1e-05"]
    text = summary.text(found)
    assert "| a | 1e-07 | 1e-05 | yes |" in text
    assert "| b | 0.001 | 1e-05 | **no** |" in text


@pytest.mark.parametrize(
    ("code", "log", "ok", "words"),
    [
        (0, "tests/a.py::one PASSED  [ 50%]\ntests/a.py::two[x y] SKIPPED (no)", True, ""),
        (0, "[gw3] [ 10%] PASSED tests/a.py::one \n", True, ""),
        (1, "tests/a.py::one PASSED\ntests/a.py::two FAILED", False, "1 passed; tests/a.py::two"),
        (None, "[gw0] [  1%] PASSED tests/a.py::one\n[gw1] [  2%] FAILED tests/b.py::x", False,
         "pytest did not end in time, 1 passed; tests/b.py::x"),
        (0, "no tests ran", False, "0 passed"),
        (2, "tests/a.py::one PASSED\nInterrupted: 1 error during collection", False, "exit code 2"),
    ],
)  # fmt: skip
def test_what_the_tests_said_is_read_from_the_log_even_of_those_that_did_not_end(
    tmp_path, code, log, ok, words
):
    (tmp_path / "log.txt").write_text(f"something else\n{log}\n")
    results.record_tests(tmp_path, "right", code)
    check = results.of(results.read(tmp_path), "right", "check")[0]
    assert check["ok"] == ok
    assert words in check["failure"]


def row(width, gradients, rate, **more):
    return {
        "part": "fast", "what": "train", "network": "speed_net", "dtype": "bfloat16", "batch": 512,
        "width": width, "gradients": gradients, "models_per_hour": rate, "error": None, **more,
    }  # fmt: skip


def test_the_best_way_is_the_sweeps_for_that_network_and_type():
    found = [
        row(1, "vmap", 10.0),
        row(16, "grouped", 30.0),
        row(8, "vmap", 20.0),
        row(4, "vmap", None, error="out of memory"),
        row(2, "vmap", 99.0, network="resnet8"),
        row(2, "vmap", 99.0, dtype="float32"),
    ]

    def best(arch, **train):
        experiment = Experiment(network=NetworkConfig(arch), train=TrainConfig(**train))
        settled = in_best_way(found, experiment)
        return settled.train.width, settled.train.conv_gradients

    assert best("speed_net", dtype="bfloat16", group=16) == (16, "grouped")
    assert best("speed_net", dtype="bfloat16", group=8) == (8, "vmap")
    assert best("wide_resnet", dtype="bfloat16") == (0, "auto"), "never swept: left to the engine"


def test_a_stage_is_asked_to_stop_when_its_time_is_over():
    def stage():
        with stop_requests() as stop:
            for _ in range(200):
                time.sleep(0.05)
                stop.check("stopped")

    with stopped_at(time.monotonic() + 0.2), pytest.raises(Stopped):
        stage()


def test_scores_that_come_back_can_be_attacked_and_are_small(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    scores = random.normal(size=(10, 50, 18)).astype(np.float32)
    keep = random.random((10, 50)) < 0.5
    monkeypatch.setattr(headline, "SAVED_VALUES", 4 * 50 * 2)
    headline._save_scores(tmp_path, scores, keep)
    files = sorted(tmp_path.glob("scores_*.npz"))
    assert [np.load(file)["scores"].shape for file in files] == [(4, 50, 2)] * 2 + [(2, 50, 2)]
    together = np.concatenate([np.load(file)["scores"] for file in files])
    np.testing.assert_allclose(together, scores[:, :, :2], atol=2e-3)
    assert read_npz(files[0]).scores.shape == (4, 50, 2)
    assert headline.SAVED_VALUES * 2 < 16e6


def test_what_is_too_large_to_come_back_is_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "attack"
    (folder / "figures").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "figures" / "roc.png").write_bytes(b"1234")
    (folder / "figures" / "roc.pdf").write_bytes(b"1234")
    (folder / "report.html").write_text("x" * 1000)
    monkeypatch.setattr(headline, "LARGEST", 500)
    assert headline._pack(folder, tmp_path / "attack.zip") == ["report.html"]
    with zipfile.ZipFile(tmp_path / "attack.zip") as archive:
        assert archive.namelist() == ["metrics.json", "figures/roc.png"]


def test_the_summary_has_every_table(tmp_path):
    record = results.record
    record(
        tmp_path, "machine", "machine", device="NVIDIA H100", platform="gpu", devices=1,
        memory_bytes=80 * 2**30, driver="580", cores=16, python="3.12", versions={"jax": "0.11.2"},
    )  # fmt: skip
    record(tmp_path, "machine", "matrix rate", dtype="bfloat16", size=8192, flops_per_second=7.9e14)
    measured = {"ms_per_model_step": 1.5, "flops_per_second": 2e14, "utilisation": 0.25}
    record(tmp_path, **(row(4, "grouped", 1234.0) | measured))
    torch = {"case": "speed_net", "dtype": "bfloat16", "batch": 512, "way": "eager"}
    record(tmp_path, "fast", "torch", **torch, ms_per_step=3.0, models_per_hour=600.0)
    record(tmp_path, "fast", "score", name="scoring, width 1", images_per_second=1e6,
           flops_per_second=1e14)  # fmt: skip
    record(
        tmp_path, "good", "recipe", name="16 epochs", nonmember_accuracy=0.864,
        nonmember_deviation=0.002, member_accuracy=0.97, gap=0.106, seconds_per_model=1.3,
    )  # fmt: skip
    attack = {"name": "lira-online", "auc": 0.7, "auc_ci": [0.69, 0.71], "0.001": 0.05,
              "ci": {"0.001": None}}  # fmt: skip
    record(
        tmp_path, "headline", "result", models=256, examples=50_000, views=18, seconds=500.0,
        stages={"train": 300.0}, width=4, nonmember_accuracy=0.86, member_accuracy=0.97,
        attacks=[attack],
    )  # fmt: skip
    record(tmp_path, "good", "left out", recipe="WRN28-2", expected_seconds=200)
    text = summary.text(results.read(tmp_path))
    for words in (
        "1 × NVIDIA H100 (gpu, 80 GiB), driver 580, 16 CPU cores",
        "Matrix product 8192² in bfloat16: 790 TFLOP/s",
        "| speed_net | bfloat16 | 512 | width 4 | grouped | 1.500 | 1,234 | 200 | 25.0% |",
        "| speed_net | bfloat16 | 512 | PyTorch eager | – | 3.000 | 600 |  |  |",
        "| 16 epochs | 86.40% ± 0.20% | 97.00% | 10.60% | 1.30 |",
        "256 models × 50,000 examples × 18 views in 500 s (train 300.0 s), width 4",
        "| `lira-online` | 70.00 (69.00–71.00) | 5.00 |",
        "- left out: good: recipe WRN28-2, expected_seconds 200",
    ):
        assert words in text, words


def test_a_task_knows_its_time_and_writes_at_once(tmp_path):
    task = Task("good", tmp_path, None, tmp_path, True, time.monotonic() + 10)
    assert 9 < task.left <= 10
    task.record("recipe", name="x")
    assert json.loads((tmp_path / results.LINES).read_text()) == {
        "part": "good", "what": "recipe", "name": "x",
    }  # fmt: skip


def test_it_runs_where_only_jax_and_its_kin_are_installed():
    absent = ["tyro", "tensorflow_datasets", "array_record", "pytest", "dp_accounting",
              "jax_privacy"]  # fmt: skip
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); "
        "import benchmarks.one_accelerator; "
        "from benchmarks.parts import machine, right, fast, good, headline"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
