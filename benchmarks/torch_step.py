"""One training step in PyTorch on this machine's device, for the networks of `accelerator.py`.

    python benchmarks/torch_step.py                                    # all networks, 10 minutes
    python benchmarks/torch_step.py --cases speed_net --dtypes bfloat16 --out rows.jsonl
    python benchmarks/torch_step.py --toy                              # seconds, on any machine

Networks, recipes, batches and random images are those of `accelerator.py`; one model trains at a
time, as PyTorch is used. A step is what the engine's is: a gather from uint8 images on the device,
augmentation, forward and backward pass, optimiser, schedule and moving average, in channels-last
layout; a dispatch begins with a shuffle and the random choices of its steps, and ends when the
device is done. bfloat16 is `torch.autocast`; float32 may use TF32, as JAX's default precision does
on NVIDIA. Ways:

- eager: PyTorch as it is;
- compile: augmentation, forward pass, loss and their gradient by `torch.compile`;
- reduce-overhead: the same with CUDA graphs (`mode="reduce-overhead"`).

Printed are the median ms per step over dispatches; models per hour for the recipe's own epochs and
members, at that rate; seconds of the first step where it compiles; and the most memory that was
allocated at once, images included (CUDA only). What fails is a row that says why, and the rest goes
on; --out gets every row as a line of JSON as soon as it is there. Needs PyTorch and NumPy; imports
no JAX.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import torch_networks
from benchmarks.recipes import (
    CASES,
    CIFAR_EXAMPLES,
    CLASSES,
    DTYPES,
    TOY_EXAMPLES,
    TOY_SIDE,
    plans_of,
)
from benchmarks.torch_training import Trainer
from lira_jax.config import Experiment, TrainConfig

WAYS = ("eager", "compile", "reduce-overhead")


@dataclass(frozen=True)
class Row:
    """One way of one case; what could not be measured is None, and `error` says why.

    Attributes:
        dispatches: over which the medians are.
        compile_seconds: of the first step; None for eager.
        memory_bytes: the allocator's peak; None on CPU.
    """

    case: str
    dtype: str
    batch: int
    way: str
    ms_per_step: float | None = None
    models_per_hour: float | None = None
    dispatches: int | None = None
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    error: str | None = None


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--toy` changes what is not given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--batches", nargs="+", type=int, help="examples; 0: the recipe's own")
    parser.add_argument("--steps", type=int, help="steps per dispatch")
    parser.add_argument("--repeats", type=int, help="dispatches measured")
    parser.add_argument("--seconds", type=float, default=600.0, help="nothing begins after these")
    parser.add_argument("--out", type=Path, help="append each row as a line of JSON")
    parser.add_argument("--toy", action="store_true", help="tiny networks, 8×8 images, eager")
    args = parser.parse_args(argv)
    real = {"ways": ["eager", "compile"], "batches": [0], "steps": 16, "repeats": 5}
    toy = {"ways": ["eager"], "batches": [8], "steps": 2, "repeats": 2}
    for name, value in (toy if args.toy else real).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.steps, args.repeats) < 1 or min(args.batches) < 0:
        parser.error("--steps and --repeats are at least 1, --batches at least 0")
    return args


def reflect(index: Tensor, size: int) -> Tensor:
    """Index into an axis whose borders mirror, for −size < index < 2·size − 1."""
    return (size - 1) - (size - 1 - index.abs()).abs()


def take(images: Tensor, index: Tensor, mirror: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """As `lira_jax.data.views.take`: images of the given index, mirrored, shifted and scaled.

    Args:
        images: uint8 [E, H, W, C].
        index: [B], like the others.
        mirror: true where the image is flipped left to right.
        down: pixels by which the window moves down.
        right: pixels by which the window moves right.

    Returns:
        float32 [B, H, W, C] in [−1, 1].
    """
    height, width = images.shape[1:3]
    rows = reflect(torch.arange(height, device=images.device) + down[:, None], height)
    columns = reflect(torch.arange(width, device=images.device) + right[:, None], width)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels.float() / 127.5 - 1.0


class Draws(NamedTuple):
    """The random choices of training batches, each [..., B].

    Attributes:
        mirror: true where the image is flipped left to right.
        down: pixels by which the window moves down.
        right: pixels by which the window moves right.
        row: of the centre of the cutout.
        column: of the centre of the cutout.
    """

    mirror: Tensor
    down: Tensor
    right: Tensor
    row: Tensor
    column: Tensor


def draw(recipe: TrainConfig, shape: tuple[int, ...], images: Tensor) -> Draws:
    """Random choices for so many images of uint8 [E, H, W, C]."""
    device, shift = images.device, recipe.shift
    down, right = torch.randint(-shift, shift + 1, (2, *shape), device=device)
    return Draws(
        torch.rand(shape, device=device) < (0.5 if recipe.mirror else 0.0),
        down,
        right,
        torch.randint(images.shape[1], shape, device=device),
        torch.randint(images.shape[2], shape, device=device),
    )


def augmented(images: Tensor, index: Tensor, draws: Draws, recipe: TrainConfig) -> Tensor:
    """As `lira_jax.data.views.augmented`: a training batch, float32 [B, C, H, W] in channels-last
    layout, of images uint8 [E, H, W, C] and index [B]."""
    if recipe.mirror or recipe.shift:
        x = take(images, index, draws.mirror, draws.down, draws.right)
    else:
        x = images[index].float() / 127.5 - 1.0
    if recipe.cutout:
        hides = []
        for size, centre in zip(images.shape[1:3], (draws.row, draws.column), strict=True):
            low = centre[:, None] - recipe.cutout // 2
            position = torch.arange(size, device=images.device)
            hides.append((position >= low) & (position < low + recipe.cutout))
        hole = hides[0][:, :, None, None] & hides[1][:, None, :, None]
        x = torch.where(hole, 0.0, x)
    return x.permute(0, 3, 1, 2)


class Loss(nn.Module):
    """Augmentation, network and cross-entropy: index [B] and draws to the mean loss of a batch.

    Images uint8 [E, H, W, C] and labels [E] are buffers: CUDA graphs would copy arguments.
    """

    def __init__(self, model: nn.Module, recipe: TrainConfig, images: Tensor, labels: Tensor):
        super().__init__()
        self.model, self.recipe = model, recipe
        self.register_buffer("images", images)
        self.register_buffer("labels", labels)

    def forward(self, index: Tensor, draws: Draws) -> Tensor:
        x, recipe = augmented(self.images, index, draws, self.recipe), self.recipe
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            features = self.model.features(x)
        logits = self.model.head(features)
        return F.cross_entropy(logits, self.labels[index], label_smoothing=recipe.label_smoothing)


def compiled(loss: Loss, way: str) -> Callable[[Tensor, Draws], Tensor]:
    """The loss in a way of WAYS; what is not one graph for the compiler fails when called."""
    if way == "eager":
        return loss
    torch.compiler.reset()
    mode = "default" if way == "compile" else way
    return torch.compile(loss, fullgraph=True, dynamic=False, mode=mode)


def measure(
    blank: Row,
    experiment: Experiment,
    total_steps: int,
    shared: tuple[Tensor, Tensor],
    args: argparse.Namespace,
    deadline: float,
) -> Row:
    """Train one model: a step, a dispatch, and dispatches that are timed, after the deadline
    [monotonic s] no further one.

    Args:
        blank: the case and the way.
        total_steps: of a model's whole training.
        shared: images uint8 [E, H, W, C] and labels [E] on the device.

    Raises:
        Exception: whatever PyTorch and its compilers raise, torch.OutOfMemoryError among others.
    """
    (images, labels), train, way = shared, experiment.train, blank.way
    device = images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    height, width, channels = images.shape[1:]
    model = torch_networks.build(experiment.network, (height, width, channels), CLASSES)
    model = model.to(device, memory_format=torch.channels_last).train()
    # No rate is negative, however many steps are timed.
    trainer = Trainer(model, train, max(total_steps, args.steps * (args.repeats + 2)))
    loss_of = compiled(Loss(model, train, images, labels), way)
    members = torch.randint(len(images), (args.steps * train.batch_size,), device=device)
    total = torch.zeros((), device=device)

    def seconds_of(steps: int) -> float:
        start = time.perf_counter()
        order = members[torch.randperm(len(members), device=device)]
        order = order.view(args.steps, train.batch_size)[:steps]
        for index, *choices in zip(order, *draw(train, order.shape, images), strict=True):
            if way == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            loss = loss_of(index, Draws(*choices))
            total.add_(loss.detach())
            trainer.update(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = seconds_of(1)
    seconds_of(args.steps)
    seconds = [seconds_of(args.steps)]
    while len(seconds) < args.repeats and time.monotonic() < deadline:
        seconds.append(seconds_of(args.steps))
    step = statistics.median(seconds) / args.steps
    return dataclasses.replace(
        blank,
        ms_per_step=1e3 * step,
        models_per_hour=3600 / (step * total_steps),
        dispatches=len(seconds),
        compile_seconds=None if way == "eager" else first,
        memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )


HEADER = f"{'case':10} {'dtype':9} batch {'way':16} ms/step   models/h  compile      memory"


def line(row: Row) -> str:
    """One row of the table."""
    start = f"{row.case:10} {row.dtype:9} {row.batch:5} {row.way:16}"
    if row.ms_per_step is None:
        return f"{start}{row.error}"
    compile_seconds = "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f} s"
    memory = "-" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.1f} MiB"
    return (
        f"{start}{row.ms_per_step:7.3f} {row.models_per_hour:10,.1f} "
        f"{compile_seconds:>8} {memory:>11}"
    )


def attempt(
    blank: Row,
    experiment: Experiment,
    members: int,
    shared: tuple[Tensor, Tensor],
    args: argparse.Namespace,
    deadline: float,
) -> Row:
    """What `measure` gives, or the reason why it gives nothing."""
    if blank.batch > members:
        error = f"left out, a model has only {members} members"
    elif time.monotonic() >= deadline:
        error = f"left out, {args.seconds:g} s are over"
    else:
        total_steps = experiment.train.total_steps(members)
        try:
            return measure(blank, experiment, total_steps, shared, args, deadline)
        except torch.OutOfMemoryError:
            error = "out of memory"
        except Exception as failure:
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
    return dataclasses.replace(blank, error=error)


def main(argv: Sequence[str] | None = None) -> None:
    """Time every way of every case, one after another."""
    args = options(argv)
    deadline = time.monotonic() + args.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = "cpu"
    if device.type == "cuda":
        kind = torch.cuda.get_device_name()
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    print(f"{kind}, PyTorch {torch.__version__}\n{HEADER}", flush=True)
    side, examples = (TOY_SIDE, TOY_EXAMPLES) if args.toy else (32, CIFAR_EXAMPLES)
    images = torch.randint(256, (examples, side, side, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(CLASSES, (examples,), device=device)
    for case, experiment, members in plans_of(args.cases, args.dtypes, args.batches, args.toy):
        train = experiment.train
        for way in args.ways:
            blank = Row(case, train.dtype, train.batch_size, way)
            row = attempt(blank, experiment, members, (images, labels), args, deadline)
            print(line(row), flush=True)
            if args.out:
                about = {"device": kind, "torch": torch.__version__, "toy": args.toy}
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(row) | about) + "\n")
            # A failure's traceback and a compiled function refer to themselves and to their model.
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
