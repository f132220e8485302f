"""The run directory: what a run is. Its configuration, masks, labels, log and locks.

The stages meet here and nowhere else; what scoring makes of a run is in `parts.py`. No JAX: the
attack stage reads runs where none is installed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from lira_jax import config as configs
from lira_jax import config_file
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.run import continuing, storage
from lira_jax.run.storage import names, read_array, write_array, write_text

CONFIG = "config.toml"
KEEP = "keep.npy"
LABELS = "labels.npy"
CHECKPOINTS = "checkpoints"
TRAIN_LOG = "train_log"
_RETRAIN = "run train.py again, or give train.py --repair True"
# What config.toml holds the SHA-256 of under [run], beside versions.
DIGESTS = {
    "data_digest": "the data",
    "held_out_digest": "the held-out images",
    "transfer_digest": "the weights of defence.transfer_from",
}


@contextmanager
def lock(folder: Path, name: str, numbers: range, what: str = "models") -> Iterator[None]:
    """Be the only process that works on these models, or examples; tidy up after killed ones.

    Args:
        folder: a run, or a folder in it.
        name: of the work; the lock is the file `.lock-NAME`.
        numbers: of the models or examples.
        what: what the numbers are of, for the message.

    Raises:
        InputError: another process is at work on one of them.
    """
    script = "train" if name == "train" else "score"
    refusal = (
        f"{folder}: another {script}.py is at work on {what} among {as_ranges(numbers)}; "
        "wait for it or stop it"
    )
    with storage.lock(folder / f".lock-{name}", numbers, refusal):
        storage.sweep(folder)
        yield


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
    experiment = config_file.load(run / CONFIG)
    if "data_digest" not in read_versions(run):
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
    keep = read_array(run / KEEP, np.bool_, (experiment.train.models, None), _RETRAIN)
    labels = read_array(run / LABELS, np.int32, (None,), _RETRAIN)
    if keep.shape[1] != len(labels):
        raise InputError(
            f"{run}: {KEEP} is of {keep.shape[1]} examples, {LABELS} of {len(labels)}; "
            f"delete both and {_RETRAIN}"
        )
    return keep, labels


def prepare(
    run: Path,
    experiment: Experiment,
    keep: Bool[np.ndarray, "N E"],
    labels: Int32[np.ndarray, "E"],
    versions: dict[str, str],
    *,
    repair: bool = False,
) -> Callable[[], None]:
    """Check that a run can be created, or that an existing one is the same experiment.

    An existing run may get more models, which leave those it has as they are, and other settings
    that change no trained weight. Every shard does this; what they write is the same.

    Args:
        versions: library versions and the digests of `DIGESTS` that there are, kept in config.toml
            under [run].
        repair: write masks and labels anew where they are damaged.

    Returns:
        What writes the files of the run, to be called once no other process can be at work.

    Raises:
        InputError: another run's folder, a changed field (named, with old and new value), fewer
            models than the run has, other data, or damaged files.
    """
    # Before config.toml is looked for: another shard, beginning too, writes that first.
    files = [name for name in names(run) if not name.startswith(".")]
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file, not a folder; give --run another path")
    if (run / CONFIG).exists():
        old = read_config(run)
        for name, before, after in continuing.differences(old, experiment):
            raise InputError(
                f"{run}: this run has {name} = {before!r}, not {after!r}; "
                "use its value, or another --run folder"
            )
        if experiment.train.models < old.train.models:
            raise InputError(
                f"{run}: this run has train.models = {old.train.models}, "
                f"not {experiment.train.models}; models are only ever added"
            )
        begun = read_versions(run)
        for key, title in DIGESTS.items():
            before, now = (str(table.get(key, "none")) for table in (begun, versions))
            if before != now:
                raise InputError(
                    f"{run}: {title} have changed since this run began (digest {before[:12]}… "
                    f"before, {now[:12]}… now); restore them or use another --run folder"
                )
    elif files:
        raise InputError(
            f"{run}: is not empty and holds no run (no {CONFIG}); give --run a new folder"
        )
    else:
        old = None
    old_keep = _kept(run / KEEP, keep, (None, keep.shape[1]), repair)
    old_labels = _kept(run / LABELS, labels, labels.shape, repair)
    common = min(len(old_keep), len(keep))
    if old and (common < old.train.models or not np.array_equal(old_keep[:common], keep[:common])):
        raise InputError(
            f"{run / KEEP}: masks differ from those of this seed; use another --run folder"
        )
    if old and not np.array_equal(old_labels, labels):
        raise InputError(f"{run / LABELS}: labels differ from the data; use another --run folder")

    def write() -> None:
        if old is None:
            # First: from here on the folder is a run, and an interrupted call can be repeated.
            write_text(run / CONFIG, config_file.to_toml(experiment, versions))
        for path, array, kept in (
            (run / KEEP, keep, old_keep),
            (run / LABELS, labels, old_labels),
        ):
            if kept is array or len(kept) < len(array):
                write_array(path, array)
        if old and experiment != old:
            # Last: the run has more models only once all else says so.
            write_text(run / CONFIG, config_file.to_toml(experiment, versions))

    return write


def _kept(path: Path, drawn: np.ndarray, shape: Sequence[int | None], repair: bool) -> np.ndarray:
    """What a file of a run holds, or `drawn` itself if it is gone and is to be written again."""
    try:
        return read_array(path, drawn.dtype, shape, _RETRAIN) if path.exists() else drawn
    except InputError:
        if not repair:
            raise
        return drawn


def read_versions(run: Path) -> dict[str, str]:
    """The [run] table of config.toml: versions and the data's digest."""
    return config_file.load_versions(run / CONFIG)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of train_log/: one per group and epoch, in order of models.

    Raises:
        InputError: a line that training did not write.
    """
    folder = run / TRAIN_LOG
    paths = [folder / name for name in names(folder) if name.endswith(".jsonl")]
    return [record for path in paths for record in read_log_file(path)]


def read_log_file(path: Path) -> list[dict[str, Any]]:
    """The lines of one group's log; none if there is no such file.

    Raises:
        InputError: a line that training did not write.
    """
    records = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            if not {"models", "epoch"} <= set(record):
                raise ValueError
            records.append(record)
        except (ValueError, TypeError):
            raise InputError(
                f"{path}: line {number} is not one that training wrote; delete this file, "
                "which only people read, and run train.py again"
            ) from None
    return records


def write_log_file(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one group's log."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def as_ranges(numbers: Sequence[int]) -> str:
    """Numbers for a message: 0, 1, 2, 5 becomes 0–2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in parts)


def canary_mask(experiment: Experiment, examples: int) -> Bool[np.ndarray, " E"]:
    """Which of a run's examples were inserted to be memorised: the last ones."""
    return np.arange(examples) >= examples - experiment.data.canaries
