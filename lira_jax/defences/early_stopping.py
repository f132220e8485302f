"""Early stopping: a model keeps the weights of its best epoch, by accuracy on held-out images.

After each epoch the weights that would be scored are judged on the same held-out images for every
model. After `patience` epochs without a better accuracy a model stops: it takes no more steps. Of
epochs that are equally good the earliest counts. All that decides is in the model's state, as whole
numbers, so that a model is the same in any group and wherever its training was resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32

from lira_jax.config import TrainConfig
from lira_jax.data.views import plain
from lira_jax.networks import Network, Variables
from lira_jax.optimization import State, evaluated_variables

# Held-out images to judge by, at most, and how many of them go through a network at once.
IMAGES, BATCH = 1000, 100


def held_out_index(seed: int, available: int) -> Int32[np.ndarray, "T"]:
    """Which T of the held-out images models are judged by; the same for every model."""
    random = np.random.default_rng((seed, 0, 3))  # canaries are of (seed, 0, 2)
    chosen = random.choice(available, min(available, IMAGES), replace=False)
    return np.sort(chosen).astype(np.int32)


def begin(variables: Variables) -> dict[str, Any]:
    """What a state holds under `early_stopping`: `variables` of the best epoch, `correct` answers
    on held-out images after the last epoch and `best_correct` after the best, `best_epoch`, and
    `stopped_epoch`, which is 0 until the model stops."""
    none = jnp.zeros((), jnp.int32)
    return {
        "variables": variables,
        "correct": none,
        "best_correct": none - 1,
        "best_epoch": none,
        "stopped_epoch": none,
    }


def last_step(state: State, start: Array, stop: Array) -> Array:
    """Where a dispatch of steps `start` … `stop` − 1 ends: at once for a model that stopped."""
    return jnp.where(state["early_stopping"]["stopped_epoch"] > 0, start, stop)


def judge_of_model(network: Network, config: TrainConfig, patience: int) -> Callable[..., Any]:
    """The function ((state, model), epoch, images, labels) ↦ (state, model) after an epoch, counted
    from 1, with held-out images uint8 [T, H, W, C] and labels int32 [T]."""

    def correct(variables: Variables, images: Array, labels: Array) -> Array:
        total = labels.shape[0]

        def of_batch(count: Array, start: Array) -> tuple[Array, None]:
            index = start + jnp.arange(BATCH, dtype=jnp.int32)
            inside = index < total
            index = jnp.minimum(index, total - 1)
            found = jnp.argmax(network.apply(variables, plain(images, index)), axis=1)
            return count + jnp.sum(inside & (found == labels[index]), dtype=jnp.int32), None

        starts = jnp.arange(0, total, BATCH, dtype=jnp.int32)
        return lax.scan(of_batch, jnp.zeros((), jnp.int32), starts)[0]

    def judge(state_and_model: Any, epoch: Array, images: Array, labels: Array) -> Any:
        state, model = state_and_model
        held, variables = state["early_stopping"], evaluated_variables(state, config)
        now = correct(variables, images, labels)
        # A model that stopped has the same weights and answers as before, so nothing is better.
        better = now > held["best_correct"]
        best_epoch = jnp.where(better, epoch, held["best_epoch"])
        stops = (held["stopped_epoch"] == 0) & (epoch - best_epoch >= patience)
        held = {
            "variables": jax.tree.map(
                lambda new, old: jnp.where(better, new, old), variables, held["variables"]
            ),
            "correct": now,
            "best_correct": jnp.maximum(now, held["best_correct"]),
            "best_epoch": best_epoch,
            "stopped_epoch": jnp.where(stops, epoch, held["stopped_epoch"]),
        }
        return state | {"early_stopping": held}, model

    return judge


def logged(state: State, total: int) -> dict[str, Array]:
    """What the log tells of a model after an epoch: `held_out_accuracy` on T = `total` images,
    `best_epoch` and `stopped_epoch`, 0 for a model that goes on."""
    held = state["early_stopping"]
    return {
        "held_out_accuracy": held["correct"] / total,
        "best_epoch": held["best_epoch"],
        "stopped_epoch": held["stopped_epoch"],
    }
