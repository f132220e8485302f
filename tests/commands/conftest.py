"""Commands called in this process, and a small run that they made.

What the commands need is imported late: a bare machine with an accelerator may lack it.
"""

from __future__ import annotations

import shutil
import sys
from typing import NamedTuple

import numpy as np
import pytest

from lira_jax import ensemble
from lira_jax.analysis import analyse
from lira_jax.run import shards
from tests.conftest import files_of

EXPERIMENT = """
seed = 3
[data]
limit = 120
[network]
arch = "tests.small_networks:network"
[train]
models = 4
epochs = 4
batch_size = 12
mirror = false
shift = 0
ema = 0.9
eval_examples = 16
group = 2
[score]
views = 2
batch_size = 50
"""

STEPS = 20
TRUST_CODE = "--trust-code"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def _same_devices():
    """JAX already has the devices of conftest.py, which a command would set anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "set_up", shards.parse)
        yield


@pytest.fixture(scope="session")
def toml(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "some.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory, toml):
    """A run of four models, trained and scored without a disturbance; not to be changed."""
    from lira_jax.commands import score, train

    run = tmp_path_factory.mktemp("runs") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "set_up", shards.parse)
        train.main([str(toml), "--run", str(run)])
        score.main(["--run", str(run), TRUST_CODE])
    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Scores of four models and of a target, as flags name them."""
    folder = tmp_path_factory.mktemp("files")
    keep = np.tile(np.eye(2, dtype=bool), (2, 10))
    scores = np.random.default_rng(0).normal(size=(5, 20))
    np.savez(folder / "scores.npz", scores=scores[:4], keep=keep)
    np.savez(folder / "target.npz", scores=scores[4])
    return ["--scores", folder / "scores.npz", "--target", folder / "target.npz"]


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def few_attacks(monkeypatch):
    """Two attacks instead of all."""
    few = {name: analyse.ATTACKS[name] for name in ("lira-bayes", "lira", "yeom")}
    monkeypatch.setattr(analyse, "ATTACKS", few)
    return few


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command as a process would, up to its exit code.

    The network of these runs is code, which they name themselves, and which is ours to trust.
    """
    from lira_jax.commands.entry import run_stage

    def call(command, *arguments, trust_code=True):
        capsys.readouterr()
        name = command.__name__.rpartition(".")[2]
        trusted = [TRUST_CODE] if trust_code and arguments and name in ("train", "score") else []
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments), *trusted])
        code = run_stage(f"{command.__name__}:main")
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(call, tmp_path):
    """The one line with which a command refuses its input, leaving every file as it was."""

    def refused(command, *arguments, **more):
        before = files_of(tmp_path)
        code, _, err = call(command, *arguments, **more)
        assert files_of(tmp_path) == before
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert code == 2
        return err.removeprefix("error: ").rstrip("\n")

    return refused
