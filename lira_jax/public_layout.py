"""Run folders in the layout of the public LiRA code, read as they are.

That code (TensorFlow Privacy, `research/mi_lira_2021`) trains into

| file                          | what                          |
|-------------------------------|-------------------------------|
| `y_train.npy`                 | labels, E or more             |
| `experiment-i_N/keep.npy`     | mask of model i, E or more    |
| `experiment-i_N/scores/*.npy` | φ of an epoch, [E, Q]         |
| `experiment-i_N/logits/*.npy` | logits of it, [E, 1, Q, K]    |

and this reads the newest epoch that all experiments have. Without scores, they are computed from
logits and labels. As the files of N models cannot be mapped as one array, their scores, and their
logits under the first view, are copied once into unnamed temporary files and mapped from there
(8·N·E·Q and 4·N·E·K bytes of disk in `$TMPDIR`; next to nothing in memory). No JAX.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax.array_files import map_npy
from lira_jax.errors import InputError
from lira_jax.score_set import (
    LARGEST,
    ScoreSet,
    as_mask,
    first_unusable,
    logit_scaled,
)
from lira_jax.storage import check_folder, names

_EXPERIMENT = re.compile(r"experiment-(\d+)(?:_(\d+))?")
_EPOCH = re.compile(r"\d+\.npy")
# Examples whose scores are computed from logits at a time.
_CHUNK = 4096


def is_layout(path: Path) -> bool:
    """Whether a path is a folder that holds experiments."""
    return any(map(_EXPERIMENT.fullmatch, names(path)))


def read(path: Path) -> ScoreSet:
    """Read the models of a folder, in order of their number.

    Masks and labels that are longer than the scores are cut, as the public code does. Experiments
    that the folder lacks of the N in their names are left out; `source` says how many it has.

    Args:
        path: the folder that holds `experiment-0_N`, `experiment-1_N`, …, or those that the code
            names by seed, `experiment-SEED`.

    Returns:
        scores [N, E, Q] of the files' own type, or float32 if computed here; keep [N, E]; labels
        [E] if there are any; logits [N, E, K] under the first view if every experiment has them.

    Raises:
        InputError: no experiments, or numbers that do not fit together; one without masks or
            scores; files that are damaged, not of the shape of the others, or hold NaN or infinity;
            a full disk.
    """
    folders, source = _experiments(path)
    labels = _labels(path / "y_train.npy")
    masks = [_keep(folder / "keep.npy") for folder in folders]
    epoch, has_scores, has_logits = _newest(path, folders, labels is not None)
    logits = None
    if has_logits:
        files = [folder / "logits" / epoch for folder in folders]
        logits = _stacked((_logits(file)[:, 0] for file in files), files)
    if has_scores:
        files = [folder / "scores" / epoch for folder in folders]
        scores = _stacked((_scores(file) for file in files), files)
    else:
        assert labels is not None
        scores = _stacked((_phi(_logits(file), labels, file) for file in files), files)
    examples = scores.shape[1]
    if logits is not None and logits.shape[1] != examples:
        raise InputError(
            f"{files[0]}: holds scores of {examples} examples, its logits are of "
            f"{logits.shape[1]}; delete one of the two"
        )
    of_labels = [] if labels is None else [(path / "y_train.npy", labels)]
    of_masks = [(folder / "keep.npy", mask) for folder, mask in zip(folders, masks, strict=True)]
    for file, array in [*of_masks, *of_labels]:
        if len(array) < examples:
            raise InputError(
                f"{file}: is of {len(array)} examples, the scores are of {examples}; it must "
                "cover them all"
            )
    labels = None if labels is None else labels[:examples]
    keep = np.stack([mask[:examples] for mask in masks])
    return ScoreSet(scores, keep, None, source, labels, logits)


def _experiments(path: Path) -> tuple[list[Path], str]:
    """The experiments' folders in order of their number, and the source for messages."""
    experiments = [match for match in map(_EXPERIMENT.fullmatch, names(path)) if match]
    if not experiments:
        raise InputError(
            f"{path}: holds no experiment-0_N, experiment-1_N, …; give the folder that the public "
            "LiRA code trained into"
        )
    experiments.sort(key=lambda match: int(match[1]))
    totals = {match[2] for match in experiments}
    if len(totals) > 1:
        first = experiments[0]
        other = next(match for match in experiments if match[2] != first[2])
        raise InputError(
            f"{path}: holds {first[0]} and {other[0]}, which are of different numbers of models; "
            "move those of one number into a folder of their own"
        )
    total = experiments[0][2]
    for match, after in zip(experiments, [*experiments[1:], None], strict=True):
        if total is not None and int(match[1]) >= int(total):
            raise InputError(
                f"{path / match[0]}: experiments of {total} are numbered 0 … {int(total) - 1}; "
                "rename or remove it"
            )
        if after and int(match[1]) == int(after[1]):
            raise InputError(f"{path}: holds {match[0]} and {after[0]}; remove one of the two")
    missing = total is not None and int(total) > len(experiments)
    source = f"{path} ({len(experiments)} of {total} experiments)" if missing else str(path)
    return [path / match[0] for match in experiments], source


