"""The run directory: what a run is. Its configuration, masks, labels, log and locks.

The stages meet here and nowhere else; what scoring makes of a run is in `parts.py`. No JAX: the
attack stage reads runs where none is installed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from lira_jax import config as configs
from lira_jax import config_file, foreign, storage
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.run import continuing, locks
from lira_jax.storage import names, read_array, write_array, write_text

CONFIG = "config.toml"
KEEP = "keep.npy"
LABELS = "labels.npy"
CHECKPOINTS = "checkpoints"
TRAIN_LOG = "train_log"
_RETRAIN = "run train.py again, or give train.py --repair True"
# More than any run has; files that tell of more are foreign.
MOST_MODELS = 10**6
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
    with locks.lock(folder / f".lock-{name}", numbers, refusal):
        storage.sweep(folder)
        yield


def read_config(run: Path) -> Experiment:
    """The experiment of a run.

    Raises:
        InputError: the folder holds no run, or its config.toml is damaged.
    """
    if not (run / CONFIG).is_file():
        _refuse_without_config(run)
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


def _refuse_without_config(run: Path) -> None:
    """Refuse a run that has lost its configuration, without which nothing tells what it is."""
    if left := [name for name in (KEEP, LABELS, CHECKPOINTS) if (run / name).exists()]:
        raise InputError(
            f"{run}: holds {' and '.join(left)}, but no {CONFIG}; put it back, or give --run "
            "another folder to begin anew"
        )


def read_membership(
    run: Path, experiment: Experiment
) -> tuple[Bool[np.ndarray, "N E"], Int32[np.ndarray, "E"]]:
    """Masks and labels of a run.

    Raises:
        InputError: a file is missing, truncated, foreign or does not fit the configuration.
    """
    _refuse_foreign_config(run, identity(run))
    shape = (experiment.train.models, None)
    keep = read_array(run / KEEP, np.bool_, shape, _RETRAIN, binding(run, KEEP))
    labels = read_array(run / LABELS, np.int32, (None,), _RETRAIN, binding(run, LABELS))
    if keep.shape[1] != len(labels):
        raise InputError(
            f"{run}: {KEEP} is of {keep.shape[1]} examples, {LABELS} of {len(labels)}; "
            f"delete both and {_RETRAIN}"
        )
    return keep, labels


def identity(run: Path) -> str:
    """Which run a folder holds (`continuing.identity`).

    Raises:
        InputError: none, as when it was deleted while a stage was at work.
    """
    if not (run / CONFIG).is_file():
        raise InputError(
            f"{run}: the run is gone (no {CONFIG}): it was moved or deleted while this was at "
            "work; put it back and run the same command again"
        )
    return _identity(config_file.load(run / CONFIG), read_versions(run))


def binding(run: Path, holds: str) -> dict[str, Any]:
    """What a file of a run says about itself: which run's it is, and what it holds.

    Raises:
        InputError: no run is there (any more).
    """
    return {"run": identity(run), "holds": holds}


def _identity(experiment: Experiment, versions: Mapping[str, str]) -> str:
    digests = {key: versions[key] for key in DIGESTS if key in versions}
    return continuing.identity(experiment, digests)


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
        _refuse_without_config(run)
        raise InputError(
            f"{run}: is not empty and holds no run (no {CONFIG}); give --run a new folder"
        )
    else:
        old = None
    own = _identity(experiment, versions)
    about = {name: {"run": own, "holds": name} for name in (KEEP, LABELS)}
    if old:
        _refuse_foreign_config(run, own)
    old_keep = _kept(run / KEEP, keep, about[KEEP], repair, old.train.models if old else 0)
    old_labels = _kept(run / LABELS, labels, about[LABELS], repair, len(labels))

    def write() -> None:
        if old is None:
            # First: from here on the folder is a run, and an interrupted call can be repeated.
            write_text(run / CONFIG, config_file.to_toml(experiment, versions))
        for path, array, kept in (
            (run / KEEP, keep, old_keep),
            (run / LABELS, labels, old_labels),
        ):
            if kept is array or len(kept) < len(array):
                write_array(path, array, about[path.name])
        if old and experiment != old:
            # Last: the run has more models only once all else says so. Each group's log tells the
            # versions that trained it; these are those that the run began with.
            write_text(run / CONFIG, config_file.to_toml(experiment, versions | read_versions(run)))

    return write


def _kept(
    path: Path, drawn: np.ndarray, about: Mapping[str, Any], repair: bool, least: int
) -> np.ndarray:
    """What a file of a run holds, or `drawn` itself if it is to be written (again).

    Args:
        least: rows that it must have.

    Raises:
        InputError: damaged or of another run, and not to be repaired; or other values than those
            drawn, when the configuration may as well be the one that is wrong.
    """
    if not path.exists():
        return drawn
    try:
        kept = read_array(path, drawn.dtype, (None, *drawn.shape[1:]), _RETRAIN, about)
    except InputError as error:
        if not repair:
            raise
        print(f"written again: {error}")
        return drawn
    common = min(len(kept), len(drawn))
    if common < least or not np.array_equal(kept[:common], drawn[:common]):
        what = "masks are not those of this seed" if path.name == KEEP else "are not the data's"
        raise InputError(
            f"{path}: {what}, or {CONFIG} is of another run; put the right one back, or delete "
            f"{path.name} and run train.py again"
        )
    return kept


def _refuse_foreign_config(run: Path, own: str) -> None:
    """Refuse a config.toml that is not the run's own: to repair a run by it would throw all away.

    Raises:
        InputError: masks, labels and checkpoints, as far as they say which run's they are, all say
            another.
    """
    checkpoints = [f"{CHECKPOINTS}/{name}" for name in names(run / CHECKPOINTS)]
    others = {name: _run_of(run / name) for name in (KEEP, LABELS, *checkpoints)}
    telling = [name for name, other in others.items() if other is not None]
    if telling and own not in others.values():
        raise InputError(
            f"{run / CONFIG}: is of another run than {' and '.join(telling[:2])} beside it, or was "
            "changed; put it back as it was, or use another --run folder"
        )


def _run_of(path: Path) -> str | None:
    """The run that a file says it belongs to; None where it says nothing that can be read."""
    try:
        says = storage.says_of(path)
    except (InputError, OSError):  # which is told, or repaired, by whoever reads it
        return None
    return None if says is None else says.get("run")


def unbound(run: Path, *folders: str) -> str:
    """Arrays and checkpoints that do not say which run they belong to, as those of earlier
    versions, in words; empty if all do.

    Args:
        folders: of the run, to look in; empty for the run itself.
    """
    words = []
    for folder in folders:
        paths = [
            run / folder / name for name in names(run / folder) if name[-4:] in (".npy", ".npz")
        ]
        silent = [path.name for path in paths if path.is_file() and _run_of(path) is None]
        if folder and silent:
            words.append(f"{len(silent)} files in {folder}/")
        elif silent:
            words += silent
    return ", ".join(words)


def read_versions(run: Path) -> dict[str, str]:
    """The [run] table of config.toml: versions and the data's digest.

    Raises:
        InputError: it cannot be read, or holds anything but text.
    """
    return config_file.load_versions(run / CONFIG)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of train_log/: one per group and epoch, in order of models.

    Raises:
        InputError: a line that training did not write.
    """
    folder = run / TRAIN_LOG
    paths = [folder / name for name in names(folder) if name.endswith(".jsonl")]
    return [record for path in paths for record in read_log_file(path)]


def trained_with(run: Path) -> dict[str, list[int]]:
    """The versions that trained a run, as its log tells them, and the models that each trained.

    Raises:
        InputError: a damaged log.
    """
    models: dict[str, set[int]] = {}
    for record in read_log(run):
        first, last = record["models"]
        text = str(record.get("software", "those that the run began with"))
        models.setdefault(text, set()).update(range(first, last + 1))
    return {text: sorted(numbers) for text, numbers in models.items()}


def read_log_file(path: Path) -> list[dict[str, Any]]:
    """The lines of one group's log; none if there is no such file.

    Raises:
        InputError: a line that training did not write.
    """
    advice = "delete this file, which only people read, and run train.py again"
    foreign.check_regular(path, advice)
    records = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        place, what = f"{path}: line {number}", "not one that training wrote"
        with foreign.reading(place, advice, what):
            record = json.loads(line)
            first, last = record["models"]
            if not 0 <= first <= last < MOST_MODELS or record["epoch"] < 0:
                raise InputError(f"{place}: {what}; {advice}")
        records.append(record)
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
