"""Whether it is right here: the same answers as a CPU's, within stated tolerances.

float32 at the precision `highest` is compared with the CPU; the default, TF32 on NVIDIA, and
bfloat16 beside it. Tolerances are some ten times what one card gave, where one did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.parts import results
from benchmarks.parts.results import Task
from lira_jax import ensemble, scoring, shadow_models, training, training_width
from lira_jax.candidates import build_network, candidates, place
from lira_jax.config import (
    DataConfig,
    Experiment,
    LabelOnlyConfig,
    NetworkConfig,
    ScoreConfig,
    TrainConfig,
    TrustConfig,
)
from lira_jax.data.views import fixed_views
from lira_jax.label_only import asking
from lira_jax.networks.conv import Gradients
from lira_jax.run import checkpoints, run_dir
from lira_jax.run.checkpoints import Group
from lira_jax.training_width import Way
from lira_jax.trust import predicting as trust_scoring

ROOT = Path(__file__).resolve().parents[2]
# Largest differences of weights, and of φ, after an epoch of digits.
TOLERANCES = {"highest": (1e-5, 1e-4), "default": (3e-2, 0.3), "bfloat16": (0.2, 3.0)}
# What a killed run may differ by: cards sum in no fixed order.
CONTINUED = 1e-4
# Scores of one checkpoint, and the largest share of labels that may differ.
SCORES, LABELS = 1e-3, 0.02


def experiment_of(toy: bool, models: int, **train: Any) -> Experiment:
    """ResNet-8 on the digits; for a trial a network that compiles sooner."""
    return Experiment(
        seed=7,
        data=DataConfig(limit=160 if toy else 0),
        network=NetworkConfig("convnet", 8, 2) if toy else NetworkConfig("resnet", 8, 16),
        train=TrainConfig(
            models=models, batch_size=16 if toy else 32, ema=0.9, mirror=False, shift=0,
            eval_examples=32, **train,
        ),
        score=ScoreConfig(views=2, batch_size=512),
        label_only=LabelOnlyConfig(
            targets=(2, 3), examples=12, rotations=(4,), translations=() if toy else (1,),
            noise=() if toy else (0.05,), copies=4, budget=80 if toy else 120,
            boundary_examples=4, features=False,
        ),
        trust=TrustConfig(inputs=("uniform",), examples=24, fit=0, laplace_samples=8),
    )  # fmt: skip


def run(task: Task) -> None:
    """All checks, the most telling first, while the tests run beside them."""
    ensemble.set_up("0/1")
    with _tests(task) as finish_tests:
        for check in (same_weights, own_width, killed_and_continued, same_answers):
            if task.left < (5 if task.toy else 15):
                task.record("left out", check=check.__name__)
                continue
            began = time.monotonic()
            try:
                check(task)
            # A failure is named, and the others go on.
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                task.record("check", name=check.__name__, ok=False, failure=reason)
            task.record("seconds", of=check.__name__, seconds=round(time.monotonic() - began, 1))
        finish_tests()


def compare(task: Task, name: str, difference: float, tolerance: float, **more: Any) -> None:
    """Record a difference beside its tolerance."""
    ok = bool(difference <= tolerance)
    task.record(
        "check", name=name, ok=ok, difference=float(difference), tolerance=tolerance, **more
    )


def trained(
    experiment: Experiment, device: Any, way: Way, precision: str | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """The variables [N, …] after all epochs, and φ [N, E]."""
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        experiment = training_width.in_way(experiment, way)
        data, mesh = candidates(experiment), ensemble.models_mesh([device])
        programs = shadow_models.programs(experiment, data, mesh)
        inputs = shadow_models.group_inputs(
            experiment, data.keep, Group(0, len(data.keep) - 1), mesh
        )
        steps = experiment.train.total_steps(int(data.keep[0].sum()))
        both = (programs.begin(inputs["number"]), inputs)
        for epoch in range(experiment.train.epochs):
            bounds = [np.int32(steps // experiment.train.epochs * n) for n in (epoch, epoch + 1)]
            both = programs.advance(both, *bounds)
        variables = programs.finish(both[0])
        network = build_network(experiment, data)
        of_model = scoring.scores_of_model(network, fixed_views(1))
        index = np.arange(len(data.labels), dtype=np.int32)[None]
        phi, _ = ensemble.over_models(of_model, mesh, way.width)(
            variables, index, *place(data, mesh)
        )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)], np.asarray(phi)


def same_weights(task: Task) -> None:
    """Weights and φ after an epoch: CPU against accelerator, widths, gradients and precisions."""
    models = 4 if task.toy else 16
    experiment = experiment_of(task.toy, models, epochs=1)
    low = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, dtype="bfloat16")
    )
    card, cpu = jax.devices()[0], jax.devices("cpu")[0]
    both: tuple[Gradients, ...] = ("grouped", "vmap")
    ways = [Way(w, how) for w in (4, 16) for how in both]
    alone = Way(1, "vmap")
    cases: dict[str, tuple[Any, ...]] = {
        "CPU": (experiment, cpu, alone, "highest"),
        "highest, width 1": (experiment, card, alone, "highest"),
        **{f"highest, {way}": (experiment, card, way, "highest") for way in ways},
        "default, width 1": (experiment, card, alone, None),
        "bfloat16, width 1": (low, card, alone, None),
    }
    if task.toy:
        ways = [Way(2, "grouped")]
        cases = {"CPU": cases["CPU"], f"highest, {ways[0]}": (experiment, card, ways[0], "highest")}
    with ThreadPoolExecutor(len(cases)) as pool:
        found = {name: pool.submit(trained, *case) for name, case in cases.items()}
        weights, phi = found.pop("CPU").result()
        for name, future in found.items():
            theirs, their_phi = future.result()
            pairs = zip(weights, theirs, strict=True)
            largest = max(float(np.abs(a - b).max()) for a, b in pairs)
            tolerance = TOLERANCES[name.partition(",")[0]]
            compare(task, f"weights, {name} against CPU", largest, tolerance[0], models=models)
            largest = float(np.abs(phi - their_phi).max())
            compare(task, f"scores, {name} against CPU", largest, tolerance[1], models=models)


def own_width(task: Task) -> None:
    """The width that the engine finds by itself is found, recorded, and found again."""
    experiment = experiment_of(task.toy, 4, epochs=1)
    choose = training_width.ways
    if task.toy:  # on a CPU there is nothing to find

        def forced(experiment: Experiment, share: int, on_cpu: bool) -> list[Way]:
            return choose(experiment, share + on_cpu, on_cpu=False)[:2]

        training_width.ways = forced
    try:
        said, logs = [], []
        for name in ("first", "second"):
            run = task.scratch / f"width_{name}"
            with contextlib.redirect_stdout(io.StringIO()) as out:
                training.train(experiment, run, jax.devices()[:1])
            print(out.getvalue(), end="")
            said.append([line for line in out.getvalue().splitlines() if "fastest" in line][-1])
            logs.append(run_dir.read_log(run)[-1])
    finally:
        training_width.ways = choose
    same = logs[0]["width"] == logs[1]["width"] and "found fastest here before" in said[1]
    task.record(
        "check",
        name="the engine's own width is remembered",
        ok=bool(same),
        difference=float(not same),
        tolerance=0.0,
        said=said[0].partition(": ")[2],
    )


def long_run(toy: bool) -> Experiment:
    """Four models whose training is saved after every dispatch."""
    return experiment_of(toy, 4, epochs=3, checkpoint_minutes=0.0, width=1, group=4)


def train_here(run: str, toy: str) -> None:
    """What the process that is killed does."""
    ensemble.set_up("0/1")
    with jax.default_matmul_precision("highest"):
        training.train(long_run(toy == "True"), Path(run), jax.devices()[:1])


def killed_and_continued(task: Task) -> None:
    """A run that was killed and goes on ends as one that was not disturbed."""
    experiment, killed, whole = long_run(task.toy), *(task.scratch / n for n in ("killed", "whole"))
    code = "import sys; from benchmarks.parts.right import train_here; train_here(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(killed), str(task.toy)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and not checkpoints.saved_groups(killed):
            if task.left < 3:
                raise TimeoutError("no checkpoint in time")
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"ended by itself, with {process.returncode}: {said.strip()[-200:]}")
    steps = [group.step for group in checkpoints.saved_groups(killed)]
    data = candidates(experiment)
    if max(steps) >= experiment.train.total_steps(int(data.keep[0].sum())):
        raise RuntimeError("was done before it was killed")
    with jax.default_matmul_precision("highest"):
        training.train(experiment, whole, jax.devices()[:1])
        training.train(experiment, killed, jax.devices()[:1])
    pairs = [
        [np.load(path, allow_pickle=False) for path in sorted((run / "checkpoints").glob("*.npz"))]
        for run in (killed, whole)
    ]
    largest = max(
        float(np.abs(ours[name].astype(np.float64) - theirs[name]).max())
        for ours, theirs in zip(*pairs, strict=True)
        for name in ours.files
    )
    compare(
        task, "weights, killed and continued against undisturbed", largest, CONTINUED,
        killed_at_step=max(steps), bitwise=largest == 0,
    )  # fmt: skip


def same_answers(task: Task) -> None:
    """Scores, labels and predictions of one run by either."""
    experiment, trained_run = long_run(task.toy), task.scratch / "whole"
    training.train(experiment, trained_run, jax.devices()[:1])  # unless it is there
    runs = {}
    for name, device in (("card", jax.devices()[0]), ("cpu", jax.devices("cpu")[0])):
        runs[name] = task.scratch / f"answers_{name}"
        shutil.copytree(trained_run, runs[name])
        with jax.default_matmul_precision("highest"):
            scoring.score(experiment, runs[name], [device])
            asking.query(experiment, runs[name], [device])
            trust_scoring.score(experiment, runs[name], [device])
    for path in sorted(runs["card"].rglob("*.npy")):
        name = str(path.relative_to(runs["card"]))
        if name in ("keep.npy", "labels.npy") or name.endswith("_samples.npy"):
            continue
        ours, theirs = np.load(path), np.load(runs["cpu"] / name)
        if np.issubdtype(ours.dtype, np.floating) and "label_only" not in name:
            compare(task, f"{name}, largest difference", np.abs(ours - theirs).max(), SCORES)
        else:
            # Answers are labels, shares of them and distances found by them: one label that
            # rounding turns moves what is asked next.
            differ = float(np.mean(~np.isclose(ours, theirs, rtol=1e-3, atol=1e-6)))
            compare(task, f"{name}, share that differs", differ, LABELS, answers=ours.size)


@contextlib.contextmanager
def _tests(task: Task) -> Iterator[Callable[[], None]]:
    """Run the tests that make sense on an accelerator, and record what they said."""
    if importlib.util.find_spec("pytest") is None:
        task.record("tests", left_out="pytest is not installed")
        yield lambda: None
        return
    command = [sys.executable, "-m", "pytest", "-m", "accelerator", "-vv", "--tb=line", "-p"]
    command += ["no:cacheprovider", "--continue-on-collection-errors"]
    command += ["tests/data/test_views.py"] if task.toy else ["tests"]
    cores = len(os.sched_getaffinity(0))
    if not task.toy and cores >= 4 and importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, cores // 2))]  # they compile most of the time
    process = subprocess.Popen(command, cwd=ROOT)  # prints into log.txt, as this part does

    def finish() -> None:
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(max(1.0, task.left))
        process.kill()
        process.wait()
        time.sleep(0.5)  # until the last lines are in the log
        results.record_tests(task.out, task.part, code)

    try:
        yield finish
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
