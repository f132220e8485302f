"""Stage 1: train the shadow models of a run, in groups, from where an earlier call stopped.

One dispatch is some steps of one group, at most an epoch: every model shuffles its own members and
loops over its batches; after each epoch it is evaluated on a fixed sample of its members and
non-members. Model n is a function of (configuration, seed, n), never of its group, its device, its
shard or the point of resume.
"""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Callable, Sequence
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
from lira_jax.defences import dp_sgd
from lira_jax.errors import InputError
from lira_jax.interrupts import StopRequest, stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress, say
from lira_jax.shards import Shard
from lira_jax.views import augmented, check_shift, plain

# Streams of randomness within one model: fold_in(fold_in(key(seed), n), stream).
INIT, ORDER, AUGMENT, DROPOUT = 0, 1, 2, 3
# Steps go to the devices in dispatches of about this long: a signal is answered between two.
DISPATCH_SECONDS = 2.0


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
        canaries: of the examples, the last so many were inserted to be memorised.
    """

    images: UInt8[np.ndarray, "E H W C"]
    labels: Int32[np.ndarray, "E"]
    classes: int
    keep: Bool[np.ndarray, "N E"]
    digest: str
    available: int
    canaries: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def candidates(experiment: Experiment) -> Candidates:
    """Load the data of an experiment and draw its masks.

    The last few training images are left out, so that B folds share the rest and the canaries,
    which come last, equally.

    Raises:
        InputError: data or settings that do not fit.
    """
    check(experiment)
    data: Dataset = datasets.load(experiment.data, experiment.seed)
    kept_folds, block = keep_fraction(experiment.train.keep)
    images, labels = datasets.candidates(data, block)
    keep = membership.blocked_masks(
        experiment.seed, experiment.train.models, len(labels), kept_folds, block
    )
    found = Candidates(
        images=images,
        labels=labels,
        classes=len(data.classes),
        keep=keep,
        digest=data.digest,
        available=len(data.x_train) + len(data.x_canary),
        canaries=len(data.x_canary),
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
    network = networks.build(
        experiment.network,
        data.image_shape,
        data.classes,
        experiment.train.dtype,
        experiment.defence.dropout,
    )
    if experiment.defence.dp_clip:
        dp_sgd.check_network(network, experiment.network.arch)
    return network


def init_model(experiment: Experiment, network: Network, steps: int) -> Callable[[Array], Any]:
    """The function n ↦ state of model n before training."""

    def init(number: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(experiment.seed), number)
        return optimization.new_state(
            jax.random.fold_in(key, INIT), network, experiment.train, steps, experiment.defence
        )

    return init


def steps_of_model(experiment: Experiment, network: Network, steps: int) -> Callable[..., Any]:
    """The function of some steps of one model, all within one epoch.

    It maps ((state, model), start, stop, images, labels) to (state, model) after steps `start` …
    `stop` − 1, counted from 0 over all epochs. `model` holds `number` [] and `members` [M]. Bounds
    are arguments, so that one program serves any number of steps.
    """
    config, private = experiment.train, experiment.defence.dp_clip > 0
    step = optimization.train_step(network, config, steps, experiment.defence)

    def advance(
        state_and_model: Any, start: Array, stop: Array, images: Array, labels: Array
    ) -> Any:
        state, model = state_and_model
        members = model["members"]
        batches = optimization.steps_per_epoch(members.shape[0], config.batch_size)
        epoch = start // batches
        key = jax.random.fold_in(jax.random.key(experiment.seed), model["number"])
        key_order = jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch + 1)
        key_augment = jax.random.fold_in(key, AUGMENT)
        key_dropout = jax.random.fold_in(key, DROPOUT)
        order = jax.random.permutation(key_order, members)[: batches * config.batch_size]
        order = order.reshape(batches, config.batch_size)

        def one_batch(number: Array, state: Any) -> Any:
            position = number - epoch * batches
            state = state | {"loss": jnp.where(position == 0, 0.0, state["loss"])}
            index, padding = order[position], list[Array]()
            if private:
                key_batch = jax.random.fold_in(key_order, position)
                index, *padding = dp_sgd.poisson_batch(key_batch, members, config.batch_size)
            batch = augmented(
                images,
                index,
                jax.random.fold_in(key_augment, number),
                mirror=config.mirror,
                shift=config.shift,
                cutout=config.cutout,
            )
            key_step = jax.random.fold_in(key_dropout, number)
            return step(state, batch, labels[index], key_step, *padding)[0]

        # `model` goes through unchanged, so that its memory can be given away with the state's.
        return lax.fori_loop(start, stop, one_batch, state), model

    return advance


def metrics_of_model(experiment: Experiment, network: Network) -> Callable[..., Any]:
    """The function ((state, model), images, labels) ↦ what is logged after an epoch: mean `loss`,
    and `member_accuracy` and `nonmember_accuracy` on `model["probe"]` [2, P]."""

    def metrics(state_and_model: Any, images: Array, labels: Array) -> dict[str, Array]:
        state, model = state_and_model
        variables = optimization.evaluated_variables(state, experiment.train)

        def accuracy(_: None, index: Array) -> Any:
            logits = network.apply(variables, plain(images, index))
            return None, jnp.mean(jnp.argmax(logits, 1) == labels[index])

        _, (member, nonmember) = lax.scan(accuracy, None, model["probe"])
        members = model["members"].shape[0]
        batches = optimization.steps_per_epoch(members, experiment.train.batch_size)
        return {
            "loss": state["loss"] / batches,
            "member_accuracy": member,
            "nonmember_accuracy": nonmember,
        }

    return metrics


def group_inputs(
    experiment: Experiment, keep: Bool[np.ndarray, "N E"], group: Group, mesh: Mesh
) -> dict[str, Array]:
    """What each model of a group needs beside the data: number, members, examples to evaluate."""
    rows = keep[group.first : group.last + 1]
    numbers = np.arange(group.first, group.last + 1, dtype=np.int32)
    members = membership.member_indices(rows)
    natural = keep[:, : keep.shape[1] - experiment.data.canaries]  # accuracy is of these
    counts = natural.sum(axis=1)
    size = min(experiment.train.eval_examples, counts.min(), natural.shape[1] - counts.max())
    probes = []
    for number in numbers:
        inside, outside = (np.flatnonzero(side[number]) for side in (natural, ~natural))
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
        advance: ((states, inputs), start, stop) ↦ (states, inputs) after those steps; takes the
            memory of its first argument.
        metrics: (states, inputs) ↦ what is logged after an epoch.
        finish: states ↦ the variables that are scored.
    """

    mesh: Mesh
    begin: Callable[[Array], Any]
    advance: Callable[[Any, np.int32, np.int32], Any]
    metrics: Callable[[Any], dict[str, Array]]
    finish: Callable[[Any], Any]


