"""WideResNet-d-k (Zagoruyko & Komodakis 2016), as the LiRA paper trains it (WRN28-2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lira_jax.networks.layers import Classifier, Layers


class PreActivationBlock(nnx.Module):
    """x ↦ shortcut + conv(relu(bn(conv(relu(bn(x)))))); a 1×1 projection of relu(bn(x)) is the
    shortcut where shapes differ."""

    def __init__(self, n_in: int, n_out: int, stride: int, make: Layers):
        self.norm1 = make.normalisation(n_in)
        self.conv1 = make.conv(n_in, n_out, stride=stride)
        self.norm2 = make.normalisation(n_out)
        self.conv2 = make.conv(n_out, n_out)
        self.project = n_in != n_out or stride != 1
        if self.project:
            self.projection = make.conv(n_in, n_out, kernel=1, stride=stride)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        y = jax.nn.relu(self.norm1(x))
        shortcut = self.projection(y) if self.project else x
        y = jax.nn.relu(self.norm2(self.conv1(y)))
        return shortcut + self.conv2(y)


class WideResNet(Classifier):
    """3×3 convolution of 16; three groups of (depth − 4)/6 blocks of widths 16k, 32k, 64k and
    strides 1, 2, 2; final BN-ReLU, mean over pixels, dense."""

    def build(self, channels: int, depth: int, width: int, make: Layers) -> int:
        self.stem = make.conv(channels, 16)
        self.blocks, n_out = make.stages(PreActivationBlock, 16, 16 * width, (depth - 4) // 6)
        self.norm = make.normalisation(n_out)
        return n_out

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return jnp.mean(jax.nn.relu(self.norm(x)), axis=(1, 2), dtype=jnp.float32)
