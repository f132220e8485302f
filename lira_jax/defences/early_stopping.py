"""Early stopping: a model keeps the weights of its best epoch, by accuracy on held-out images.

After each epoch the weights that would be scored are judged on the same held-out images for every
model. After `patience` epochs without a better accuracy a model stops: it takes no more steps. Of
epochs that are equally good the earliest counts. All that decides is in the model's state, as whole
numbers, so that a model is the same in any group and wherever its training was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, UInt8

from lira_jax import random_streams
from lira_jax.data.views import plain
from lira_jax.networks import Network, Variables

# Held-out images to judge by, at most, and how many of them go through a network at once.
IMAGES, BATCH = 1000, 100


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EarlyStopping:
    """What a model in training remembers.

    Attributes:
        variables: of the best epoch.
        correct: answers on held-out images after the last epoch, [].
        best_correct: the same after the best, [].
        best_epoch: counted from 1, [].
        stopped_epoch: 0 until the model stops, [].
    """

    variables: Variables
    correct: Int32[Array, ""]
    best_correct: Int32[Array, ""]
    best_epoch: Int32[Array, ""]
    stopped_epoch: Int32[Array, ""]

    def last_step(self, start: Array, stop: Array) -> Array:
        """Where a dispatch of steps `start` … `stop` − 1 ends: at once once the model stopped."""
        return jnp.where(self.stopped_epoch > 0, start, stop)

    def logged(self, total: int) -> dict[str, Array]:
        """What the log tells after an epoch: `held_out_accuracy` on T = `total` images,
        `best_epoch`, and `stopped_epoch`, 0 for a model that goes on."""
        return {
            "held_out_accuracy": self.correct / total,
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
        }


def held_out_index(seed: int, available: int) -> Int32[np.ndarray, "T"]:
    """Which T of the held-out images models are judged by; the same for every model."""
    chosen = random_streams.judges(seed).choice(available, min(available, IMAGES), replace=False)
    return np.sort(chosen).astype(np.int32)


def begin(variables: Variables) -> EarlyStopping:
    """Before the first epoch."""
    none = jnp.zeros((), jnp.int32)
    return EarlyStopping(variables, none, none - 1, none, none)


def judge(
    network: Network,
    before: EarlyStopping,
    variables: Variables,
    epoch: Int32[Array, ""],
    patience: int,
    images: UInt8[Array, "T H W C"],
    labels: Int32[Array, "T"],
) -> EarlyStopping:
    """After an epoch, counted from 1.

    Args:
        variables: those that would be scored now.
        patience: epochs without a better accuracy after which the model stops.
        images: held out, with their labels.
    """
    now = _correct(network, variables, images, labels)
    # A model that stopped has the same weights and answers as before, so nothing is better.
    better = now > before.best_correct
    best_epoch = jnp.where(better, epoch, before.best_epoch)
    stops = (before.stopped_epoch == 0) & (epoch - best_epoch >= patience)
    return EarlyStopping(
        jax.tree.map(lambda new, old: jnp.where(better, new, old), variables, before.variables),
        correct=now,
        best_correct=jnp.maximum(now, before.best_correct),
        best_epoch=best_epoch,
        stopped_epoch=jnp.where(stops, epoch, before.stopped_epoch),
    )


def _correct(network: Network, variables: Variables, images: Array, labels: Array) -> Array:
    """How many of the images a network classifies as labelled."""
    total = labels.shape[0]

    def of_batch(count: Array, start: Array) -> tuple[Array, None]:
        index = start + jnp.arange(BATCH, dtype=jnp.int32)
        inside = index < total
        index = jnp.minimum(index, total - 1)
        predicted = jnp.argmax(network.apply(variables, plain(images, index)), axis=1)
        return count + jnp.sum(inside & (predicted == labels[index]), dtype=jnp.int32), None

    starts = jnp.arange(0, total, BATCH, dtype=jnp.int32)
    return lax.scan(of_batch, jnp.zeros((), jnp.int32), starts)[0]
