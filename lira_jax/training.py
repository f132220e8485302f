"""Stage 1: train the shadow models of a run, in groups, from where an earlier call stopped."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lira_jax import ensemble, loss_tracing, software
from lira_jax.candidates import Candidates, build_network, candidates, place
from lira_jax.config import Experiment, keep_fraction
from lira_jax.defences import dp_sgd, transfer
from lira_jax.errors import InputError
from lira_jax.interrupts import StopRequest, stop_requests
from lira_jax.progress import Progress, say
from lira_jax.run import checkpoints, loss_traces, run_dir
from lira_jax.run.checkpoints import Group
from lira_jax.run.shards import Shard
from lira_jax.shadow_models import Programs, group_inputs, programs
from lira_jax.training_width import Way, find_way, in_way

# Steps go to the devices in dispatches of about this long: a signal is answered between two.
DISPATCH_SECONDS = 2.0


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
    record, privacy, initial = {"data_digest": data.digest} | software.versions(), "", None
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
    before = run_dir.read_versions(run) if (run / run_dir.CONFIG).exists() else {}
    models, steps = experiment.train.models, experiment.train.total_steps(members)
    share, traced = shard.models(models), loss_traces.plan(experiment, members)
    with run_dir.lock(run, "train", share):
        write()
        devices = devices or jax.local_devices()
        mesh = ensemble.models_mesh(devices)
        size = max(1, min(ensemble.group_size(experiment.train.group, mesh), len(share)))
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

        def stored(group: Group) -> Any:
            return in_that_way(way, min(group.size, len(devices))).stored(group, steps)

        if repair:
            for group in checkpoints.repair(run, share, stored):
                print(f"{run}: models {run_dir.as_ranges(group.models)} are trained again")
            loss_traces.repair(run, share, traced)
        finished, todo = checkpoints.plan(run, models, steps, size, share)
        _announce(run, data, experiment, shard, finished, mesh, size, privacy)
        if todo and (changed := software.changed(before)):
            print(
                f"{run}: goes on with other software than it began with ({changed}): models may "
                f"differ by rounding; {run_dir.TRAIN_LOG}/ tells what trained each group",
                flush=True,
            )

        trained = sum(n in share for group in finished for n in group.models)
        goal = trained + sum(group.size for group in todo)
        ahead = sum(group.size * group.step for group in todo)
        before_this_call = trained
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
                        if group.first in traced.models:  # told before all others are trained
                            loss_tracing.name_likely(experiment, run, data)
                    except jax.errors.JaxRuntimeError as error:
                        size = ensemble.halved(run, group.size, error)
                        for begun in checkpoints.saved_groups(run):
                            if begun.models == group.models:
                                checkpoints.halve(run, begun, stored(begun))
                    finished, todo = checkpoints.plan(run, models, steps, size, share)
        finally:
            progress.close()
        own = any(model in traced.models for model in share)
        likely = loss_tracing.name_likely(experiment, run, data) if own else []
    print(f"{run}: {_outcome(finished, models, shard)}", flush=True)
    if likely and goal > before_this_call:
        print(
            f"{run}: most likely to be exposed, as their loss moved most in training: examples "
            f"{', '.join(map(str, likely))}; all in {loss_tracing.LIKELY}",
            flush=True,
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


def _outcome(finished: Sequence[Group], models: int, shard: Shard) -> str:
    """What a call that trained all it could tells at its end."""
    done = {n for group in finished for n in group.models}
    if len(done) == models:
        return f"all {models} models are trained"
    share = shard.models(models)
    if elsewhere := [n for n in share if n not in done]:
        return (
            f"models {run_dir.as_ranges(elsewhere)} of shard {shard} are in a group begun earlier, "
            "whose first model is another shard's: that one trains them"
        )
    which = f"models {run_dir.as_ranges(share)}" if share else "no models"
    return f"shard {shard} ({which}) is trained, {len(done)} of {models} in all"


def _train_group(
    work: _Work, group: Group, on_mesh: Programs, way: Way, trained: int, stop: StopRequest
) -> None:
    """Train one group to the end from its newest checkpoint; `trained` models were done before."""
    experiment, run, steps, progress = work.experiment, work.run, work.steps, work.progress
    inputs = group_inputs(experiment, work.data.keep, group, on_mesh.mesh)
    if group.step:
        stored = checkpoints.restore(run, group, on_mesh.stored(group, steps))
        both = (ensemble.put_padded(stored, on_mesh.mesh), inputs)
    else:
        both = (on_mesh.begin(inputs["number"]), inputs)
    epochs, between = experiment.train.epochs, 60 * experiment.train.checkpoint_minutes
    per_epoch = steps // epochs
    log_file = run / run_dir.TRAIN_LOG / f"{group.name}.jsonl"
    log = [
        line for line in run_dir.read_log_file(log_file) if line["epoch"] * per_epoch <= group.step
    ]
    traces = loss_tracing.begin(experiment, run, work.data.keep, group, on_mesh)
    traces.take(both[0], group.step, stop)  # where a signal left it out
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
            how = asdict(way) | {"software": software.in_words()}
            log.append(record | {"seconds": round(seconds, 3)} | how)
            seconds = 0.0
            accuracy = (
                f"member acc {metrics['member_accuracy'].mean():.1%}, "
                f"non-member acc {metrics['nonmember_accuracy'].mean():.1%}, "
            )
            _refuse_non_finite(metrics["loss"], group, epoch)
            if at < steps and np.all(metrics.get("stopped_epoch", 0)):
                progress.advance(group.size * (steps - at), f"models {group.models} stopped early")
                at = steps
            traces.take(both[0], epoch * per_epoch, stop, last=at == steps)
        # Read once: a signal after this is answered a dispatch later, when it can be saved.
        stopping = stop.signum != 0
        late = time.monotonic() - saved > between
        if at == steps or late or stopping:
            whole = on_mesh.finish(both[0]) if at == steps else both[0]
            run_dir.write_log_file(log_file, log)
            traces.save(finished=at == steps)
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
