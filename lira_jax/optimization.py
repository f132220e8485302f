"""One training step of one shadow model: loss, optimiser, schedule, moving average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, Key

from lira_jax.config import DefenceConfig, TrainConfig
from lira_jax.defences import adversarial, dp_sgd
from lira_jax.defences.adversarial import Adversary
from lira_jax.defences.early_stopping import EarlyStopping
from lira_jax.networks import Network, Variables

NO_DEFENCE = DefenceConfig()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """One model in training. Checkpoints name their arrays by these attributes.

    Attributes:
        variables: weights and the like after the last step.
        optimizer: the optimiser's own state.
        step: steps taken, [].
        loss: summed over the steps of this epoch, [].
        ema: the moving average of `variables` before debiasing; empty when off.
        bias: ema^step, the share of `ema` that is still its start at zero, []; multiplied up step
            by step, since XLA's power rounds differently from program to program.
        adversary: with adversarial regularisation.
        early_stopping: with early stopping.
    """

    variables: Variables
    optimizer: Any
    step: Int32[Array, ""]
    loss: Float[Array, ""]
    ema: Variables
    bias: Float[Array, ""]
    adversary: Adversary | None = None
    early_stopping: EarlyStopping | None = None


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
    return State(
        variables,
        optimizer(config, steps, defence).init(variables["params"]),
        step=jnp.zeros((), jnp.int32),
        loss=jnp.zeros((), jnp.float32),
        ema=averages,
        bias=jnp.ones((), jnp.float32),
    )


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
    argument, bool [B]: which examples are padding. With adversarial regularisation it takes
    `held_out`: images and labels of B held-out images, and a key for their dropout."""
    update = optimizer(config, steps, defence).update

    def step(
        state: State,
        images: Array,
        labels: Array,
        key: Array,
        *padding: Bool[Array, "B"],
        held_out: tuple[Array, Array, Array] | None = None,
    ) -> tuple[State, tuple[Array, Array]]:
        variables = state.variables

        def loss_of(
            params: Any, images: Array, labels: Array, key: Array
        ) -> tuple[Array, tuple[Array, Array, Any, Adversary | None]]:
            logits, rest = network.apply_train({**variables, "params": params}, images, key)
            loss = cross_entropy(logits, labels, config.label_smoothing)
            adversary, total = state.adversary, loss
            if adversary is not None and held_out is not None:
                others = network.apply_train(variables, held_out[0], held_out[2])[0], held_out[1]
                adversary = adversarial.step(adversary, (logits, labels), others)
                gain = adversarial.member_gain(adversary.params, (logits, labels))
                total = loss + defence.adversarial * gain
            return total, (loss, jnp.mean(jnp.argmax(logits, 1) == labels), rest, adversary)

        if defence.dp_clip:
            differentiate = dp_sgd.value_and_gradient(loss_of, defence, config.batch_size)
        else:
            differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (_, (loss, accuracy, rest, adversary)), gradient = differentiate(
            variables["params"], images, labels, key, *padding
        )
        change, optimizer_state = update(gradient, state.optimizer, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], change), "rest": rest}
        averages = state.ema
        if config.ema:
            averages = jax.tree.map(
                lambda old, new: config.ema * old + (1 - config.ema) * new if _real(new) else new,
                averages,
                variables,
            )
        after = State(
            variables,
            optimizer_state,
            step=state.step + 1,
            loss=state.loss + loss,
            ema=averages,
            bias=state.bias * config.ema,
            adversary=adversary,
            early_stopping=state.early_stopping,
        )
        return after, (loss, accuracy)

    return step


def evaluated_variables(state: State, config: TrainConfig) -> Variables:
    """The variables whose accuracy is reported and which are scored.

    With a moving average, its debiased value; BatchNorm statistics are averaged like the weights
    they belong to.
    """
    if not config.ema:
        return state.variables
    # Once a scalar, then products: XLA turns divisions into either, and they round differently.
    scale = 1 / (1 - state.bias)
    return jax.tree.map(lambda average: average * scale if _real(average) else average, state.ema)


def _real(leaf: Array) -> bool:
    """Whether a variable can be averaged; counters cannot."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)
