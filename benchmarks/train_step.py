"""Time of one training step of one shadow model: this engine against the alternatives.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --cases resnet8/64 digits-w8/32 --repeats 9

For each case (network/batch), on all CPU cores given to the process:

- engine: `shadow_models.programs` as `train.py` runs it, one model per host device at the default
  width; shuffle, gather, optimiser, moving average and log included, augmentation off;
- Python loop: the same step function jitted and called for one model at a time, with Flax's own
  layers, as people write it;
- vmap: that step vectorised over models (their convolutions become one grouped convolution);
- PyTorch eager, contiguous and channels_last: the same network, optimiser, moving average and data
  (fused SGD, all threads); at stride 2 it pads all sides by 1, as people write it there, where
  SAME pads two sides.

Printed are medians in ms per model-step (wall time over models × steps), the FLOP/s of convolutions
and dense layers (3 × forward) and their share of this machine's rate in a 2048² matrix product.
All of these are measured in turn within each repetition, since machines change their speed.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax import lax

from benchmarks.flops import forward_flops
from lira_jax import ensemble, networks, optimization, shadow_models
from lira_jax.candidates import Candidates
from lira_jax.config import Experiment, NetworkConfig, TrainConfig
from lira_jax.data.views import plain
from lira_jax.networks import Network, layers
from lira_jax.run.checkpoints import Group

Rounds = Callable[[], float]
"""Runs some steps and returns the seconds per model-step."""

# A method that would take longer than this for one case is left out [s].
PATIENCE = 60.0


@dataclass(frozen=True)
class Case:
    """A network on images [H, W, C] of 10 classes, with one batch size."""

    network: NetworkConfig
    image_shape: tuple[int, int, int]
    batch: int


_NETWORKS = {
    "digits-w8": (NetworkConfig("resnet", 8, 8), (8, 8, 1), (32, 64, 256)),
    "digits-w16": (NetworkConfig("resnet", 8, 16), (8, 8, 1), (32, 64, 256)),
    "resnet8": (NetworkConfig("resnet", 8, 16), (32, 32, 3), (64, 256)),
    "resnet20": (NetworkConfig("resnet", 20, 16), (32, 32, 3), (64, 256)),
    "wrn28_2": (NetworkConfig("wide_resnet", 28, 2), (32, 32, 3), (64, 256)),
}
CASES = {
    f"{name}/{batch}": Case(network, shape, batch)
    for name, (network, shape, batches) in _NETWORKS.items()
    for batch in batches
}


@dataclass(frozen=True)
class Options:
    """What to time.

    Attributes:
        cases: Network/batch, of those in `CASES`; default all.
        repeats: Repetitions, of which the median is printed.
    """

    cases: tuple[str, ...] = tuple(CASES)
    repeats: int = 5


def experiment_of(case: Case, models: int) -> Experiment:
    """SGD with momentum, weight decay and moving average, without augmentation."""
    train = TrainConfig(
        models=models, batch_size=case.batch, ema=0.99, mirror=False, shift=0, eval_examples=1
    )
    return Experiment(network=case.network, train=train)


def synthetic(case: Case, models: int, steps: int) -> Candidates:
    """Random images and labels; every model has its own `steps` batches of members."""
    random = np.random.default_rng(0)
    examples = 2 * steps * case.batch
    keep = np.zeros((models, examples), bool)
    for row in keep:
        row[random.permutation(examples)[: examples // 2]] = True
    return Candidates(
        images=random.integers(0, 256, (examples, *case.image_shape), np.uint8),
        labels=random.integers(0, 10, examples).astype(np.int32),
        classes=10,
        keep=keep,
        digest="",
        available=examples,
    )


def ordinary_network(case: Case) -> Network:
    """The same network of Flax's own layers."""
    with (
        mock.patch.object(layers, "conv_general_dilated", lax.conv_general_dilated),
        mock.patch.object(layers, "BatchNorm", nnx.BatchNorm),
    ):
        return networks.build(case.network, case.image_shape, 10)


