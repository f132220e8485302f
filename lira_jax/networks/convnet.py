"""ConvNet-16/32/64, the small networks of the LiRA paper's figures 7, 14 and 16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lira_jax.networks.layers import Norm, conv, dropout_layer


class ConvNet(nnx.Module):
    """3×3 convolution of w; three scales i of convolutions w·2^i and w·2^(i+1) with a 2×2 mean
    pool; a convolution to K classes, mean over pixels. Leaky ReLU, biases, no normalisation.
    Dropout is of whole channels, the features whose mean over pixels tells the class.

    The paper does not state this plan; it follows its public code (docs/methods.md, 1: inferred). A
    side of one pixel is not pooled, so that any image size works.
    """

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
        del depth, norm
        self.stem = conv(image_shape[-1], width, bias=True, dtype=dtype, rngs=rngs)
        layers = []
        for scale in range(3):
            n = width * 2**scale
            layers.append(conv(n, n, bias=True, dtype=dtype, rngs=rngs))
            layers.append(conv(n, 2 * n, bias=True, dtype=dtype, rngs=rngs))
        self.layers = nnx.List(layers)
        self.head = conv(8 * width, classes, bias=True, dtype=jnp.float32, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs, broadcast_dims=(1, 2))

    def maps(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        """The last convolution's inputs."""
        x = jax.nn.leaky_relu(self.stem(x))
        for index, layer in enumerate(self.layers):
            x = jax.nn.leaky_relu(layer(x))
            if index % 2:
                window = tuple(min(2, side) for side in x.shape[1:3])
                x = nnx.avg_pool(x, window, strides=window)
        return x

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The last convolution's inputs, as their mean over pixels."""
        return jnp.mean(self.maps(x), axis=(1, 2), dtype=jnp.float32)

    def head_inputs(self, x: Float[Array, "B H W C"]) -> Float[Array, "B J"]:
        """What each pixel of the last convolution's kernel meets, J = 9F numbers, as its mean over
        pixels: all pixels but those of a border, next to which the kernel meets zeros."""
        maps = self.maps(x).astype(jnp.float32)
        height, width = maps.shape[1:3]
        around = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
        met = [
            jnp.mean(around[:, row : row + height, column : column + width], axis=(1, 2))
            for row in range(3)
            for column in range(3)
        ]
        return jnp.concatenate(met, axis=-1)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        return jnp.mean(self.head(self.dropout(self.maps(x))), axis=(1, 2))
