"""A shallow, wide network that learns CIFAR-10 in few passes, for runs that count throughput.

The plan is that of the CIFAR-10 speed runs: whitened 2×2 patches, convolutions pooled before
anything else is done to them, identity filters at the start, biases that learn faster, a scaled
head (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, sections
3.1-3.4; the pooling plan goes back to Page 2018, "How to train your ResNet"). Unlike there, no
statistic of the data set enters: patches are whitened by a cosine transform and BatchNorm, so
that a model knows nothing but its own members' batches. With `norm = "group"`, each kind of patch
is normalised within its image.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from lira_jax.networks.conv import conv_general_dilated
from lira_jax.networks.layers import Classifier, GroupNorm, Layers, groups_of

# Biases are stored divided by this, so that SGD moves them by its square more.
BIAS_SCALE = 8.0
HEAD_SCALE = 1 / 9
# Variance below which a kind of patch counts as noise, for images in [−1, 1]: some 4 grey levels.
WHITEN_EPSILON = 1e-3


def cosine_patches(channels: int) -> Float[np.ndarray, "2 2 I 4*I"]:
    """Kernels of the orthonormal cosine transform of 2×2 patches over rows, columns and channels.

    It is close to the principal axes of patches of natural images: brightness, edges, opponent
    colours. So normalising each of its outputs nearly whitens the patches.
    """

    def basis(n: int) -> np.ndarray:
        position, frequency = np.arange(n)[:, None] + 0.5, np.arange(n)
        waves = np.cos(np.pi / n * position * frequency)
        return waves / np.linalg.norm(waves, axis=0)

    kernels = np.einsum("ha,wb,ic->hwiabc", basis(2), basis(2), basis(channels))
    return kernels.reshape(2, 2, channels, -1).astype(np.float32)


def pass_on(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Kernels whose first filters pass on one input channel each; the others are random, uniform
    with variance 1 / (3 · inputs)."""
    kernel = variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    same = jnp.arange(min(shape[2:]))
    kernel = kernel.at[:, :, :, same].set(0)
    return kernel.at[shape[0] // 2, shape[1] // 2, same, same].set(1)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Maximum over 2×2 windows, odd borders left out; a side of one pixel stays.

    By reshaping: the gradient of `lax.reduce_window` is slow on CPU.
    """
    batch, height, width, channels = x.shape
    rows, columns = min(2, height), min(2, width)
    height, width = height // rows, width // columns
    x = x[:, : height * rows, : width * columns]
    return x.reshape(batch, height, rows, width, columns, channels).max((2, 4))


def plain_norm(
    make: Layers, features: int, groups: int, epsilon: float, dtype: DTypeLike | None
) -> nnx.Module:
    """Batch or group normalisation without scale and bias."""
    options: Any = {"epsilon": epsilon, "use_bias": False, "use_scale": False, "dtype": dtype}
    if make.norm == "group":
        return GroupNorm(features, groups, **options, rngs=make.rngs)
    return nnx.BatchNorm(features, momentum=0.9, **options, rngs=make.rngs)


class Activation(nnx.Module):
    """x ↦ gelu(norm(x) + 8 b): no scale, and a bias b that learns 64 times faster."""

    def __init__(self, features: int, make: Layers):
        self.norm = plain_norm(make, features, groups_of(features), 1e-5, make.dtype)
        self.bias = nnx.Param(jnp.zeros(features))
        self.dtype = make.dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        bias = BIAS_SCALE * self.bias[...]
        return jax.nn.gelu(self.norm(x) + bias.astype(self.dtype))


class Block(nnx.Module):
    """conv, 2×2 max pool, norm, conv, norm: what is normalised is small."""

    def __init__(self, n_in: int, n_out: int, make: Layers):
        self.conv1 = make.conv(n_in, n_out, kernel_init=pass_on)
        self.norm1 = Activation(n_out, make)
        self.conv2 = make.conv(n_out, n_out, kernel_init=pass_on)
        self.norm2 = Activation(n_out, make)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        return self.norm2(self.conv2(self.norm1(max_pool(self.conv1(x)))))


class SpeedNet(Classifier):
    """Whitened 2×2 patches and their negatives; blocks of w, 2w and 4w filters, each halving the
    side; maximum over pixels, dense, divided by 9."""

    head_scale = HEAD_SCALE

    def build(self, channels: int, depth: int, width: int, make: Layers) -> int:
        patches = 4 * channels
        # Each kind of patch by itself, or the brightest would drown the others.
        self.whiten = plain_norm(make, patches, patches, WHITEN_EPSILON, None)
        blocks, n_in = [], 2 * patches
        for n_out in (width, 2 * width, 4 * width):
            blocks.append(Block(n_in, n_out, make))
            n_in = n_out
        self.blocks = nnx.List(blocks)
        self.dtype = make.dtype
        return n_in

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        kernel = jnp.asarray(cosine_patches(x.shape[-1]))
        x = self.whiten(conv_general_dilated(x, kernel, (1, 1), "VALID"))
        x = jax.nn.gelu(jnp.concatenate([x, -x], axis=-1).astype(self.dtype))
        for block in self.blocks:
            x = block(x)
        return jnp.max(x, axis=(1, 2)).astype(jnp.float32)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return super().__call__(x) * self.head_scale
