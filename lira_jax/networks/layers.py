"""The three layers that all networks share."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import he_normal
from jax.typing import DTypeLike
from jaxtyping import Array

from lira_jax.networks.conv import conv_general_dilated

HE_NORMAL = he_normal()


def conv(
    features_in: int,
    features_out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = False,
    kernel_init: Callable[..., Array] = HE_NORMAL,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Square convolution with SAME padding; He-normal weights by default."""
    return nnx.Conv(
        features_in,
        features_out,
        (kernel, kernel),
        strides=stride,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def batch_norm(features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation with the paper's momentum 0.9 and ε 1e-5."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def dense(features_in: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Final layer, in float32 so that logits keep their digits."""
    return nnx.Linear(features_in, classes, dtype=jnp.float32, rngs=rngs)
