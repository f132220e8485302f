"""Models per hour on this machine's accelerators: a sweep of width, gradients, dtype and batch.

    python benchmarks/accelerator.py                                  # all networks, 20 minutes
    python benchmarks/accelerator.py --cases speed_net --dtypes bfloat16 --out sweep.json
    python benchmarks/accelerator.py --toy                            # seconds, on any machine

Networks and recipes are those of configs/: ResNet-8 (cifar10_cpu), WRN28-2 (cifar10_wrn28_2) and
SpeedNet (cifar10_fast). Each device trains `width` models vectorised together with the engine's own
epoch, on random images: shuffle, gather, augmentation, optimiser and moving average included.

For each network, dtype and batch, the programs of all widths and of both ways of writing gradients
(`train.conv_gradients`; one model alone has one) are compiled side by side, then measured one after
another; printed are medians:

- ms per model-step: wall time / (steps · models on all devices);
- models per hour: for the recipe's own epochs and members (printed), at that rate, without loading,
  evaluation, checkpoints and compilation;
- TFLOP/s: multiply-adds of convolutions and dense layers count two; a training step counts three
  forward passes;
- MFU: their share of the devices' peak, which is the published dense rate of tensor cores or matrix
  units (float32: TF32 on NVIDIA; on TPU as bfloat16, which JAX's default precision uses there), or
  the rate of a large matrix product measured in the same run where the device is not in the table;
- memory per device: what the compiled program needs: arguments, results and temporaries.

The best row of each network, dtype and batch is what `train.width` and `train.conv_gradients`
should be on this platform; left open, the engine finds them itself, of fewer candidates.
Of third parties this needs jax, flax, optax, numpy, jaxtyping and tqdm alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from benchmarks.flops import forward_flops
from benchmarks.recipes import (
    CASES,
    CIFAR_EXAMPLES,
    CLASSES,
    DTYPES,
    TOY_EXAMPLES,
    TOY_SIDE,
    plans_of,
)
from benchmarks.recipes import TOY_NETWORKS as TOY_NETWORKS
from benchmarks.recipes import recipe as recipe
from lira_jax import ensemble, networks, shadow_models
from lira_jax.config import Experiment
from lira_jax.networks.conv import CONV_GRADIENTS, Gradients

# Dense peaks in TFLOP/s from the makers' data sheets, without sparsity: (bfloat16, float32 as the
# default precision runs it).
PEAKS = {
    "NVIDIA A100-SXM4-40GB": (312, 156),
    "NVIDIA A100-SXM4-80GB": (312, 156),
    "NVIDIA A100 80GB PCIe": (312, 156),
    "NVIDIA H100 80GB HBM3": (989, 495),
    "NVIDIA H100 PCIe": (756, 378),
    "NVIDIA H200": (989, 495),
    "NVIDIA L4": (121, 60),
    "TPU v4": (275, 275),
    "TPU v5 lite": (197, 197),
    "TPU v5": (459, 459),
    "TPU v6 lite": (918, 918),
}


@dataclass(frozen=True)
class Row:
    """One width of one sweep; what could not be measured is None, and `error` says why."""

    network: str
    dtype: str
    batch: int
    width: int
    gradients: Gradients = "vmap"
    ms_per_model_step: float | None = None
    models_per_hour: float | None = None
    flops_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None
    compile_seconds: float | None = None
    error: str | None = None


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--toy` changes what is not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--widths", nargs="+", type=_positive, help="models per device")
    parser.add_argument(
        "--gradients", nargs="+", choices=CONV_GRADIENTS, default=["grouped", "vmap"]
    )
    parser.add_argument("--batches", nargs="+", type=int, help="examples; 0: the recipe's own")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit, shared evenly")
    parser.add_argument("--steps", type=_positive, help="steps per dispatch")
    parser.add_argument("--repeats", type=_positive, help="dispatches measured per width")
    parser.add_argument("--devices", type=int, default=0, help="use the first this many; 0: all")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--toy", action="store_true", help="tiny networks, 8×8 images, two widths")
    args = parser.parse_args(argv)
    real = {"dtypes": ["bfloat16", "float32"], "widths": [1, 2, 4, 8, 16, 32, 64],
            "batches": [0, 1024], "steps": 16, "repeats": 5}  # fmt: skip
    toy = {"dtypes": ["float32", "bfloat16"], "widths": [1, 2], "batches": [8], "steps": 2,
           "repeats": 2}  # fmt: skip
    for name, value in (toy if args.toy else real).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def matrix_rate(device: jax.Device, dtype: str, size: int) -> float:
    """FLOP/s of a large matrix product on random data: the median over about a second."""
    with jax.default_device(device):
        a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32).astype(dtype)
        # Scaled, so that however often it is applied nothing overflows.
        product = jax.jit(lambda a, b: (a @ b) * (1 / size**0.5))
        a = product(a, b).block_until_ready()
        seconds: list[float] = []
        products, began = 4, time.perf_counter()
        # A second in all: clocks settle only under load.
        while len(seconds) < 5 or time.perf_counter() - began < 1:
            start = time.perf_counter()
            for _ in range(products):
                a = product(a, b)
            a.block_until_ready()
            seconds.append((time.perf_counter() - start) / products)
    return 2 * size**3 / statistics.median(seconds)


def peak(device: jax.Device, dtype: str) -> tuple[float, str]:
    """FLOP/s that a device could do at most, and where that number comes from."""
    if device.device_kind in PEAKS:
        return PEAKS[device.device_kind][dtype == "float32"] * 1e12, "published"
    size = 1024 if device.platform == "cpu" else 8192
    return matrix_rate(device, dtype, size), f"{size}² matrix product"


@dataclass
class Width:
    """A compiled dispatch that keeps its models' state, and what it took.

    Attributes:
        row: what it is called, and what is known before it is measured.
        run: one dispatch; the first makes the models.
        seconds: of each measured dispatch.
    """

    row: Row
    run: Callable[[], None]
    seconds: list[float] = dataclasses.field(default_factory=list)


def prepare(
    row: Row,
    experiment: Experiment,
    steps: int,
    shared: tuple[jax.Array, jax.Array],
    mesh: Mesh,
) -> Width:
    """Compile `steps` steps of the models of a row, on each device; from any thread.

    Raises:
        JaxRuntimeError: it cannot be compiled.
    """
    members, models = steps * experiment.train.batch_size, row.width * mesh.size
    random = np.random.default_rng(0)
    network = networks.build(
        experiment.network,
        image_shape_of(shared),
        CLASSES,
        row.dtype,
        conv_gradients=row.gradients,
    )
    advance: Any = ensemble.over_models(
        shadow_models.steps_of_model(experiment, network, steps), mesh, row.width, donate=True
    )
    inputs = {
        "number": np.arange(models, dtype=np.int32),
        "members": random.integers(len(shared[0]), size=(models, members), dtype=np.int32),
    }
    init = shadow_models.init_model(experiment, network, steps, CLASSES)
    states_like = jax.eval_shape(jax.vmap(init), inputs["number"])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=ensemble.over_devices(mesh)
        ),
        (states_like, inputs),
    )
    bounds = (np.int32(0), np.int32(steps))
    start = time.perf_counter()
    compiled = advance.lower(like, *bounds, *shared).compile()
    compile_seconds = time.perf_counter() - start
    group: Any = None

    def run() -> None:
        nonlocal group
        if group is None:  # all models begin as one: what they compute does not matter
            state = jax.device_get(jax.jit(init)(np.int32(0)))
            states = jax.tree.map(lambda leaf: np.repeat(leaf[None], models, axis=0), state)
            group = ensemble.put_padded((states, inputs), mesh)
        group = jax.block_until_ready(compiled(group, *bounds, *shared))

    plan, memory = compiled.memory_analysis(), None
    if plan is not None:
        memory = (
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            + plan.temp_size_in_bytes
            - plan.alias_size_in_bytes
        )
    return Width(
        dataclasses.replace(row, compile_seconds=compile_seconds, memory_bytes=memory), run
    )


def image_shape_of(shared: tuple[jax.Array, jax.Array]) -> tuple[int, int, int]:
    """H, W, C of images [E, H, W, C]."""
    height, width, channels = shared[0].shape[1:]
    return height, width, channels


def candidates(
    widths: Sequence[int], gradients: Sequence[Gradients]
) -> list[tuple[int, Gradients]]:
    """Widths and ways of writing gradients, the most promising first: with little time, the others
    are left out. One model alone has one kind of gradients."""
    found: list[tuple[int, Gradients]] = []
    for width in sorted(set(widths) - {1}, key=lambda width: (abs(width - 16), width)):
        found += [(width, way) for way in gradients]
    alone = [(1, gradients[0])] if 1 in widths else []
    return [*found[:1], *alone, *found[1:]]


def sweep(
    case: str,
    experiment: Experiment,
    members: int,
    args: argparse.Namespace,
    shared: tuple[jax.Array, jax.Array],
    mesh: Mesh,
    peak_flops: float,
    deadline: float,
    found: Callable[[Row], None] = lambda row: None,
) -> tuple[list[Row], list[str]]:
    """All widths of one network, dtype and batch; rows, and what is left out for lack of time.

    No program is begun to be compiled after the deadline [monotonic s]; what is compiled is
    measured, which takes seconds, and told to `found` at once.
    """
    train = experiment.train
    blank = Row(case, train.dtype, train.batch_size, 0)
    rows: list[Row] = []
    waiting = [
        dataclasses.replace(blank, width=width, gradients=way)
        for width, way in candidates(args.widths, args.gradients)
    ]
    compiling: dict[Row, Future[Width | None]] = {}
    left_out: list[Row] = []

    def compiled(row: Row) -> Width | None:
        if time.monotonic() >= deadline:
            return None
        return prepare(row, experiment, args.steps, shared, mesh)

    # Half of the cores, as compilers have threads of their own. None is measured meanwhile: they
    # also use the device.
    with ThreadPoolExecutor(max(1, min(len(waiting), (os.cpu_count() or 1) // 2))) as pool:
        compiling = {row: pool.submit(compiled, row) for row in waiting}
    image_shape = image_shape_of(shared)
    flops = 3 * train.batch_size * forward_flops(experiment.network, image_shape, CLASSES)
    total_steps = experiment.train.total_steps(members)
    for row in waiting:
        try:
            # Its models leave the device before the next ones come.
            one = compiling.pop(row).result()
            if one is None:
                left_out.append(row)
                continue
            one.run()
            for _ in range(args.repeats):
                start = time.perf_counter()
                one.run()
                one.seconds.append(time.perf_counter() - start)
            step = statistics.median(one.seconds) / (args.steps * one.row.width * mesh.size)
            measured = dataclasses.replace(
                one.row,
                ms_per_model_step=step * 1e3,
                models_per_hour=3600 / (step * total_steps),
                flops_per_second=flops / step,
                utilisation=flops / step / (peak_flops * mesh.size),
            )
        except JaxRuntimeError as error:
            text = " ".join(str(error).split())
            short = "out of memory" if "RESOURCE_EXHAUSTED" in text else text[:120]
            measured = dataclasses.replace(row, error=short)
        rows.append(measured)
        found(measured)
    rows.sort(key=lambda row: (row.width, row.gradients))
    return rows, [f"{row.width} {row.gradients}" for row in left_out]


def best(rows: list[Row]) -> Row | None:
    """The row of the most models per hour."""
    measured = [row for row in rows if row.models_per_hour]
    return max(measured, key=lambda row: row.models_per_hour or 0, default=None)


def named(row: Row) -> str:
    """What to set in the configuration for a row."""
    return f"width {row.width}" + f", {row.gradients} gradients" * (row.width > 1)


HEADER = "width gradients  ms/model-step   models/h   TFLOP/s    MFU      memory  compile"


def line(row: Row) -> str:
    """One row of the table."""
    start = f"{row.width:5} {row.gradients if row.width > 1 else '-':9}"
    if row.error:
        return f"{start}  {row.error}"
    value: dict[str, Any] = dataclasses.asdict(row)  # all there: there was no error
    memory = f"{(row.memory_bytes or 0) / 2**20:,.1f} MiB"
    return (
        f"{start} {value['ms_per_model_step']:14.3f} {value['models_per_hour']:10,.1f} "
        f"{value['flops_per_second'] / 1e12:9.3f} {value['utilisation']:6.1%} {memory:>11} "
        f"{value['compile_seconds']:6.1f} s"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweeps and print their tables."""
    args = options(argv)
    start = time.monotonic()
    mesh = ensemble.models_mesh(jax.devices()[: args.devices or None])
    device = mesh.devices.flat[0]
    peaks = {dtype: peak(device, dtype) for dtype in args.dtypes}
    print(f"{mesh.size} × {device.device_kind} ({device.platform}), JAX {jax.__version__}")
    for dtype, (flops, source) in peaks.items():
        print(f"peak {dtype}: {flops / 1e12:,.3f} TFLOP/s per device ({source})")
    random = np.random.default_rng(0)
    side, examples = (TOY_SIDE, TOY_EXAMPLES) if args.toy else (32, CIFAR_EXAMPLES)
    images = random.integers(256, size=(examples, side, side, 3), dtype=np.uint8)
    labels = random.integers(CLASSES, size=examples, dtype=np.int32)
    shared = ensemble.put_shared((images, labels), mesh)

    plans = plans_of(args.cases, args.dtypes, args.batches, args.toy)
    rows: list[Row] = []
    winners: list[Row] = []
    left_out: list[dict[str, Any]] = []
    for done, (case, experiment, members) in enumerate(plans):
        train = experiment.train
        title = f"{case} {train.dtype} batch {train.batch_size}"
        if train.batch_size > members:
            print(f"\n{title}: left out, a model has only {members} members")
            continue
        now = time.monotonic()
        deadline = now + (60 * args.minutes - (now - start)) / (len(plans) - done)
        found_rows, missing = sweep(
            case, experiment, members, args, shared, mesh, peaks[train.dtype][0], deadline
        )
        print(f"\n{title}; a model: {train.epochs} epochs of {members} members\n{HEADER}")
        print("\n".join(line(row) for row in found_rows))
        if missing:
            left_out.append({"sweep": title, "widths": missing})
            print(f"widths {', '.join(missing)} left out: the time for this sweep is over")
        winner = best(found_rows)
        if winner:
            winners.append(winner)
            print(f"best: {named(winner)}", flush=True)
        rows += found_rows
        if args.out:
            report = {
                "device_kind": device.device_kind,
                "platform": device.platform,
                "devices": mesh.size,
                "jax": jax.__version__,
                "steps_per_dispatch": args.steps,
                "toy": args.toy,
                "peaks": {
                    dtype: {"flops_per_second": flops, "from": source}
                    for dtype, (flops, source) in peaks.items()
                },
                "rows": [dataclasses.asdict(row) for row in rows],
                "best": [dataclasses.asdict(row) for row in winners],
                "left_out": left_out,
            }
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\nbest widths")
    for row in winners:
        print(
            f"{row.network} {row.dtype} batch {row.batch}: {named(row)}, "
            f"{row.models_per_hour:,.1f} models/h"
        )


if __name__ == "__main__":
    main()
