"""CIFAR ResNets of depth 6n + 2 (He et al. 2016, section 4.2), width settable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lira_jax.networks.layers import Classifier, Layers


class BasicBlock(nnx.Module):
    """x ↦ relu(shortcut + bn(conv(relu(bn(conv(x)))))); the shortcut has no weights: it skips
    pixels and pads channels with zeros (He et al., option A)."""

    def __init__(self, n_in: int, n_out: int, stride: int, make: Layers):
        self.conv1 = make.conv(n_in, n_out, stride=stride)
        self.norm1 = make.normalisation(n_out)
        self.conv2 = make.conv(n_out, n_out)
        self.norm2 = make.normalisation(n_out)
        self.stride = stride
        self.new_channels = n_out - n_in

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = x[:, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, self.new_channels - before)))
        return jax.nn.relu(x + y)


class ResNet(Classifier):
    """3×3 convolution; three groups of (depth − 2)/6 blocks of widths w, 2w, 4w and strides
    1, 2, 2; mean over pixels, dense."""

    def build(self, channels: int, depth: int, width: int, make: Layers) -> int:
        self.stem = make.conv(channels, width)
        self.norm = make.normalisation(width)
        self.blocks, n_out = make.stages(BasicBlock, width, width, (depth - 2) // 6)
        return n_out

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        x = jax.nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
