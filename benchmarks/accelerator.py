"""Models per hour on this machine's accelerators: a sweep of width, dtype and batch.

    python benchmarks/accelerator.py                                  # all networks, 20 minutes
    python benchmarks/accelerator.py --cases speed_net --dtypes bfloat16 --out sweep.json
    python benchmarks/accelerator.py --toy                            # seconds, on any machine

Networks and recipes are those of configs/: ResNet-8 (cifar10_cpu), WRN28-2 (cifar10_wrn28_2) and
SpeedNet (cifar10_fast). Each device trains `width` models vectorised together with the engine's own
epoch, on random images: shuffle, gather, augmentation, optimiser and moving average included.

For each network, dtype and batch, widths are tried upward until one does not fit into memory, then
measured in turn, dispatch by dispatch; printed are medians:

- ms per model-step: wall time / (steps · models on all devices);
- models per hour: for the recipe's own epochs and members (printed), at that rate, without loading,
  evaluation, checkpoints and compilation;
- TFLOP/s: multiply-adds of convolutions and dense layers count two; a training step counts three
  forward passes;
- MFU: their share of the devices' peak, which is the published dense rate of tensor cores or matrix
  units (float32: TF32 on NVIDIA; on TPU as bfloat16, which JAX's default precision uses there), or
  the rate of a large matrix product measured in the same run where the device is not in the table;
- memory per device: the allocator's peak if this width raised it, else (marked ~) what the compiled
  program needs: arguments, results and temporaries.

The best width of each network, dtype and batch is what `train.width` should be on this platform.
Of third parties this needs jax, flax, optax, numpy, jaxtyping and tqdm alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from benchmarks.flops import forward_flops
from lira_jax import config, ensemble, networks, optimization, training
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
CIFAR_EXAMPLES, CLASSES = 50_000, 10

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
    ms_per_model_step: float | None = None
    models_per_hour: float | None = None
    flops_per_second: float | None = None
    utilisation: float | None = None
    memory_bytes: int | None = None
    memory_from: str | None = None
    compile_seconds: float | None = None
    error: str | None = None


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--toy` changes what is not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--widths", nargs="+", type=_positive, help="models per device")
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


def recipe(
    case: str, dtype: Literal["float32", "bfloat16"], batch: int, toy: bool
) -> tuple[Experiment, int]:
    """The experiment of a case and the members of each of its models."""
    experiment = config.load(CONFIGS / CASES[case])
    kept, folds = config.keep_fraction(experiment.train.keep)
    members = (experiment.data.limit or CIFAR_EXAMPLES) // folds * kept
    train = dataclasses.replace(
        experiment.train, dtype=dtype, batch_size=batch or experiment.train.batch_size
    )
    network = TOY_NETWORKS[case] if toy else experiment.network
    return dataclasses.replace(experiment, train=train, network=network), members


def peak(device: jax.Device, dtype: str) -> tuple[float, str]:
    """FLOP/s that a device could do at most, and where that number comes from."""
    if device.device_kind in PEAKS:
        return PEAKS[device.device_kind][dtype == "float32"] * 1e12, "published"
    size = 1024 if device.platform == "cpu" else 8192
    a = jax.device_put(jnp.full((size, size), 1 / size, dtype), device)
    product = jax.jit(jnp.dot)
    a = product(a, a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(4):
            a = product(a, a)
        a.block_until_ready()
        seconds.append((time.perf_counter() - start) / 4)
    return 2 * size**3 / statistics.median(seconds), f"{size}² matrix product"


@dataclass
class Width:
    """A compiled dispatch that keeps its models' state, and what it took."""

    width: int
    run: Callable[[], None]
    compile_seconds: float
    memory_bytes: int
    memory_from: str
    seconds: list[float] = dataclasses.field(default_factory=list)


def prepare(
    experiment: Experiment,
    network: networks.Network,
    state: Any,
    width: int,
    steps: int,
    shared: tuple[jax.Array, jax.Array],
    mesh: Mesh,
) -> Width:
    """Compile `steps` steps of `width` models per device that begin as `state`; run them once.

    Raises:
        JaxRuntimeError: out of memory, among others.
    """
    members, models = steps * experiment.train.batch_size, width * mesh.size
    random = np.random.default_rng(0)
    model = {
        "number": np.arange(models, dtype=np.int32),
        "members": random.integers(len(shared[0]), size=(models, members), dtype=np.int32),
    }
    states = jax.tree.map(lambda leaf: np.repeat(leaf[None], models, axis=0), state)
    group = ensemble.put_padded((states, model), mesh)
    advance: Any = ensemble.over_models(
        training.steps_of_model(experiment, network, steps), mesh, width, donate=True
    )
    bounds = (np.int32(0), np.int32(steps))
    start = time.perf_counter()
    compiled = advance.lower(group, *bounds, *shared).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal group
        group = jax.block_until_ready(compiled(group, *bounds, *shared))

    before = _allocator_peak(mesh)
    run()
    after = _allocator_peak(mesh)
    if after > before:
        memory, source = after, "allocator"
    else:
        plan = compiled.memory_analysis()
        memory, source = 0, "program"
        if plan is not None:
            memory = (
                plan.argument_size_in_bytes
                + plan.output_size_in_bytes
                + plan.temp_size_in_bytes
                - plan.alias_size_in_bytes
            )
    return Width(width, run, compile_seconds, memory, source)


