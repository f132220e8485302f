"""The whole experiment: shadow models, scores, attack, as many models as the time allows."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.parts import results
from benchmarks.parts.good import of_data
from benchmarks.parts.results import Task
from benchmarks.parts.timing import Clock, in_best_way, stopped_at
from benchmarks.recipes import recipe
from lira_jax import attacking, ensemble, evaluation, scoring, training
from lira_jax.analysis import analyse
from lira_jax.config import Experiment
from lira_jax.interrupts import Stopped
from lira_jax.run import run_dir, score_files
from lira_jax.run.shards import Shard

MODELS = 256
# Of the part's time, so much is kept for the attack.
ATTACK = 0.35
# Of the rest, so much is planned with: machines have moods.
PRUDENCE = 0.9
# float16 values of a file: with masks, which compress well, less than 16 MB.
SAVED_VALUES = 6_400_000
# Files of the attack that come back.
KEPT = ("metrics.json", "table.*", "ablation.*", "roc.npz", "report.html", "figures/*.png")
# How large they may be together, but for what compression gains.
LARGEST = 11_000_000


def run(task: Task) -> None:
    """Train and score few models, then as many as will fit, and attack them all."""
    ensemble.set_up("0/1")
    reserve = ATTACK * task.left
    experiment, _ = recipe("speed_net", "bfloat16", 16 if task.toy else 0, task.toy)
    group = 2 if task.toy else 16
    first, most = (4, 6) if task.toy else (32, MODELS)
    changes: dict[str, Any] = {"group": group, "models": first}
    changes |= {"eval_examples": 50, "epochs": 1, "shift": 1} if task.toy else {}
    train = dataclasses.replace(experiment.train, **changes)
    score = dataclasses.replace(experiment.score, views=2 if task.toy else 18)
    experiment = of_data(dataclasses.replace(experiment, train=train, score=score), task)
    experiment = in_best_way(results.read(task.out), experiment)
    folder, spent = task.scratch / "headline", {"train": 0.0, "score": 0.0}
    devices = jax.devices()[:1]

    def stage(name: str, experiment: Experiment, shard: Shard = Shard()) -> float | None:
        """Seconds of a stage; None if the time was over first."""
        function = {"train": training.train, "score": scoring.score}[name]
        models = experiment.train.models
        try:
            with Clock() as clock, stopped_at(task.deadline):
                function(experiment, folder, devices, shard)
        except Stopped:
            task.record("left out", stage=name, models=models)
            return None
        spent[name] += clock.seconds
        task.record("stage", stage=name, models=models, shard=str(shard), seconds=spent[name])
        return clock.seconds

    # The first group of each stage bears the compilation; what a further model costs is read from
    # the second.
    if stage("train", experiment) is None or stage("score", experiment, Shard(0, 2)) is None:
        return
    warm = stage("score", experiment, Shard(1, 2))
    if warm is None:
        return
    log = run_dir.read_log(folder)
    epochs = [line["seconds"] for line in log if line["models"][0] >= group]
    each = float(np.mean(epochs)) * train.epochs / group + warm / (first / 2)
    fitting = PRUDENCE * (task.left - reserve) / each
    models = first + max(0, min(most - first, int(fitting) // group * group))
    task.record(
        "plan", models=models, of=most, seconds_per_model=each, seconds_left=round(task.left, 1),
        seconds_for_the_attack=round(reserve, 1),
    )  # fmt: skip
    if models > first:
        train = dataclasses.replace(experiment.train, models=models)
        whole = dataclasses.replace(experiment, train=train)
        if stage("train", whole) is None or stage("score", whole) is None:
            return
        experiment = whole
    _attack(task, experiment, folder, spent)


def _attack(task: Task, experiment: Experiment, folder: Path, spent: dict[str, float]) -> None:
    """Attack the run and record what came of all."""
    score_set = score_files.read_score_set(folder)
    _save_scores(task.out, score_set.scores, score_set.keep)
    with Clock() as clock:
        metrics = attacking.attack(
            score_set,
            experiment.attack,
            "leave-block-out",
            folder / "attack",
            progress=False,
            about=analyse.about_run(folder, experiment),
        )
    spent["attack"] = clock.seconds
    left_out = _pack(folder / "attack", task.out / "attack.zip")
    if left_out:
        task.record("left out", too_large=left_out)
    log = run_dir.read_log(folder)[-1]
    correct = np.argmax(np.asarray(score_set.logits), axis=2) == score_set.labels
    task.record(
        "result",
        models=len(score_set.keep),
        examples=score_set.keep.shape[1],
        views=score_set.scores.shape[2],
        width=log["width"],
        gradients=log["conv_gradients"],
        seconds=round(sum(spent.values()), 1),
        stages={stage: round(seconds, 1) for stage, seconds in spent.items()},
        member_accuracy=float(correct[score_set.keep].mean()),
        nonmember_accuracy=float(correct[~score_set.keep].mean()),
        attacks=[
            {
                "name": one["name"],
                "auc": one["auc"],
                "auc_ci": one["auc_ci"],
                **{key: one["tpr_at_fpr"][key] for key in evaluation.FPRS},
                "ci": one["tpr_at_fpr_ci"],
            }
            for one in metrics["attacks"]
        ],
    )


def _save_scores(out: Path, scores: np.ndarray, keep: np.ndarray) -> None:
    """float16 scores [N, E, 2] of the first two views and masks, in files that attack.py can read
    one by one or, put together by `np.concatenate`, as a whole."""
    views = min(2, scores.shape[2])
    each = max(2, SAVED_VALUES // (scores.shape[1] * views) // 2 * 2)  # whole blocks of two
    for path in out.glob("scores_*.npz"):
        path.unlink()
    for number, start in enumerate(range(0, len(scores), each)):
        part = slice(start, start + each)
        np.savez_compressed(
            out / f"scores_{number}.npz",
            scores=np.asarray(scores[part, :, :views], np.float16),
            keep=keep[part],
        )


def _pack(folder: Path, target: Path) -> list[str]:
    """Tables, figures and report in one file, small ones first; returns what is too large."""
    packed, left_out = io.BytesIO(), []
    paths = [path for name in KEPT for path in folder.glob(name)]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(paths, key=lambda path: path.stat().st_size):
            if packed.tell() + path.stat().st_size < LARGEST:
                archive.write(path, path.relative_to(folder))
            else:
                left_out.append(str(path.relative_to(folder)))
    target.write_bytes(packed.getvalue())
    return left_out
