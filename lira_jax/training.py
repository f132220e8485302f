"""Stage 1: train the shadow models of a run, in groups, from where an earlier call stopped.

One dispatch is one epoch of one group: every model shuffles its own members, scans over its
batches, and is then evaluated on a fixed sample of its members and non-members. Model n is a
function of (configuration, seed, n), never of its group, its device or the point of resume.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int32, UInt8

import lira_jax
from lira_jax import checkpoints, datasets, ensemble, membership, networks, optimization, run_dir
from lira_jax.checkpoints import Group
from lira_jax.config import Experiment, check, keep_fraction
from lira_jax.datasets import Dataset
from lira_jax.errors import InputError
from lira_jax.interrupts import StopRequest, stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.views import augmented, check_shift, plain

# Streams of randomness within one model: fold_in(fold_in(key(seed), n), stream).
INIT, ORDER, AUGMENT, DROPOUT = 0, 1, 2, 3


@dataclass(frozen=True)
class Candidates:
    """The examples whose membership is in question.

    Attributes:
        images: uint8 [E, H, W, C].
        labels: int32 [E].
        classes: K.
        keep: bool [N, E], which model trains on which.
        digest: of the data.
        available: examples before the last few were left out to make equal folds.
    """

    images: UInt8[np.ndarray, "E H W C"]
    labels: Int32[np.ndarray, "E"]
    classes: int
    keep: Bool[np.ndarray, "N E"]
    digest: str
    available: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def candidates(experiment: Experiment) -> Candidates:
    """Load the data of an experiment and draw its masks.

    The last E mod B training images are left out, so that B folds share the rest equally.

    Raises:
        InputError: data or settings that do not fit.
    """
    check(experiment)
    data: Dataset = datasets.load(experiment.data)
    kept_folds, block = keep_fraction(experiment.train.keep)
    examples = membership.usable_examples(len(data.x_train), block)
    if examples == 0:
        raise InputError(
            f"{data.name}: {len(data.x_train)} training images cannot be cut into {block} folds"
        )
    keep = membership.blocked_masks(
        experiment.seed, experiment.train.models, examples, kept_folds, block
    )
    found = Candidates(
        images=data.x_train[:examples],
        labels=data.y_train[:examples],
        classes=len(data.classes),
        keep=keep,
        digest=data.digest,
        available=len(data.x_train),
    )
    members = int(keep[0].sum())
    if experiment.train.batch_size > members:
        raise InputError(
            f"train.batch_size = {experiment.train.batch_size}: each model has only {members} "
            "training examples; give a smaller batch"
        )
    check_shift(experiment.train.shift, found.image_shape, "train.shift")
    if experiment.train.cutout > min(found.image_shape[:2]):
        raise InputError(
            f"train.cutout = {experiment.train.cutout}: larger than images of "
            f"{found.image_shape[0]}×{found.image_shape[1]}"
        )
    return found


def total_steps(experiment: Experiment, members: int) -> int:
    """Optimiser steps of one model."""
    per_epoch = optimization.steps_per_epoch(members, experiment.train.batch_size)
    return per_epoch * experiment.train.epochs


def build_network(experiment: Experiment, data: Candidates) -> Network:
    """The network of an experiment for its images and classes."""
    return networks.build(
        experiment.network, data.image_shape, data.classes, experiment.train.dtype
    )


def init_model(experiment: Experiment, network: Network, steps: int) -> Callable[[Array], Any]:
    """The function n ↦ state of model n before training."""

    def init(number: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(experiment.seed), number)
        return optimization.new_state(
            jax.random.fold_in(key, INIT), network, experiment.train, steps
        )

    return init


def epoch_of_model(experiment: Experiment, network: Network, steps: int) -> Callable[..., Any]:
    """The function of one epoch of one model.

    It maps ((state, model), epoch, images, labels) to ((state, model), metrics). `model` holds
    `number` [], `members` [M] and `probe` [2, P], indices of members and non-members to evaluate;
    metrics are `loss`, `member_accuracy` and `nonmember_accuracy`.
    """
    config = experiment.train
    step = optimization.train_step(network, config, steps)

    def epoch(state_and_model: Any, number: Array, images: Array, labels: Array) -> Any:
        state, model = state_and_model
        key = jax.random.fold_in(jax.random.key(experiment.seed), model["number"])
        key_order = jax.random.fold_in(jax.random.fold_in(key, ORDER), number)
        key_augment = jax.random.fold_in(key, AUGMENT)
        key_dropout = jax.random.fold_in(key, DROPOUT)
        members = model["members"]
        batches = optimization.steps_per_epoch(members.shape[0], config.batch_size)
        order = jax.random.permutation(key_order, members)[: batches * config.batch_size]

        def one_batch(state: Any, index: Array) -> Any:
            batch = augmented(
                images,
                index,
                jax.random.fold_in(key_augment, state["step"]),
                mirror=config.mirror,
                shift=config.shift,
                cutout=config.cutout,
            )
            key_step = jax.random.fold_in(key_dropout, state["step"])
            return step(state, batch, labels[index], key_step)

        state, (losses, _) = lax.scan(one_batch, state, order.reshape(batches, config.batch_size))
        variables = optimization.evaluated_variables(state, config)

        def accuracy(_: None, index: Array) -> Any:
            logits = network.apply(variables, plain(images, index))
            return None, jnp.mean(jnp.argmax(logits, 1) == labels[index])

        _, (member, nonmember) = lax.scan(accuracy, None, model["probe"])
        metrics = {
            "loss": jnp.mean(losses),
            "member_accuracy": member,
            "nonmember_accuracy": nonmember,
        }
        # `model` goes through unchanged, so that its memory can be given away with the state's.
        return (state, model), metrics

    return epoch


def group_inputs(
    experiment: Experiment, keep: Bool[np.ndarray, "N E"], group: Group, mesh: Mesh
) -> dict[str, Array]:
    """What each model of a group needs beside the data: number, members, examples to evaluate."""
    rows = keep[group.first : group.last + 1]
    numbers = np.arange(group.first, group.last + 1, dtype=np.int32)
    members = membership.member_indices(rows)
    nonmembers = membership.member_indices(~rows)
    size = min(experiment.train.eval_examples, members.shape[1], nonmembers.shape[1])
    probes = []
    for number, inside, outside in zip(numbers, members, nonmembers, strict=True):
        random = np.random.default_rng((experiment.seed, int(number), 1))
        probes.append([random.choice(inside, size, False), random.choice(outside, size, False)])
    arrays = {"number": numbers, "members": members, "probe": np.array(probes, np.int32)}
    return ensemble.put_padded(arrays, mesh)


@dataclass(frozen=True)
class Programs:
    """The jitted programs that train a group of models on a mesh.

    Attributes:
        mesh: devices.
        begin: numbers [G] ↦ states.
        advance: ((states, inputs), epoch) ↦ ((states, inputs), metrics); takes the memory of its
            first argument.
        finish: states ↦ the variables that are scored.
    """

    mesh: Mesh
    begin: Callable[[Array], Any]
    advance: Callable[[Any, np.int32], Any]
    finish: Callable[[Any], Any]


def programs(experiment: Experiment, data: Candidates, mesh: Mesh) -> Programs:
    """The programs of an experiment, with the data placed on the mesh."""
    network = build_network(experiment, data)
    steps = total_steps(experiment, int(data.keep[0].sum()))
    width = experiment.train.width
    images, labels = ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
    epoch = ensemble.over_models(
        epoch_of_model(experiment, network, steps), mesh, width, donate=True
    )
    return Programs(
        mesh=mesh,
        begin=ensemble.over_models(init_model(experiment, network, steps), mesh, width),
        advance=lambda group, number: epoch(group, number, images, labels),
        finish=ensemble.over_models(
            lambda state: optimization.evaluated_variables(state, experiment.train), mesh, width
        ),
    )


def train(experiment: Experiment, run: Path, devices: list[jax.Device] | None = None) -> None:
    """Train all models of an experiment that a run does not have yet.

    Args:
        experiment: what to train.
        run: run directory, made if missing.
        devices: to train on; default all.

    Raises:
        InputError: bad settings or data, another experiment's run, damaged files, or a loss that
            is not finite. Finished models stay.
        Stopped: a signal came; the group in training was saved first.
    """
    data = candidates(experiment)
    build_network(experiment, data)  # refuses what cannot be built before anything is written
    run_dir.prepare(run, experiment, data.keep, data.labels, versions(data.digest))
    mesh = ensemble.models_mesh(devices)
    models, epochs = experiment.train.models, experiment.train.epochs
    size = min(ensemble.group_size(experiment.train.group, mesh), models)
    mesh = ensemble.models_mesh(list(mesh.devices.flat)[:size])  # no device without a model
    finished, todo = checkpoints.plan(run, models, epochs, size)
    done = sum(group.size for group in finished)
    if todo:
        _announce(run, data, experiment, done, mesh, size)
        on_mesh = programs(experiment, data, mesh)
        begun = sum(group.size * group.epoch for group in todo)
        progress = Progress(models * epochs, done * epochs + begun, "train")
        try:
            with stop_requests() as stop:
                for group in todo:
                    _train_group(experiment, run, group, data.keep, on_mesh, done, progress, stop)
                    done += group.size
        finally:
            progress.close()
    print(f"{run}: all {models} models are trained", flush=True)


def _announce(
    run: Path, data: Candidates, experiment: Experiment, done: int, mesh: Mesh, size: int
) -> None:
    examples = data.keep.shape[1]
    if data.available > examples:
        print(
            f"{run}: the last {data.available - examples} of {data.available} examples left out: "
            f"{keep_fraction(experiment.train.keep)[1]} folds share the rest equally"
        )
    print(
        f"{run}: {experiment.train.models} models ({done} done), {examples} examples, "
        f"{int(data.keep[0].sum())} members each, {mesh.size} {mesh.devices.flat[0].platform} "
        f"device{'s' * (mesh.size > 1)}, groups of {size}",
        flush=True,
    )


def _train_group(
    experiment: Experiment,
    run: Path,
    group: Group,
    keep: Bool[np.ndarray, "N E"],
    on_mesh: Programs,
    trained: int,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Train one group to the end from its newest checkpoint; `trained` models were done before."""
    models, epochs = experiment.train.models, experiment.train.epochs
    inputs = group_inputs(experiment, keep, group, on_mesh.mesh)
    state = on_mesh.begin(inputs["number"])
    if group.epoch:
        like = jax.tree.map(lambda leaf: np.empty((group.size, *leaf.shape[1:]), leaf.dtype), state)
        state = ensemble.put_padded(checkpoints.restore(run, group, like), on_mesh.mesh)
    run_dir.forget_log_after(run, group.first, group.last, group.epoch)
    saved = time.monotonic()
    for epoch in range(group.epoch + 1, epochs + 1):
        start = time.monotonic()
        (state, inputs), on_device = on_mesh.advance((state, inputs), np.int32(epoch))
        metrics = ensemble.on_host(on_device, group.size)
        _refuse_non_finite(metrics["loss"], group, epoch)
        run_dir.append_log(
            run,
            {
                "models": [group.first, group.last],
                "epoch": epoch,
                **{name: [round(float(v), 6) for v in values] for name, values in metrics.items()},
                "seconds": round(time.monotonic() - start, 3),
            },
        )
        progress.advance(
            group.size,
            f"{trained + group.size * (epoch == epochs)}/{models} models done, "
            f"epoch {epoch}/{epochs}, "
            f"member acc {metrics['member_accuracy'].mean():.1%}, "
            f"non-member acc {metrics['nonmember_accuracy'].mean():.1%}, "
            f"{progress.rate(group.size) / epochs * 3600:,.1f} models/h",
        )
        # Read once: a signal after this is answered an epoch later, when it can be saved.
        stopping = stop.signum != 0
        reached = Group(group.first, group.last, epoch)
        late = time.monotonic() - saved > 60 * experiment.train.checkpoint_minutes
        if epoch == epochs:
            checkpoints.save(run, reached, ensemble.on_host(on_mesh.finish(state), group.size))
        elif late or stopping:
            checkpoints.save(run, reached, ensemble.on_host(state, group.size))
            saved = time.monotonic()
        if stopping:
            stop.check(f"{run}: stopped and saved; run the same command again to go on")


def _refuse_non_finite(loss: np.ndarray, group: Group, epoch: int) -> None:
    bad = np.flatnonzero(~np.isfinite(loss))
    if len(bad):
        raise InputError(
            f"model {group.first + int(bad[0])}: the loss is not finite in epoch {epoch}; try a "
            "smaller train.learning_rate, more train.weight_decay or train.dtype float32 (in a new "
            "--run folder)"
        )


def versions(digest: str) -> dict[str, str]:
    """What config.toml records under [run] beside the settings."""
    import flax
    import optax

    return {
        "data_digest": digest,
        "lira_jax": lira_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "platform": f"{sys.platform} {jax.default_backend()}",
    }
