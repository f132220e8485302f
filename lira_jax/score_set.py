"""Scores and membership masks as the attack stage takes them, from a run or made elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from lira_jax.array_files import read_npz as read_named
from lira_jax.errors import InputError

# The arrays of a score set, and the axis of examples in each.
_EXAMPLES = {
    "scores": 1, "keep": 1, "labels": 0, "logits": 1, "merlin": 1, "gradient_norm": 1, "canary": 0,
}  # fmt: skip

# Beyond it sums of squares over models leave float32's range; honest scores stay far below.
LARGEST = 1e18
# Examples that were not inserted, of which an attack's figures are.
FEWEST_NATURAL = 10


@dataclass(frozen=True)
class ScoreSet:
    """The scores of every model on every example, and who trained on what.

    Attributes:
        scores: φ, float [N, E, Q]; may be a memory map.
        keep: True where example e was in model n's training set, bool [N, E].
        block: models per block; None recognises blocks from `keep`.
        source: where the arrays came from, for messages.
        labels: true labels, int [E].
        logits: logits under the identity view, float [N, E, K].
        merlin: share of noisy copies of the example with greater loss than it, in [0, 1], [N, E].
        gradient_norm: norm of the loss's gradient by the weights, float [N, E].
        canary: True where the example was inserted to be memorised, bool [E].
    """

    scores: Float[np.ndarray, "N E Q"]
    keep: Bool[np.ndarray, "N E"]
    block: int | None
    source: str
    labels: Int[np.ndarray, " E"] | None = None
    logits: Float[np.ndarray, "N E K"] | None = None
    merlin: Float[np.ndarray, "N E"] | None = None
    gradient_norm: Float[np.ndarray, "N E"] | None = None
    canary: Bool[np.ndarray, " E"] | None = None


def logit_scaled(
    logits: Float[np.ndarray, "*M E K"], labels: Int[np.ndarray, " E"]
) -> Float[np.ndarray, "*M E"]:
    """φ = log(p_y / (1 − p_y)) = z_y − logsumexp_{k≠y} z_k (LiRA, section V-A), float64.

    From logits, as confidences near 1 lose what tells members apart. Log-probabilities will do too:
    φ does not change if a constant is added to all classes' logits.

    Examples:
        >>> logit_scaled(np.log([[0.9, 0.1], [0.5, 0.5]]), np.array([0, 1])).round(4).tolist()
        [2.1972, 0.0]

    Args:
        logits: of any number of models.
        labels: the true classes, 0 … K − 1.
    """
    is_label = np.arange(logits.shape[-1]) == np.asarray(labels)[:, np.newaxis]
    exact = np.asarray(logits, np.float64)
    return exact[..., is_label] - logsumexp(np.where(is_label, -np.inf, exact), axis=-1)


def of_examples(score_set: ScoreSet, chosen: Bool[np.ndarray, " E"]) -> ScoreSet:
    """The chosen examples alone; if they are the first ones, as views of the same memory."""
    count = int(chosen.sum())
    index: slice | np.ndarray = slice(count) if chosen[:count].all() else np.flatnonzero(chosen)
    return _changed(score_set, lambda array, axis: array[index] if axis == 0 else array[:, index])


def read_only(score_set: ScoreSet) -> ScoreSet:
    """The same arrays, as views that cannot be written to."""

    def view(array: np.ndarray, axis: int) -> np.ndarray:
        array = array.view()
        array.flags.writeable = False
        return array

    return _changed(score_set, view)


def _changed(score_set: ScoreSet, change: Callable[[np.ndarray, int], np.ndarray]) -> ScoreSet:
    """With each array that there is replaced, given it and its axis of examples."""
    arrays = {name: getattr(score_set, name) for name in _EXAMPLES}
    changed: dict[str, Any] = {
        name: None if array is None else change(array, _EXAMPLES[name])
        for name, array in arrays.items()
    }
    return dataclasses.replace(score_set, **changed)


def read_npz(path: Path) -> ScoreSet:
    """Read scores made elsewhere; `check` has yet to look at their values.

    The file holds `scores` [N, E] or [N, E, Q], of 16, 32 or 64 bits, and `keep` [N, E] (bool or
    0/1), and may hold `labels` [E], `logits` [N, E, K], `merlin` [N, E], `gradient_norm` [N, E],
    `canary` [E] (bool or 0/1) and `block` (an integer).

    Raises:
        InputError: no such file, not a readable `.npz`, an array missing, pickled or of the wrong
            shape or type.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; give an .npz file with `scores` and `keep`")
    arrays = read_arrays(path)
    for name in ("scores", "keep"):
        if name not in arrays:
            names = ", ".join(sorted(arrays)) or "nothing"
            raise InputError(f"{path}: no array `{name}` (the file holds {names}); add it")
    block = _as_block(arrays.pop("block"), str(path)) if "block" in arrays else None
    for name in ("keep", "canary"):
        if name in arrays:
            arrays[name] = as_mask(arrays[name], name, str(path))
    if arrays["scores"].ndim == 2:
        arrays["scores"] = arrays["scores"][..., np.newaxis]
    return ScoreSet(block=block, source=str(path), **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz that have a name in ScoreSet; others are passed over.

    Raises:
        InputError: see `array_files.read_npz`.
    """
    return read_named(path, (*_EXAMPLES, "block"), "save it by np.savez(FILE, scores=…, keep=…)")


def as_mask(mask: np.ndarray, name: str, source: str) -> np.ndarray:
    """0/1 integers as bool; other types pass, for `check` to refuse.

    Raises:
        InputError: an integer, or the byte of a bool, other than 0 and 1.
    """
    if mask.dtype.kind not in "biu":
        return mask
    mask = mask.view(np.uint8) if mask.dtype == np.bool_ else mask
    wrong = (mask != 0) & (mask != 1)
    if wrong.any():
        where = np.argwhere(wrong)[0]
        yes = "trained on" if name == "keep" else "inserted"
        raise InputError(
            f"{source}: `{name}` is {mask[tuple(where)]} at {_place(where, mask.ndim)}; "
            f"use 1 ({yes}) and 0 (not)"
        )
    return mask.astype(bool)


def _as_block(block: np.ndarray, source: str) -> int:
    if block.shape != () or block.dtype.kind not in "iu":
        raise InputError(
            f"{source}: `block` is {block.dtype} of shape {block.shape}; "
            "give one integer, the models per block"
        )
    return int(block)


def check(score_set: ScoreSet, queries: int = 0) -> ScoreSet:
    """Refuse arrays that no attack could use; return the score set unchanged.

    Whether the masks give every target its references depends on the protocol, so that is checked
    where references are chosen (`attacks/references.py`).

    Args:
        score_set: to look at.
        queries: views that are to be used (`attack.queries`); 0: all there are.

    Raises:
        InputError: wrong dimensions, shapes that do not fit each other, a wrong type, more views
            asked for than there are, a score or logit that is NaN or beyond LARGEST, a model with
            all or no examples, a label outside the classes, fewer than FEWEST_NATURAL examples
            beside the canaries, a Merlin share outside [0, 1], a gradient norm that is negative or
            beyond LARGEST.
    """
    source, scores, keep = score_set.source, score_set.scores, score_set.keep
    if scores.ndim != 3:
        raise InputError(
            f"{source}: `scores` has shape {scores.shape}; "
            "must be [models, examples] or [models, examples, views]"
        )
    refuse_other_numbers(scores, "scores", source)
    if keep.dtype != np.bool_:
        raise InputError(f"{source}: `keep` is {keep.dtype}; save booleans")
    models, examples, views = scores.shape
    if keep.shape != (models, examples):
        raise InputError(
            f"{source}: `keep` has shape {keep.shape}, `scores` {scores.shape}; "
            f"`keep` must be ({models}, {examples})"
        )
    if models < 2 or examples < 2 or views < 1:
        raise InputError(
            f"{source}: `scores` has shape {scores.shape}; "
            "give at least 2 models, 2 examples and 1 view"
        )
    if queries > views:
        raise InputError(
            f"attack.queries = {queries}: {source} holds {views} views; "
            f"give at most {views}, or 0 for all"
        )
    _check_labels(score_set)
    _check_optional(score_set)
    members = keep.sum(axis=1)
    for count, word in ((examples, "member"), (0, "non-member")):
        if (members == count).any():
            model = int(np.argmax(members == count))
            raise InputError(
                f"{source}: in `keep` every example is a {word} of model {model}; "
                "remove that model or mend its row"
            )
    _check_finite(score_set)
    return score_set


def _check_labels(score_set: ScoreSet) -> None:
    source, labels, logits = score_set.source, score_set.labels, score_set.logits
    models, examples, _ = score_set.scores.shape
    classes = None
    if logits is not None:
        if logits.ndim != 3 or logits.shape[:2] != (models, examples) or logits.shape[2] < 2:
            raise InputError(
                f"{source}: `logits` has shape {logits.shape}; "
                f"must be ({models}, {examples}, classes), with at least 2 classes"
            )
        refuse_other_numbers(logits, "logits", source)
        classes = logits.shape[2]
    if labels is None:
        return
    if labels.shape != (examples,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{source}: `labels` is {labels.dtype} of shape {labels.shape}; "
            f"must be integers of shape ({examples},)"
        )
    wrong = (labels < 0) | (labels >= (2**31 if classes is None else classes))
    if wrong.any():
        example = int(np.argmax(wrong))
        allowed = "0 or above, and below 2³¹" if classes is None else f"0 … {classes - 1}"
        raise InputError(
            f"{source}: `labels` is {labels[example]} at example {example}; must be {allowed}"
        )


def first_unusable(scores: Float[np.ndarray, "E Q"]) -> tuple[int, int] | None:
    """Example and view (or class) of a model's first score (or logit) that no attack could use."""
    # NaN fails the comparison too.
    unusable = np.argwhere(~(np.abs(scores.astype(np.float64)) <= LARGEST))
    return (int(unusable[0, 0]), int(unusable[0, 1])) if len(unusable) else None


def refuse_other_numbers(array: np.ndarray, name: str, source: str) -> None:
    """Refuse what is not of a floating-point type that every machine has.

    Raises:
        InputError: integers, complex numbers, dates, …, or more than 64 bits a number.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise InputError(
            f"{source}: `{name}` is {array.dtype}; save floating-point numbers of 16, 32 or 64 bits"
        )


def _check_finite(score_set: ScoreSet) -> None:
    # One model at a time: scores and logits may be large memory maps.
    for model, row in enumerate(score_set.scores):
        if place := first_unusable(np.asarray(row)):
            raise InputError(
                f"{score_set.source}: `scores` is {row[place]} at model {model}, "
                f"example {place[0]}, view {place[1]}; "
                f"every score must be finite, and at most {LARGEST:g} in size: compute φ from "
                "logits, or remove that model or example"
            )
    if score_set.logits is not None:
        for model, logits in enumerate(score_set.logits):
            if place := first_unusable(np.asarray(logits)):
                raise InputError(
                    f"{score_set.source}: `logits` is {logits[place]} at model {model}, "
                    f"example {place[0]}, class {place[1]}; every logit must be finite, and at "
                    f"most {LARGEST:g} in size: give a probability of 0 a floor before its "
                    "logarithm is taken"
                )


def _check_optional(score_set: ScoreSet) -> None:
    source, (models, examples, _) = score_set.source, score_set.scores.shape
    canary = score_set.canary
    if canary is not None:
        if canary.shape != (examples,) or canary.dtype != np.bool_:
            raise InputError(
                f"{source}: `canary` is {canary.dtype} of shape {canary.shape}; "
                f"must be booleans of shape ({examples},)"
            )
        if canary.all():
            raise InputError(f"{source}: in `canary` every example is one; leave `canary` out")
        if canary.any() and (natural := int((~canary).sum())) < FEWEST_NATURAL:
            raise InputError(
                f"{source}: `canary` leaves {natural} examples that were not inserted; give at "
                f"least {FEWEST_NATURAL}, or leave `canary` out"
            )
    ranges = {
        "merlin": (1.0, "a share in [0, 1]"),
        "gradient_norm": (LARGEST, f"0 or above, and at most {LARGEST:g}"),
    }
    for name, (most, words) in ranges.items():
        array = getattr(score_set, name)
        if array is None:
            continue
        refuse_other_numbers(array, name, source)
        if array.shape != (models, examples):
            raise InputError(
                f"{source}: `{name}` has shape {array.shape}; must be ({models}, {examples})"
            )
        usable = np.isfinite(array) & (array >= 0) & (array <= np.float64(most))
        if not usable.all():
            where = np.argwhere(~usable)[0]
            raise InputError(
                f"{source}: `{name}` is {array[tuple(where)]} at {_place(where)}; must be {words}"
            )


def _place(index: np.ndarray, dimensions: int = 2) -> str:
    names = ("model", "example")[-dimensions:]
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False)) or "its value"
