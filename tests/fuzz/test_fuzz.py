"""Some hundred bad inputs; `make fuzz` makes ten thousand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lira_jax import ensemble
from lira_jax.run import shards
from tests.fuzz import mischief, run, runs, scores

ROOT = Path(__file__).resolve().parents[2]
COUNT, SEED = 300, 1
# What takes seconds an input, or to make one.
SLOW = ("attack", "compare", "tfds", "run-scored", "run-repaired")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two runs, to be damaged and mixed up."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "set_up", shards.parse)
        runs.make_all(folder, few=True)
    return folder


def fuzz(material, *words):
    command = [sys.executable, "-m", "tests.fuzz.run", "--runs", str(material), *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_no_bad_input_makes_a_traceback_a_hang_gigabytes_or_a_wrong_value(material):
    names = [name for name in run.surfaces() if name not in SLOW]
    chosen = [word for name in names for word in ("--surface", name)]
    code, out = fuzz(material, "--count", COUNT, "--seed", SEED, "--workers", 1, *chosen)
    print(out)
    assert code == 0, out
    assert f"seed {SEED}: {COUNT} inputs, 0 failed" in out
    counts = {
        line.split()[0]: line.split()[1:5]
        for line in out.splitlines()
        if line.split()[1:2] and line.split()[1].isdecimal()
    }
    for name in names:
        inputs, _, same, _ = map(int, counts[name])
        assert inputs > 1
        assert same  # the undisturbed one at least
    assert int(counts["all"][1]) > COUNT / 2  # most are refused


def test_the_fuzzer_sees_what_it_looks_for():
    why = {
        "raises": "KeyError: 'of a library'",
        "hangs": "longer than 4 s\nTraceback",
        "hangs without signals": "where no signal reached it",
        "takes memory": "more than 2 GB of memory",
        "dies": "the process ended with 0",
        "accepts what is bad": "accepted what is bad",
        "reads it wrong": "accepted: `value` is not as undisturbed",
    }
    inputs = [("undisturbed", 0), *((how, 1) for how in why)]
    found = {each.surface: each for each in run.results(inputs, SEED, 1, 4, mischief.surfaces)}
    assert found.keys() == {"undisturbed", *why}
    assert found.pop("undisturbed").outcome == "read the same"
    for how, each in found.items():
        assert (each.outcome, each.what) == ("failed", how)
        assert why[how] in each.why


def test_what_is_repeated_is_the_same_input(tmp_path):
    spoilt = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        scores.make_scores(tmp_path / name)
        what = scores.spoil_scores(Random(f"scores {SEED} 7"), tmp_path / name)
        spoilt.append((what, (tmp_path / name / "scores.npz").read_bytes()))
    assert spoilt[0] == spoilt[1]
    assert re.match(r"\w", spoilt[0][0].what)
