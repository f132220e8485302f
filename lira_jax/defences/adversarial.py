"""Adversarial regularisation (Nasr, Shokri & Houmansadr 2018, "Machine Learning with Membership
Privacy using Adversarial Regularization", algorithm 1).

An inference network h(p, y) gives the probability that an image with label y, of which the
classifier says p, is a member. In each step h first takes one step up the gain of its game,

    ½ · mean log h over members + ½ · mean log(1 − h) over held-out images,

and then the classifier takes one down its loss + λ · mean log h over members. h has the paper's
plan, a branch for p and one for y that join, with narrower layers and He-normal weights. Both sides
of the game see the classifier in training mode, held-out images with the statistics of their own
batch: so h learns nothing from the mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, Key

from lira_jax.networks.layers import HE_NORMAL

LEARNING_RATE = 1e-3  # of Adam, the paper's
# Widths after p, after y, and after both joined.
OUTPUTS, LABEL, JOINT = (128, 64), (64,), (64, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adversary:
    """Parameters of an inference network and the state of its optimiser."""

    params: Any
    optimizer: Any


Answers = tuple[Float[Array, "B K"], Int32[Array, "B"]]
"""Logits of a classifier and true labels."""


def begin(key: Key[Array, ""], classes: int) -> Adversary:
    """An inference network for K classes before its first step."""
    plan = {
        "outputs": (classes, *OUTPUTS),
        "label": (classes, *LABEL),
        "joint": (OUTPUTS[-1] + LABEL[-1], *JOINT),
    }
    params = {}
    for number, (branch, widths) in enumerate(plan.items()):
        keys = jax.random.split(jax.random.fold_in(key, number), len(widths) - 1)
        params[branch] = [
            {"kernel": HE_NORMAL(layer_key, (n_in, n_out)), "bias": jnp.zeros(n_out)}
            for layer_key, n_in, n_out in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
    return Adversary(params, optax.adam(LEARNING_RATE).init(params))


def membership_logit(params: Any, answers: Answers) -> Float[Array, "B"]:
    """log(h / (1 − h)) of each image."""

    def branch(layers: list[dict[str, Array]], x: Array) -> Array:
        for layer in layers:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x

    logits, labels = answers
    outputs = branch(params["outputs"], jax.nn.softmax(logits))
    label = branch(params["label"], jax.nn.one_hot(labels, logits.shape[1]))
    *hidden, last = params["joint"]
    joint = branch(hidden, jnp.concatenate([outputs, label], axis=1))
    return (joint @ last["kernel"] + last["bias"])[:, 0]


def member_gain(params: Any, members: Answers) -> Float[Array, ""]:
    """Mean log h over members: what the classifier's loss gains, times λ."""
    return jax.nn.log_sigmoid(membership_logit(params, members)).mean()


def gain(params: Any, members: Answers, held_out: Answers) -> Float[Array, ""]:
    """The gain of h, −log 2 for one that cannot tell and 0 for one that always can."""
    others = jax.nn.log_sigmoid(-membership_logit(params, held_out)).mean()
    return (member_gain(params, members) + others) / 2


def step(adversary: Adversary, members: Answers, held_out: Answers) -> Adversary:
    """One step of Adam up the gain; nothing flows back into the answers."""
    members, held_out = jax.lax.stop_gradient((members, held_out))
    params = adversary.params
    gradient = jax.grad(lambda params: -gain(params, members, held_out))(params)
    change, optimizer = optax.adam(LEARNING_RATE).update(gradient, adversary.optimizer, params)
    return Adversary(optax.apply_updates(params, change), optimizer)
