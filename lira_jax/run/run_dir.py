"""The run directory: every file of a run, its name, shape, dtype, atomic write and check on read.

The stages meet here and nowhere else. No JAX: the attack stage reads runs where none is installed.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32

from lira_jax import config as configs
from lira_jax.config import Experiment, keep_fraction
from lira_jax.errors import InputError
from lira_jax.run import storage
from lira_jax.run.storage import names, read_array, remove, write_array, write_rows, write_text
from lira_jax.score_set import ScoreSet

CONFIG = "config.toml"
KEEP = "keep.npy"
LABELS = "labels.npy"
CHECKPOINTS = "checkpoints"
TRAIN_LOG = "train_log"
SCORES = "scores.npy"
LOGITS = "logits.npy"
SCORE_PARTS = "score_parts"
_RETRAIN = "run train.py again, or give train.py --repair True"
# What config.toml holds the SHA-256 of under [run], beside versions.
DIGESTS = {
    "data_digest": "the data",
    "held_out_digest": "the held-out images",
    "transfer_digest": "the weights of defence.transfer_from",
}


@contextmanager
def lock(run: Path, stage: Literal["train", "score"], models: range) -> Iterator[None]:
    """Be the only process that works at a stage of these models; tidy up after killed ones.

    Raises:
        InputError: another process is at work on one of them.
    """
    refusal = (
        f"{run}: another {stage}.py is at work on models among {as_ranges(models)}; "
        "wait for it or stop it"
    )
    with storage.lock(run / f".lock-{stage}", models, refusal):
        storage.sweep(run)
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
    held = [name for name in names(run) if not name.startswith(".")]
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
        begun = read_versions(run)
        for key, title in DIGESTS.items():
            before, now = (str(found.get(key, "none")) for found in (begun, versions))
            if before != now:
                raise InputError(
                    f"{run}: {title} have changed since this run began (digest {before[:12]}… "
                    f"before, {now[:12]}… now); restore them or use another --run folder"
                )
    elif held:
        raise InputError(
            f"{run}: is not empty and holds no run (no {CONFIG}); give --run a new folder"
        )
    else:
        old = None
    held_keep = _held(run / KEEP, keep, (None, keep.shape[1]), repair)
    held_labels = _held(run / LABELS, labels, labels.shape, repair)
    common = min(len(held_keep), len(keep))
    if old and (common < old.train.models or not np.array_equal(held_keep[:common], keep[:common])):
        raise InputError(
            f"{run / KEEP}: masks differ from those of this seed; use another --run folder"
        )
    if old and not np.array_equal(held_labels, labels):
        raise InputError(f"{run / LABELS}: labels differ from the data; use another --run folder")

    def write() -> None:
        if old is None:
            # First: from here on the folder is a run, and an interrupted call can be repeated.
            write_text(run / CONFIG, configs.to_toml(experiment, versions))
        for path, array, found in (
            (run / KEEP, keep, held_keep),
            (run / LABELS, labels, held_labels),
        ):
            if found is array or len(found) < len(array):
                write_array(path, array)
        if old and experiment != old:
            # Last: the run has more models only once all else says so.
            write_text(run / CONFIG, configs.to_toml(experiment, versions))

    return write


def _held(path: Path, drawn: np.ndarray, shape: Sequence[int | None], repair: bool) -> np.ndarray:
    """What a file of a run holds, or `drawn` itself if it is gone and is to be written again."""
    try:
        return read_array(path, drawn.dtype, shape, _RETRAIN) if path.exists() else drawn
    except InputError:
        if not repair:
            raise
        return drawn


def read_versions(run: Path) -> dict[str, str]:
    """The [run] table of config.toml: versions and the data's digest."""
    table = tomllib.loads((run / CONFIG).read_text(encoding="utf-8-sig")).get("run", {})
    return table if isinstance(table, dict) else {}


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


@dataclass(frozen=True)
class Product:
    """Arrays that scoring makes together, each with a row for every model.

    Rows of some models are kept as parts in a folder, until every model has its row and NAME.npy
    is written.

    Attributes:
        arrays: name of each array, and the shape of what it holds of one model and example.
        parts: folder of the parts.
        command: what makes it.
        settings: by dotted name, what it depends on and its shape does not tell. Parts carry it in
            their names; the whole has it beside it, in NAME.json.
        usual: settings of files that tell none, by name or record, since those before there was a
            choice did not.
    """

    arrays: Mapping[str, tuple[int, ...]]
    parts: str
    command: str
    settings: Mapping[str, float] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        return f"run {self.command} again, or give {self.command} --repair True"

    @property
    def record(self) -> str:
        """The name of the file that tells the settings."""
        return f"{next(iter(self.arrays))}.json"

    def part(self, name: str, first: int, last: int) -> str:
        return f"{self._stem(name)}_{first:05d}-{last:05d}.npy"

    def models_of(self, part: str) -> tuple[int, int] | None:
        """First and last model of a part; None if the file is no part of this product."""
        stem = re.escape(self._stem(next(iter(self.arrays))))
        match = re.fullmatch(rf"{stem}_(\d+)-(\d+)\.npy", part)
        return (int(match[1]), int(match[2])) if match else None

    def _stem(self, name: str) -> str:
        told = {} if self.settings == self.usual else self.settings
        return "_".join([name, *map(repr, told.values())])

    @property
    def files(self) -> str:
        """Its own files, for messages."""
        return " and ".join(f"{name}.npy" for name in self.arrays)


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
    return Product({"gradient_norm": ()}, "gradient_norm_parts", command)


