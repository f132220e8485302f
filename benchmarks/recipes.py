"""The networks and recipes of configs/ that the accelerator benchmarks time. Imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from lira_jax import config, config_file
from lira_jax.config import Experiment, NetworkConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CASES = {
    "resnet8": "cifar10_cpu.toml",
    "wrn28_2": "cifar10_wrn28_2.toml",
    "speed_net": "cifar10_fast.toml",
}
TOY_NETWORKS = {
    "resnet8": NetworkConfig("resnet", 8, 4),
    "wrn28_2": NetworkConfig("wide_resnet", 10, 1),
    "speed_net": NetworkConfig("speed_net", 8, 8),
}
DTYPES = ("float32", "bfloat16")
CIFAR_EXAMPLES, CLASSES = 50_000, 10
TOY_EXAMPLES, TOY_SIDE = 256, 8  # images 8×8


def recipe(
    case: str, dtype: Literal["float32", "bfloat16"], batch: int, toy: bool
) -> tuple[Experiment, int]:
    """The experiment of a case and the members of each of its models."""
    experiment = config_file.load(CONFIGS / CASES[case])
    kept, folds = config.keep_fraction(experiment.train.keep)
    members = (experiment.data.limit or CIFAR_EXAMPLES) // folds * kept
    train = dataclasses.replace(
        experiment.train, dtype=dtype, batch_size=batch or experiment.train.batch_size
    )
    network = TOY_NETWORKS[case] if toy else experiment.network
    return dataclasses.replace(experiment, train=train, network=network), members


def plans_of(
    cases: Iterable[str],
    dtypes: Iterable[Literal["float32", "bfloat16"]],
    batches: Iterable[int],
    toy: bool,
) -> list[tuple[str, Experiment, int]]:
    """Every case, with its experiment and members, for every dtype and, from small to large, every
    batch (0: the recipe's own)."""
    plans = []
    for case in cases:
        for dtype in dtypes:
            found = [recipe(case, dtype, batch, toy) for batch in batches]
            by_batch = {experiment.train.batch_size: (experiment, n) for experiment, n in found}
            plans += [(case, *by_batch[batch]) for batch in sorted(by_batch)]
    return plans
