"""Which share of a run's models a process works on.

Processes never talk to each other: share i of n is models N·i/n … N·(i+1)/n − 1, the same for
whoever asks, and each file of a run has one writer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lira_jax.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Share `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    def models(self, models: int) -> range:
        """This share of models 0 … N − 1; shares differ by at most one model."""
        return range(models * self.index // self.count, models * (self.index + 1) // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The share that `--shard` names.

    Args:
        text: `i/n`, or `auto`: the position among the tasks of a Slurm array, the processes of an
            `srun` step (both together where both are), or the pods of a Kubernetes indexed Job.
        environment: where `auto` looks.

    Raises:
        InputError: not a share, or nothing for `auto` to read.
    """
    if text == "auto":
        return _from_cluster(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise InputError(
            f"--shard {text}: give i/n with 0 ≤ i < n, such as 0/4 to 3/4 for four processes, "
            "or auto, or distributed"
        )
    return Shard(int(match[1]), int(match[2]))


def _from_cluster(environment: Mapping[str, str]) -> Shard:
    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        if not text.strip().isdecimal():
            raise InputError(
                f"--shard auto: {name} = {text!r} in the environment is not a whole number; "
                "set it, or give --shard i/n"
            )
        return int(text)

    if "JOB_COMPLETION_INDEX" in environment:
        # Kubernetes tells a pod its index but not their number: launch/kubernetes.yaml sets it.
        return _checked(number("JOB_COMPLETION_INDEX"), number("JOB_COMPLETIONS"))
    index, count = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        count = number("SLURM_ARRAY_TASK_COUNT")
        first, last = number("SLURM_ARRAY_TASK_MIN"), number("SLURM_ARRAY_TASK_MAX")
        step = number("SLURM_ARRAY_TASK_STEP", 1) or 1
        if (last - first) // step + 1 != count:  # such as 3,7: two tasks, not shares 3 and 7 of 8
            raise InputError(
                f"--shard auto: {count} array tasks numbered {first} to {last} have gaps; submit "
                "the whole array again (what is finished ends at once), or give --shard i/n"
            )
        index = (number("SLURM_ARRAY_TASK_ID") - first) // step
    # Only srun sets the first of these; the batch script itself is process 0 of nothing.
    if "SLURM_STEP_NUM_TASKS" in environment:
        tasks = number("SLURM_STEP_NUM_TASKS")
        index, count = index * tasks + number("SLURM_PROCID"), count * tasks
    elif "SLURM_ARRAY_TASK_ID" not in environment:
        raise InputError(
            "--shard auto: the environment is not that of a Slurm array task, an srun step or a "
            "Kubernetes indexed Job; give --shard i/n"
        )
    return _checked(index, count)


def _checked(index: int, count: int) -> Shard:
    if not 0 <= index < count:
        raise InputError(
            f"--shard auto: the environment says process {index} of {count}, counted from 0; "
            "number tasks from the smallest on without gaps, or give --shard i/n"
        )
    return Shard(index, count)
