"""The run directory: every file of a run, its name, shape, dtype, atomic write and check on read.

The stages meet here and nowhere else. No JAX: the attack stage reads runs where none is installed.
"""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from lira_jax import config as configs
from lira_jax.config import Experiment, keep_fraction
from lira_jax.errors import InputError
from lira_jax.score_set import ScoreSet

CONFIG = "config.toml"
KEEP = "keep.npy"
LABELS = "labels.npy"
CHECKPOINTS = "checkpoints"
TRAIN_LOG = "train_log.jsonl"
SCORES = "scores.npy"
LOGITS = "logits.npy"
ATTACK = "attack"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: beside its place, then moved there.

    Args:
        path: where it goes; the folder is made if missing.
        write: called with a path of the same suffix to write to.

    Raises:
        InputError: the folder cannot be made, or the file not written.
    """
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); check the path and the disk"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, whole or not at all."""
    write_whole(path, lambda beside: np.save(beside, array))


def read_array(path: Path, dtype: Any, shape: Sequence[int | None], remedy: str) -> np.ndarray:
    """Memory-map an array after checking that it is what this file should hold.

    Args:
        path: the .npy file.
        dtype: expected element type.
        shape: expected shape; None accepts any length.
        remedy: what the user should do, for the message.

    Raises:
        InputError: missing, truncated or foreign file, another dtype or shape.
    """
    try:
        array = np.lib.format.open_memmap(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    # A damaged header makes NumPy raise whatever its parts do: ValueError, OverflowError, …
    except Exception as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: truncated or not a NumPy array ({reason}); delete it and {remedy}"
        ) from None
    expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    fits = array.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise InputError(
            f"{path}: holds {array.dtype} {list(array.shape)} instead of "
            f"{np.dtype(dtype)} {expected}; it is not this run's: delete it and {remedy}"
        )
    return array


def read_config(run: Path) -> Experiment:
    """The experiment of a run.

    Raises:
        InputError: the folder holds no run, or its config.toml is damaged.
    """
    if not (run / CONFIG).is_file():
        raise InputError(
            f"{run}: holds no run (no {CONFIG}); begin one with "
            f"python train.py configs/digits.toml --run {shlex.quote(str(run))}"
        )
    experiment = configs.load(run / CONFIG)
    if not isinstance(read_versions(run).get("data_digest"), str):
        raise InputError(
            f"{run / CONFIG}: truncated or foreign (no data_digest under [run]); "
            "put it back as training wrote it, or begin anew in another --run folder"
        )
    return configs.check(experiment)


def read_membership(
    run: Path, experiment: Experiment
) -> tuple[Bool[np.ndarray, "N E"], Int32[np.ndarray, "E"]]:
    """Masks and labels of a run.

    Raises:
        InputError: a file is missing, truncated, foreign or does not fit the configuration.
    """
    remedy = "run train.py again"
    keep = read_array(run / KEEP, np.bool_, (experiment.train.models, None), remedy)
    labels = read_array(run / LABELS, np.int32, (None,), remedy)
    if keep.shape[1] != len(labels):
        raise InputError(
            f"{run}: {KEEP} is of {keep.shape[1]} examples, {LABELS} of {len(labels)}; "
            f"delete both and {remedy}"
        )
    return keep, labels


