"""WideResNet-d-k (Zagoruyko & Komodakis 2016), as the LiRA paper trains it (WRN28-2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lira_jax.networks.layers import Norm, conv, dense, dropout_layer, normalisation


class PreActivationBlock(nnx.Module):
    """x ↦ shortcut + conv(relu(bn(conv(relu(bn(x)))))); a 1×1 projection of relu(bn(x)) is the
    shortcut where shapes differ."""

    def __init__(
        self, n_in: int, n_out: int, stride: int, norm: Norm, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.norm1 = normalisation(norm, n_in, dtype=dtype, rngs=rngs)
        self.conv1 = conv(n_in, n_out, stride=stride, dtype=dtype, rngs=rngs)
        self.norm2 = normalisation(norm, n_out, dtype=dtype, rngs=rngs)
        self.conv2 = conv(n_out, n_out, dtype=dtype, rngs=rngs)
        self.project = n_in != n_out or stride != 1
        if self.project:
            self.projection = conv(n_in, n_out, kernel=1, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        y = jax.nn.relu(self.norm1(x))
        shortcut = self.projection(y) if self.project else x
        y = jax.nn.relu(self.norm2(self.conv1(y)))
        return shortcut + self.conv2(y)


class WideResNet(nnx.Module):
    """3×3 convolution of 16; three groups of (depth − 4)/6 blocks of widths 16k, 32k, 64k and
    strides 1, 2, 2; final BN-ReLU, mean over pixels, dense."""

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
        self.stem = conv(image_shape[-1], 16, dtype=dtype, rngs=rngs)
        blocks, n_in = [], 16
        for group, stride in enumerate((1, 2, 2)):
            n_out = 16 * width * 2**group
            for index in range((depth - 4) // 6):
                blocks.append(
                    PreActivationBlock(n_in, n_out, stride if index == 0 else 1, norm, dtype, rngs)
                )
                n_in = n_out
        self.blocks = nnx.List(blocks)
        self.norm = normalisation(norm, n_in, dtype=dtype, rngs=rngs)
        self.dense = dense(n_in, classes, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs)

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last layer's inputs."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return jnp.mean(jax.nn.relu(self.norm(x)), axis=(1, 2), dtype=jnp.float32)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return self.dense(self.dropout(self.features(x)))
