"""The scores of a run: which arrays score.py makes, and how the attack stage reads them. No JAX."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lira_jax.config import Experiment, keep_fraction
from lira_jax.errors import InputError
from lira_jax.run.parts import Product, parts_of, read_rows, recorded
from lira_jax.run.run_dir import as_ranges, canary_mask, read_config, read_membership
from lira_jax.run.storage import array_shape, read_array
from lira_jax.score_set import ScoreSet

SCORES = "scores.npy"
LOGITS = "logits.npy"
SCORE_PARTS = "score_parts"


def phi(queries: int, classes: int, memguard: bool = False) -> Product:
    """scores.npy [N, E, Q] and logits.npy [N, E, K]; scores.json where MemGuard served them."""
    return Product(
        {"scores": (queries,), "logits": (classes,)},
        SCORE_PARTS,
        f"score.py{' --score.memguard True' * memguard}",
        {"score.memguard": memguard},
        usual={"score.memguard": False},
    )


def merlin(noisy_queries: int, noise: float) -> Product:
    """merlin.npy [N, E]."""
    settings = {"score.noisy_queries": noisy_queries, "score.noise": noise}
    command = " ".join(["score.py", *(f"--{name} {value}" for name, value in settings.items())])
    return Product({"merlin": ()}, "merlin_parts", command, settings)


def gradient_norm() -> Product:
    """gradient_norm.npy [N, E]."""
    command = "score.py --score.gradient_norm True"
    return Product({"gradient_norm": ()}, "gradient_norm_parts", command, usual={})


def as_scored(run: Path, experiment: Experiment) -> Experiment:
    """The experiment of a run, its [score] as the files of its scores tell.

    Flags of score.py may have made them with other settings than those of config.toml.

    Raises:
        InputError: a damaged record.
    """
    if not (run / SCORES).is_file():
        return experiment
    settings: dict[str, Any] = {
        "score.views": array_shape(run / SCORES)[2],
        "score.noisy_queries": 0,
        "score.gradient_norm": _is_whole(run, "gradient_norm", experiment),
        **(recorded(run, phi(0, 0)) or {}),
    }
    if _is_whole(run, "merlin", experiment):
        settings |= recorded(run, merlin(0, 0)) or {}
    changes = {name.removeprefix("score."): value for name, value in settings.items()}
    return dataclasses.replace(experiment, score=dataclasses.replace(experiment.score, **changes))


def _is_whole(run: Path, name: str, experiment: Experiment) -> bool:
    """Whether an array that not every run has is there for all models."""
    path = run / f"{name}.npy"
    return path.is_file() and array_shape(path)[0] == experiment.train.models


def read_score_set(run: Path) -> ScoreSet:
    """All scores of a run, memory-mapped, for the attack stage.

    Noisy queries and gradient norms are there if every model has them.

    Raises:
        InputError: no run, or scores that are missing, incomplete, damaged or foreign.
    """
    experiment = read_config(run)
    keep, labels = read_membership(run, experiment)
    models, examples = keep.shape
    remedy = f"run python score.py --run {shlex.quote(str(run))}"
    in_parts = {
        n
        for guarded in (False, True)
        for first, last in parts_of(run, phi(0, 0, guarded))
        for n in range(first, last + 1)
    }
    whole = 0
    if (run / SCORES).is_file() or not in_parts:
        scores = read_array(run / SCORES, np.float32, (None, examples, None), remedy)
        logits = read_array(run / LOGITS, np.float32, (None, examples, None), remedy)
        whole = min(len(scores), len(logits))
        if scores.shape[2] != experiment.score.views:
            remedy += f" --score.views {scores.shape[2]}"
        guarded = bool((recorded(run, phi(0, 0)) or {}).get("score.memguard"))
        if guarded != experiment.score.memguard:
            remedy += f" --score.memguard {guarded}"
        for other in ("merlin.npy", "trust"):
            if guarded and (run / other).exists():
                raise InputError(
                    f"{run / other}: made without score.memguard, with which the scores beside it "
                    "were made; delete it"
                )
    if whole < models:
        missing = sorted(set(range(whole, models)) - in_parts)
        reason = f"model{'s' * (len(missing) > 1)} {as_ranges(missing)} of {models} not scored yet"
        if not missing:
            reason = "all models are scored, but not in one file yet"
        raise InputError(f"{run / SCORES}: {reason}; {remedy}")
    if whole > models:
        raise InputError(f"{run / SCORES}: holds {whole} models, the run {models}; delete it")
    _, block = keep_fraction(experiment.train.keep)

    def optional(name: str, option: str) -> Float32[np.ndarray, "N E"] | None:
        command = f"score.py --score.{option}"
        again = f"run {command} again, or give {command} --repair True"
        return read_rows(run / f"{name}.npy", (examples,), models, again)

    return ScoreSet(
        scores,
        keep,
        block,
        str(run / SCORES),
        labels,
        logits,
        merlin=optional("merlin", "noisy_queries T"),
        gradient_norm=optional("gradient_norm", "gradient_norm True"),
        canary=canary_mask(experiment, examples) if experiment.data.canaries else None,
    )