def prepare(
    run: Path,
    experiment: Experiment,
    keep: Bool[np.ndarray, "N E"],
    labels: Int32[np.ndarray, "E"],
    versions: dict[str, str],
) -> None:
    """Create a run, or check that an existing one is the same experiment and go on with it.

    An existing run may get more models, which leave those it has as they are, and other settings
    that change no trained weight.

    Args:
        versions: library versions and the digest of the data, kept in config.toml under [run].

    Raises:
        InputError: another run's folder, a changed field (named, with old and new value), fewer
            models than the run has, other data, or damaged files. Nothing is written then.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file, not a folder; give --run another path")
    if (run / CONFIG).exists():
        old = read_config(run)
        for name, before, after in configs.differences(old, experiment):
            raise InputError(
                f"{run}: this run has {name} = {before!r}, not {after!r}; "
                "use its value, or another --run folder"
            )
        if experiment.train.models < old.train.models:
            raise InputError(
                f"{run}: this run has train.models = {old.train.models}, "
                f"not {experiment.train.models}; models are only ever added"
            )
        digest = read_versions(run)["data_digest"]
        if digest != versions["data_digest"]:
            raise InputError(
                f"{run}: the data have changed since this run began (digest {digest[:12]}… before, "
                f"{versions['data_digest'][:12]}… now); restore them or use another --run folder"
            )
        held_keep = _held(run / KEEP, keep, (None, keep.shape[1]))
        held_labels = _held(run / LABELS, labels, labels.shape)
        common = min(len(held_keep), len(keep))
        if common < old.train.models or not np.array_equal(held_keep[:common], keep[:common]):
            raise InputError(
                f"{run / KEEP}: masks differ from those of this seed; use another --run folder"
            )
        if not np.array_equal(held_labels, labels):
            raise InputError(
                f"{run / LABELS}: labels differ from the data; use another --run folder"
            )
        read_log(run)
    elif run.exists() and any(run.iterdir()):
        raise InputError(
            f"{run}: is not empty and holds no run (no {CONFIG}); give --run a new folder"
        )
    else:
        # First: from here on the folder is a run, and an interrupted call can be repeated.
        write_text(run / CONFIG, configs.to_toml(experiment, versions))
        old = experiment
    for path, array in ((run / KEEP, keep), (run / LABELS, labels)):
        if not path.exists() or len(_held(path, array, (None, *array.shape[1:]))) != len(array):
            write_array(path, array)
    if experiment != old:
        # Last: the run has more models only once all else says so.
        write_text(run / CONFIG, configs.to_toml(experiment, versions))


def _held(path: Path, drawn: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
    """What a file of a run holds, or what it should hold if it is gone and can be drawn again."""
    if not path.exists():
        return drawn
    return read_array(path, drawn.dtype, shape, "run train.py again")


def read_versions(run: Path) -> dict[str, str]:
    """The [run] table of config.toml: versions and the data's digest."""
    table = tomllib.loads((run / CONFIG).read_text(encoding="utf-8-sig")).get("run", {})
    return table if isinstance(table, dict) else {}


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl; a last line cut short by a kill is left out.

    Raises:
        InputError: any other line that training did not write.
    """
    path = run / TRAIN_LOG
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not {"models", "epoch"} <= set(record):
                raise ValueError
            records.append(record)
        except (ValueError, TypeError):
            if number < len(lines):
                raise InputError(
                    f"{path}: line {number} is not one that training wrote; delete this file, "
                    "which only people read, and run train.py again"
                ) from None
    return records


def append_log(run: Path, record: dict[str, Any]) -> None:
    """Add one line to train_log.jsonl."""
    with (run / TRAIN_LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def forget_log_after(run: Path, first: int, last: int, epoch: int) -> None:
    """Drop log lines of models `first`–`last` past `epoch`: those epochs are about to run again."""
    kept = [
        record
        for record in read_log(run)
        if not (record["models"] == [first, last] and record["epoch"] > epoch)
    ]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    # Comparing texts also drops a line cut short, to which the next one would be glued.
    if (run / TRAIN_LOG).exists() and (run / TRAIN_LOG).read_text(encoding="utf-8") != text:
        write_text(run / TRAIN_LOG, text)


def open_scores(
    path: Path, models: int, examples: int, columns: int
) -> Float32[np.ndarray, "N E _"]:
    """Memory-map scores.npy or logits.npy for writing; rows not written yet are NaN.

    A file of fewer models is extended, its rows kept.

    Raises:
        InputError: an existing file is truncated, foreign, or of other examples or views.
    """
    rows = None
    if path.exists():
        rows = read_array(path, np.float32, (None, examples, columns), "run score.py again")
        if len(rows) == models:
            # Not before the check: opened for writing, a truncated file would be filled with 0.
            return np.lib.format.open_memmap(path, "r+")
        if len(rows) > models:
            raise InputError(f"{path}: holds {len(rows)} models, the run has {models}; delete it")

    def write(beside: Path) -> None:
        new = np.lib.format.open_memmap(beside, "w+", np.float32, (models, examples, columns))
        for model in range(models):  # row by row: the file may be larger than memory
            new[model] = np.nan if rows is None or model >= len(rows) else rows[model]
        new.flush()

    write_whole(path, write)
    return np.lib.format.open_memmap(path, "r+")


def unwritten(rows: Float32[np.ndarray, "N E _"]) -> list[int]:
    """Models whose row is not written whole."""
    return [model for model, row in enumerate(rows) if np.isnan(row).any()]


def as_ranges(numbers: Sequence[int]) -> str:
    """Numbers for a message: 0, 1, 2, 5 becomes 0–2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in parts)


def read_score_set(run: Path) -> ScoreSet:
    """All scores of a run, memory-mapped, for the attack stage.

    Raises:
        InputError: no run, or scores that are missing, incomplete, truncated or foreign.
    """
    experiment = read_config(run)
    keep, labels = read_membership(run, experiment)
    models, examples = keep.shape
    remedy = f"run python score.py --run {shlex.quote(str(run))}"
    if (run / SCORES).is_file():  # fewer rows than models: more models were added since
        scores = read_array(run / SCORES, np.float32, (None, examples, None), remedy)
        if scores.shape[2] != experiment.score.views:
            remedy += f" --score.views {scores.shape[2]}"
        missing = unwritten(scores) + list(range(len(scores), models))
        if missing:
            raise InputError(
                f"{run / SCORES}: model{'s' * (len(missing) > 1)} {as_ranges(missing)} of {models} "
                f"not scored yet; {remedy}"
            )
    scores = read_array(run / SCORES, np.float32, (models, examples, None), remedy)
    logits = read_array(run / LOGITS, np.float32, (models, examples, None), remedy)
    _, block = keep_fraction(experiment.train.keep)
    return ScoreSet(scores, keep, block, str(run / SCORES), labels, logits)
