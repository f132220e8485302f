"""Queries per second of the scoring stage's forward pass, and its share of a plain forward pass.

    python benchmarks/score.py

A query is one view of one example under one model. Measured in turn, `--repeats` times, for a
ResNet-8 of width 16 on 32×32×3 images and on 8×8×1 ones (configs/digits.toml), with 1 and 18 views:

- `score`: the compiled function that score.py runs, one model on each device, in the stage's own
  batches and dispatches: gather, mirror and shift uint8 images, network, φ, results to the host;
- `plain`: `network.apply` alone, jitted, on a float batch that is ready, at the batch size that was
  fastest in a sweep in this run; on one device, or with one model on each, whichever was faster.

The share is the rate of `score` over that of `plain`, the median of the pairs; by CPU seconds too,
which other work on the machine disturbs less.

    python benchmarks/score.py --cases digits --images 64 --batches 16 --repeats 1   # a trial
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import hardware
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lira_jax import ensemble, inference, networks, scoring
from lira_jax.config import NetworkConfig
from lira_jax.data.views import fixed_views
from lira_jax.networks import Network

CASES = {"32x32": (32, 32, 3), "digits": (8, 8, 1)}
CLASSES = 10


class Rate(NamedTuple):
    """Images per second, and per CPU second."""

    seconds: float
    cpu_seconds: float


def measure(run: Callable[[], int]) -> Rate:
    """Rate of a function that returns once it has passed so many images through a network."""
    start, start_cpu = time.perf_counter(), time.process_time()
    images = run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return Rate(images / seconds, images / cpu_seconds)


def score_pass(
    network: Network, variables: Any, shape: tuple[int, ...], views: int, images: int, mesh: Mesh
) -> Callable[[], int]:
    """Scoring of all views of so many examples that they are `images` or a dispatch, as score.py
    does it; variables [G, …] of one model per device."""
    batch = ensemble.score_batch(0, views, mesh)
    steps = max(1, min(inference.DISPATCH, images // views) // batch)
    dispatches = max(1, images // (steps * batch * views))
    examples = dispatches * steps * batch
    random = np.random.default_rng(0)
    shared = ensemble.put_shared(
        (
            random.integers(0, 256, (examples, *shape), np.uint8),
            random.integers(0, CLASSES, examples, np.int32),
        ),
        mesh,
    )
    function = scoring.scores_of_model(network, fixed_views(views))
    on_group = ensemble.over_models(function, mesh)

    def run() -> int:
        for index in np.arange(examples, dtype=np.int32).reshape(dispatches, steps, batch):
            ensemble.on_host(on_group(variables, index, *shared), mesh.size)
        return mesh.size * examples * views

    return run


def plain_pass(
    network: Network, variables: Any, shape: tuple[int, ...], batch: int, images: int, mesh: Mesh
) -> Callable[[], int]:
    """`network.apply` on one float batch again and again, one model on each device of the mesh."""

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return network.apply(jax.tree.map(lambda leaf: leaf[0], variables), x)

    specs: dict[str, Any] = {"in_specs": (P(ensemble.AXIS), P()), "out_specs": P(ensemble.AXIS)}
    function = jax.jit(jax.shard_map(apply, mesh=mesh, check_vma=False, **specs))
    random = np.random.default_rng(1)
    x = ensemble.put_shared(random.uniform(-1, 1, (batch, *shape)).astype(np.float32), mesh)
    calls = max(1, images // batch)

    def run() -> int:
        for _ in range(calls):
            logits = function(variables, x)
        logits.block_until_ready()
        return mesh.size * calls * batch

    return run


def report(case: str, views: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    shape = CASES[case]
    network = networks.build(NetworkConfig("resnet", 8, 16), shape, CLASSES)
    everywhere = ensemble.models_mesh()
    # One model per device: on all devices, and on one, where a batch may use every core.
    meshes = [everywhere, *([ensemble.models_mesh(jax.devices()[:1])] * (everywhere.size > 1))]
    models = {}
    for mesh in meshes:
        keys = jax.random.split(jax.random.key(0), mesh.size)
        models[mesh] = ensemble.over_models(network.init, mesh)(keys)
    plain = {
        (mesh.size, batch): plain_pass(network, models[mesh], shape, batch, options.images, mesh)
        for mesh in meshes
        for batch in options.batches
    }
    score = score_pass(network, models[everywhere], shape, views, options.images, everywhere)
    for run in (score, *plain.values()):
        run()  # compiles
    best = max(plain, key=lambda key: max(measure(plain[key]).seconds for _ in range(2)))
    pairs = [(measure(score), measure(plain[best])) for _ in range(options.repeats)]
    rates = [statistics.median(pair[side].seconds for pair in pairs) for side in (0, 1)]
    shares = [
        statistics.median(ours[kind] / theirs[kind] for ours, theirs in pairs) for kind in (0, 1)
    ]
    batch = ensemble.score_batch(0, views, everywhere)
    return (
        f"{case:7} {views:5} {batch:5} {rates[0]:14,.0f} {rates[1]:14,.0f} "
        f"{best[1]:5} on {best[0]} {shares[0]:7.0%} {shares[1]:9.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--views", nargs="+", type=int, default=[1, 18], help="Q")
    parser.add_argument(
        "--images", type=int, default=4608, help="of each measurement, per model; views count"
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[16, 36, 72, 144, 288, 576],
        help="batch sizes of the plain pass to choose from",
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    ensemble.set_up("0/1")
    devices = jax.devices()
    print(hardware.line("jax", "flax", "numpy"))
    print(f"{len(devices)} × {devices[0].device_kind}; medians of {options.repeats}")
    print(
        "images  views batch  score queries/s plain images/s  best batch   share by CPU s",
        flush=True,
    )
    for case in options.cases:
        for views in options.views:
            print(report(case, views, options), flush=True)


if __name__ == "__main__":
    main()
