"""What a cluster does to a run, done to real processes: kill -9, a full disk, a second process.

`LIRA_JAX_KILLS` is how often training, and how often scoring, is killed: `make faults` sets 20.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lira_jax.run import checkpoints, run_dir
from lira_jax.run.storage import names
from tests.commands.test_command_line import EXPERIMENT, STEPS, assert_same_run
from tests.conftest import files_of

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"train": run_dir.CHECKPOINTS, "score": run_dir.SCORE_PARTS}
KILLS = int(os.environ.get("LIRA_JAX_KILLS", "2"))
SECONDS = 240


# Run a script where no file may be larger than so many bytes.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs of all processes here: killed ones write to it too."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(cache, tmp_path_factory):
    """Start a script as a process; a checkpoint is written after every step."""
    toml = tmp_path_factory.mktemp("configs") / "some.toml"
    toml.write_text(EXPERIMENT.replace("group = 2", "group = 2\ncheckpoint_minutes = 0.0"))
    begun = []

    def start(script, run, *words, limit=None, **environment):
        words = [*([toml] if script == "train" else []), "--run", run, *words]
        process = subprocess.Popen(
            [sys.executable, *(["-c", LIMITED, str(limit)] if limit else []), f"{script}.py",
             *map(str, words)],
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


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):
    """An undisturbed run of one process."""
    run = tmp_path_factory.mktemp("made") / "run"
    finish(start("train", run))
    finish(start("score", run))
    return run


def wait_for(path, process):
    limit = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


def temporary_files(run):
    return [name for name in files_of(run) if ".unfinished-" in name]


def test_a_run_killed_again_and_again_is_bitwise_the_undisturbed_one(made, start, tmp_path):
    run, empty, seed = tmp_path / "run", tmp_path / "empty", random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    empty.mkdir()
    for script in ("train", "score"):
        before, folder = tmp_path / f"before_{script}", FOLDERS[script]
        shutil.copytree(run if script == "score" else empty, before)
        kills, seconds = 0, 0.2
        while kills < KILLS:
            (run / f".lock-{script}").unlink(missing_ok=True)
            process = start(script, run)
            wait_for(run / f".lock-{script}", process)
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
                seconds = max(0.1, min(seconds, time.monotonic() - begun) * 0.7)
                shutil.rmtree(run)
                shutil.copytree(before, run)
        finish(start(script, run))
        assert not temporary_files(run)
    assert_same_run(run, made)  # and so attacked as any other


def test_a_full_disk_is_named_and_costs_no_finished_model(made, start, tmp_path):
    """First so full that no checkpoint fits, then no file of scores."""
    run = tmp_path / "run"
    size = max(path.stat().st_size for path in (made / "checkpoints").iterdir())
    off = {"JAX_COMPILATION_CACHE_DIR": ""}
    process = start("train", run, limit=size // 2, **off)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {run}/checkpoints/models_00000-00001_step_")
    assert "cannot be written (File too large); check the path and the disk" in last
    assert not temporary_files(run)
    finish(start("train", run))

    size = (made / "scores.npy").stat().st_size
    process = start("score", run, limit=size * 3 // 4, **off)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    assert "cannot be written (File too large)" in err.splitlines()[-1]
    assert not temporary_files(run)
    assert not (run / "scores.npy").exists()
    finish(start("score", run))
    assert_same_run(run, made)


def test_the_second_of_two_processes_on_the_same_models_refuses(start, tmp_path):
    run = tmp_path / "run"
    first = start("train", run, "--train.epochs", 10**6)
    wait_for(run / ".lock-train", first)
    wait_for(run / "checkpoints", first)
    about = (run / "config.toml").read_bytes(), (run / "keep.npy").read_bytes()
    for models, words in (("0–3", []), ("2–3", ["--shard", "1/2"]), ("0–7", ["--train.models", 8])):
        second = start("train", run, "--train.epochs", 10**6, *words)
        _, err = second.communicate(timeout=SECONDS)
        assert second.returncode == 2
        assert err == (
            f"error: {run}: another train.py is at work on models among {models}; "
            "wait for it or stop it\n"
        )
    assert ((run / "config.toml").read_bytes(), (run / "keep.npy").read_bytes()) == about
    first.terminate()
    time.sleep(0.05)
    first.terminate()  # as Slurm does at the end of the grace time
    _, err = first.communicate(timeout=SECONDS)
    # The second may come when all is saved and nothing is left but to end: to a shell, 143 too.
    assert first.returncode in (143, -signal.SIGTERM)
    [group] = checkpoints.saved_groups(run)
    assert group.step > 0


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


def test_three_shards_as_three_processes_make_the_run_of_one(made, start, tmp_path):
    """Trained as a Slurm array, scored by hand."""
    run = tmp_path / "run"
    slurm = {
        "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "2",
    }
    tasks = [slurm | {"SLURM_ARRAY_TASK_ID": str(index)} for index in range(3)]
    out = finish(*(start("train", run, "--shard", "auto", **task) for task in tasks))
    assert f"{run}: shard 0/3, 1 of 4 models (0 done)" in out[0]
    assert any("all 4 models are trained" in text for text in out)
    out = finish(start("score", run, "--shard", "1/3"))
    assert "shard 1/3 (models 1) is scored" in out[0]
    assert "models 0, 2–3 are still missing" in out[0]
    attack = start("attack", run)
    _, err = attack.communicate(timeout=SECONDS)
    assert attack.returncode == 2
    assert "models 0, 2–3 of 4 not scored yet; run python score.py --run" in err
    finish(*(start("score", run, "--shard", f"{i}/3") for i in (0, 2)))
    assert_same_run(run, made)


def test_two_processes_of_jax_distributed_make_the_run_of_one(made, start, tmp_path):
    """The first to begin, which coordinates, also ends first."""
    run = tmp_path / "run"
    for script in ("train", "score"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        settings = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        finish(
            *(
                start(script, run, "--shard", "distributed", **settings, JAX_PROCESS_ID=str(index))
                for index in range(2)
            )
        )
    assert_same_run(run, made)
    assert [group.step for group in checkpoints.saved_groups(run)] == [STEPS] * 2


def test_a_shard_of_jax_distributed_without_its_variables_is_refused(start, tmp_path):
    process = start("train", tmp_path / "run", "--shard", "distributed")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert err.startswith("error: --shard distributed: jax.distributed does not start (")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / run_dir.CONFIG).exists()
