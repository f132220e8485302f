"""How exactly accelerators compute, and the same arithmetic on a CPU.

By default a GPU rounds what goes into float32 products (convolutions, matrix products) to TF32,
with 10 bits behind the point, and a TPU to bfloat16, with 7; sums are float32. Tests of what is
computed therefore run there with all digits (conftest.py), and only test_precision.py looks at the
default. Sums have another order than on a CPU all the same, one that may differ from group to group
and, as cuDNN chooses its algorithms, from run to run: `assert_same`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax import lax
from jax._src.interpreters import mlir
from jax._src.lib.mlir.dialects import hlo


@dataclass(frozen=True)
class Default:
    """An accelerator's default arithmetic and what it may change: ‖difference‖ / ‖exact‖.

    Attributes:
        platform: whose default it is.
        bits: of a product's inputs behind the point.
        product: values and gradients of one convolution or matrix product.
        logits: of a ResNet-8 or SpeedNet of given weights.
        gradient: of the loss by these weights, by network: where a ReLU turns, more changes.
        phi: scores of given weights, relative to their standard deviation. After training, which
            takes other ways, they may differ by most of it: emulated, by 0.34 and 0.64 of it (TF32,
            two narrow ResNet-8 after 20 steps), and weights by 0.07.
    """

    platform: str
    bits: int
    product: float
    logits: float
    gradient: Mapping[str, float]
    phi: float


DEFAULTS = {
    "tf32": Default("gpu", 10, 1e-3, 5e-3, {"resnet": 0.2, "speed_net": 0.01}, 0.02),
    "bfloat16": Default("tpu", 7, 8e-3, 0.05, {"resnet": 0.4, "speed_net": 0.1}, 0.2),
}
# What sums of float32 numbers in another order may change, of results of about 1 in size; cuDNN's
# faster algorithms (Winograd's) are among the orders.
REORDERED = 1e-4
# The same of what 20 training steps make of it.
TRAINED = 1e-3


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


@contextmanager
def default_arithmetic(default: Default) -> Iterator[None]:
    """Products as an accelerator makes them by default; on a CPU by rounding their inputs, but for
    those products that ask for all digits, as there."""
    if not on_cpu():
        with jax.default_matmul_precision("default"):
            yield
        return
    with rounded_products(default.bits):
        yield


@contextmanager
def rounded_products(bits: int) -> Iterator[None]:
    """On a CPU, round the inputs of products in programs that are compiled meanwhile."""
    rules = mlir._platform_specific_lowerings["cpu"]
    products = (lax.dot_general_p, lax.conv_general_dilated_p)
    rounded = {p: mlir.LoweringRuleEntry(_rounding(rules[p].rule, bits), True) for p in products}
    jax.clear_caches()
    try:
        with mock.patch.dict(rules, rounded):
            yield
    finally:
        jax.clear_caches()


def _rounding(rule: Any, bits: int) -> Any:
    """The rule by which a product is lowered, with inputs rounded."""

    def lower(ctx: Any, *inputs: Any, precision: Any = None, **options: Any) -> Any:
        exact = precision in (lax.Precision.HIGHEST, (lax.Precision.HIGHEST,) * 2)
        if not exact and all(aval.dtype == np.float32 for aval in ctx.avals_in):
            inputs = tuple(
                hlo.reduce_precision(value, mlir.i32_attr(8), mlir.i32_attr(bits))
                for value in inputs
            )
        return rule(ctx, *inputs, precision=precision, **options)

    return lower


def distance(got: Any, want: Any) -> float:
    """‖got − want‖ / ‖want‖ of trees, each as one vector."""
    a, b = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (got, want)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def reordered(on_a_cpu: float, elsewhere: float = REORDERED) -> float:
    """What another order of sums may change: sized for a CPU, or for any accelerator."""
    return on_a_cpu if on_cpu() else elsewhere


def assert_same(got: Any, want: Any) -> None:
    """Bit for bit on a CPU, and but for the order of sums on an accelerator."""
    if on_cpu():
        np.testing.assert_array_equal(got, want)
    else:
        assert distance(got, want) < TRAINED