def matmul_rate(size: int = 2048) -> Callable[[], float]:
    """A function that measures the FLOP/s of one large float32 matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        return 2 * size**3 / (time.perf_counter() - start)

    return measure


def engine(case: Case, steps: int) -> Rounds:
    """One epoch of one group, as stage 1 dispatches it."""
    mesh = ensemble.models_mesh()
    models = ensemble.group_size(0, mesh)
    experiment = experiment_of(case, models)
    data = synthetic(case, models, steps)
    on_mesh = shadow_models.programs(experiment, data, mesh)
    inputs = shadow_models.group_inputs(experiment, data.keep, Group(0, models - 1), mesh)
    held = [(on_mesh.begin(inputs["number"]), inputs)]

    def run() -> float:
        start = time.perf_counter()
        held[0] = on_mesh.advance(held[0], np.int32(0), np.int32(steps))
        ensemble.on_host(on_mesh.metrics(held[0]), models)
        return (time.perf_counter() - start) / (steps * models)

    run()
    return run


def python_loop(case: Case, steps: int, models: int = 0) -> Rounds:
    """One jitted step per call; of one model, or of several with `vmap`."""
    network = ordinary_network(case)
    experiment = experiment_of(case, 2)
    data = synthetic(case, 1, steps)
    total = experiment.train.total_steps(int(data.keep[0].sum()))
    train_step = optimization.train_step(network, experiment.train, total)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    def step(state: Any, index: Any) -> Any:
        return train_step(state, plain(images, index), labels[index], jax.random.key(0))

    def begin(key: Any) -> Any:
        return optimization.new_state(key, network, experiment.train, total)

    order = np.flatnonzero(data.keep[0]).astype(np.int32).reshape(steps, case.batch)
    keys = jax.random.split(jax.random.key(0), models or 1)
    if models:
        call = jax.jit(jax.vmap(step), donate_argnums=0)
        held = [jax.jit(jax.vmap(begin))(keys)]
        order = np.repeat(order[:, None], models, axis=1)
    else:
        call = jax.jit(step, donate_argnums=0)
        held = [jax.jit(begin)(keys[0])]

    def run(indices: np.ndarray = order) -> float:
        start = time.perf_counter()
        for index in indices:
            held[0], loss = call(held[0], index)
        jax.block_until_ready((held[0], loss))
        return (time.perf_counter() - start) / (len(indices) * (models or 1))

    run(order[:1])
    return run


def torch_eager(case: Case, steps: int, channels_last: bool) -> Rounds:
    """PyTorch's eager training loop with the same optimiser and moving average."""
    import torch

    from benchmarks import torch_networks, torch_training

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_networks.build(case.network, case.image_shape, 10).to(memory_format=layout)
    torch_networks.pad_all_sides(model)
    trainer = torch_training.Trainer(model.train(), experiment_of(case, 2).train, 10**6)
    data = synthetic(case, 1, steps)
    images = torch.from_numpy(np.ascontiguousarray(data.images.transpose(0, 3, 1, 2)))
    images = images.to(memory_format=layout)
    labels = torch.from_numpy(data.labels.astype(np.int64))
    order = torch.from_numpy(np.flatnonzero(data.keep[0]).reshape(steps, case.batch))

    def run(indices: torch.Tensor = order) -> float:
        start = time.perf_counter()
        for index in indices:
            x = images[index].to(torch.float32, memory_format=layout) / 127.5 - 1.0
            trainer.update(torch.nn.functional.cross_entropy(model(x), labels[index]))
        return (time.perf_counter() - start) / len(indices)

    run(order[:2])
    return run


def methods(case: Case, steps: int, vectorised: int) -> dict[str, Callable[[], Rounds]]:
    """How to begin each way of training, `vmap` with this many models; engine first."""
    found: dict[str, Callable[[], Rounds]] = {
        "engine": lambda: engine(case, steps),
        "Python loop": lambda: python_loop(case, steps),
        "vmap": lambda: python_loop(case, 1, models=vectorised),
    }
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed: left out (pip install torch)")
        return found
    found["PyTorch contiguous"] = lambda: torch_eager(case, steps, False)
    found["PyTorch channels_last"] = lambda: torch_eager(case, steps, True)
    return found


def time_case(name: str, case: Case, repeats: int) -> dict[str, float]:
    """Print one case's table; returns median seconds per model-step by method."""
    work = 3 * case.batch * forward_flops(case.network, case.image_shape)
    steps = int(np.clip(4e10 / work, 2, 64))
    vectorised = int(np.clip(4e10 / work, 2, 8))
    rounds: dict[str, Rounds] = {}
    first: dict[str, float] = {}
    for method, begin in methods(case, steps, vectorised).items():
        # Plain vmap takes about ten times as long as the engine.
        expected = 10 * vectorised * first["engine"] * (2 + repeats) if method == "vmap" else 0.0
        if expected > PATIENCE:
            print(f"{name}: {method} left out, it would take about {expected:.0f} s")
            continue
        rounds[method] = begin()
        first[method] = rounds[method]()
    measure = matmul_rate()
    seconds: dict[str, list[float]] = {method: [] for method in rounds}
    rates = []
    for _ in range(repeats):
        rates.append(measure())
        for method, run in rounds.items():
            seconds[method].append(run())
    peak = statistics.median(rates)
    medians = {method: statistics.median(values) for method, values in seconds.items()}
    print(
        f"\n{name}: {work / 1e9:.2f} GFLOP per model-step; "
        f"2048² matrix product {peak / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':24}{'ms':>10}{'GFLOP/s':>10}{'share':>8}{'engine is':>16}")
    for method, median in medians.items():
        rate, ratio = work / median, median / medians["engine"]
        line = f"  {method:22}{1e3 * median:10.2f}{rate / 1e9:10.1f}{rate / peak:8.0%}"
        print(line + ("" if method == "engine" else f"{ratio:9.2f}× as fast"), flush=True)
    return medians


def main(options: Options) -> None:
    """Time the cases one after another."""
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        sys.exit(f"error: --cases {unknown[0]}: choose of {', '.join(CASES)}")
    ensemble.set_up("0/1")
    print(
        f"JAX {jax.__version__}, {len(jax.devices())} host devices, {options.repeats} repetitions"
    )
    for name in options.cases:
        time_case(name, CASES[name], options.repeats)
        jax.clear_caches()
        gc.collect()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
