"""Time of single 3×3 convolutions on one CPU core: Winograd's way, the direct one, and PyTorch's.

    taskset -c 0 python benchmarks/convolutions.py
    taskset -c 0 python benchmarks/convolutions.py --layers 8,64 --batch 8 --repeats 9

For each layer (pixels of a side, channels in and out): forward, gradient of the input and of the
weights, as `lira_jax.networks.winograd` and as the rest of `lira_jax.networks.conv` make them, and
PyTorch in channels_last. Printed are medians of CPU milliseconds, measured in turn, and the error
of Winograd's sums against the direct ones, as root mean squares.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lira_jax.networks import conv, winograd

OPTIONS = conv.Options((1, 1), ((1, 1), (1, 1)))


@dataclass(frozen=True)
class Options:
    """What to time.

    Attributes:
        layers: Side,channels of each.
        batch: Images.
        repeats: Repetitions, of which the median is printed.
    """

    layers: tuple[str, ...] = ("32,16", "32,32", "16,32", "16,64", "8,64", "8,128")
    batch: int = 64
    repeats: int = 7


def direct(x: Any, w: Any) -> Any:
    """The forward pass without Winograd's transforms."""
    p = conv._columns_at_once(1, x.shape[2], w)
    taps = np.arange(3 + p - 1)[:, None] - np.arange(p)
    return conv._blockwise(x, w, taps, (1, p), ((1, 1), -1), x.shape[2], None)


def ways(x: Any, w: Any, dy: Any) -> dict[str, list[Callable[[], Any]]]:
    """Calls that make the same thing: Winograd's, direct, PyTorch's if it is installed."""
    size = (x.shape[1], x.shape[2])

    def call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    found = {
        "forward": [
            call(lambda x, w: winograd.convolve(x, w, None), x, w),
            call(direct, x, w),
        ],
        "input gradient": [
            call(lambda dy, w: winograd.input_gradient(dy, w, None), dy, w),
            call(lambda dy, w: conv._input_gradient(dy, w, size, OPTIONS), dy, w),
        ],
        "weight gradient": [
            call(lambda x, dy: winograd.weight_gradient(x, dy, None), x, dy),
            call(lambda x, dy: conv._weight_gradient(x, dy, (3, 3), OPTIONS), x, dy),
        ],
    }
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(1)
    image, gradient = (torch.from_numpy(np.array(a)).permute(0, 3, 1, 2) for a in (x, dy))
    kernel = torch.from_numpy(np.array(w)).permute(3, 2, 0, 1)
    kernel = kernel.contiguous(memory_format=torch.channels_last)

    def backward(wanted: list[bool]) -> Callable[[], Any]:
        shape = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return lambda: torch.ops.aten.convolution_backward(
            gradient, image, kernel, None, *shape, wanted
        )

    found["forward"].append(lambda: torch.nn.functional.conv2d(image, kernel, None, 1, 1))
    found["input gradient"].append(backward([True, False, False]))
    found["weight gradient"].append(backward([False, True, False]))
    return found


def main(options: Options) -> None:
    """Time the layers one after another."""
    print(f"JAX {jax.__version__}, {options.batch} images, {options.repeats} repetitions, CPU ms")
    print(f"{'':32}{'Winograd':>10}{'direct':>10}{'PyTorch':>10}{'error':>10}")
    random = np.random.default_rng(0)
    for layer in options.layers:
        side, channels = map(int, layer.split(","))
        x, dy = (
            jnp.asarray(random.normal(size=(options.batch, side, side, channels)), jnp.float32)
            for _ in range(2)
        )
        w = jnp.asarray(random.normal(size=(3, 3, channels, channels)), jnp.float32)
        for name, calls in ways(x, w, dy).items():
            fast, exact = np.asarray(calls[0]()), np.asarray(calls[1]())
            error = np.sqrt(np.mean((fast - exact) ** 2) / np.mean(exact**2))
            seconds: list[list[float]] = [[] for _ in calls]
            for _ in range(options.repeats):
                for call, times in zip(calls, seconds, strict=True):
                    start = time.process_time()
                    call()
                    times.append(time.process_time() - start)
            medians = [1e3 * statistics.median(times) for times in seconds]
            medians += [float("nan")] * (3 - len(medians))
            label = f"{side}×{side}, {channels} → {channels}"
            row = "".join(f"{ms:10.2f}" for ms in medians)
            print(f"{label:16}{name:16}{row}{error:10.1e}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
