"""What happens to a run, done to real processes: kill -9, signals, a full disk, a second process.

`LIRA_JAX_KILLS` is how often each command is killed: `make faults` sets 20, and then runs in
processes of their own what else runs in this one. What was done is counted and told at the end.
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
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from lira_jax.commands import attack, score, train
from lira_jax.label_only import answers
from lira_jax.run import checkpoints, run_dir, score_files
from lira_jax.storage import names
from lira_jax.trust import outputs
from tests.commands.conftest import STEPS, TRUST_CODE
from tests.commands.test_command_line import assert_same_run
from tests.conftest import files_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"train": run_dir.CHECKPOINTS, "score": score_files.SCORE_PARTS}
KILLS = int(os.environ.get("LIRA_JAX_KILLS", "1"))
SECONDS = 240
HAPPENED: Counter[str] = Counter()
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
        script = command if isinstance(command, Path) else f"{command}.py"
        process = subprocess.Popen(
            [sys.executable, script, *map(str, words)],
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
    """Files and folders that are being written, which may be gone the next moment."""
    return [
        name
        for _, folders, files in os.walk(run)
        for name in (*folders, *files)
        if name.startswith(".unfinished-")
    ]


def written(folder):
    return [name for name in names(folder) if not name.startswith(".")]


@pytest.fixture
def killed(start, tmp_path):
    """Kill a command at random moments, until it has been killed `KILLS` times.

    Where it ends before its moment, it begins anew.
    """
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)

    def killed(command, run, lock, folder, seconds, *words):
        before = tmp_path / f"before_{run.name}_{'_'.join((command, *words))}"
        shutil.copytree(run, before)
        kills = 0
        while kills < KILLS:
            lock.unlink(missing_ok=True)
            process = start(command, run, *words)
            wait_for(lock, process)
            if kills % 2 == 0:  # once something has been written, else at any moment
                before_it = written(folder)
                while process.poll() is None and written(folder) == before_it:
                    time.sleep(0.002)
            begun = time.monotonic()
            time.sleep(moments.uniform(0, seconds))
            if process.poll() is None:
                process.kill()
                process.communicate()
                kills += 1
                HAPPENED[" ".join((f"kill -9 of {command}.py", *words))] += 1
                seconds += 0.1  # so that it gets somewhere, however slow the machine
            else:  # finished before its moment: begin again
                finish(process)
                seconds = max(0.05, min(seconds, time.monotonic() - begun) * 0.7)
                shutil.rmtree(run)
                shutil.copytree(before, run)

    return killed


def test_a_run_killed_again_and_again_is_bitwise_the_undisturbed_one(
    made, killed, finished, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    for command, seconds in ((train, 0.2), (score, 0.05)):
        name = command.__name__.rpartition(".")[2]
        killed(name, run, run / f".lock-{name}", run / FOLDERS[name], seconds)
        finished(command, run)
        assert not temporary_files(run)
    assert_same_run(run, made)  # and so attacked as any other


ASKING = """
[label_only]
rotations = [4.0]
translations = []
noise = []
budget = 0
features = false
[trust]
inputs = ["uniform"]
examples = 20
fit = 20
laplace_samples = 3
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory, toml):
    """A scored run of a network with features, and all that live models are asked for."""
    folder = tmp_path_factory.mktemp("asked")
    linear = toml.read_text().replace("small_networks:network", "fuzz.network:Linear")
    (folder / "some.toml").write_text(linear + ASKING)
    train.main([str(folder / "some.toml"), "--run", str(folder / "scored")])
    score.main(["--run", str(folder / "scored"), TRUST_CODE])
    shutil.copytree(folder / "scored", folder / "asked")
    score.main(["--run", str(folder / "asked"), "--label-only", "--trust", TRUST_CODE])
    return folder


@pytest.mark.parametrize(
    ("flag", "name", "lock"),
    [("--label-only", answers.FOLDER, ".lock-correct"), ("--trust", outputs.FOLDER, ".lock-trust")],
)
def test_asking_that_is_killed_again_and_again_goes_on_where_it_was(
    asked, killed, finished, tmp_path, flag, name, lock
):
    run = shutil.copytree(asked / "scored", tmp_path / "run")
    folder = run / name
    killed("score", run, folder / lock, folder, 0.2, flag)
    finished(score, run, flag)
    assert not temporary_files(run)
    assert files_of(folder) == files_of(asked / "asked" / name)


# The attack stage as a process of its own, of two attacks and with figures that nobody draws: the
# whole of it takes ten seconds.
QUICK_ATTACK = """
import pytest
from lira_jax.analysis import analyse
from lira_jax.commands import attack
from lira_jax.commands.entry import run_stage
from tests.conftest import sketch
sketch(pytest.MonkeyPatch())
analyse.ATTACKS = {name: analyse.ATTACKS[name] for name in ("lira-bayes", "lira", "yeom")}
raise SystemExit(run_stage("lira_jax.commands.attack:main"))
"""


def test_an_attack_that_is_killed_leaves_nothing_in_the_way_of_the_next(run, start, tmp_path):
    """The next one's files are those of an undisturbed one, wherever the first was killed."""
    script = tmp_path / "attack.py"
    script.write_text(QUICK_ATTACK)

    def attacked(out):
        command = "attack" if KILLS > 1 else script
        return start(command, run, "--out", out, PYTHONPATH=str(ROOT), PYTHONHASHSEED="0")

    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    begun = time.monotonic()
    finish(attacked(undisturbed))
    seconds = time.monotonic() - begun
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    for kill in range(KILLS):
        process = attacked(out)
        if kill % 2 == 0:  # in the midst of writing, which takes a small part of the time
            while process.poll() is None and not temporary_files(tmp_path):
                time.sleep(0.0005)
        else:
            time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.communicate()
        HAPPENED[f"kill -9 of attack.py {'while it wrote' if kill % 2 == 0 else ''}".strip()] += 1
    finish(attacked(out))
    assert not list(tmp_path.rglob(".unfinished-*"))
    ours, theirs = files_of(out), files_of(undisturbed)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_compilation_ends_the_program_in_order(start, tmp_path, times):
    """Nothing is compiled yet: once, it saves and ends; twice, it ends at once."""
    moments = random.Random(times)
    for count in range(max(1, KILLS // 4)):
        run = tmp_path / f"run{count}"
        process = start(
            "train", run, "--network.arch", "resnet", "--network.width", 16,
            XDG_CACHE_HOME=str(tmp_path / f"empty{count}"), JAX_ENABLE_COMPILATION_CACHE="false",
        )  # fmt: skip
        wait_for(run / ".lock-train", process)
        time.sleep(moments.uniform(0.3, 1.5))
        asked_at = time.monotonic()
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=SECONDS)
        seconds = time.monotonic() - asked_at
        assert process.returncode == 130, (process.returncode, err)
        assert "Traceback" not in err
        if times == 1:
            assert checkpoints.saved_groups(run)
        else:
            assert seconds < 15  # the machine may be busy
        HAPPENED[f"Ctrl-C during compilation × {times}: ended with 130"] += 1


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
    HAPPENED["SIGTERM twice"] += 1
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
    HAPPENED["Ctrl-C with nobody reading"] += 1
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


@pytest.mark.skipif(KILLS == 1, reason="told by make faults")
def test_what_was_done_is_told(capsys):
    with capsys.disabled():
        print("\nDone to the program, each time with what it promises afterwards:")
        for what, count in sorted(HAPPENED.items()):
            print(f"{count:5} × {what}")
