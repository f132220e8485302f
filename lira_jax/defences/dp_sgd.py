"""DP-SGD: training whose weights tell little of any one example (Abadi et al. 2016, arXiv
1607.00133, algorithm 1).

Each step samples a batch from the model's own M members, clips every example's gradient g to
g · min(1, C/‖g‖), sums them, adds Gaussian noise of standard deviation σ·C to every weight's sum,
and divides by the expected batch size B; C is `defence.dp_clip`, σ is `defence.dp_noise`. The
optimiser, weight decay, the L1 penalty and the moving average only process what comes out.

**What ε is for.** (ε, δ)-differential privacy of one model, when one of its M members is left out
or not (add or remove; exchanging a member for another, as masks in blocks do, is twice that: at
most 2ε, with δ · (1 + e^ε)). It is computed for the sampling that is done: every member joins a
batch with probability B/M by itself (Poisson), and of a batch of more than S a random subset of
S is taken, S being 6 standard deviations above B, which the accounting includes (truncated Poisson
sampling, arXiv 2508.15089). The accountant is that of privacy loss distributions in
`dp_accounting`, which rounds up.

**What it is not for.** M and B count as public. One example is one image: copies of it among the
members are others. The choice of hyperparameters by looking at results, several models together
(attacks on the run's other models, canaries), and everything that is kept of training beside the
weights (losses and accuracies in train_log/, loss traces, masks) are not accounted for. The run's
seed must stay secret: noise follows from it. It is pseudo-random noise of 32-bit numbers. Initial
weights from `defence.transfer_from` are private only as far as the run they come from had other
data.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Int32, Key

from lira_jax.config import DefenceConfig, Experiment
from lira_jax.errors import InputError
from lira_jax.networks import Network

# Examples whose gradients are vectorised: on CPU, one after another is the fastest (digits-sized
# and 28×28 images: 0.8 to 1.0 of the time of the plain gradient; 8 together take up to 1.7 times).
TOGETHER_ON_CPU, TOGETHER_ELSEWHERE = 1, 16
# `jax.random.uniform` gives multiples of this, so that probabilities are multiples too.
_STEP = 2.0**-23


def sampling_rate(batch_size: int, members: int) -> float:
    """The probability with which a member joins a batch: B/M, rounded up to what 32-bit random
    numbers can do exactly."""
    return math.ceil(batch_size / members / _STEP) * _STEP


def slots(batch_size: int, members: int) -> int:
    """The size S to which batches are cut and padded: 6 standard deviations above B, or all
    members, rounded up to whole microbatches."""
    most = batch_size + 6 * math.sqrt(batch_size * (1 - batch_size / members))
    return math.ceil(min(most, members) / TOGETHER_ELSEWHERE) * TOGETHER_ELSEWHERE


def poisson_batch(
    key: Key[Array, ""], members: Int32[Array, "M"], batch_size: int
) -> tuple[Int32[Array, "S"], Bool[Array, "S"]]:
    """A batch of a model's members, each in it with `sampling_rate` by itself; at most S of them.

    Returns:
        The examples, padded at the end, and where they are padding.
    """
    size, count = slots(batch_size, len(members)), len(members)
    draws = jax.random.uniform(key, (count,))
    if size > count:
        draws = jnp.pad(draws, (0, size - count), constant_values=2)
        members = jnp.pad(members, (0, size - count))
    # The S smallest: of a batch that is larger, a subset at random.
    smallest, places = lax.top_k(-draws, size)
    return members[places], -smallest >= sampling_rate(batch_size, count)


def value_and_gradient(
    loss_of: Callable[..., tuple[Array, Any]], defence: DefenceConfig, batch_size: int
) -> Callable[..., tuple[tuple[Array, Any], Any]]:
    """The private counterpart of `jax.value_and_grad(loss_of, has_aux=True)`.

    Args:
        loss_of: (params, images [B, H, W, C], labels [B], key) ↦ loss, a tree of what else is told
            of the batch.
        batch_size: expected, B.

    Returns:
        (params, images [S, H, W, C], labels [S], key, padding bool [S]) ↦ ((loss, tree), gradient):
        the loss and the tree as means over the examples that are no padding, which are **not**
        private; the gradient as above. The key is for dropout and noise.
    """
    clipping = _library("jax_privacy.clipping")

    def clipped_sum(
        together: int, params: Any, images: Array, labels: Array, key: Array, padding: Array
    ) -> Any:
        def arranged(rows: Array) -> Array:
            """Microbatch i takes every (S/together)-th row from the i-th: padding to the last."""
            blocks = rows.reshape(-1, together, *rows.shape[1:])
            return blocks.swapaxes(0, 1).reshape(rows.shape)

        images, labels, padding = arranged(images), arranged(labels), arranged(padding)
        total, told = clipping.clipped_grad(
            loss_of,
            has_aux=True,
            l2_clip_norm=defence.dp_clip,
            batch_argnums=(1, 2),
            prng_argnum=3,
            return_values=True,
            microbatch_size=together,
        )(params, images, labels, key, is_padding_example=padding)
        real = ~padding
        mean = jax.tree.map(
            lambda rows: jnp.where(real, rows, 0).sum() / jnp.maximum(real.sum(), 1),
            (told.values, told.aux),
        )
        return mean, total

    def differentiate(
        params: Any, images: Array, labels: Array, key: Array, padding: Array
    ) -> tuple[tuple[Array, Any], Any]:
        key_dropout, key_noise = jax.random.split(key)
        means, total = lax.platform_dependent(
            params,
            images,
            labels,
            key_dropout,
            padding,
            cpu=partial(clipped_sum, TOGETHER_ON_CPU),
            default=partial(clipped_sum, TOGETHER_ELSEWHERE),
        )
        if defence.dp_noise:
            noise = optax.tree.random_like(key_noise, total, sampler=jax.random.normal)
            scale = defence.dp_noise * defence.dp_clip
            total = jax.tree.map(lambda leaf, random: leaf + scale * random, total, noise)
        return means, jax.tree.map(lambda leaf: leaf / batch_size, total)

    return differentiate


def check_network(network: Network, arch: str) -> None:
    """Refuse a network that keeps statistics of its batches, as BatchNorm does: they would give
    examples away without noise.

    Raises:
        InputError: it does.
    """
    rest = jax.eval_shape(network.init, jax.random.key(0))["rest"]
    if jax.tree.leaves(rest):
        raise InputError(
            f'network.arch = "{arch}": keeps statistics of its batches, which DP-SGD '
            "(defence.dp_clip) does not protect; use normalisation of single images"
        )


def epsilon(experiment: Experiment, members: int) -> float:
    """ε at `defence.dp_delta` of one model with M members after all its steps, as above.

    Infinite without noise, 0 without steps.

    Raises:
        InputError: dp-accounting is not installed.
    """
    defence, train = experiment.defence, experiment.train
    accounting = _library("dp_accounting")
    if not defence.dp_noise:
        return math.inf
    event = accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=members,
        sampling_probability=sampling_rate(train.batch_size, members),
        truncated_batch_size=slots(train.batch_size, members),
        noise_multiplier=defence.dp_noise,
    )
    steps = train.total_steps(members)
    relation = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    # Losses grow with 1/σ², and so would the time and memory at a fixed resolution; estimates at a
    # coarser one are upper bounds too.
    interval = 1e-4 * max(1.0, (0.5 / defence.dp_noise) ** 2)
    accountant = accounting.pld.PLDAccountant(relation, value_discretization_interval=interval)
    accountant.compose(event, steps)
    return float(accountant.get_epsilon(defence.dp_delta))


def in_words(epsilon: float, delta: float) -> str:
    """ε and δ as a line for people."""
    if math.isinf(epsilon):
        return "DP-SGD without noise (defence.dp_noise = 0): clipping alone has no finite ε"
    return (
        f"DP-SGD with ε = {epsilon:.4g} at δ = {delta:g} for each model, "
        "when one of its members is left out or not"
    )


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            "defence.dp_clip: DP-SGD needs jax-privacy; pip install 'lira_jax[dp]'"
        ) from None
