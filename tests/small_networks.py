"""Networks that compile fast, by the names that experiments of several tests give."""

from __future__ import annotations

import numpy as np
from flax import nnx

from lira_jax.networks import layers


class Linear(nnx.Module):
    """Pixels, normalised over the batch, to logits."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        del depth, width
        pixels = int(np.prod(image_shape))
        self.norm = nnx.BatchNorm(pixels, dtype=dtype, rngs=rngs)
        self.dense = nnx.Linear(pixels, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images):
        return self.dense(self.norm(images.reshape(len(images), -1)))


def network(**settings):
    return Linear(**settings)


class Convolution(nnx.Module):
    """A convolution, BatchNorm, ReLU, mean over pixels, dense: the parts of a ResNet, once each."""

    def __init__(self, image_shape, classes, depth, width, dtype, rngs):
        del depth
        self.stem = layers.conv(image_shape[-1], width, stride=2, dtype=dtype, rngs=rngs)
        self.norm = layers.normalisation("batch", width, dtype=dtype, rngs=rngs)
        self.dense = layers.dense(width, classes, rngs=rngs)

    def __call__(self, images):
        return self.dense(nnx.relu(self.norm(self.stem(images))).mean(axis=(1, 2)))
