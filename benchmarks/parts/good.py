"""How good the recipes are: four models each, on half of the 50,000 images."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.flops import forward_flops
from benchmarks.parts import results
from benchmarks.parts.results import Found, Task
from benchmarks.parts.timing import Clock, in_best_way, stopped_at
from benchmarks.recipes import recipe
from lira_jax import ensemble, shadow_models, training
from lira_jax.candidates import candidates, place
from lira_jax.config import DataConfig, Experiment
from lira_jax.interrupts import Stopped
from lira_jax.run import run_dir
from lira_jax.run.checkpoints import Group

MODELS = 4
# Widths, epochs, shifts and cutouts [pixels] of SpeedNet.
GRID = ((64, 128), (16, 32, 64), (2, 4), (0, 12))
# Members, and as many others, on which accuracy is taken.
EVALUATED = 5000


@dataclass(frozen=True)
class Trial:
    """A recipe.

    Attributes:
        name: what is changed.
        experiment: all of it.
        cost: forward FLOP of a model's training, which its time is reckoned from.
    """

    name: str
    experiment: Experiment
    cost: float


def of_data(experiment: Experiment, task: Task) -> Experiment:
    """The experiment on the data that were given; digits for a trial."""
    data = DataConfig(name="CIFAR-10", path=str(task.data)) if task.data else DataConfig(limit=200)
    return dataclasses.replace(experiment, data=data)


def trials(task: Task) -> Iterator[Trial]:
    """The recipe as it is, then others, the shorter first; the paper's last, which is longest."""
    base, members = recipe("speed_net", "bfloat16", 16 if task.toy else 0, task.toy)
    # For accuracy it does not matter how large the group is.
    settings: dict[str, Any] = {
        "models": MODELS,
        "group": MODELS,
        "eval_examples": 50 if task.toy else EVALUATED,
    }

    def of(name: str, experiment: Experiment, width: int = 0, **train: Any) -> Trial:
        network = experiment.network
        network = dataclasses.replace(network, width=width) if width else network
        own = dataclasses.replace(experiment.train, **settings, **train)
        experiment = dataclasses.replace(experiment, network=network, train=own)
        shape = (8, 8, 1) if task.toy else (32, 32, 3)
        images = experiment.train.total_steps(100 if task.toy else members)
        images *= experiment.train.batch_size
        return Trial(name, of_data(experiment, task), images * forward_flops(network, shape))

    if task.toy:
        yield of("1 epoch, cutout 2", base, epochs=1, shift=1, cutout=2)
        return
    grid = [
        of(f"{epochs} epochs, shift {shift}, cutout {cutout}, width {width}", base,
           width=width, epochs=epochs, shift=shift, cutout=cutout)
        for width, epochs, shift, cutout in itertools.product(*GRID)
    ]  # fmt: skip
    yield from sorted(grid, key=lambda trial: trial.cost)
    paper, members = recipe("wrn28_2", "bfloat16", 0, toy=False)
    yield of("WRN28-2, the paper's recipe", paper)


def run(task: Task) -> None:
    """Trials in turn, as long as the next is expected to fit."""
    ensemble.set_up("0/1")
    found = results.read(task.out)
    clock, rate = Clock(), 0.0  # forward FLOP per second, of the last trial
    several = list(trials(task))
    ahead = _compiled_ahead(task, several, found)
    for trial in several:
        experiment = in_best_way(found, trial.experiment)
        expected = MODELS * trial.cost / rate if rate else 0.0
        if expected > 0.9 * task.left or task.left < 5:
            task.record("left out", recipe=trial.name, expected_seconds=round(expected))
            continue
        run = task.scratch / "good" / trial.name.replace(" ", "_").replace(",", "")
        try:
            with clock, stopped_at(task.deadline):
                training.train(experiment, run, jax.devices()[:1])
        except Stopped:
            task.record("left out", recipe=trial.name, expected_seconds=None)
            continue
        log = run_dir.read_log(run)
        seconds = sum(line["seconds"] for line in log[1:]) / max(len(log) - 1, 1) * len(log)
        if seconds:
            rate = MODELS * trial.cost / seconds
        accuracy = {name: np.array(log[-1][f"{name}_accuracy"]) for name in ("member", "nonmember")}
        task.record(
            "recipe",
            name=trial.name,
            compiled_ahead=trial.name in ahead,
            width=log[-1]["width"],
            gradients=log[-1]["conv_gradients"],
            models=MODELS,
            wall_seconds=round(clock.seconds, 2),
            seconds_per_model=round(seconds / MODELS, 3),
            **{f"{name}_accuracy": float(rows.mean()) for name, rows in accuracy.items()},
            **{f"{name}_deviation": float(rows.std(ddof=1)) for name, rows in accuracy.items()},
            gap=float((accuracy["member"] - accuracy["nonmember"]).mean()),
            evaluated=experiment.train.eval_examples,
        )


def _compiled_ahead(task: Task, several: list[Trial], found: Sequence[Found]) -> set[str]:
    """Compile the programs of the first few trials side by side, so that they are kept when they
    are asked for; returns which were."""
    began, cores = time.monotonic(), os.cpu_count() or 1
    first = several[: max(1, cores // 3)]
    if not in_best_way(found, first[0].experiment).train.width:
        return set()  # the engine will compile what it tries
    mesh = ensemble.models_mesh(jax.devices()[:1])
    data = candidates(first[0].experiment)
    placed = place(data, mesh)

    def compile_all(trial: Trial) -> None:
        experiment = in_best_way(found, trial.experiment)
        programs = shadow_models.programs(experiment, data, mesh, placed=placed)
        inputs = shadow_models.group_inputs(experiment, data.keep, Group(0, MODELS - 1), mesh)
        both = programs.shapes(inputs)
        programs.begin.compiled(inputs["number"])
        programs.advance.compiled(both, np.int32(0), np.int32(1))
        programs.metrics.compiled(both)
        programs.finish.compiled(both[0])

    with ThreadPoolExecutor(len(first)) as pool:
        list(pool.map(compile_all, first))
    task.record("compiled", recipes=len(first), seconds=round(time.monotonic() - began, 1))
    return {trial.name for trial in first}
