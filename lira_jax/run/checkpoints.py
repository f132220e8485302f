"""One checkpoint per group of models, a plain .npz with a checksum.

`checkpoints/models_00000-00007_step_1150.npz` holds the whole training state of models 0–7 after
1,150 optimiser steps, or, if that is the last one, only the variables that are scored. Arrays are
named by their place in the state, `variables/params/dense/kernel`, and have a leading axis of
models. One file and no coordination: processes that share a run save each at its own time, on a
disk or in an object store.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lira_jax import foreign
from lira_jax.errors import InputError
from lira_jax.run.run_dir import CHECKPOINTS, MOST_MODELS, as_ranges, binding
from lira_jax.storage import names, read_checked, remove, write_checked

_FOREIGN = "not of this network"
_NAME = re.compile(r"models_(\d{1,9})-(\d{1,9})_step_(\d{1,18})\.npz")


@dataclass(frozen=True, order=True)
class Group:
    """Models `first` to `last`, inclusive, and the step of their newest checkpoint (0: none)."""

    first: int
    last: int
    step: int = 0

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def models(self) -> range:
        return range(self.first, self.last + 1)

    @property
    def name(self) -> str:
        return f"models_{self.first:05d}-{self.last:05d}"


def _path(run: Path, group: Group) -> Path:
    return run / CHECKPOINTS / f"{group.name}_step_{group.step}.npz"


def _files(run: Path) -> list[Group]:
    """A group for every checkpoint file, in order of models and steps."""
    matches = map(_NAME.fullmatch, names(run / CHECKPOINTS))
    groups = sorted(Group(*map(int, match.groups())) for match in matches if match)
    return [group for group in groups if group.first <= group.last < MOST_MODELS]


def saved_groups(run: Path) -> list[Group]:
    """All groups with a checkpoint, each at its newest, in order of models.

    A group inside a larger one does not count: it is half of one whose halving was cut short.
    """
    newest = {(group.first, group.last): group for group in _files(run)}.values()
    return [
        group
        for group in newest
        if not any(
            other.first <= group.first and group.last <= other.last and other.size > group.size
            for other in newest
        )
    ]


def save(run: Path, group: Group, tree: Any) -> None:
    """Write a checkpoint of `group.step`; those before it go once this one is whole.

    Raises:
        InputError: it cannot be written, as when the disk is full; the one before it stays. Or
            the run is gone.
    """
    arrays = {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    about = binding(run, _path(run, group).stem)
    write_checked(_path(run, group), lambda file: np.savez(file, **arrays), about)  # type: ignore[arg-type]
    for other in _files(run):
        if (other.first, other.last) == (group.first, group.last) and other.step != group.step:
            remove(_path(run, other))


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def verify(run: Path, group: Group) -> bytes:
    """Read a checkpoint's file and check that it is what was written, by this run, for this group.

    Raises:
        InputError: missing, truncated, changed, of another run or renamed.
    """
    path = _path(run, group)
    return read_checked(path, _remedy(group), binding(run, path.stem))


def _remedy(group: Group) -> str:
    return f"run train.py with --repair True to train models {as_ranges(group.models)} again"


def restore(run: Path, group: Group, like: Any) -> Any:
    """Read the checkpoint of a group.

    Args:
        like: tree of arrays, or of their shapes and types, that it should hold.

    Raises:
        InputError: the checkpoint is damaged or of another network.
    """
    content = verify(run, group)
    with (
        foreign.reading(_path(run, group), _remedy(group), _FOREIGN),
        np.load(io.BytesIO(content), allow_pickle=False) as file,
    ):
        arrays = dict(file)

    def read(path: tuple[Any, ...], wanted: Any) -> np.ndarray:
        name = _name(path)
        array = arrays.pop(name, None)
        if array is None:
            raise _foreign(run, group, f"no array {name}")
        # NumPy does not name bfloat16.
        if array.dtype.kind == "V" and array.dtype.itemsize == wanted.dtype.itemsize:
            array = array.view(wanted.dtype)
        if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            reason = f"{name} is {array.dtype} {list(array.shape)}"
            raise _foreign(run, group, f"{reason} instead of {wanted.dtype} {list(wanted.shape)}")
        return array

    tree = jax.tree.map_with_path(read, like)
    if arrays:
        raise _foreign(run, group, f"unknown array {min(arrays)}")
    return tree


def _foreign(run: Path, group: Group, reason: str) -> InputError:
    return InputError(f"{_path(run, group)}: {_FOREIGN} ({reason}); {_remedy(group)}")


def repair(run: Path, models: range, like: Callable[[Group], Any]) -> list[Group]:
    """Remove the damaged and foreign checkpoints among those that begin with one of these models.

    Args:
        like: what the checkpoint of a group should hold, as for `restore`.

    Returns:
        The groups removed.
    """
    removed = []
    for group in _files(run):
        if group.first in models:
            try:
                restore(run, group, like(group))
            except InputError as error:
                print(f"removed: {error}")
                remove(_path(run, group))
                removed.append(group)
    return removed


def halve(run: Path, group: Group, like: Any) -> None:
    """Cut a group's checkpoint in two, for a device with less memory than it began on.

    Args:
        like: as for `restore`.
    """
    tree = restore(run, group, like)
    half = group.size // 2
    for first, last in ((0, half), (half, group.size)):
        part = Group(group.first + first, group.first + last - 1, group.step)
        save(run, part, jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], tree))
    remove(_path(run, group))  # until here it counts, and its halves do not


def plan(
    run: Path, models: int, steps: int, size: int, share: range | None = None
) -> tuple[list[Group], list[Group]]:
    """What is finished and what is left to train.

    Groups begun earlier keep their extent, whatever `size` is now, and belong to the share that
    holds their first model; models of no checkpoint are cut into groups of `size`.

    Args:
        models: N.
        steps: optimiser steps of a finished model.
        size: of new groups.
        share: models of this process; default all.

    Returns:
        Finished groups (of all models) and groups to train (of the share), each in order of models.

    Raises:
        InputError: overlapping groups, or one that reaches beyond the models of the run.
    """
    # Those beyond were begun by a process that takes the run to more models.
    saved = [group for group in saved_groups(run) if group.first < models]
    free = set(range(models))
    for group in saved:
        extent = set(group.models)
        if not extent <= free:
            raise InputError(
                f"{_path(run, group)}: models {as_ranges(sorted(extent - free))} are in another "
                "checkpoint or beyond this run's; delete that file and run train.py again"
            )
        free -= extent
    share = range(models) if share is None else share
    todo = [group for group in saved if group.step < steps and group.first in share]
    left = sorted(free.intersection(share))
    while left:
        run_length = 1
        while run_length < min(size, len(left)) and left[run_length] == left[run_length - 1] + 1:
            run_length += 1
        todo.append(Group(left[0], left[run_length - 1]))
        left = left[run_length:]
    return [group for group in saved if group.step >= steps], sorted(todo)