def _parts(run: Path, product: Product) -> list[tuple[int, int]]:
    """First and last model of each part."""
    found = map(product.models_of, names(run / product.parts))
    return [models for models in found if models]


def write_part(run: Path, product: Product, first: int, *arrays: np.ndarray) -> None:
    """Write float32 arrays [G, E, …] of G models from `first` on; they count once all are there."""
    last = first + len(arrays[0]) - 1
    for name, array in reversed(list(zip(product.arrays, arrays, strict=True))):
        write_array(run / product.parts / product.part(name, first, last), array)


@dataclass(frozen=True)
class Scored:
    """Where the rows of each model of a run are.

    Attributes:
        whole: models in the product's own files, the first so many.
        parts: (first, last) of the parts that hold the others.
    """

    whole: int
    parts: list[tuple[int, int]]

    @property
    def models(self) -> set[int]:
        in_parts = (n for first, last in self.parts for n in range(first, last + 1))
        return {*range(self.whole), *in_parts}


def scored(
    run: Path, product: Product, models: int, examples: int, share: range | None = None,
    *, repair: bool = False,
) -> Scored:  # fmt: skip
    """What has been made so far of models 0 … N − 1.

    Args:
        share: models whose parts are read and checked; those of others are taken as they are
            named, until they are put together. Default all.
        repair: remove damaged files among these, so that their models count as not scored.

    Raises:
        InputError: a damaged or foreign file, or one made with other views or settings.
    """

    def rows(path: Path, name: str, count: int | None = None) -> int:
        if not path.exists():
            return 0
        shape = product.arrays[name]
        expected = (None,) if name == "scores" else shape
        try:
            array = read_array(path, np.float32, (count, examples, *expected), product.remedy)
            made_with = product.settings if count is not None else _read_settings(run, product)
        except InputError as error:
            if not repair:
                raise
            print(f"removed: {error}")
            remove(path)
            return 0
        if array.shape[2:] != shape:
            views, place = array.shape[2], path if count is None else path.parent
            raise InputError(
                f"{path}: holds {views} views, not score.views = {shape[0]}; give "
                f"--score.views {views} to go on with it, or delete {place} to score anew"
            )
        if made_with != product.settings:
            listed = ", ".join(f"{key} = {value}" for key, value in made_with.items())
            raise InputError(
                f"{path}: made with {listed}; give these to go on with it, or delete "
                f"{product.files} to make it anew"
            )
        return len(array)

    _refuse_other_parts(run, product)
    # Parts before the whole: whoever puts them together removes them only afterwards.
    parts = []
    for first, last in _parts(run, product):
        size = last - first + 1
        paths = {
            name: run / product.parts / product.part(name, first, last) for name in product.arrays
        }
        if share is None or first in share:
            found = all([rows(path, name, size) == size for name, path in paths.items()])
        else:
            found = all(path.exists() for path in paths.values())
        if found and last < models:
            parts.append((first, last))
    whole = min([rows(run / f"{name}.npy", name) for name in product.arrays])
    return Scored(whole, [(first, last) for first, last in parts if last >= whole])


def _refuse_other_parts(run: Path, product: Product) -> None:
    """Refuse parts made with other settings than the usual, which the end of this would remove."""
    start = f"{next(iter(product.arrays))}_"
    found = [name for name in names(run / product.parts) if name.startswith(start)]
    other = next((name for name in found if not product.models_of(name)), None)
    if product.usual and other:
        listed = ", ".join(f"{key} = {value}" for key, value in product.settings.items())
        raise InputError(
            f"{run / product.parts / other}: not made with {listed}; give what it was made with to "
            f"go on with it, or delete {run / product.parts} to score anew"
        )


