"""What every defence costs in training: time of one step of one shadow model, against plain.

    python benchmarks/defences.py

ResNet-8 of width 8, batches of 64, 2,500 members per model, 1,000 held-out images, 28×28×1 and
32×32×3, one model on each device. Measured in turn, `--repeats` times, is one epoch as train.py
dispatches it: shuffle, gather, step, optimiser, moving average and, with early stopping, the look
at held-out images after it; the log is left out. Plain training has neither weight decay nor
augmentation. Early stopping is given more patience than there are epochs, so that no step is
skipped; what it saves depends on the data.

Printed are medians in ms per model-step (wall time over models × steps), and of the ratios to
plain training in the same repetition. DP-SGD needs group normalisation, which has a row of its own:
the ratio of the two rows is what privacy alone costs. Times do not depend on what the images show,
nor on the defences' strengths, but for whether they are 0.

    python benchmarks/defences.py --cases 8x8x1 --members 128 --repeats 1 --defences L1   # a trial
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import hardware
import jax
import numpy as np

from lira_jax import config, ensemble, shadow_models
from lira_jax.candidates import Candidates, build_network
from lira_jax.config import DefenceConfig, Experiment, NetworkConfig, TrainConfig
from lira_jax.networks import last_layer
from lira_jax.run.checkpoints import Group

CASES = {"28x28x1": (28, 28, 1), "32x32x3": (32, 32, 3), "8x8x1": (8, 8, 1)}
CLASSES, HELD_OUT = 10, 1000

PLAIN = Experiment(
    network=NetworkConfig("resnet", 8, 8),
    train=TrainConfig(batch_size=64, weight_decay=0, mirror=False, shift=0, eval_examples=1),
)


def defended(experiment: Experiment = PLAIN, **settings: Any) -> Experiment:
    """The experiment with these of its [defence]."""
    return replace(experiment, defence=DefenceConfig(**settings))


GROUP_NORM = replace(PLAIN, network=replace(PLAIN.network, norm="group"))
# By name; plain training comes first and is always measured. No run is read in "another run".
DEFENCES = {
    "plain": PLAIN,
    "augmentation": replace(PLAIN, train=replace(PLAIN.train, mirror=True, shift=4)),
    "L2": replace(PLAIN, train=replace(PLAIN.train, weight_decay=5e-4)),
    "L1": defended(l1=1e-5),
    "dropout": defended(dropout=0.5),
    "early stopping": defended(early_stopping=PLAIN.train.epochs),
    "transfer, all layers": defended(transfer_from="another run", transfer_tune="all"),
    "transfer, last layer": defended(transfer_from="another run", transfer_tune="last"),
    "adversarial": defended(adversarial=1.0),
    "group norm": GROUP_NORM,
    "DP-SGD, group norm": defended(GROUP_NORM, dp_clip=1.0, dp_noise=1.0),
}


def synthetic(shape: tuple[int, int, int], models: int, members: int) -> Candidates:
    """Random images and labels; every model has half of them, its own."""
    random = np.random.default_rng(0)

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(0, CLASSES, count, np.int32)
        return random.integers(0, 256, (count, *shape), np.uint8), labels

    pixels, labels = images(2 * members)
    keep = random.permuted(np.tile(np.arange(2 * members) < members, (models, 1)), axis=1)
    return Candidates(
        images=pixels,
        labels=labels,
        classes=CLASSES,
        keep=keep,
        digest="",
        available=len(labels),
        held_out=images(HELD_OUT),
    )


def epochs_of(experiment: Experiment, data: Candidates) -> Callable[[], float]:
    """A function that trains one group for an epoch more and tells the seconds per model-step."""
    config.check(experiment)
    mesh = ensemble.models_mesh()
    models, initial = len(data.keep), None
    if experiment.defence.transfer_from:
        network = build_network(experiment, data)
        initial = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
        del initial["params"][last_layer(initial, experiment.network.arch, "defence.transfer_from")]
    on_mesh = shadow_models.programs(experiment, data, mesh, initial)
    inputs = shadow_models.group_inputs(experiment, data.keep, Group(0, models - 1), mesh)
    both = on_mesh.begin(inputs["number"]), inputs
    members = int(data.keep[0].sum())
    steps, epoch = experiment.train.steps_per_epoch(members), 0

    def run() -> float:
        nonlocal both, epoch
        start = time.perf_counter()
        both = on_mesh.advance(both, np.int32(epoch * steps), np.int32((epoch + 1) * steps))
        epoch += 1
        both = jax.block_until_ready(on_mesh.judge(both, np.int32(epoch)))
        return (time.perf_counter() - start) / (steps * models)

    return run


def report(case: str, options: argparse.Namespace) -> None:
    """Print one case's table."""
    models = len(jax.devices())
    data = synthetic(CASES[case], models, options.members)
    chosen = {"plain": PLAIN} | {name: DEFENCES[name] for name in options.defences}
    if importlib.util.find_spec("jax_privacy") is None:
        chosen = {name: one for name, one in chosen.items() if not one.defence.dp_clip}
        print("DP-SGD is left out: jax-privacy is not installed (pip install 'lira_jax[dp]')")

    def compiled(experiment: Experiment) -> Callable[[], float]:
        run = epochs_of(experiment, data)
        run()
        return run

    # Compilation takes about as long as all that is measured, and keeps one core busy a program.
    with ThreadPoolExecutor(hardware.cores()) as pool:
        runs = dict(zip(chosen, pool.map(compiled, chosen.values()), strict=True))
    rounds = [{name: run() for name, run in runs.items()} for _ in range(options.repeats)]
    print(f"\n{case:24}{'ms':>8}{'× plain':>10}")
    for name in runs:
        seconds = statistics.median(one[name] for one in rounds)
        ratio = statistics.median(one[name] / one["plain"] for one in rounds)
        print(f"{name:24}{1e3 * seconds:8.2f}{ratio:10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["28x28x1", "32x32x3"])
    parser.add_argument("--defences", nargs="+", choices=DEFENCES, default=list(DEFENCES))
    parser.add_argument("--members", type=int, default=2500, help="training images per model")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ensemble.set_up("0/1")
    devices = jax.devices()
    print(hardware.line("jax", "flax", "optax"))
    print(
        f"{len(devices)} × {devices[0].device_kind}; {options.members:,} members, batches of "
        f"{PLAIN.train.batch_size}; medians of {options.repeats}",
        flush=True,
    )
    for case in options.cases:
        report(case, options)
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main()
