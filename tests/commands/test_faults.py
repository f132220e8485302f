"""What a cluster does to a run, done to real processes: kill -9, a full disk, a second process.

`LIRA_JAX_KILLS` is how often training, and how often scoring, is killed: `make faults` sets 20, and
then runs in processes of their own what else runs in this one.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lira_jax.commands import attack, score, train
from lira_jax.run import checkpoints, run_dir, score_files
from lira_jax.run.storage import names
from tests.commands.conftest import STEPS, TRUST_CODE
from tests.commands.test_command_line import assert_same_run
from tests.conftest import files_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"train": run_dir.CHECKPOINTS, "score": score_files.SCORE_PARTS}
KILLS = int(os.environ.get("LIRA_JAX_KILLS", "1"))
SECONDS = 240
OFTEN = ("--train.checkpoint_minutes", "0")  # a checkpoint after every step


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of all processes here: killed ones write to it too."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(cache, toml):
    """Start a command as a process of its own."""
    begun = []

    def start(command, run, *words, **environment):
        first = {"train": [toml, *OFTEN], "score": [TRUST_CODE]}.get(command, [])
        words = [*first, "--run", run, *words]
        process = subprocess.Popen(
            [sys.executable, f"{command}.py", *map(str, words)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)} | environment,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def finish(*processes):
    """Wait for processes to end well; what they printed."""
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        outputs.append(out)
    return outputs


@pytest.fixture
def finished(start, call):
    """What a command prints that ends well: in this process, or, for `make faults`, another."""

    def finished(command, run, *words):
        if KILLS > 1:
            return finish(start(command.__name__.rpartition(".")[2], run, *words))[0]
        outcome = call(command, "--run", run, *words)
        assert outcome.code == 0, outcome.err
        return outcome.out

    return finished


def wait_for(path, process):
    limit = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def temporary_files(run):
    return [name for name in files_of(run) if ".unfinished-" in name]


def test_a_run_killed_again_and_again_is_bitwise_the_undisturbed_one(
    made, start, finished, tmp_path
):
    run, empty, seed = tmp_path / "run", tmp_path / "empty", random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    empty.mkdir()
    for command, seconds in ((train, 0.2), (score, 0.05)):
        name = command.__name__.rpartition(".")[2]
        before, folder = tmp_path / f"before_{name}", FOLDERS[name]
        shutil.copytree(run if command is score else empty, before)
        kills = 0
        while kills < KILLS:
            (run / f".lock-{name}").unlink(missing_ok=True)
            process = start(name, run)
            wait_for(run / f".lock-{name}", process)
            if kills % 2 == 0:  # once something has been written, else at any moment
                written = names(run / folder)
                while process.poll() is None and names(run / folder) == written:
                    time.sleep(0.002)
            begun = time.monotonic()
            time.sleep(moments.uniform(0, seconds))
            if process.poll() is None:
                process.kill()
                process.communicate()
                kills += 1
                seconds += 0.1  # so that it gets somewhere, however slow the machine
            else:  # finished before its moment: begin again
                finish(process)
                seconds = max(0.05, min(seconds, time.monotonic() - begun) * 0.7)
                shutil.rmtree(run)
                shutil.copytree(before, run)
        finished(command, run)
        assert not temporary_files(run)
    assert_same_run(run, made)  # and so attacked as any other


@contextmanager
def no_file_larger_than(size):
    """What this process writes ends as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")