def programs(experiment: Experiment, data: Candidates, mesh: Mesh) -> Programs:
    """The programs of an experiment, with the data placed on the mesh."""
    network = build_network(experiment, data)
    steps = total_steps(experiment, int(data.keep[0].sum()))
    over_models = functools.partial(ensemble.over_models, mesh=mesh, width=experiment.train.width)
    images, labels = ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
    advance = over_models(steps_of_model(experiment, network, steps), donate=True)
    metrics = over_models(metrics_of_model(experiment, network))
    return Programs(
        mesh=mesh,
        begin=over_models(init_model(experiment, network, steps)),
        advance=lambda group, start, stop: advance(group, start, stop, images, labels),
        metrics=lambda group: metrics(group, images, labels),
        finish=over_models(lambda state: optimization.evaluated_variables(state, experiment.train)),
    )


def train(
    experiment: Experiment,
    run: Path,
    devices: Sequence[jax.Device] | None = None,
    shard: Shard = Shard(),
    *,
    repair: bool = False,
) -> None:
    """Train the models of a share that a run does not have yet.

    Args:
        experiment: what to train.
        run: run directory, made if missing.
        devices: to train on; default all of this process.
        shard: the share of the models to train; default all.
        repair: train models with damaged checkpoints again.

    Raises:
        InputError: bad settings or data, another experiment's run, damaged files, a full disk,
            another process at work on the same models, too little memory for one model, or a loss
            that is not finite. Finished models stay.
        Stopped: a signal came; the group in training was saved first.
    """
    began = time.monotonic()
    data = candidates(experiment)
    build_network(experiment, data)  # refuses what cannot be built before anything is written
    members = int(data.keep[0].sum())
    record, privacy = versions(data.digest), ""
    if experiment.defence.dp_clip:
        epsilon = dp_sgd.epsilon(experiment, members)
        record["dp_epsilon"] = f"{epsilon:.6g}"
        privacy = dp_sgd.in_words(epsilon, experiment.defence.dp_delta)
    write = run_dir.prepare(run, experiment, data.keep, data.labels, record, repair=repair)
    models, steps = experiment.train.models, total_steps(experiment, members)
    share = shard.models(models)
    with run_dir.lock(run, "train", share):
        write()
        if repair:
            for group in checkpoints.repair(run, share):
                names = run_dir.as_ranges(group.models)
                print(f"{run}: models {names} had a damaged checkpoint and are trained again")
        devices = devices or jax.local_devices()
        mesh = ensemble.models_mesh(devices)
        size = max(1, min(ensemble.group_size(experiment.train.group, mesh), len(share)))
        finished, todo = checkpoints.plan(run, models, steps, size, share)
        _announce(run, data, experiment, shard, finished, mesh, size, privacy)
        # A group smaller than the devices leaves some alone, rather than train models twice.
        on_devices = functools.cache(
            lambda count: programs(experiment, data, ensemble.models_mesh(devices[:count]))
        )
        trained = sum(n in share for group in finished for n in group.models)
        goal = trained + sum(group.size for group in todo)
        ahead = sum(group.size * group.step for group in todo)
        progress = Progress(goal * steps, trained * steps + ahead, "train")
        work = _Work(experiment, run, data, steps, goal, began, progress)
        try:
            with stop_requests() as stop:
                while todo:
                    group, on_mesh = todo[0], on_devices(min(todo[0].size, len(devices)))
                    try:
                        _train_group(work, group, on_mesh, trained, stop)
                        trained += group.size
                    except jax.errors.JaxRuntimeError as error:
                        size = ensemble.halved(run, group.size, error)
                        for begun in checkpoints.saved_groups(run):
                            if begun.models == group.models:
                                checkpoints.halve(run, begun, _like(begun, on_mesh))
                    finished, todo = checkpoints.plan(run, models, steps, size, share)
        finally:
            progress.close()
    done = {n for group in finished for n in group.models}
    elsewhere = [n for n in share if n not in done]
    if len(done) == models:
        print(f"{run}: all {models} models are trained", flush=True)
    elif elsewhere:
        print(
            f"{run}: models {run_dir.as_ranges(elsewhere)} of shard {shard} are in a group begun "
            "earlier, whose first model is another shard's: that one trains them",
            flush=True,
        )
    else:
        which = f"models {run_dir.as_ranges(share)}" if share else "no models"
        print(
            f"{run}: shard {shard} ({which}) is trained, {len(done)} of {models} in all", flush=True
        )
    if privacy:
        print(f"{run}: {privacy}", flush=True)


