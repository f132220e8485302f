"""Loss traces: each member's loss over the epochs of the models of the first block.

`loss_traces/model_00000.npy`, float32 [T, M], has a row for every k-th epoch of model 0 and a
column for each of its M members, in order of examples. It grows while the model trains: it is
written before the checkpoint that it belongs to, so it may be ahead of that, never behind. A row of
NaN is of an epoch after early stopping. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from lira_jax.config import Experiment, keep_fraction
from lira_jax.errors import InputError
from lira_jax.run.run_dir import binding
from lira_jax.storage import names, read_array, remove, write_array

FOLDER = "loss_traces"
_REMEDY = "run train.py again, which goes on without it"
# At most so many epochs, evenly spread, and numbers (128 MiB) of a model.
MOST_EPOCHS, MOST_NUMBERS = 50, 2**25


@dataclass(frozen=True)
class Plan:
    """Whose losses a run keeps, and when.

    Attributes:
        models: of the first block, of which every example is a member at least once.
        members: M, of each model.
        every: a row is made after each `every` epochs.
        rows: T, of a model that has been trained.
    """

    models: range
    members: int
    every: int
    rows: int

    def made(self, epoch: int) -> int:
        """Rows of a model after so many epochs."""
        return epoch // self.every


def plan(experiment: Experiment, members: int) -> Plan:
    """The plan of an experiment: a function of what makes a run the one that it is, and no more.

    Examples:
        >>> plan(Experiment(), members=25_000)
        Plan(models=range(0, 2), members=25000, every=2, rows=50)
    """
    _, block = keep_fraction(experiment.train.keep)
    epochs = experiment.train.epochs
    every = max(-(-epochs // MOST_EPOCHS), -(-epochs * members // MOST_NUMBERS))
    return Plan(range(block), members, every, epochs // every)


def _file(model: int) -> str:
    return f"model_{model:05d}.npy"


def write(run: Path, model: int, trace: Float32[np.ndarray, "T M"]) -> None:
    """Write what there is of a model's trace.

    Raises:
        InputError: it cannot be written, or the run is gone.
    """
    name = _file(model)
    write_array(run / FOLDER / name, trace, binding(run, f"{FOLDER}/{name}"))


def read(run: Path, model: int, planned: Plan) -> Float32[np.ndarray, "T M"] | None:
    """What there is of a model's trace, memory-mapped; None if there is nothing.

    Raises:
        InputError: a damaged or foreign file.
    """
    name = _file(model)
    path = run / FOLDER / name
    if name not in names(run / FOLDER):
        return None
    about = binding(run, f"{FOLDER}/{name}")
    trace = read_array(path, np.float32, (None, planned.members), _REMEDY, about)
    stopped = np.isnan(trace).all(axis=1)
    if len(trace) > planned.rows or not np.isfinite(trace[~stopped]).all():
        raise InputError(
            f"{path}: holds more epochs than training makes, or losses that are not finite; delete "
            f"it and {_REMEDY}"
        )
    return trace


def read_all(
    run: Path, experiment: Experiment, keep: Bool[np.ndarray, "N E"]
) -> list[Float32[np.ndarray, "T M"]] | None:
    """The traces of all models of the first block; None if they are not (all) there, as in runs
    that earlier versions began, or while these models train, or after a single epoch.

    Raises:
        InputError: a damaged or foreign file.
    """
    planned = plan(experiment, int(keep[0].sum()))
    traces = [read(run, model, planned) for model in planned.models]
    whole = [trace for trace in traces if trace is not None and len(trace) == planned.rows]
    return whole if planned.rows > 1 and len(whole) == len(traces) else None


def repair(run: Path, models: Sequence[int], planned: Plan) -> None:
    """Remove the damaged and foreign files among those of some models, and say so."""
    for model in set(models).intersection(planned.models):
        try:
            read(run, model, planned)
        except InputError as error:
            print(f"removed: {error}")
            remove(run / FOLDER / _file(model))
