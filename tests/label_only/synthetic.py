"""What live models might have answered, with a leak of any size, and a run directory of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from lira_jax import config, config_file, storage
from lira_jax.data.membership import blocked_masks
from lira_jax.label_only.answers import FOLDER, Answers, LabelAnswers
from lira_jax.score_set import ScoreSet, logit_scaled

CHECKPOINTS = [100, 400, 1000]
SETTINGS = {
    "correct": {},
    "rotation": {"rotations": [2.0, 6.0]},
    "translation": {"translations": [1, 2]},
    "noise": {"noise": [0.02, 0.1], "copies": 20},
    "flips": {"flips": [0.01, 0.1], "copies": 20},
    "boundary": {"checkpoints": CHECKPOINTS},
    "boundary_queries": {"checkpoints": CHECKPOINTS},
    "combined": {"distance": 1, "budget": 100},
    "carlini_wagner": {"steps": 10},
    "features": {},
}


def score_set(models=10, examples=400, leak=1.0, classes=4, seed=0):
    """Logits of models whose members stand higher by `leak`, in blocks of two."""
    rng = np.random.default_rng(seed)
    keep = blocked_masks(0, models, examples, 1, 2)  # as a run of that seed has them
    labels = rng.integers(classes, size=examples).astype(np.int32)
    logits = rng.normal(size=(models, examples, classes))
    margin = rng.normal(1.0, 1.5, examples) + rng.normal(size=keep.shape) + 2 * leak * keep
    logits[:, np.arange(examples), labels] += margin
    phi = logit_scaled(logits, labels)
    return ScoreSet(
        phi[..., None].astype(np.float32), keep, 2, "runs/x", labels, logits.astype(np.float32)
    )


def answers(held, sources=(0,), targets=None, seed=0, without=()):
    """Answers whose distances follow φ of the models, beside noise."""
    rng = np.random.default_rng(seed)
    if targets is None:
        targets = tuple(n for n in range(len(held.keep)) if n // 2 not in {s // 2 for s in sources})
    models = [*sources, *targets]
    phi = held.scores[models, :, 0].astype(np.float64)
    keep, logits = held.keep[models], held.logits[models]
    right = logits.argmax(axis=2) == held.labels

    def distances(*shape, error):
        noise = np.exp(error * rng.normal(size=(*phi.shape, *shape)))
        reach = np.expand_dims(np.logaddexp(0, phi), tuple(range(2, 2 + len(shape)))) * noise
        return np.where(np.expand_dims(right, tuple(range(2, 2 + len(shape)))), reach, 0) / 10

    def bits(strength):
        return phi + strength * rng.normal(size=phi.shape) > 0.5

    def share(strength):
        return np.mean([bits(strength) for _ in range(20)], axis=0)

    views = {
        "rotation": [1, 1, 3, 3],
        "translation": [1] * 4 + [3] * 8,
    }
    values = {
        "correct": right,
        **{
            name: np.stack([right, *(bits(s) for s in strengths)], axis=2)
            for name, strengths in views.items()
        },
        "noise": np.stack([share(1.0), share(4.0)], axis=2),
        "flips": np.stack([share(1.0), share(4.0)], axis=2),
        "boundary": np.stack([distances(error=e) for e in (2.0, 0.5, 0.1)], axis=2),
        "boundary_queries": np.full(phi.shape, 990.0),
        "combined": distances(5, error=0.3),
        "carlini_wagner": distances(error=0.0),
        "features": rng.normal(size=(len(sources), phi.shape[1], 8)),
    }
    examples = phi.shape[1]
    return LabelAnswers(
        origin="runs/x/label_only",
        models=tuple(models),
        sources=len(sources),
        block=2,
        keep=keep,
        labels=held.labels,
        scores=held.scores[models, :, 0],
        logits=logits,
        answers={
            name: Answers(value.astype(np.float32), SETTINGS[name] | {"examples": examples})
            for name, value in values.items()
            if name not in without
        },
    )


def write_answers(run, given):
    """The files of `score.py --label-only`."""
    folder = run / FOLDER
    names = {"sources": given.models[: given.sources], "targets": given.models[given.sources :]}
    storage.write_text(folder / "models.json", json.dumps(names))
    for name, one in given.answers.items():
        storage.write_array(folder / f"{name}.npy", np.moveaxis(one.values, 0, 1).copy())
        if name != "boundary_queries":
            storage.write_text(folder / f"{name}.json", json.dumps(dict(one.settings)))


def write_run(run, held):
    """A scored run."""
    train = config.TrainConfig(models=len(held.keep))
    experiment = dataclasses.replace(
        config.Experiment(), train=train, score=config.ScoreConfig(views=1)
    )
    storage.write_text(
        run / "config.toml", config_file.to_toml(experiment, {"data_digest": "0" * 16})
    )
    for name, array in (
        ("keep", held.keep), ("labels", held.labels), ("scores", held.scores),
        ("logits", held.logits),
    ):  # fmt: skip
        storage.write_array(run / f"{name}.npy", array)