def _read_settings(run: Path, product: Product) -> Mapping[str, float]:
    """What the product's own files were made with."""
    if not product.settings:
        return {}
    if product.usual and not (run / product.record).exists():
        return product.usual
    try:
        found = json.loads((run / product.record).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.keys() != product.settings.keys():
            raise ValueError
    except (FileNotFoundError, ValueError):
        array = run / f"{next(iter(product.arrays))}.npy"
        raise InputError(
            f"{array}: {product.record}, which tells its settings, is missing or damaged; delete "
            f"{product.record}, {product.files} and {product.remedy}"
        ) from None
    return found


def read_record(path: Path, command: str) -> dict[str, Any] | None:
    """The table of a .json file, such as the settings of a product; None if there is none.

    Raises:
        InputError: damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"{path}: damaged ({error}); delete {path.parent} and run {command} again"
        ) from None
    return found


def check_record(folder: Path, product: Product, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a product made with other settings than these, or with unknown ones.

    For products whose NAME.json is written before their first part.
    """
    record = product.record
    held = read_record(folder / record, product.command)
    whole = [f"{name}.npy" for name in product.arrays]
    everything = f"{', '.join([record, *whole])} and {product.parts} there"
    if held is None:
        made = next((n for n in (*whole, product.parts) if (folder / n).exists()), None)
        if made:
            raise InputError(
                f"{folder / made}: {record}, which tells its settings, is missing; "
                f"delete {everything} to make it anew"
            )
    elif held != settings:
        key = next(k for k in {**settings, **held} if held.get(k) != settings.get(k))
        raise InputError(
            f"{folder / record}: made with {key} = {held.get(key)}, not "
            f"{settings.get(key)}; ask for the same to go on with it, or delete {everything} "
            "to make it anew"
        )


def assemble(run: Path, product: Product, models: int, examples: int) -> list[int]:
    """Write a product's own files once every model has its rows, and remove the parts.

    Whichever shard finishes last does it; two that finish together write the same bytes.

    Returns:
        Models not scored yet; if there are any, nothing is written.

    Raises:
        InputError: a damaged or foreign file.
    """
    nobody = range(0)
    found = scored(run, product, models, examples, nobody)
    missing = sorted(set(range(models)) - found.models)
    if missing:
        return missing

    def each_row(name: str, shape: tuple[int | None, ...]) -> Iterator[np.ndarray]:
        if found.whole:
            held = read_array(run / f"{name}.npy", np.float32, shape, product.remedy)
            yield from held[: found.whole, None]
        done = found.whole
        for first, last in sorted(found.parts):
            path = run / product.parts / product.part(name, first, last)
            yield from read_array(path, np.float32, shape, product.remedy)[done - first :, None]
            done = max(done, last + 1)

    try:
        if found.whole < models and product.settings != product.usual:
            write_text(run / product.record, json.dumps(dict(product.settings)) + "\n")
        elif found.whole < models and product.usual:
            remove(run / product.record)  # of files deleted since
        # Rows count only where all files have them, so a kill between two loses none.
        for name, shape in reversed(list(product.arrays.items())):
            if found.whole < models:
                rows = each_row(name, (None, examples, *shape))
                write_rows(run / f"{name}.npy", np.float32, (models, examples, *shape), rows)
    except InputError:
        # Another shard may have put all together and removed the parts while this one read them.
        if scored(run, product, models, examples, nobody).whole < models:
            raise
    remove(run / product.parts)
    return []


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
        for first, last in _parts(run, phi(0, 0, guarded))
        for n in range(first, last + 1)
    }
    whole = 0
    if (run / SCORES).is_file() or not in_parts:
        scores = read_array(run / SCORES, np.float32, (None, examples, None), remedy)
        logits = read_array(run / LOGITS, np.float32, (None, examples, None), remedy)
        whole = min(len(scores), len(logits))
        if scores.shape[2] != experiment.score.views:
            remedy += f" --score.views {scores.shape[2]}"
        guarded = _read_settings(run, phi(0, 0))["score.memguard"]
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
    canaries = experiment.data.canaries
    return ScoreSet(
        scores,
        keep,
        block,
        str(run / SCORES),
        labels,
        logits,
        merlin=_read_optional(run, "merlin", "noisy_queries T", keep.shape),
        gradient_norm=_read_optional(run, "gradient_norm", "gradient_norm True", keep.shape),
        canary=np.arange(examples) >= examples - canaries if canaries else None,
    )


def _read_optional(
    run: Path, name: str, option: str, shape: tuple[int, ...]
) -> Float32[np.ndarray, "N E"] | None:
    """An array that not every run has; None if it is not there for all models."""
    path, command = run / f"{name}.npy", f"score.py --score.{option}"
    if not path.is_file():
        return None
    remedy = f"run {command} again, or give {command} --repair True"
    array = read_array(path, np.float32, (None, shape[1]), remedy)
    if len(array) > shape[0]:
        raise InputError(f"{path}: holds {len(array)} models, the run {shape[0]}; delete it")
    return array if len(array) == shape[0] else None
