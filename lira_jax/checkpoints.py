"""One Orbax checkpoint per group of models.

`checkpoints/models_00000-00007/STEP/` holds the whole training state of models 0–7 after STEP
epochs, or, once STEP is the last epoch, only the variables that are scored. `checksums.json` beside
it tells damage that Orbax would read as weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lira_jax.errors import InputError
from lira_jax.run_dir import CHECKPOINTS, as_ranges, write_text

CHECKSUMS = "checksums.json"
_NAME = re.compile(r"models_(\d+)-(\d+)")


@dataclass(frozen=True, order=True)
class Group:
    """Models `first` to `last`, inclusive, and the epoch of their newest checkpoint (0: none)."""

    first: int
    last: int
    epoch: int = 0

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def _folder(run: Path, group: Group) -> Path:
    return run / CHECKPOINTS / f"models_{group.first:05d}-{group.last:05d}"


def _manager(run: Path, group: Group) -> ocp.CheckpointManager:
    # Orbax speaks at length about normal events; errors still reach the user.
    logging.getLogger("absl").setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(_folder(run, group).absolute(), options=options)


def saved_groups(run: Path) -> list[Group]:
    """All groups with a checkpoint, in order of models."""
    groups = []
    root = run / CHECKPOINTS
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        match = _NAME.fullmatch(folder.name)
        if not match or not folder.is_dir():
            continue
        steps = [int(child.name) for child in folder.iterdir() if child.name.isdecimal()]
        if steps:
            groups.append(Group(int(match[1]), int(match[2]), max(steps)))
    return groups


def save(run: Path, group: Group, tree: Any) -> None:
    """Write a checkpoint of `group.epoch`; the one before it goes once this one is whole."""
    with _manager(run, group) as manager:
        manager.save(group.epoch, args=ocp.args.StandardSave(tree))
    record = {"epoch": group.epoch, "files": _checksums(_folder(run, group) / str(group.epoch))}
    write_text(_folder(run, group) / CHECKSUMS, json.dumps(record, indent=1) + "\n")


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def verify(run: Path, group: Group) -> None:
    """Check that a checkpoint's files are those that were written.

    A checkpoint without a record passes: the call that wrote it was killed before the record.

    Raises:
        InputError: a file is missing or has changed.
    """
    folder = _folder(run, group)
    try:
        record = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        same = record["epoch"] == group.epoch
        written = record["files"].items() if same else ()
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(run, group, f"{CHECKSUMS}: {error}") from None
    found = _checksums(folder / str(group.epoch))
    for name, digest in written:
        if found.get(name) != digest:
            state = "not what was written" if name in found else "missing"
            raise _damaged(run, group, f"{name} is {state}")


def _damaged(run: Path, group: Group, reason: str) -> InputError:
    folder = _folder(run, group)
    return InputError(
        f"{folder / str(group.epoch)}: damaged or foreign checkpoint ({reason}); "
        f"delete {folder} and run train.py again"
    )


def restore(run: Path, group: Group, like: Any) -> Any:
    """Read the checkpoint of a group.

    Args:
        like: tree of NumPy arrays of the shapes and types it should hold.

    Raises:
        InputError: the checkpoint is damaged or of another network.
    """
    verify(run, group)
    try:
        with _manager(run, group) as manager:
            tree = manager.restore(group.epoch, args=ocp.args.StandardRestore(like))
        for found, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
            if found.shape != wanted.shape:
                raise ValueError(f"an array of shape {found.shape} instead of {wanted.shape}")
        return tree
    # Orbax and TensorStore raise many types for a damaged file; none of them is ours.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise _damaged(run, group, reason) from None


def plan(run: Path, models: int, epochs: int, size: int) -> tuple[list[Group], list[Group]]:
    """What is finished and what is left to train.

    Groups begun earlier keep their extent, whatever `size` is now; models of no checkpoint are cut
    into groups of `size`.

    Returns:
        Finished groups and groups to train, each in order of models.

    Raises:
        InputError: overlapping groups, or models beyond those of the run.
    """
    saved = saved_groups(run)
    free = set(range(models))
    for group in saved:
        extent = set(range(group.first, group.last + 1))
        if not extent <= free:
            raise InputError(
                f"{_folder(run, group)}: models {as_ranges(sorted(extent - free))} are in another "
                "checkpoint or beyond this run's; delete that folder and run train.py again"
            )
        free -= extent
    todo = [group for group in saved if group.epoch < epochs]
    left = sorted(free)
    while left:
        run_length = 1
        while run_length < min(size, len(left)) and left[run_length] == left[run_length - 1] + 1:
            run_length += 1
        todo.append(Group(left[0], left[run_length - 1]))
        left = left[run_length:]
    return [group for group in saved if group.epoch >= epochs], sorted(todo)
