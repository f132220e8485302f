"""Distance to the decision boundary from gradients: the L2 attack of Carlini and Wagner 2017.

The white-box reference for `hop_skip_jump.py`: with x' = tanh(w) inside the valid range, Adam
minimises ‖x' − x‖² + c · max(z_y − max_{k≠y} z_k, 0) over w (their section VI-A, f₆ at κ = 0). The
weight c is searched for each example: its steps are split over rounds, each from the original.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int32

from lira_jax.label_only.hop_skip_jump import diameter

# Rounds of the search over c, from FIRST_WEIGHT; a factor of 10 until c is bracketed, then the
# geometric mean.
ROUNDS, FIRST_WEIGHT = 5, 1.0
# At first; falls to 0 within each round, as steps of one size jump to and fro over the boundary.
LEARNING_RATE = 0.1
# tanh(w) reaches the ends of the range nowhere: originals are shrunk by this factor to start from,
# and gradients at w are then 2 % of those at x' or more.
INSIDE = 0.99


def distances(
    logits: Callable[[Float[Array, "B H W C"]], Float[Array, "B K"]],
    images: Float[Array, "B H W C"],
    labels: Int32[Array, " B"],
    steps: int,
) -> Float[Array, " B"]:
    """L2 distance from each image to the nearest misclassified one found.

    Args:
        logits: the model in evaluation mode, each image for itself, on images in [−1, 1].
        images: in [−1, 1].
        labels: true labels.
        steps: gradient steps of each example in all, at least 1.

    Returns:
        Distances in units of images in [0, 1]; 0 where the image itself is misclassified, the
        diameter √(H·W·C) where nothing was found.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, -(-steps // ROUNDS)))
    first = jnp.arctanh(INSIDE * images)
    axes = tuple(range(1, images.ndim))
    most = diameter(images.shape[1:])

    def loss(w: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
        x = jnp.tanh(w)
        squares = jnp.sum(jnp.square((x - images) / 2), axis=axes)
        z = logits(x)
        # By argmax and not by the margin's sign, so that a tie is decided as everywhere else.
        wrong = jnp.argmax(z, axis=1) != labels
        is_label = jax.nn.one_hot(labels, z.shape[1], dtype=bool)
        others = jnp.max(jnp.where(is_label, -jnp.inf, z), axis=1)
        margin = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0] - others
        total = jnp.sum(squares + weight * jnp.maximum(margin, 0))
        return total, (wrong, jnp.sqrt(squares))

    def round_of(number: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        weight, low, high, best = carry

        def step(_: int, carry: tuple) -> tuple:
            w, state, nearest = carry
            gradient, (wrong, distance) = jax.grad(loss, has_aux=True)(w, weight)
            update, state = optimizer.update(gradient, state)
            nearest = jnp.minimum(nearest, jnp.where(wrong, distance, jnp.inf))
            return optax.apply_updates(w, update), state, nearest

        start = (first, optimizer.init(first), jnp.full_like(best, jnp.inf))
        count = steps // ROUNDS + (number < steps % ROUNDS)
        *_, nearest = lax.fori_loop(0, count, step, start)
        reached = jnp.isfinite(nearest)
        low = jnp.where(reached, low, weight)
        high = jnp.where(reached, weight, high)
        between = jnp.sqrt(low) * jnp.sqrt(high)
        weight = jnp.where(jnp.isinf(high), 10 * low, jnp.where(low == 0, high / 10, between))
        return weight, low, high, jnp.minimum(best, nearest)

    ones = jnp.ones(len(labels))
    carry = (FIRST_WEIGHT * ones, 0 * ones, jnp.inf * ones, most * ones)
    *_, best = lax.fori_loop(0, ROUNDS, round_of, carry)
    own = jnp.argmax(logits(images), axis=1) == labels
    return jnp.where(own, best, 0.0)
