"""The commands as processes: signals at any moment, streams that are closed or full, limits.

`LIRA_JAX_SIGNALS` is how many signals are sent at random moments besides: `make faults` sets more.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lira_jax.run import result_folder
from tests.commands.conftest import TRUST_CODE
from tests.conftest import files_of

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = int(os.environ.get("LIRA_JAX_SIGNALS", "0"))
SECONDS = 240
# How soon a process must have ended, on a machine that has much else to do.
SOON = 10.0


def start(*words, **more):
    """Start a command as a process; its streams are text."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, text=True, **streams)


def shell(line, *words):
    """Run a line of a shell, in which "$@" is a Python command with these words."""
    return subprocess.run(
        ["bash", "-c", line, "-", sys.executable, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip


def wait_until(condition, process):
    limit = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)


def ended(process):
    """The exit code and standard error of a process, and the seconds that it still took."""
    begun = time.monotonic()
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err, time.monotonic() - begun


def handles(process):
    """Whether a process has handlers of its own for Ctrl-C and SIGTERM, as Linux tells."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


# Signals.


@pytest.mark.parametrize(
    ("seconds", "signum"), [(0.0, signal.SIGINT), (0.3, signal.SIGINT), (0.6, signal.SIGTERM)]
)
def test_a_signal_in_the_first_second_ends_the_program_in_one_word(toml, tmp_path, seconds, signum):
    process = start("train.py", toml, "--run", tmp_path / "run")
    wait_until(lambda: handles(process), process)
    time.sleep(seconds)
    process.send_signal(signum)
    code, err, lasted = ended(process)
    assert (code, err) == (128 + signum, "stopped\n")
    assert lasted < SOON


def test_a_second_ctrl_c_during_compilation_ends_at_once_and_leaves_a_run_that_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    words = ["configs/digits.toml", "--run", run, "--train.models", 2]
    process = start("train.py", *words)
    wait_until((run / "labels.npy").exists, process)
    time.sleep(1.5)  # compiling goes on for many times that
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    process.send_signal(signal.SIGINT)
    code, err, lasted = ended(process)
    assert code == 130
    told, last = err.splitlines()
    assert told.startswith("stopping at the next safe point; Ctrl-C again stops at once")
    assert last == "stopped"
    assert lasted < SOON
    assert {"config.toml", "keep.npy", "labels.npy"} <= files_of(run).keys()


DEAF = """
import gc, hashlib, sys, time
from lira_jax.commands import entry

def swallowing(arguments):
    gc.callbacks.append(lambda *_: time.sleep(30))  # whose exceptions are printed and ignored
    print("ready", flush=True)
    gc.collect()
    gc.callbacks.clear()
    time.sleep(60)

def deaf(arguments):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as a compiler, it hears nothing

sys.modules["work"] = sys.modules["__main__"]
entry.run(f"work:{sys.argv[1]}")
"""


@pytest.mark.parametrize("work", ["swallowing", "deaf"])
def test_a_ctrl_c_that_the_main_thread_loses_ends_the_program_all_the_same(work):
    process = start("-c", DEAF, work)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, err, lasted = ended(process)
    assert code == 130
    assert err.splitlines()[-1] == "stopped"
    assert lasted < SOON


@pytest.mark.skipif(not SIGNALS, reason="LIRA_JAX_SIGNALS says how many")
def test_signals_at_any_moment_end_in_one_line_and_lose_nothing(made, toml, tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    for number in range(SIGNALS):
        run = tmp_path / f"run{number}"
        process = start("train.py", toml, "--run", run)
        wait_until(lambda process=process: handles(process), process)
        signum = moments.choice([signal.SIGINT, signal.SIGTERM])
        sent = [moments.uniform(0, 8) for _ in range(moments.choice([1, 2]))]
        for seconds in sent:
            time.sleep(seconds / len(sent))
            process.send_signal(signum)
        code, err, _ = ended(process)
        assert code in (0, 128 + signum, -signum), (sent, err)
        assert "Traceback" not in err
        if (run / "config.toml").exists():
            code, err, _ = ended(start("train.py", toml, "--run", run))
            assert code == 0, err
            assert (run / "keep.npy").read_bytes() == (made / "keep.npy").read_bytes()


# Two in one folder, and one that was killed.

# Two attacks, and figures that are not drawn: but for that, attack.py.
ATTACK = """
import sys, time
from matplotlib.figure import Figure
from lira_jax.analysis import analyse
from lira_jax.commands import entry
from lira_jax.report import files

analyse.ATTACKS = {name: analyse.ATTACKS[name] for name in ("lira-bayes", "lira", "yeom")}
Figure.draw_without_rendering = lambda self: None
Figure.savefig = lambda self, file, *, format, **_: file.write(format.encode())
real = files.write_text

def slow(path, text):
    real(path, text)
    print(path, flush=True)
    time.sleep(60)

if sys.argv[1] == "slowly":
    files.write_text = slow
del sys.argv[1]
entry.run("lira_jax.commands.attack:main")
"""


def test_an_attack_is_alone_in_its_folder_and_changes_nothing_until_all_is_there(
    run,
):
    """Killed in the midst of writing, it leaves what was there, and the next sweeps its rest."""
    code, err, _ = ended(start("-c", ATTACK, "at once", "--run", run))
    assert code == 0, err
    before = files_of(run)
    first = start("-c", ATTACK, "slowly", "--run", run, "--attack.queries", 1)
    assert first.stdout.readline()
    refusal = (
        f"error: {run}/attack: another attack.py is at work in this folder; wait for it or stop "
        "it, or give --out another\n"
    )
    second = start("-c", ATTACK, "at once", "--run", run)
    code, err, _ = ended(second)
    assert (code, err) == (2, refusal)
    first.kill()
    first.communicate()
    left = files_of(run)
    assert any(".unfinished-" in name for name in left)
    assert {name: left[name] for name in before} == before

    code, err, _ = ended(start("-c", ATTACK, "at once", "--run", run))
    assert code == 0, err
    assert files_of(run) == before


def test_while_files_change_places_the_heads_are_missing(tmp_path, monkeypatch):
    """So that whoever comes after a kill sees that something is missing."""
    out = tmp_path / "out"
    for text in ("old", "new"):
        with result_folder.one_writer(out), result_folder.replaced(out, ["b"], ["stale"]) as made:
            for name in ("a", "b", "c", "stale")[: 4 if text == "old" else 3]:
                (made / name).write_text(text)
                assert text == "old" or (out / name).read_text() == "old"
            moves, real = [], Path.replace

            def replace(self, target, moves=moves, real=real):
                moves.append({path.name: path.read_text() for path in out.iterdir()
                              if path.is_file() and not path.name.startswith(".")})  # fmt: skip
                return real(self, target)

            monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.undo()
    assert moves == [
        {"a": "old", "c": "old"}, {"a": "new", "c": "old"}, {"a": "new", "c": "new"}
    ]  # fmt: skip
    assert {name: text for name, text in files_of(out).items() if not name.startswith(".")} == {
        "a": b"new", "b": b"new", "c": b"new"
    }  # fmt: skip


# Streams that are closed or full.


@pytest.mark.parametrize(
    ("redirected", "stream", "reason"),
    [
        (">&-", "output", "Bad file descriptor"),
        (">/dev/full", "output", "No space left on device"),
        ("2>&1 >/dev/full", "output", "No space left on device"),
    ],
)
def test_output_that_is_lost_is_told_once_the_work_is_done(
    files, tmp_path, redirected, stream, reason
):
    done = shell(f'"$@" {redirected}', "attack.py", *files, "--out", tmp_path)
    assert done.returncode == 1
    told = f"error: standard {stream}: cannot be written ({reason}); what was to be read there "
    assert (done.stdout + done.stderr).startswith(told)
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert json.loads((tmp_path / "target.json").read_text())
    # What the line says to do.
    assert shell('"$@" >/dev/null', "attack.py", *files, "--out", tmp_path).returncode == 0


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_a_mistake_is_told_on_the_stream_that_is_left(tmp_path, redirected):
    done = shell(f'"$@" {redirected}', "train.py", tmp_path / "none.toml", "--run", tmp_path)
    assert done.returncode == 2
    first = done.stdout.splitlines()[0]
    assert first == f"error: {tmp_path}/none.toml: no such file; configs/ holds examples"


def test_closed_streams_cost_no_training(made, toml, tmp_path):
    """Nor does a file of the run take the number of a closed stream."""
    run = tmp_path / "run"
    done = shell('"$@" >&- 2>&- <&-', "train.py", toml, "--run", run)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert files_of(run / "checkpoints").keys() == files_of(made / "checkpoints").keys()


# Limits, and folders that go away.


@pytest.mark.parametrize("kilobytes", [300_000, 1_000_000])
def test_too_little_memory_is_told_in_one_line(toml, tmp_path, kilobytes):
    done = shell(f'ulimit -v {kilobytes}; "$@"', "train.py", toml, "--run", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "memory" in done.stderr
    assert "ulimit -v" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_is_deleted_under_training_is_named(made, toml, tmp_path):
    run = tmp_path / "run"
    often = ("--train.checkpoint_minutes", 0, "--train.epochs", 10**6)
    process = start("train.py", toml, "--run", run, *often)
    wait_until((run / "checkpoints").exists, process)
    shutil.move(run, tmp_path / "moved")
    code, err, _ = ended(process)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {run}: is gone: deleted or moved while this command was at work on it; "
        "put it back to go on, or begin anew"
    )
    assert not run.exists()
    shutil.move(tmp_path / "moved", run)  # what the line says to do
    process = start("train.py", "--run", run, TRUST_CODE, *often)
    wait_until(lambda: handles(process), process)
    time.sleep(0.5)
    process.terminate()
    assert ended(process)[0] == 143