@dataclass(frozen=True)
class _Work:
    """What every group's training needs.

    Attributes:
        steps: of one model, in all.
        models: of this call, those done before included.
        began: when this call did.
    """

    experiment: Experiment
    run: Path
    data: Candidates
    steps: int
    models: int
    began: float
    progress: Progress


def _announce(
    run: Path,
    data: Candidates,
    experiment: Experiment,
    shard: Shard,
    finished: Sequence[Group],
    mesh: Mesh,
    size: int,
    privacy: str,
) -> None:
    examples, models = data.keep.shape[1], experiment.train.models
    share = shard.models(models)
    done = sum(n in share for group in finished for n in group.models)
    if done == len(share):
        return
    if data.available > examples:
        images = data.available - data.canaries
        print(
            f"{run}: the last {data.available - examples} of {images} images left out: "
            f"{keep_fraction(experiment.train.keep)[1]} folds share the rest equally"
        )
    part = "" if shard.count == 1 else f"shard {shard}, {len(share)} of "
    print(
        f"{run}: {part}{models} models ({done} done), {examples} examples, "
        f"{int(data.keep[0].sum())} members each, {mesh.size} {mesh.devices.flat[0].platform} "
        f"device{'s' * (mesh.size > 1)}, groups of {size}",
        flush=True,
    )
    if privacy:
        print(f"{run}: {privacy}", flush=True)


