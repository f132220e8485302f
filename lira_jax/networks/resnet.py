"""CIFAR ResNets of depth 6n + 2 (He et al. 2016, section 4.2), width settable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lira_jax.networks.layers import Norm, conv, dense, dropout_layer, normalisation


class BasicBlock(nnx.Module):
    """x ↦ relu(shortcut + bn(conv(relu(bn(conv(x)))))); the shortcut has no weights: it skips
    pixels and pads channels with zeros (He et al., option A)."""

    def __init__(
        self, n_in: int, n_out: int, stride: int, norm: Norm, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.conv1 = conv(n_in, n_out, stride=stride, dtype=dtype, rngs=rngs)
        self.norm1 = normalisation(norm, n_out, dtype=dtype, rngs=rngs)
        self.conv2 = conv(n_out, n_out, dtype=dtype, rngs=rngs)
        self.norm2 = normalisation(norm, n_out, dtype=dtype, rngs=rngs)
        self.stride = stride
        self.new_channels = n_out - n_in

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = x[:, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, self.new_channels - before)))
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """3×3 convolution; three groups of (depth − 2)/6 blocks of widths w, 2w, 4w and strides
    1, 2, 2; mean over pixels, dense."""

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
        self.stem = conv(image_shape[-1], width, dtype=dtype, rngs=rngs)
        self.norm = normalisation(norm, width, dtype=dtype, rngs=rngs)
        blocks, n_in = [], width
        for group, stride in enumerate((1, 2, 2)):
            n_out = width * 2**group
            for index in range((depth - 2) // 6):
                blocks.append(
                    BasicBlock(n_in, n_out, stride if index == 0 else 1, norm, dtype, rngs)
                )
                n_in = n_out
        self.blocks = nnx.List(blocks)
        self.dense = dense(n_in, classes, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs)

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return self.dense(self.dropout(self.features(x)))
