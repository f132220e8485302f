"""How fast it is: training by width and gradients, PyTorch beside it, and scoring."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import accelerator
from benchmarks.flops import forward_flops
from benchmarks.parts import results
from benchmarks.parts.results import Task
from benchmarks.recipes import CIFAR_EXAMPLES, CLASSES, TOY_EXAMPLES, TOY_SIDE, recipe
from lira_jax import ensemble, networks, scoring, tuning
from lira_jax.config import Experiment
from lira_jax.data.views import fixed_views
from lira_jax.ensemble import Program
from lira_jax.scoring import Inference

Shared = tuple[jax.Array, jax.Array]

# Networks and types in order of value, and the share of the time that is left for each, PyTorch's
# included; the rest is scoring's.
ORDER = (
    ("speed_net", "bfloat16", 0.35),
    ("resnet8", "bfloat16", 0.25),
    ("wrn28_2", "bfloat16", 0.35),
    ("resnet8", "float32", 0.4),
    ("wrn28_2", "float32", 0.7),
)
VIEWS = 18
TORCH = Path(__file__).resolve().parents[1] / "torch_step.py"


def run(task: Task) -> None:
    """Sweep SpeedNet, time its scoring, then sweep the others."""
    ensemble.set_up("0/1")
    mesh = ensemble.models_mesh(jax.devices()[:1])
    side, examples = (TOY_SIDE, TOY_EXAMPLES) if task.toy else (32, CIFAR_EXAMPLES)
    random = np.random.default_rng(0)
    images = random.integers(256, size=(examples, side, side, 3), dtype=np.uint8)
    labels = random.integers(CLASSES, size=examples, dtype=np.int32)
    shared = ensemble.put_shared((images, labels), mesh)
    for case, dtype, share in ORDER[:2] if task.toy else ORDER:
        began, seconds = time.monotonic(), share * task.left
        if seconds < (1 if task.toy else 10):
            task.record("left out", case=case, dtype=dtype, ways=["all"])
            continue
        experiment, members = recipe(case, dtype, 8 if task.toy else 0, task.toy)  # type: ignore[arg-type]
        train(task, case, experiment, members, shared, mesh, began + 0.4 * seconds)
        torch(task, case, dtype, began + seconds)
        if case == "speed_net" and (task.toy or task.left > 60):
            score(task, experiment, shared, mesh)


def train(
    task: Task,
    case: str,
    experiment: Experiment,
    members: int,
    shared: Shared,
    mesh: Any,
    deadline: float,
) -> None:
    """A sweep of `accelerator.py`; its share of the peak is of this machine's own matrix rate."""
    toy = task.toy
    # Tracing a deep network takes seconds, one program at a time: fewer of those.
    widths = [1, 2, 4, 8, 16] if case == "speed_net" else [1, 4, 16]
    if toy:
        widths = [1, 2] if case == "speed_net" else [1]
    args = Namespace(
        widths=widths,
        gradients=["grouped", "vmap"],
        steps=2 if toy else 16,
        repeats=2 if toy else 5,
    )
    dtype = experiment.train.dtype
    rates = {
        one["dtype"]: one["flops_per_second"]
        for one in results.of(results.read(task.out), "machine", "matrix rate")
    }
    rate = rates.get(dtype) or accelerator.peak(jax.devices()[0], dtype)[0]

    def found(row: accelerator.Row) -> None:
        task.record("train", **dataclasses.asdict(row))

    _, missing = accelerator.sweep(
        case, experiment, members, args, shared, mesh, rate, deadline, found
    )
    if missing:
        task.record("left out", case=case, dtype=dtype, ways=missing)


def torch(task: Task, case: str, dtype: str, deadline: float) -> None:
    """PyTorch's step of the same network, batch and type, in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        task.record("torch", case=case, dtype=dtype, error="PyTorch is not installed")
        return
    seconds = deadline - time.monotonic()
    if seconds < 10 and not task.toy:
        task.record("left out", case=case, dtype=dtype, ways=["PyTorch"])
        return
    seconds = max(seconds, 10.0)
    rows = task.scratch / f"torch_{case}_{dtype}.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TORCH), "--cases", case, "--dtypes", dtype]
    command += ["--ways", "eager", *(["compile"] if seconds >= 40 else [])]
    command += ["--seconds", f"{seconds:.0f}", "--out", str(rows), *(["--toy"] if task.toy else [])]
    failure = None
    try:
        done = subprocess.run(command, timeout=seconds + 20, capture_output=True, text=True)
        if done.returncode:
            failure = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    except subprocess.TimeoutExpired:
        failure = f"not done after {seconds:.0f} s"
    found = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    for line in found:
        task.record("torch", **json.loads(line))
    if failure:
        task.record("torch", case=case, dtype=dtype, error=failure)


def score(task: Task, experiment: Experiment, shared: Shared, mesh: Any) -> None:
    """Images per second of scoring by width and images per step, and of the forward pass alone."""
    shape = accelerator.image_shape_of(shared)
    network = networks.build(experiment.network, shape, CLASSES, experiment.train.dtype)
    models = 2 if task.toy else 16
    keys = jax.random.split(jax.random.key(0), models)
    variables = ensemble.over_models(network.init, mesh)(keys)
    of_model = scoring.scores_of_model(network, fixed_views(VIEWS))
    steps = (36,) if task.toy else scoring.ACCELERATOR_STEPS[1:]

    def scored(way: Inference) -> tuning.Trial:
        program = Program(ensemble.over_models(of_model, mesh, way.width), shared)
        index = np.arange(np.prod(way.cut(VIEWS)), dtype=np.int32).reshape(way.cut(VIEWS))
        infer = program.compiled(variables, index)

        def dispatches(units: int) -> None:
            for _ in range(units):
                found = infer(variables, index)
            jax.block_until_ready(found)

        return tuning.Trial(dispatches, models * index.size * VIEWS, 1000)

    def forward(images: int) -> tuning.Trial:
        x = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (images, *shape)), jnp.float32)
        apply = lambda variables, x: network.apply(variables, x)  # noqa: E731
        infer = Program(ensemble.over_models(apply, mesh, 1), (x,)).compiled(variables)

        def passes(units: int) -> None:
            for _ in range(units):
                logits = infer(variables)
            jax.block_until_ready(logits)

        return tuning.Trial(passes, models * images, 1000)

    ways = {
        f"scoring, {way}": lambda way=way: scored(way)
        for way in scoring.inference_ways(0, steps, models, mesh)
    }
    plain = {f"forward, {n} images a step": lambda n=n: forward(n) for n in steps}
    found, failed = tuning.rates(ways | plain, seconds=0.1 if task.toy else 1.0)
    flops = forward_flops(experiment.network, shape, CLASSES)
    for name, rate in found.items():
        task.record("score", name=name, images_per_second=rate, flops_per_second=rate * flops)
    for name, error in failed.items():
        task.record("score", name=name, error=" ".join(str(error).split())[:120])
