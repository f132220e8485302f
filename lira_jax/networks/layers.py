"""The layers that networks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import he_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lira_jax.networks.conv import conv_general_dilated

HE_NORMAL = he_normal()
Norm = Literal["batch", "group"]
# Group normalisation: at most so many groups, each of at least so many features if there are more.
GROUPS, GROUP_FEATURES = 16, 4


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


class GroupNorm(nnx.GroupNorm):
    """a·x + b with a = γ / √(var + ε) and b = β − a·mean, the statistics being those of one image
    over all pixels and the features of a group (Wu & He 2018).

    The same function and variables as Flax's, with one product and one sum per activation.
    """

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:  # type: ignore[override]
        exact = x.astype(jnp.float32)

        def mean_of(values: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
            by_feature = jnp.mean(values, axis=(1, 2)).reshape(len(x), self.num_groups, -1)
            by_group = jnp.mean(by_feature, axis=2, keepdims=True)
            return jnp.broadcast_to(by_group, by_feature.shape).reshape(len(x), 1, 1, -1)

        mean = mean_of(exact)
        a = lax.rsqrt(jnp.maximum(mean_of(exact * exact) - mean * mean, 0) + self.epsilon)
        if self.scale is not None:
            a = a * self.scale[...]
        b = -mean * a
        if self.bias is not None:
            b = b + self.bias[...]
        return (exact * a + b).astype(self.dtype)


def groups_of(features: int) -> int:
    """The number of groups into which group normalisation divides features: the most, up to 16 as
    in De et al. 2022 (arXiv 2204.13650), with at least 4 features each. A feature that is
    normalised alone loses its mean over the pixels, which is what these networks classify by."""
    return max(
        g for g in range(1, min(GROUPS, features // GROUP_FEATURES or 1) + 1) if features % g == 0
    )


def normalisation(norm: Norm, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
    """Batch normalisation with the paper's momentum 0.9, or group normalisation; ε 1e-5."""
    if norm == "group":
        return GroupNorm(features, groups_of(features), epsilon=1e-5, dtype=dtype, rngs=rngs)
    return BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


def dropout_layer(rate: float, rngs: nnx.Rngs, broadcast_dims: tuple[int, ...] = ()) -> nnx.Dropout:
    """Dropout of the last layer's inputs, in training only (Srivastava et al. 2014); at rate 0 it
    keeps no random state. To be made after all weights, whose initial values then do not depend on
    it."""
    return nnx.Dropout(rate, broadcast_dims=broadcast_dims, rngs=rngs if rate else None)


def dense(features_in: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Final layer, in float32 so that logits keep their digits."""
    return nnx.Linear(features_in, classes, dtype=jnp.float32, rngs=rngs)


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network, which have its normalisation and type in common."""

    norm: Norm
    dtype: DTypeLike
    rngs: nnx.Rngs

    def conv(self, features_in: int, features_out: int, **options: Any) -> nnx.Conv:
        """As the function `conv`."""
        return conv(features_in, features_out, dtype=self.dtype, rngs=self.rngs, **options)

    def normalisation(self, features: int) -> nnx.Module:
        """As the function `normalisation`."""
        return normalisation(self.norm, features, dtype=self.dtype, rngs=self.rngs)

    def stages(
        self, block: Callable[..., nnx.Module], n_in: int, width: int, count: int
    ) -> tuple[nnx.List, int]:
        """Three groups of `count` blocks of widths w, 2w, 4w and strides 1, 2, 2, and the features
        that come out."""
        blocks = []
        for group in range(3):
            n_out = width * 2**group
            for index in range(count):
                blocks.append(block(n_in, n_out, 2 if group and index == 0 else 1, self))
                n_in = n_out
        return nnx.List(blocks), n_in


class Classifier(nnx.Module):
    """Images to logits by `features`, dropout and a dense layer."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        depth: int,
        width: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ):
        n_out = self.build(image_shape[-1], depth, width, Layers(norm, dtype, rngs))
        self.dense = dense(n_out, classes, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs)

    def build(self, channels: int, depth: int, width: int, make: Layers) -> int:
        """Make what `features` needs, and tell how many features there are."""
        raise NotImplementedError

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        raise NotImplementedError

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return self.dense(self.dropout(self.features(x)))