def _like(group: Group, on_mesh: Programs) -> Any:
    """Empty arrays of the shapes and types of a begun group's checkpoint."""
    numbers = jax.ShapeDtypeStruct((ensemble.slots(group.size, on_mesh.mesh),), np.int32)
    state = jax.eval_shape(on_mesh.begin, numbers)
    return jax.tree.map(lambda leaf: np.empty((group.size, *leaf.shape[1:]), leaf.dtype), state)


def _train_group(
    work: _Work, group: Group, on_mesh: Programs, trained: int, stop: StopRequest
) -> None:
    """Train one group to the end from its newest checkpoint; `trained` models were done before."""
    experiment, run, steps, progress = work.experiment, work.run, work.steps, work.progress
    inputs = group_inputs(experiment, work.data.keep, group, on_mesh.mesh)
    if group.step:
        stored = checkpoints.restore(run, group, _like(group, on_mesh))
        both = (ensemble.put_padded(stored, on_mesh.mesh), inputs)
    else:
        both = (on_mesh.begin(inputs["number"]), inputs)
    epochs, between = experiment.train.epochs, 60 * experiment.train.checkpoint_minutes
    per_epoch = steps // epochs
    log_file = run / run_dir.TRAIN_LOG / f"{group.name}.jsonl"
    log = [
        line for line in run_dir.read_log_file(log_file) if line["epoch"] * per_epoch <= group.step
    ]
    at, together, seconds, accuracy, saved = group.step, 1, 0.0, "", time.monotonic()
    while at < steps:
        epoch = at // per_epoch + 1
        start, until = time.monotonic(), min(at + together, epoch * per_epoch)
        both = jax.block_until_ready(on_mesh.advance(both, np.int32(at), np.int32(until)))
        lasted = time.monotonic() - start
        seconds += lasted
        units = group.size * (until - at)
        if progress.fresh:  # with compilation
            say(f"{run}: first step after {time.monotonic() - work.began:.1f} s")
            progress.warm_up(units)
        else:
            progress.advance(
                units,
                f"{trained + group.size * (until == steps)}/{work.models} models done, "
                f"epoch {epoch}/{epochs}, {accuracy}"
                f"{progress.rate(units) / steps * 3600:,.1f} models/h",
            )
        # As many steps as keep neither a signal nor a checkpoint waiting.
        together = max(1, int(min(DISPATCH_SECONDS, between) / lasted * (until - at)))
        at = until
        if at == epoch * per_epoch:
            metrics = ensemble.on_host(on_mesh.metrics(both), group.size)
            record = {"models": [group.first, group.last], "epoch": epoch}
            record |= {name: [round(float(v), 6) for v in row] for name, row in metrics.items()}
            log.append(record | {"seconds": round(seconds, 3)})
            seconds = 0.0
            accuracy = (
                f"member acc {metrics['member_accuracy'].mean():.1%}, "
                f"non-member acc {metrics['nonmember_accuracy'].mean():.1%}, "
            )
            _refuse_non_finite(metrics["loss"], group, epoch)
        # Read once: a signal after this is answered a dispatch later, when it can be saved.
        stopping = stop.signum != 0
        late = time.monotonic() - saved > between
        if at == steps or late or stopping:
            whole = on_mesh.finish(both[0]) if at == steps else both[0]
            run_dir.write_log_file(log_file, log)
            checkpoints.save(
                run, Group(group.first, group.last, at), ensemble.on_host(whole, group.size)
            )
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