def _newest(path: Path, folders: list[Path], labelled: bool) -> tuple[str, bool, bool]:
    """The newest epoch's file name, and whether all experiments have its scores, its logits."""

    def epochs(kind: str) -> list[set[str]]:
        for folder in folders:
            check_folder(folder / kind, "put back what the public code wrote there, or remove it")
        return [set(filter(_EPOCH.fullmatch, names(folder / kind))) for folder in folders]

    scores, logits = epochs("scores"), epochs("logits")
    of_scores, of_logits = set.intersection(*scores), set.intersection(*logits)
    usable = of_scores or (of_logits if labelled else set())
    if usable:
        epoch = max(usable, key=lambda name: int(name.removesuffix(".npy")))
        return epoch, epoch in of_scores, epoch in of_logits
    for folder, has_scores, has_logits in zip(folders, scores, logits, strict=True):
        if not has_scores and not has_logits:
            raise InputError(f"{folder}: holds neither scores/ nor logits/ of an epoch; remove it")
        if not has_scores:
            raise InputError(
                f"{folder}: holds no scores/ of an epoch; make them by the public code's score.py, "
                f"or give all experiments logits, and labels in {path / 'y_train.npy'}"
            )
    raise InputError(
        f"{path}: no epoch has scores in every experiment; {folders[0].name} has "
        f"{', '.join(sorted(scores[0]))}: score the same epoch of all"
    )


def _open(file: Path, kinds: str, what: str) -> np.ndarray:
    """Memory-map an array whose type is of one of these kinds."""
    if not file.exists():
        raise InputError(f"{file}: no such file, or a link to none; put it there")
    array = map_npy(file, "make it again by the public code, or remove that experiment")
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise InputError(f"{file}: holds {array.dtype}; {what}")
    return array


def _labels(file: Path) -> Int[np.ndarray, "L"] | None:
    if not os.path.lexists(file):
        return None
    labels = _open(file, "iu", "labels are integers")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{file}: has shape {labels.shape}; give one label per example")
    return labels


def _keep(file: Path) -> Bool[np.ndarray, "L"]:
    keep = _open(file, "biu", "a mask holds true and false")
    if keep.ndim != 1:
        raise InputError(f"{file}: has shape {keep.shape}; a mask has one value per example")
    return np.asarray(as_mask(keep, "keep", str(file)), bool)


def _scores(file: Path) -> Float[np.ndarray, "E Q"]:
    scores = _open(file, "f", "scores are floating-point numbers")
    if scores.ndim == 3 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2:
        raise InputError(f"{file}: has shape {scores.shape}; scores are [examples, views]")
    return scores


def _logits(file: Path) -> Float[np.ndarray, "E Q K"]:
    logits = _open(file, "f", "logits are floating-point numbers")
    if logits.ndim == 4 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise InputError(
            f"{file}: has shape {logits.shape}; logits are [examples, 1, views, classes]"
        )
    if not logits.size:
        raise InputError(f"{file}: has shape {logits.shape}, and so no logits; make it again")
    return logits


def _phi(
    logits: Float[np.ndarray, "E Q K"], labels: Int[np.ndarray, "L"], file: Path
) -> Float[np.ndarray, "E Q"]:
    """φ = z_y − logsumexp_{k≠y} z_k (LiRA, section V-A)."""
    examples, classes = len(logits), logits.shape[2]
    if len(labels) < examples or labels[:examples].min() < 0 or labels[:examples].max() >= classes:
        raise InputError(
            f"{file}: logits of {examples} examples and {classes} classes do not fit the labels in "
            "y_train.npy; give it the labels of all of them, 0 … K−1"
        )
    phi = np.empty(logits.shape[:2], np.float32)
    for start in range(0, examples, _CHUNK):
        part = logits[start : start + _CHUNK]
        if where := first_unusable(part.reshape(len(part), -1)):
            raise InputError(
                f"{file}: a logit of example {start + where[0]} is not finite or beyond "
                f"{LARGEST:g}; remove that experiment or make its file again"
            )
        by_view = np.moveaxis(part, 1, 0)
        phi[start : start + _CHUNK] = logit_scaled(by_view, labels[start : start + len(part)]).T
    return phi


def _stacked(rows: Iterable[np.ndarray], files: list[Path]) -> np.ndarray:
    """Arrays of one shape and type, each from a file, as one memory map [N, …]."""
    shape, dtype = None, np.dtype(np.float32)
    try:
        with tempfile.TemporaryFile(prefix="lira_jax_") as copy:
            for row, file in zip(rows, files, strict=True):
                native = row.dtype.newbyteorder("=")
                if shape is None:
                    shape, dtype = row.shape, native
                if (row.shape, native) != (shape, dtype) or not row.size:
                    raise InputError(
                        f"{file}: {native} of shape {row.shape}, {files[0]} {dtype} of {shape}; "
                        "all must be alike, and not empty"
                    )
                if where := first_unusable(row):
                    raise InputError(
                        f"{file}: {row[where]} at example {where[0]}; every score and logit must "
                        f"be finite, and at most {LARGEST:g} in size: remove that experiment or "
                        "make its file again"
                    )
                copy.write(np.ascontiguousarray(row, dtype).data)
            copy.flush()
            assert shape is not None
            return np.memmap(copy, dtype, "r", shape=(len(files), *shape))
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: cannot hold a copy of the scores ({error.strerror}); free "
            "space there, or set TMPDIR to a folder with more"
        ) from None
