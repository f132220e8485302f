"""Models per hour of train.py, beside a PyTorch script that trains one model after another.

    python benchmarks/end_to_end.py                                  # digits, CIFAR-10 from data/
    python benchmarks/end_to_end.py --cifar PATH                     # CIFAR-10 from elsewhere

For configs/digits.toml (8 models) and configs/cifar10_cpu.toml (4), in turn, `--repeats` times:

- `lira_jax`: `python train.py CONFIG --run NEW --train.models M`, a cold process: images are
  decoded beforehand, but nothing is compiled;
- `PyTorch`: `python benchmarks/torch_shadow_models.py CONFIG --models M`, the same data, masks,
  network, recipe and number of steps.

`cold` counts the whole process: imports, reading decoded images, compilation, training, saving.
`steady` counts training alone: of `lira_jax`, the median epoch in its log; of `PyTorch`, the median
model. CPU seconds per model are the whole process's; other work on the machine disturbs them less.
Accuracies are of the averaged weights on all members and all non-members, mean ± standard deviation
over models; those of `lira_jax` come from score.py, run afterwards.

    python benchmarks/end_to_end.py --cases digits --models 2 --epochs 2 --repeats 1   # a trial
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hardware
import numpy as np

from lira_jax import config_file
from lira_jax.config import DataConfig
from lira_jax.run import run_dir, score_files

ROOT = Path(__file__).resolve().parents[1]
CASES = {"digits": ("configs/digits.toml", 8), "cifar10_cpu": ("configs/cifar10_cpu.toml", 4)}


@dataclass(frozen=True)
class Result:
    """One program's training of M models.

    Attributes:
        cold: models per hour, the whole process.
        steady: models per hour, training alone.
        cpu: CPU seconds per model, the whole process.
        accuracy: of every model on its members and on the rest, [M, 2].
    """

    cold: float
    steady: float
    cpu: float
    accuracy: np.ndarray


def timed(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, CPU seconds and standard output of a program, run from the repository's root."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def lira_jax(options: list[str], epochs: int, environment: dict[str, str]) -> Result:
    """train.py in a new run directory, then score.py for the accuracies."""
    with tempfile.TemporaryDirectory(prefix="lira_jax_end_to_end_") as folder:
        run = Path(folder) / "run"
        command = ["train.py", *options, "--run", str(run)]
        seconds, cpu, _ = timed(command, environment)
        timed(["score.py", "--run", str(run), "--score.views", "1"], environment)
        found = score_files.read_score_set(run)
        assert found.logits is not None
        right = np.argmax(found.logits, axis=2) == found.labels
        # The first epoch of the process compiles; the median leaves it out.
        per_model_epoch = statistics.median(
            record["seconds"] / (record["models"][1] - record["models"][0] + 1)
            for record in run_dir.read_log(run)
        )
    models = len(right)
    return Result(
        cold=3600 * models / seconds,
        steady=3600 / per_model_epoch / epochs,
        cpu=cpu / models,
        accuracy=np.array(
            [
                (row[keep].mean(), row[~keep].mean())
                for row, keep in zip(right, found.keep, strict=True)
            ]
        ),
    )


def pytorch(options: list[str], environment: dict[str, str]) -> Result:
    """The script beside this one."""
    seconds, cpu, text = timed(["benchmarks/torch_shadow_models.py", *options], environment)
    models = [json.loads(line) for line in text.splitlines()]
    return Result(
        cold=3600 * len(models) / seconds,
        steady=3600 / statistics.median(model["seconds"] for model in models),
        cpu=cpu / len(models),
        accuracy=np.array([(one["member_accuracy"], one["nonmember_accuracy"]) for one in models]),
    )


def warm_data(data: DataConfig, cache: Path) -> dict[str, str]:
    """An environment whose cache folder holds the decoded images of `data` and nothing else."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    code = "import sys; from lira_jax import config; from lira_jax.data import datasets; "
    code += "datasets.load(config.DataConfig(sys.argv[1], sys.argv[2]))"
    timed(["-c", code, data.name, data.path], environment)
    return environment


def report(case: str, options: argparse.Namespace) -> None:
    """Train with both programs in turn, and print their table."""
    file, count = CASES[case]
    models = options.models or count
    experiment = config_file.load(ROOT / file)
    epochs = options.epochs or experiment.train.epochs
    data = experiment.data
    if case == "cifar10_cpu" and options.cifar:
        data = replace(data, path=str(options.cifar.resolve()))
    ours = [file, "--train.models", str(models), "--train.epochs", str(epochs)]
    ours += ["--data.path", data.path] if data.path else []
    theirs = [file, "--models", str(models), "--epochs", str(epochs), "--path", data.path]
    results: dict[str, list[Result]] = {"lira_jax": [], "PyTorch": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="lira_jax_cache_") as cache:
            environment = warm_data(data, Path(cache))
            results["lira_jax"].append(lira_jax(ours, epochs, environment))
            results["PyTorch"].append(pytorch(theirs, environment))

    print(f"\n{case}: {models} models, {epochs} epochs; median of {options.repeats}")
    print(
        f"{'':9} {'cold models/h':>14} {'steady models/h':>16} {'CPU s/model':>12} "
        f"{'member accuracy':>18} {'non-member accuracy':>20}"
    )
    for name, found in results.items():
        numbers = [median(found, key) for key in ("cold", "steady", "cpu")]
        accuracy = np.concatenate([one.accuracy for one in found])
        mean, spread = 100 * accuracy.mean(axis=0), 100 * accuracy.std(axis=0, ddof=1)
        members, others = (f"{m:.2f} ± {s:.2f} %" for m, s in zip(mean, spread, strict=True))
        print(
            f"{name:9} {numbers[0]:14,.1f} {numbers[1]:16,.1f} {numbers[2]:12,.1f} "
            f"{members:>18} {others:>20}"
        )
    ratios = [
        statistics.median(
            getattr(one, key) / getattr(other, key)
            for one, other in zip(results["lira_jax"], results["PyTorch"], strict=True)
        )
        for key in ("cold", "steady", "cpu")
    ]
    print(
        f"lira_jax / PyTorch: {ratios[0]:.2f}× cold, {ratios[1]:.2f}× steady, "
        f"{1 / ratios[2]:.2f}× by CPU seconds",
        flush=True,
    )


def median(results: list[Result], key: str) -> float:
    return statistics.median(getattr(result, key) for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--cifar", type=Path, help="in place of data.path of cifar10_cpu.toml")
    parser.add_argument("--models", type=int, help="models of each training, a multiple of 2")
    parser.add_argument("--epochs", type=int, help="default the configuration's")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(hardware.line("jax", "flax", "torch"))
    for case in options.cases:
        report(case, options)


if __name__ == "__main__":
    main()