def _allocator_peak(mesh: Mesh) -> int:
    """The most bytes that any device has held at once so far; 0 where unknown, as on CPU."""
    return max(
        (device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in mesh.devices.flat
    )


def sweep(
    case: str,
    experiment: Experiment,
    members: int,
    args: argparse.Namespace,
    shared: tuple[jax.Array, jax.Array],
    mesh: Mesh,
    peak_flops: float,
    deadline: float,
) -> tuple[list[Row], list[int]]:
    """All widths of one network, dtype and batch; rows, and widths left out for lack of time."""
    train = experiment.train
    row = dataclasses.replace
    blank = Row(case, train.dtype, train.batch_size, 0)
    rows, ready, widths = [], [], sorted(set(args.widths))
    height, side, channels = shared[0].shape[1:]
    image_shape = (height, side, channels)
    network = networks.build(experiment.network, image_shape, CLASSES, train.dtype)
    init = jax.jit(training.init_model(experiment, network, args.steps, CLASSES))
    state = jax.device_get(init(np.int32(0)))
    while widths and time.monotonic() < deadline:
        width = widths.pop(0)
        try:
            ready.append(prepare(experiment, network, state, width, args.steps, shared, mesh))
        except JaxRuntimeError as error:
            text = " ".join(str(error).split())
            short = "out of memory" if "RESOURCE_EXHAUSTED" in text else text[:120]
            rows.append(row(blank, width=width, error=short))
            widths = []
    for repeat in range(args.repeats):
        if repeat and time.monotonic() > deadline:
            break
        for one in ready:
            start = time.perf_counter()
            one.run()
            one.seconds.append(time.perf_counter() - start)
    flops = 3 * train.batch_size * forward_flops(experiment.network, image_shape, CLASSES)
    total_steps = optimization.steps_per_epoch(members, train.batch_size) * train.epochs
    measured = []
    for one in ready:
        models = one.width * mesh.size
        step = statistics.median(one.seconds) / (args.steps * models)
        measured.append(
            row(
                blank,
                width=one.width,
                ms_per_model_step=step * 1e3,
                models_per_hour=3600 / (step * total_steps),
                flops_per_second=flops / step,
                utilisation=flops / step / (peak_flops * mesh.size),
                memory_bytes=one.memory_bytes,
                memory_from=one.memory_from,
                compile_seconds=one.compile_seconds,
            )
        )
    return measured + rows, widths


def best(rows: list[Row]) -> Row | None:
    """The row of the most models per hour."""
    measured = [row for row in rows if row.models_per_hour]
    return max(measured, key=lambda row: row.models_per_hour or 0, default=None)


HEADER = "width  ms/model-step   models/h   TFLOP/s    MFU      memory  compile"


def line(row: Row) -> str:
    """One row of the table."""
    if row.error:
        return f"{row.width:5}  {row.error}"
    value: dict[str, Any] = dataclasses.asdict(row)  # all there: there was no error
    mark = "" if row.memory_from == "allocator" else "~"
    memory = f"{mark}{value['memory_bytes'] / 2**20:,.1f} MiB"
    return (
        f"{row.width:5} {value['ms_per_model_step']:14.3f} {value['models_per_hour']:10,.1f} "
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
    side, examples = (8, 256) if args.toy else (32, CIFAR_EXAMPLES)
    images = random.integers(256, size=(examples, side, side, 3), dtype=np.uint8)
    labels = random.integers(CLASSES, size=examples, dtype=np.int32)
    shared = ensemble.put_shared((images, labels), mesh)

    plans = []
    for case in args.cases:
        for dtype in args.dtypes:
            found = [recipe(case, dtype, batch, args.toy) for batch in args.batches]
            by_batch = {experiment.train.batch_size: (experiment, n) for experiment, n in found}
            plans += [(case, *by_batch[batch]) for batch in sorted(by_batch)]
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
            print(
                f"widths {', '.join(map(str, missing))} left out: the time for this sweep is over"
            )
        winner = best(found_rows)
        if winner:
            winners.append(winner)
            print(f"best width: {winner.width}", flush=True)
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
            f"{row.network} {row.dtype} batch {row.batch}: width {row.width}, "
            f"{row.models_per_hour:,.1f} models/h"
        )


if __name__ == "__main__":
    main()
