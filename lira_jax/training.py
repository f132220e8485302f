"""Stage 1: train the shadow models of a run, in groups, from where an earlier call stopped.

One dispatch is some steps of one group, at most an epoch: every model shuffles its own members and
loops over its batches; after each epoch it is evaluated on a fixed sample of its members and
non-members. Model n is a function of (configuration, seed, n), never of its group, its device, its
shard or the point of resume.
"""

from __future__ import annotations

import dataclasses
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
from jaxtyping import Array, Bool

import lira_jax
from lira_jax import ensemble, optimization, tuning
from lira_jax.candidates import Candidates, build_network, candidates, place, total_steps
from lira_jax.config import Experiment, keep_fraction
from lira_jax.data import membership
from lira_jax.data.views import augmented, plain
from lira_jax.defences import adversarial, dp_sgd, early_stopping, transfer
from lira_jax.ensemble import Program
from lira_jax.errors import InputError
from lira_jax.interrupts import StopRequest, stop_requests
from lira_jax.networks import Network, Variables
from lira_jax.networks.conv import Gradients
from lira_jax.progress import Progress, say
from lira_jax.run import checkpoints, run_dir
from lira_jax.run.checkpoints import Group
from lira_jax.run.shards import Shard

# Streams of randomness within one model: fold_in(fold_in(key(seed), n), stream).
INIT, ORDER, AUGMENT, DROPOUT = 0, 1, 2, 3
ADVERSARY, HELD_OUT = 5, 6
# Steps go to the devices in dispatches of about this long: a signal is answered between two.
DISPATCH_SECONDS = 2.0


def init_model(
    experiment: Experiment, network: Network, steps: int, classes: int
) -> Callable[[Array], Any]:
    """The function n ↦ state of model n before training."""

    def init(number: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(experiment.seed), number)
        state = optimization.new_state(
            jax.random.fold_in(key, INIT), network, experiment.train, steps, experiment.defence
        )
        if experiment.defence.adversarial:
            state["adversary"] = adversarial.begin(jax.random.fold_in(key, ADVERSARY), classes)
        if experiment.defence.early_stopping:
            state["early_stopping"] = early_stopping.begin(state["variables"])
        return state

    return init


def steps_of_model(experiment: Experiment, network: Network, steps: int) -> Callable[..., Any]:
    """The function of some steps of one model, all within one epoch.

    It maps ((state, model), start, stop, images, labels) to (state, model) after steps `start` …
    `stop` − 1, counted from 0 over all epochs. `model` holds `number` [] and `members` [M]. Bounds
    are arguments, so that one program serves any number of steps. Adversarial regularisation also
    takes held-out images and labels.
    """
    config, defence = experiment.train, experiment.defence
    step = optimization.train_step(network, config, steps, defence)

    def advance(
        state_and_model: Any,
        start: Array,
        stop: Array,
        images: Array,
        labels: Array,
        held_out: tuple[Array, Array] | None = None,
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
        augment = functools.partial(
            augmented, mirror=config.mirror, shift=config.shift, cutout=config.cutout
        )
        if defence.early_stopping:
            stop = early_stopping.last_step(state, start, stop)

        def of_held_out(number: Array) -> tuple[Array, Array, Array] | None:
            """A batch of held-out images, as those of members, labels and a key for dropout."""
            if held_out is None:
                return None
            key_index, key_views, key_step = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, HELD_OUT), number), 3
            )
            index = jax.random.randint(key_index, (config.batch_size,), 0, len(held_out[1]))
            return augment(held_out[0], index, key_views), held_out[1][index], key_step

        def one_batch(number: Array, state: Any) -> Any:
            position = number - epoch * batches
            state = state | {"loss": jnp.where(position == 0, 0.0, state["loss"])}
            index, padding = order[position], list[Array]()
            if defence.dp_clip:
                key_batch = jax.random.fold_in(key_order, position)
                index, *padding = dp_sgd.poisson_batch(key_batch, members, config.batch_size)
            batch = augment(images, index, jax.random.fold_in(key_augment, number))
            key_step = jax.random.fold_in(key_dropout, number)
            others = of_held_out(number)
            return step(state, batch, labels[index], key_step, *padding, held_out=others)[0]

        # `model` goes through unchanged, so that its memory can be given away with the state's.
        return lax.fori_loop(start, stop, one_batch, state), model

    return advance


