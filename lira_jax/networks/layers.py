"""The three layers that all networks share."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import he_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

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


class BatchNorm(nnx.BatchNorm):
    """a·x + b with a = γ / √(var + ε) and b = β − a·mean (Ioffe & Szegedy 2015).

    The same function and variables as Flax's, which keeps x − mean for the gradient; here the
    activations are read and written once less in each direction. Statistics are in float32.
    """

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:  # type: ignore[override]
        exact = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean = jnp.mean(exact, axis=(0, 1, 2))
            var = jnp.maximum(jnp.mean(exact * exact, axis=(0, 1, 2)) - mean * mean, 0)
            for average, value in ((self.mean, mean), (self.var, var)):
                average[...] = self.momentum * average[...] + (1 - self.momentum) * value
        assert self.scale is not None
        assert self.bias is not None
        a = self.scale[...] * lax.rsqrt(var + self.epsilon)
        return (exact * a + (self.bias[...] - mean * a)).astype(self.dtype)


def batch_norm(features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> BatchNorm:
    """Batch normalisation with the paper's momentum 0.9 and ε 1e-5."""
    return BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def dense(features_in: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Final layer, in float32 so that logits keep their digits."""
    return nnx.Linear(features_in, classes, dtype=jnp.float32, rngs=rngs)
