"""The scores of a run: which arrays score.py makes, and how the attack stage reads them. No JAX."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from lira_jax.config import Experiment, keep_fraction
from lira_jax.data import membership
from lira_jax.errors import InputError
from lira_jax.progress import say
from lira_jax.run.parts import Product, parts_of, read_rows, recorded
from lira_jax.run.run_dir import (
    CONFIG,
    KEEP,
    LABELS,
    as_ranges,
    canary_mask,
    identity,
    read_config,
    read_membership,
    unbound,
)
from lira_jax.score_set import ScoreSet, logit_scaled
from lira_jax.storage import array_shape, read_array, says_of

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


# Whose settings are those that their records tell.
_PHI, _MERLIN, _NORM = phi(0, 0), merlin(100, 0.02), gradient_norm()


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
        **_settings(run, _PHI),
    }
    if _is_whole(run, "merlin", experiment):
        settings |= _settings(run, _MERLIN)
    changes = {name.removeprefix("score."): value for name, value in settings.items()}
    return dataclasses.replace(experiment, score=dataclasses.replace(experiment.score, **changes))


def _settings(run: Path, product: Product) -> dict[str, Any]:
    """The settings that the record of a product tells; none where there is no record.

    Raises:
        InputError: a record of something else.
    """
    settings = dict(recorded(run, product) or {})
    kinds = {key: type(value) for key, value in product.settings.items()}
    if settings and {key: type(value) for key, value in settings.items()} != kinds:
        raise InputError(
            f"{run / product.record}: not the record of {product.name}.npy; delete it with that "
            f"file and run {product.command} again"
        )
    return settings


def scored_with(run: Path) -> list[str]:
    """The versions that computed a run's scores, as far as their file tells.

    Raises:
        InputError: a foreign file.
    """
    says = says_of(run / SCORES) if (run / SCORES).exists() else None
    return [str(text) for text in (says or {}).get("made_with", ())]


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
        for n in range(first, min(last + 1, models))
    }
    own = {"run": identity(run)}
    whole = 0
    if (run / SCORES).exists() or not in_parts:
        product = dataclasses.replace(_PHI, binding=own, settings=_settings(run, _PHI))
        scores, logits = (
            read_array(
                run / f"{name}.npy", np.float32, (None, examples, None), remedy, product.about(name)
            )
            for name in product.arrays
        )
        whole = min(len(scores), len(logits))
        if scores.shape[2] != experiment.score.views:
            remedy += f" --score.views {scores.shape[2]}"
        guarded = bool(product.settings.get("score.memguard"))
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
    scores, logits = scores[:whole], logits[:whole]  # scoring more was cut short between the two
    _, block = keep_fraction(experiment.train.keep)

    def optional(product: Product) -> Float32[np.ndarray, "N E"] | None:
        path, settings = run / product.files[0], _settings(run, product)
        if product is _MERLIN and settings:
            product = merlin(**{key.removeprefix("score."): v for key, v in settings.items()})
        product = dataclasses.replace(product, binding=own)
        return read_rows(path, (examples,), models, product.remedy, product)

    _check_masks(run, experiment, keep)
    _check_phi(run, scores, logits, labels)
    if old := unbound(run, "", "label_only", "trust"):
        say(
            f"{run}: written by an earlier version, so that it does not say which run it belongs "
            f"to: {old}; masks are held against the seed, and scores against logits and labels, "
            "but nothing tells of the rest",
            "stderr",
        )
    return ScoreSet(
        scores,
        keep,
        block,
        str(run / SCORES),
        labels,
        logits,
        merlin=optional(_MERLIN),
        gradient_norm=optional(_NORM),
        canary=canary_mask(experiment, examples) if experiment.data.canaries else None,
    )


def _check_masks(run: Path, experiment: Experiment, keep: Bool[np.ndarray, "N E"]) -> None:
    """Refuse masks other than those that the run's seed draws."""
    kept_folds, block = keep_fraction(experiment.train.keep)
    models, examples = keep.shape
    drawn = membership.blocked_masks(experiment.seed, models, examples, kept_folds, block)
    if not np.array_equal(keep, drawn):
        raise InputError(
            f"{run / KEEP}: masks are not those of this run's seed, or {CONFIG} is another run's; "
            f"put the right one back, or delete {KEEP} and run train.py again"
        )


# Examples whose φ is held against logits and labels: enough to tell files of different runs apart.
_HELD = 2_000


def _check_phi(
    run: Path,
    scores: Float32[np.ndarray, "N E Q"],
    logits: Float32[np.ndarray, "N E K"],
    labels: Int32[np.ndarray, "E"],
) -> None:
    """Refuse scores that are not φ of the logits and labels beside them, on some examples."""
    if 0 in scores.shape:
        raise InputError(
            f"{run / SCORES}: holds {list(scores.shape)}, no scores; delete it and run score.py "
            "again"
        )
    chosen = np.arange(0, len(labels), -(-len(labels) // _HELD))
    some = np.asarray(logits[:, chosen], np.float64)
    if labels.min() < 0 or labels.max() >= logits.shape[2]:
        raise InputError(
            f"{run / LABELS}: labels up to {labels.max()}, and {LOGITS} are of {logits.shape[2]} "
            "classes; put the right file back"
        )
    off = np.abs(scores[:, chosen, 0] - logit_scaled(some, labels[chosen]))
    # Both are rounded to float32, φ from logits of which the largest loses most.
    allowed = 1e-3 + 1e-4 * np.abs(some).max(axis=-1)
    bad = np.argwhere(off > allowed)  # what is not finite is refused with all other values
    if len(bad):
        model, example = int(bad[0][0]), int(chosen[bad[0][1]])
        raise InputError(
            f"{run}: {SCORES} is not what {LOGITS} and {LABELS} give, first at model {model}, "
            f"example {example}: one of them is another run's; put it back, or delete {SCORES} and "
            f"{LOGITS} and run score.py again"
        )
