"""The run directory: every file of it damaged, missing, or another run's."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from lira_jax import config, score_set
from lira_jax.analysis import analyse
from lira_jax.label_only import answers
from lira_jax.run import loss_traces, run_dir, score_files, shards
from lira_jax.trust import outputs
from tests.fuzz import toolbox
from tests.fuzz.scores import of_score_set, spoil_json, text_of_json
from tests.fuzz.toolbox import (
    ANY,
    MATERIAL,
    REFUSE,
    SAME,
    WHOLE,
    Spoilt,
    Surface,
    Values,
    damage,
    special,
)

EXPERIMENT = """
seed = {seed}
[data]
limit = 120
[network]
arch = "tests.fuzz.network:Linear"
[train]
models = {models}
epochs = 2
batch_size = 12
mirror = false
shift = 0
ema = 0.9
eval_examples = 16
group = 2
learning_rate = {rate}
[score]
views = 2
batch_size = 50
noisy_queries = 2
gradient_norm = true
[label_only]
rotations = [4.0]
translations = [1]
noise = [0.05]
copies = 2
budget = {budget}
examples = 24
[trust]
inputs = ["test", "uniform"]
examples = 20
fit = 20
laplace_samples = 3
"""
TRUST = "--trust-code"  # the network is ours
# The run that is disturbed, and those that its files are mixed up with.
RUNS = {
    "run": {"seed": 3, "models": 4, "rate": 0.1},
    "other seed": {"seed": 4, "models": 4, "rate": 0.1},
    "other rate": {"seed": 3, "models": 4, "rate": 0.05},
    "more models": {"seed": 3, "models": 6, "rate": 0.1},
}


def make_all(folder: Path, few: bool = False) -> None:
    """Train and score the runs of RUNS, or the first two without searches for boundaries."""
    from lira_jax import ensemble
    from lira_jax.commands import score, train

    ensemble.set_up = shards.parse
    for name in list(RUNS)[: 2 if few else None]:
        toml, run = folder / f"{name}.toml", folder / name
        toml.write_text(EXPERIMENT.format(**RUNS[name], budget=0 if few else 80))
        train.main([str(toml), "--run", str(run)])
        score.main(["--run", str(run), TRUST])
        score.main(["--run", str(run), "--label-only", "--trust", TRUST])
    (folder / WHOLE).touch()


def material(name: str) -> Path:
    return Path(os.environ[MATERIAL]) / name


def make(folder: Path) -> None:
    shutil.copytree(material("run"), folder / "run")


def _files(run: Path, *, read_by_attack: bool = True) -> list[Path]:
    paths = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix)
    unread = ("checkpoints", "train_log")
    return [path for path in paths if not (read_by_attack and path.parent.name in unread)]


def _mixed_up(random: Random, run: Path, path: Path) -> Spoilt:
    other = random.choice([name for name in RUNS if name != "run" and material(name).exists()])
    theirs = material(other) / path.relative_to(run)
    if not theirs.is_file():
        return Spoilt(f"{path.relative_to(run)}: {special(random, path)}")
    shutil.copy(theirs, path)
    return Spoilt(f"{path.relative_to(run)} of {other}")


MARK = b"\nsha256 "


def _resealed(random: Random, run: Path, path: Path) -> Spoilt:
    """Wrong contents under a right checksum, as a program with a mistake would write them."""
    content = path.read_bytes()
    body, mark, trailer = content.rpartition(MARK)
    assert mark, path
    array = np.load(path)
    kind = random.choice(("length", "length", "shape", "dtype", "nan", "value"))
    rule = REFUSE
    if kind == "length":  # as many rows more as fit over the trailer, or fewer than it says
        body += random.randbytes(random.choice((1, 4, 240))) if random.random() < 0.5 else b""
        body = (
            body[: len(body) - random.choice((1, 4, 40))] if body == content[: len(body)] else body
        )
    elif kind == "shape":
        changed = random.choice((array[:-1], array[None], array.ravel(), array[:0], array[:, :-1]
                                 if array.ndim > 1 else array[1:]))  # fmt: skip
        body = toolbox.npy(changed)
        rule = REFUSE if changed.shape != array.shape else SAME
        if path.parent.name == loss_traces.FOLDER and changed.ndim == 2:
            rule = ANY  # fewer rows are a trace in the making
    elif kind == "dtype":
        other = np.float64 if array.dtype != np.float64 else np.float32
        body = toolbox.npy(array.astype(other))
    elif kind == "nan" and array.dtype.kind == "f":
        array[tuple(random.randrange(size) for size in array.shape)] = np.nan
        body = toolbox.npy(array)
    else:  # only what other files tell too can be seen
        place = tuple(random.randrange(size) for size in array.shape)
        array[place] = array[place] + 1 if array.dtype != np.bool_ else not array[place]
        body = toolbox.npy(array)
        rule = ANY
    words = trailer.decode(errors="replace").split()
    digest = hashlib.sha256(body).hexdigest()
    rest = trailer[64:] if len(words[0]) == 64 else b"\n"
    path.write_bytes(body + MARK + digest.encode() + rest)
    return Spoilt(f"{path.relative_to(run)} resealed: {kind}", rule)


def spoil(random: Random, folder: Path) -> Spoilt:
    run = folder / "run"
    path = random.choice(_files(run))
    kind = random.randrange(12)
    if kind < 4:
        return Spoilt(f"{path.parent.name}/{damage(random, path)}")
    if kind == 4:
        return Spoilt(f"{path.parent.name}/{special(random, path)}")
    if kind == 5 and random.random() < 0.3:
        below = random.choice([path for path in run.iterdir() if path.is_dir()])
        gone = special(random, below)
        # A product less, or an empty folder for one, is a run that was asked less.
        less = below.name not in ("label_only", "trust") or gone.endswith(("missing", ": folder"))
        return Spoilt(gone, ANY if less else SAME)
    if kind < 8:
        return _mixed_up(random, run, path)
    if kind == 8:
        other = random.choice([other for other in _files(run) if other != path])
        shutil.copy(other, path)
        return Spoilt(f"{path.relative_to(run)}: a copy of {other.relative_to(run)}")
    if kind == 9 and path.suffix == ".npy":
        return _resealed(random, run, path)
    tables = [path for path in _files(run) if path.suffix == ".json"]
    path = random.choice(tables)
    rewrite = text_of_json if random.random() < 0.2 else spoil_json
    return Spoilt(f"{path.parent.name}/{rewrite(random, path)}")


def read(folder: Path) -> Values:
    """What the attack stage reads of a run, before any attack."""
    run = folder / "run"
    experiment = run_dir.read_config(run)
    read = score_set.check(score_files.read_score_set(run))
    about = analyse.about_run(run, config.check(experiment))
    labels, elsewhere = answers.read(run, read), outputs.read(run, read)
    values = {**of_score_set(read), "images": about.images is not None}
    if labels is not None:
        values |= {"asked": labels.models, "sources": labels.sources}
        for name, given in labels.answers.items():
            values |= {
                f"label_only/{name}": np.asarray(given.values),
                f"{name}.json": given.settings,
            }
    if elsewhere is not None:
        kinds = (*elsewhere.kinds, *([elsewhere.fit] if elsewhere.fit else []))
        values["kinds"] = [(kind.name, kind.title, kind.scale) for kind in kinds]
        for kind in kinds:
            values |= {f"trust/{kind.name} labels": np.asarray(kind.labels)}
            values |= {
                f"trust/{kind.name} {name}": np.asarray(a) for name, a in kind.logits.items()
            }
        values |= {f"candidates {k}": np.asarray(a) for k, a in elsewhere.candidates.items()}
    return values


# Checkpoints ------------------------------------------------------------------------------------

PRODUCTS = ("scores", "logits", "merlin", "gradient_norm")


def make_trained(folder: Path) -> None:
    """Without what scoring made of it."""
    make(folder)
    for path in (folder / "run").iterdir():
        if path.name in ("label_only", "trust"):
            shutil.rmtree(path)
        elif path.stem in PRODUCTS or path.name.startswith(".lock"):
            path.unlink()


def spoil_trained(random: Random, folder: Path) -> Spoilt:
    run = folder / "run"
    groups = sorted((run / "checkpoints").iterdir())
    path, kind = random.choice(groups), random.randrange(8)
    if kind == 0:
        one, other = groups[0].read_bytes(), groups[1].read_bytes()
        groups[0].write_bytes(other)
        groups[1].write_bytes(one)
        return Spoilt("checkpoints of two groups swapped")
    if kind == 1:
        name = random.choice(
            ("models_00000-00001_step_9.npz", "models_00000-00001_step_99999.npz",
             "models_00001-00002_step_10.npz", "models_00000-00003_step_10.npz",
             "models_99999-00001_step_10.npz", f"models_0-1_step_{'9' * 200}.npz",
             "models_00002-00000_step_10.npz", "models_00004-00005_step_10.npz")
        )  # fmt: skip
        path.rename(path.with_name(name))
        return Spoilt(f"{path.name} called {name[:60]}")
    if kind == 2:
        with np.load(path) as file:
            arrays = dict(file)
        name = random.choice(list(arrays))
        array = arrays[name]
        arrays[name] = random.choice(
            (array * np.nan, array[:1], array.astype(np.float16), array[0])
        )
        np.savez(path, **arrays)
        body = path.read_bytes()
        path.write_bytes(body + MARK + hashlib.sha256(body).hexdigest().encode() + b"\n")
        return Spoilt(f"{path.name} resealed: {name} {arrays[name].dtype} {arrays[name].shape}")
    if kind == 3:
        path = random.choice([run / "keep.npy", run / "labels.npy", run / "config.toml"])
    if kind in (3, 4, 5):
        return _mixed_up(random, run, path)
    if kind == 6:
        return Spoilt(special(random, path))
    return Spoilt(damage(random, path))


def read_scored(*before: str) -> Callable[[Path], Values]:
    """What scoring makes of a run, after another command."""

    def read(folder: Path) -> Values:
        from lira_jax import ensemble
        from lira_jax.commands import score, train

        ensemble.set_up = shards.parse  # the devices of the first input are those of all
        run = str(folder / "run")
        if before:
            train.main(["--run", run, *before[1:], TRUST])
        score.main(["--run", run, TRUST])
        return of_score_set(score_files.read_score_set(Path(run)))

    return read


SURFACES = [
    Surface("run", 40, make, spoil, read),
    Surface("run-scored", 0.6, make_trained, spoil_trained, read_scored()),
    Surface("run-repaired", 0.4, make_trained, spoil_trained, read_scored("train", "--repair")),
]

if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