def test_a_full_disk_is_named_and_costs_no_finished_model(made, toml, call, tmp_path):
    """First so full that no checkpoint fits, then no file of scores."""
    run = tmp_path / "run"
    size = max(path.stat().st_size for path in (made / "checkpoints").iterdir())
    with no_file_larger_than(size // 2):
        code, _, err = call(train, toml, *OFTEN, "--run", run)
    assert code == 2, err
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {run}/checkpoints/models_00000-00001_step_")
    assert "cannot be written (File too large); check the path and the disk" in last
    assert not temporary_files(run)
    assert call(train, "--run", run).code == 0

    size = (made / "scores.npy").stat().st_size
    with no_file_larger_than(size * 3 // 4):
        code, _, err = call(score, "--run", run)
    assert code == 2, err
    assert "cannot be written (File too large)" in err.splitlines()[-1]
    assert not temporary_files(run)
    assert not (run / "scores.npy").exists()
    assert call(score, "--run", run).code == 0
    assert_same_run(run, made)


def test_the_second_of_two_processes_on_the_same_models_refuses(start, call, toml, tmp_path):
    """And the first, in the midst of training, saves on SIGTERM."""
    run = tmp_path / "run"
    endless = ("--train.epochs", 10**6)
    first = start("train", run, *endless)
    wait_for(run / ".lock-train", first)
    wait_for(run / "checkpoints", first)
    about = (run / "config.toml").read_bytes(), (run / "keep.npy").read_bytes()
    for models, words in (("0–3", []), ("2–3", ["--shard", "1/2"]), ("0–7", ["--train.models", 8])):
        code, _, err = call(train, toml, "--run", run, *OFTEN, *endless, *words)
        assert code == 2
        assert err == (
            f"error: {run}: another train.py is at work on models among {models}; "
            "wait for it or stop it\n"
        )
    assert ((run / "config.toml").read_bytes(), (run / "keep.npy").read_bytes()) == about
    limit = time.monotonic() + SECONDS
    while not checkpoints.saved_groups(run):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    first.terminate()
    time.sleep(0.05)
    first.terminate()  # as Slurm does at the end of the grace time
    _, err = first.communicate(timeout=SECONDS)
    # The second may come when all is saved and nothing is left but to end: to a shell, 143 too.
    assert first.returncode in (143, -signal.SIGTERM)
    assert f"{run}: stopped and saved; run the same command again to go on" in err
    assert "Traceback" not in err
    [group] = checkpoints.saved_groups(run)
    log = run_dir.read_log(run)
    assert group.step > 0
    assert 0 <= group.step - 5 * (log[-1]["epoch"] if log else 0) < 5


def test_ctrl_c_saves_though_whoever_read_the_output_has_gone(start, tmp_path):
    """As in `train.py … 2>&1 | tee log`, where Ctrl-C ends tee first."""
    run = tmp_path / "run"
    process = start("train", run, "--train.epochs", 10**6)
    wait_for(run / "checkpoints", process)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=SECONDS) == 130
    assert checkpoints.saved_groups(run)
    process.stdout = process.stderr = None


def test_three_shards_in_two_processes_make_the_run_of_one(
    made, start, finished, call, toml, tmp_path, monkeypatch
):
    """Trained as a Slurm array, this process being its first and its last task; scored by hand."""
    run = tmp_path / "run"
    slurm = {
        "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "2",
    }
    second = start("train", run, "--shard", "auto", **slurm, SLURM_ARRAY_TASK_ID="1")
    outputs = []
    for index in (0, 2):
        for name, value in (slurm | {"SLURM_ARRAY_TASK_ID": str(index)}).items():
            monkeypatch.setenv(name, value)
        ours = call(train, toml, *OFTEN, "--run", run, "--shard", "auto")
        assert ours.code == 0, ours.err
        outputs.append(ours.out)
    outputs += finish(second)
    assert f"{run}: shard 0/3, 1 of 4 models (0 done)" in outputs[0]
    assert any("all 4 models are trained" in text for text in outputs)
    out = finished(score, run, "--shard", "1/3")
    assert "shard 1/3 (models 1) is scored" in out
    assert "models 0, 2–3 are still missing" in out
    code, _, err = call(attack, "--run", run)
    assert code == 2
    assert "models 0, 2–3 of 4 not scored yet; run python score.py --run" in err
    for index in (0, 2):
        finished(score, run, "--shard", f"{index}/3")
    assert_same_run(run, made)


def test_two_processes_of_jax_distributed_make_the_run_of_one(made, start, finished, tmp_path):
    """The first to begin, which coordinates, also ends first."""
    run = tmp_path / "run"
    for command in ("train", "score") if KILLS > 1 else ("train",):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        finish(
            *(
                start(command, run, "--shard", "distributed", **settings, JAX_PROCESS_ID=str(index))
                for index in range(2)
            )
        )
    finished(score, run)
    assert_same_run(run, made)
    assert [group.step for group in checkpoints.saved_groups(run)] == [STEPS] * 2


def test_a_shard_of_jax_distributed_without_its_variables_is_refused(start, tmp_path):
    process = start("train", tmp_path / "run", "--shard", "distributed")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert err.startswith("error: --shard distributed: jax.distributed does not start (")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / run_dir.CONFIG).exists()
