"""One training step of one shadow model: loss, optimiser, schedule, moving average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int32, Key

from lira_jax.config import DefenceConfig, TrainConfig
from lira_jax.defences import dp_sgd
from lira_jax.networks import Network, Variables

NO_DEFENCE = DefenceConfig()

State = dict[str, Any]
"""One model in training: `variables`, `optimizer`, `step` (steps taken), `loss` (summed over the
steps of this epoch), `ema` (the moving average before debiasing; empty when off) and `bias`
(ema^step, the share of it that is still its start at zero; multiplied up step by step, since XLA's
power rounds differently from program to program)."""


def paper_schedule(peak: float, steps: int) -> optax.Schedule:
    """Peak · cos(7π/16 · t) · clip(100 t, 0, 1), with t = step / steps (LiRA's public recipe)."""

    def rate(step: Any) -> Any:
        t = step / steps
        return peak * jnp.cos(7 * jnp.pi / 16 * t) * jnp.clip(100 * t, 0, 1)

    return rate


def one_cycle_schedule(peak: float, steps: int, rise: float = 0.2) -> optax.Schedule:
    """Linear from 0 to the peak over the first `rise` of training, then linear to 0; taken at the
    middle of each step, so that no step has rate 0 (after Smith & Topin 2017)."""

    def rate(step: Any) -> Any:
        t = (step + 0.5) / steps
        return peak * jnp.minimum(t / rise, (1 - t) / (1 - rise))

    return rate


def optimizer(
    config: TrainConfig, steps: int, defence: DefenceConfig = NO_DEFENCE
) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps; weight decay and the L1 penalty join the gradient of
    kernels only."""
    rate: Any = config.learning_rate
    if config.schedule == "paper":
        rate = paper_schedule(config.learning_rate, steps)
    if config.schedule == "one_cycle":
        rate = one_cycle_schedule(config.learning_rate, steps)
    update = {
        "momentum": lambda: optax.sgd(rate, momentum=config.momentum),
        "nesterov": lambda: optax.sgd(rate, momentum=config.momentum, nesterov=True),
        "sgd": lambda: optax.sgd(rate),
        "adam": lambda: optax.adam(rate),
    }[config.optimizer]()
    penalties = [optax.add_decayed_weights(config.weight_decay, mask=_kernels)]
    if defence.l1:
        penalties.append(optax.masked(l1_penalty(defence.l1), _kernels))
    return optax.chain(*penalties, update)


def l1_penalty(weight: float) -> optax.GradientTransformation:
    """Adds the gradient of weight · ‖w‖₁, weight · sign(w), which is 0 at 0."""
    return optax.stateless(
        lambda gradient, params: jax.tree.map(
            lambda slope, w: slope + weight * jnp.sign(w), gradient, params
        )
    )


def _kernels(params: Any) -> Any:
    """True for convolution and dense kernels, false for biases and normalisation."""
    return jax.tree.map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def new_state(
    key: Key[Array, ""],
    network: Network,
    config: TrainConfig,
    steps: int,
    defence: DefenceConfig = NO_DEFENCE,
) -> State:
    """A model before its first step."""
    variables = network.init(key)
    averages = jax.tree.map(jnp.zeros_like, variables) if config.ema else {}
    return {
        "variables": variables,
        "optimizer": optimizer(config, steps, defence).init(variables["params"]),
        "step": jnp.zeros((), jnp.int32),
        "loss": jnp.zeros((), jnp.float32),
        "ema": averages,
        "bias": jnp.ones((), jnp.float32),
    }


def cross_entropy(
    logits: Float[Array, "B K"], labels: Int32[Array, "B"], smoothing: float
) -> Float[Array, ""]:
    """Mean cross-entropy with labels of which the share `smoothing` is spread over all classes
    evenly (Szegedy et al. 2016, section 7)."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    if not smoothing:
        return loss
    uniform = jax.nn.logsumexp(logits, axis=1) - jnp.mean(logits, axis=1)
    return (1 - smoothing) * loss + smoothing * uniform.mean()


def train_step(
    network: Network, config: TrainConfig, steps: int, defence: DefenceConfig = NO_DEFENCE
) -> Callable[..., tuple[State, tuple[Float[Array, ""], Float[Array, ""]]]]:
    """The function (state, images [B, H, W, C], labels [B], key) ↦ (state, (mean loss, accuracy))
    of one step; the key is for dropout and the noise of DP-SGD. With DP-SGD it takes another
    argument, bool [B]: which examples are padding."""
    update = optimizer(config, steps, defence).update

    def step(
        state: State, images: Array, labels: Array, key: Array, *padding: Bool[Array, "B"]
    ) -> tuple[State, tuple[Array, Array]]:
        variables = state["variables"]

        def loss_of(
            params: Any, images: Array, labels: Array, key: Array
        ) -> tuple[Array, tuple[Array, Any]]:
            logits, rest = network.apply_train({**variables, "params": params}, images, key)
            loss = cross_entropy(logits, labels, config.label_smoothing)
            return loss, (jnp.mean(jnp.argmax(logits, 1) == labels), rest)

        if defence.dp_clip:
            differentiate = dp_sgd.value_and_gradient(loss_of, defence, config.batch_size)
        else:
            differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (accuracy, rest)), gradient = differentiate(
            variables["params"], images, labels, key, *padding
        )
        change, optimizer_state = update(gradient, state["optimizer"], variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], change), "rest": rest}
        averages = state["ema"]
        if config.ema:
            averages = jax.tree.map(
                lambda old, new: config.ema * old + (1 - config.ema) * new if _real(new) else new,
                averages,
                variables,
            )
        state = {
            "variables": variables,
            "optimizer": optimizer_state,
            "step": state["step"] + 1,
            "loss": state["loss"] + loss,
            "ema": averages,
            "bias": state["bias"] * config.ema,
        }
        return state, (loss, accuracy)

    return step


def evaluated_variables(state: State, config: TrainConfig) -> Variables:
    """The variables whose accuracy is reported and which are scored.

    With a moving average, its debiased value; BatchNorm statistics are averaged like the weights
    they belong to.
    """
    if not config.ema:
        return state["variables"]
    # Once a scalar, then products: XLA turns divisions into either, and they round differently.
    scale = 1 / (1 - state["bias"])
    return jax.tree.map(
        lambda average: average * scale if _real(average) else average, state["ema"]
    )


def _real(leaf: Array) -> bool:
    """Whether a variable can be averaged; counters cannot."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def steps_per_epoch(members: int, batch_size: int) -> int:
    """Whole batches in a model's own examples; the remainder of each shuffle is left out."""
    return int(np.floor_divide(members, batch_size))