def metrics_of_model(
    experiment: Experiment, network: Network, held_out: int = 0
) -> Callable[..., Any]:
    """The function ((state, model), images, labels) ↦ what is logged after an epoch: mean `loss`,
    `member_accuracy` and `nonmember_accuracy` on `model["probe"]` [2, P], and what early stopping
    tells, which judges by so many held-out images."""

    def metrics(state_and_model: Any, images: Array, labels: Array) -> dict[str, Array]:
        state, model = state_and_model
        variables = optimization.evaluated_variables(state, experiment.train)

        def accuracy(_: None, index: Array) -> Any:
            logits = network.apply(variables, plain(images, index))
            return None, jnp.mean(jnp.argmax(logits, 1) == labels[index])

        _, (member, nonmember) = lax.scan(accuracy, None, model["probe"])
        members = model["members"].shape[0]
        batches = optimization.steps_per_epoch(members, experiment.train.batch_size)
        found = {
            "loss": state["loss"] / batches,
            "member_accuracy": member,
            "nonmember_accuracy": nonmember,
        }
        if experiment.defence.early_stopping:
            found |= early_stopping.logged(state, held_out)
        return found

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
        judge: ((states, inputs), epoch) ↦ (states, inputs) after that epoch, counted from 1; what
            early stopping does, if anything. Likewise.
        metrics: (states, inputs) ↦ what is logged after an epoch.
        finish: states ↦ the variables that are scored.
    """

    mesh: Mesh
    begin: Program
    advance: Program
    judge: Callable[[Any, np.int32], Any]
    metrics: Program
    finish: Program


def programs(
    experiment: Experiment,
    data: Candidates,
    mesh: Mesh,
    initial: Variables | None = None,
    placed: tuple[Array, Array] | None = None,
) -> Programs:
    """The programs of an experiment, with the data placed on the mesh.

    Args:
        initial: of `transfer.read`.
        placed: of `place`, where that has been done.
    """
    config, defence = experiment.train, experiment.defence
    own_network = build_network(experiment, data)
    steps = total_steps(experiment, int(data.keep[0].sum()))
    initial = ensemble.put_shared(initial, mesh)
    placed = place(data, mesh) if placed is None else placed

    def over_models(
        make: Callable[[Network], Callable[..., Any]], *shared: Any, donate: bool = False
    ) -> Program:
        """The program of the function that `make` makes of the network in use."""

        def function(models: Any, *others: Any) -> Any:
            network = transfer.begun_from(own_network, others[-1], defence)
            return make(network)(models, *others[:-1])

        lifted = ensemble.over_models(function, mesh, config.width, donate=donate)
        return Program(lifted, (*shared, initial))

    def finish(state: Any, initial: Any) -> Variables:
        kept = optimization.evaluated_variables(state, config)
        if defence.early_stopping:
            kept = state["early_stopping"]["variables"]
        return transfer.whole(kept, initial, defence)

    # Held-out images are on the devices where they are needed, and only then.
    for_steps: tuple[Any, ...] = ()
    for_judge: tuple[Any, ...] = ()
    judged_by = 0
    if data.held_out and defence.adversarial:
        for_steps = (ensemble.put_shared(tuple(map(np.asarray, data.held_out)), mesh),)
    if data.held_out and defence.early_stopping:
        index = early_stopping.held_out_index(experiment.seed, len(data.held_out[1]))
        judged_by = len(index)
        for_judge = ensemble.put_shared(tuple(part[index] for part in data.held_out), mesh)
    judge = over_models(
        lambda network: early_stopping.judge_of_model(network, config, defence.early_stopping),
        *for_judge,
        donate=True,
    )
    return Programs(
        mesh=mesh,
        begin=over_models(lambda network: init_model(experiment, network, steps, data.classes)),
        advance=over_models(
            lambda network: steps_of_model(experiment, network, steps),
            *placed,
            *for_steps,
            donate=True,
        ),
        judge=judge if for_judge else lambda group, epoch: group,
        metrics=over_models(
            lambda network: metrics_of_model(experiment, network, judged_by), *placed
        ),
        finish=Program(ensemble.over_models(finish, mesh, config.width), (initial,)),
    )


def shapes(on_mesh: Programs, inputs: dict[str, Array]) -> Any:
    """What `advance` takes first for a group of these inputs: shapes, types and places, to compile
    programs for before there is such a group."""
    places = ensemble.over_devices(on_mesh.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places),
        (jax.eval_shape(on_mesh.begin, inputs["number"]), inputs),
    )


@dataclass(frozen=True)
class Way:
    """How the models of a group share a device.

    Attributes:
        width: models vectorised together, at least 1.
        conv_gradients: how their convolutions' gradients are written, see there.
    """

    width: int
    conv_gradients: Gradients

    def __str__(self) -> str:
        gradients = f" with {self.conv_gradients} gradients" if self.width > 1 else ""
        return f"width {self.width}{gradients}"


def ways(experiment: Experiment, share: int, on_cpu: bool) -> list[Way]:
    """Those that a configuration leaves open, for `share` models on each device."""
    config = experiment.train
    # Of both, the one that was faster in the one case that was measured on a GPU comes first.
    gradients: tuple[Gradients, ...] = ("grouped", "vmap")
    if config.conv_gradients != "auto":
        gradients = (config.conv_gradients,)
    elif ":" in experiment.network.arch:  # a user's own convolutions know no such ways
        gradients = ("vmap",)
    if config.width or on_cpu:  # on CPU one at a time is the fastest, and the same everywhere
        return [Way(config.width or 1, gradients[0])]
    several = [Way(width, how) for width in tuning.up_to(share)[1:] for how in gradients]
    return [Way(1, gradients[0]), *several]  # one model alone has one kind of gradients


def in_way(experiment: Experiment, way: Way) -> Experiment:
    """The experiment with a way settled."""
    return dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, **dataclasses.asdict(way))
    )


def find_way(
    experiment: Experiment,
    data: Candidates,
    group: Group,
    mesh: Mesh,
    where: str,
    initial: Variables | None = None,
    placed: tuple[Array, Array] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Way:
    """The fastest way to train a group, of those that the configuration leaves open.

    Each trains the group's own models, from their beginning, with a program that also serves the
    run.

    Raises:
        jax.errors.JaxRuntimeError: no way has enough memory.
    """
    share = ensemble.slots(group.size, mesh) // mesh.size
    open_ways = ways(experiment, share, ensemble.on_cpu(mesh))
    placed = place(data, mesh) if placed is None and len(open_ways) > 1 else placed

    def trial(way: Way) -> tuning.Trial:
        on_mesh = programs(in_way(experiment, way), data, mesh, initial, placed)
        inputs = group_inputs(experiment, data.keep, group, mesh)
        begin = on_mesh.begin.compiled(inputs["number"])
        advance = on_mesh.advance.compiled(shapes(on_mesh, inputs), np.int32(0), np.int32(1))
        state: Any = None

        def run(steps: int) -> None:
            nonlocal state
            before = (begin(inputs["number"]), inputs) if state is None else state
            state = jax.block_until_ready(advance(before, np.int32(0), np.int32(steps)))

        members = inputs["members"].shape[1]
        most = optimization.steps_per_epoch(members, experiment.train.batch_size)
        return tuning.Trial(run, work=group.size, most=most)

    about = {
        "work": "train",
        "models per device": share,
        "network": dataclasses.asdict(experiment.network),
        "images": data.image_shape,
        "classes": data.classes,
        "batch": experiment.train.batch_size,
        "dtype": experiment.train.dtype,
        "defence": dataclasses.asdict(experiment.defence) | {"transfer_from": initial is not None},
    }
    candidates = {way: functools.partial(trial, way) for way in open_ways}
    return tuning.fastest(candidates, about, mesh, where, "model-steps", check)


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
    network = build_network(experiment, data)  # refuses before anything is written
    members = int(data.keep[0].sum())
    record, privacy, initial = versions(data.digest), "", None
    if data.held_out:
        record["held_out_digest"] = transfer.digest(data.held_out)
    if experiment.defence.transfer_from:
        initial = transfer.read(experiment, network, data.images)
        record["transfer_digest"] = transfer.digest(initial)
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
        way, measured = Way(1, "vmap"), 0  # for a group of so many models
        stopped = f"{run}: stopped; run the same command again to go on"

        # A group smaller than the devices leaves some alone, rather than train models twice.
        @functools.cache
        def on_devices(count: int) -> tuple[Mesh, tuple[Array, Array]]:
            mesh = ensemble.models_mesh(devices[:count])
            return mesh, place(data, mesh)

        @functools.cache
        def in_that_way(way: Way, count: int) -> Programs:
            mesh, placed = on_devices(count)
            return programs(in_way(experiment, way), data, mesh, initial, placed)

        trained = sum(n in share for group in finished for n in group.models)
        goal = trained + sum(group.size for group in todo)
        ahead = sum(group.size * group.step for group in todo)
        progress = Progress(goal * steps, trained * steps + ahead, "train")
        work = _Work(experiment, run, data, steps, goal, began, progress)
        try:
            with stop_requests() as stop:
                while todo:
                    group, count = todo[0], min(todo[0].size, len(devices))
                    try:
                        # What is best for many serves few, but not the other way round.
                        if group.size > measured:
                            mesh, placed = on_devices(count)
                            way = find_way(
                                experiment, data, group, mesh, str(run), initial, placed,
                                lambda: stop.check(stopped),
                            )  # fmt: skip
                            measured = group.size
                        _train_group(work, group, in_that_way(way, count), way, trained, stop)
                        trained += group.size
                    except jax.errors.JaxRuntimeError as error:
                        size = ensemble.halved(run, group.size, error)
                        any_way = in_that_way(way, count)
                        for begun in checkpoints.saved_groups(run):
                            if begun.models == group.models:
                                checkpoints.halve(run, begun, _like(begun, any_way))
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
    work: _Work, group: Group, on_mesh: Programs, way: Way, trained: int, stop: StopRequest
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
            both = on_mesh.judge(both, np.int32(epoch))
            metrics = ensemble.on_host(on_mesh.metrics(both), group.size)
            record = {"models": [group.first, group.last], "epoch": epoch}
            record |= {name: [round(v, 6) for v in row.tolist()] for name, row in metrics.items()}
            log.append(record | {"seconds": round(seconds, 3)} | dataclasses.asdict(way))
            seconds = 0.0
            accuracy = (
                f"member acc {metrics['member_accuracy'].mean():.1%}, "
                f"non-member acc {metrics['nonmember_accuracy'].mean():.1%}, "
            )
            _refuse_non_finite(metrics["loss"], group, epoch)
            if at < steps and np.all(metrics.get("stopped_epoch", 0)):
                progress.advance(group.size * (steps - at), f"models {group.models} stopped early")
                at = steps
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
