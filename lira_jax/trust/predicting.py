"""The part of stage 2 that asks models about inputs from elsewhere: `score.py --trust`.

Each array of the table in `outputs.py` is a product of its own, kept by `run_dir` as scores are:
parts of some models, put together once all are there. KIND.json tells the settings of each from
before its first part on. The same programs serve every kind: they are given images, not numbers of
images in an array whose length would make each kind a program of its own.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, UInt8

from lira_jax import ensemble, scoring
from lira_jax.candidates import Candidates, build_network, candidates
from lira_jax.config import Experiment
from lira_jax.data import datasets, membership
from lira_jax.errors import InputError
from lira_jax.interrupts import stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.run import run_dir, storage
from lira_jax.run.checkpoints import Group
from lira_jax.run.run_dir import Product
from lira_jax.run.shards import Shard
from lira_jax.trust import inputs, laplace, outputs
from lira_jax.trust.inputs import Inputs

# The stream of randomness of sampled predictions, fold_in(key(seed), ·): no model has this number,
# nor has another stream of scoring.
DRAWS = 2**31 - 5
# Images of one model that its last layer is checked with.
CHECKED = 8
UNSCALED = np.float32(1)


@dataclass(frozen=True)
class _Task:
    """One product, and what it is made of.

    Attributes:
        product: the arrays, a row for every model.
        settings: what its .json tells.
        inputs: images, labels and scale.
        by_laplace: whether it is the Laplace approximation's predictions.
    """

    product: Product
    settings: dict[str, Any]
    inputs: Inputs
    by_laplace: bool

    @property
    def count(self) -> int:
        return len(self.inputs.images)


def score(
    experiment: Experiment,
    run: Path,
    devices: Sequence[jax.Device] | None = None,
    shard: Shard = Shard(),
    *,
    repair: bool = False,
) -> None:
    """Make what [trust] of an experiment asks for and is not there yet.

    Scores come first, where they are missing: attacks need them.

    Args:
        experiment: of the run; its [score] and [trust] may differ from the run's own.
        run: a run directory whose models are trained.
        devices: to use; default all of this process.
        shard: the share of the models; default all.
        repair: make anew what is damaged.

    Raises:
        InputError: inputs that cannot be had or do not fit the run's images, other inputs than
            those whose predictions are there, a last layer that is not told or not linear,
            MemGuard, models not trained yet, damaged or foreign files, a full disk, another process
            at work on the same models, or too little memory for one model.
        Stopped: a signal came; parts written before are kept.
    """
    if experiment.score.memguard:
        raise InputError(
            "score.memguard: MemGuard makes up every prediction score, so that there is nothing to "
            "calibrate; leave it out with --trust"
        )
    data, chosen = candidates(experiment), devices or jax.local_devices()
    folder, config = run / outputs.FOLDER, experiment.trust
    source = datasets.load(experiment.data, experiment.seed)
    found = inputs.gather(config, source, np.asarray(data.images), experiment.seed)
    tasks = _tasks(experiment, data, found)
    models = len(data.keep)
    share = shard.models(models)
    finished = scoring.finished_groups(experiment, run, data, share)
    for task in tasks:
        run_dir.check_record(folder, task.product, task.settings)
    scoring.score(experiment, run, chosen, shard, repair=repair)

    refusal = (
        f"{folder}: another score.py asks models among {run_dir.as_ranges(share)}; wait for it or "
        "stop it"
    )
    with ExitStack() as locks:
        locks.enter_context(storage.lock(folder / ".lock-trust", share, refusal))
        storage.sweep(folder)
        left: dict[str, set[int]] = {}
        for task in tasks:
            done = run_dir.scored(folder, task.product, models, task.count, share, repair=repair)
            left[task.product.parts] = set(share) - done.models
        for task in tasks:
            # Another shard may have begun since.
            run_dir.check_record(folder, task.product, task.settings)
            _describe(folder, task)
        if any(left.values()):
            _make(experiment, run, data, tasks, left, finished, chosen, share)
        missing = {
            n for task in tasks for n in run_dir.assemble(folder, task.product, models, task.count)
        }
    _say(run, tasks, found.left_out, models, sorted(missing), shard)


def _tasks(experiment: Experiment, data: Candidates, found: inputs.Gathered) -> list[_Task]:
    """What is to be made, plain predictions first."""
    config, classes = experiment.trust, data.classes
    every = [*([found.fit] if found.fit else []), *found.kinds]
    tasks = []
    for one in every:
        settings = outputs.record_of(one.title, len(one.images), one.scale, inputs.digest(one))
        product = outputs.plain(one.kind, classes)
        tasks.append(_Task(product, settings, one, False))
    if config.laplace:
        examples = Inputs(outputs.CANDIDATES, "candidates", np.asarray(data.images), data.labels)
        settings = {"prior": config.laplace_prior, "samples": config.laplace_samples}
        for one in (examples, *found.kinds):
            told = settings | {"digest": inputs.digest(one)}
            product = outputs.laplace(one.kind, classes)
            tasks.append(_Task(product, told, one, True))
    return tasks


def _describe(folder: Path, task: _Task) -> None:
    """Write what tells the inputs of a product, its settings last."""
    if not task.by_laplace:
        kind, images = task.inputs.kind, task.inputs.images
        storage.write_array(folder / f"{kind}_labels.npy", task.inputs.labels)
        storage.write_array(folder / f"{kind}_samples.npy", images[: outputs.SAMPLES])
    storage.write_text(folder / task.product.record, json.dumps(task.settings) + "\n")


# Programs. Each is a function of one model, lifted to all models of a group.


def _pixels(images: UInt8[Array, "B H W C"], scale: Array | np.float32) -> Float[Array, "B H W C"]:
    """The network's input; at a scale of 1 bitwise that of scoring."""
    return (images.astype(jnp.float32) / 127.5 - 1.0) * scale


def logits_of_model(network: Network) -> Callable[..., tuple[Array]]:
    """The function (variables, images [S, B, H, W, C], numbers [S, B], scale) ↦ (logits
    [S, B, K],), in S steps of B images."""

    def of_model(variables: Any, images: Array, numbers: Array, scale: Array) -> tuple[Array]:
        del numbers
        return (lax.map(lambda x: network.apply(variables, _pixels(x, scale)), images),)

    return of_model


def factors_of_model(network: Network) -> Callable[..., Any]:
    """The function ((variables, factors, images [S, B, H, W, C], counts [S, B]),) ↦ factors with
    more of a model's members, those with a count of 1."""

    def of_model(model: Any) -> Any:
        variables, factors, images, counts = model

        def step(factors: Any, batch: Any) -> tuple[Any, None]:
            about = _about(network, variables, _pixels(batch[0], UNSCALED))
            return laplace.add_factors(factors, *about, batch[1]), None

        return lax.scan(step, factors, (images, counts))[0]

    return of_model


def laplace_of_model(network: Network, seed: int, samples: int) -> Callable[..., Any]:
    """The function ((variables, posterior, number), images [S, B, H, W, C], numbers [S, B], scale)
    ↦ logits [S, B, K] of predictions by the probit approximation, and by sampling.

    Draws are of (seed, number of the model, number of the input) alone.
    """
    key = jax.random.fold_in(jax.random.key(seed), DRAWS)

    def of_model(model: Any, images: Array, numbers: Array, scale: Array) -> tuple[Array, Array]:
        variables, posterior, number = model
        own = jax.random.fold_in(key, number)

        def step(batch: Any) -> tuple[Array, Array]:
            about = _about(network, variables, _pixels(batch[0], scale))
            return (
                laplace.probit(posterior, *about),
                laplace.sampled(posterior, *about, batch[1], own, samples),
            )

        return lax.map(step, (images, numbers))

    return of_model


def _about(network: Network, variables: Any, x: Float[Array, "B H W C"]) -> tuple[Any, Any, float]:
    """What the Laplace approximation needs of some inputs."""
    return network.head_inputs(variables, x), network.apply(variables, x), network.head_scale


# Making the arrays.


def _make(
    experiment: Experiment,
    run: Path,
    data: Candidates,
    tasks: Sequence[_Task],
    left: Mapping[str, set[int]],
    finished: Sequence[Group],
    devices: Sequence[jax.Device],
    share: range,
) -> None:
    """Make every product's missing rows, some models at a time, and write them as parts."""
    folder, network = run / outputs.FOLDER, build_network(experiment, data)
    together = ensemble.group_size(0, ensemble.models_mesh(devices))

    @functools.cache
    def programs(count: int) -> _Programs:
        return _programs(experiment, network, ensemble.models_mesh(devices[:count]))

    total = sum(task.count for task in tasks) * len(share)
    to_do = sum(task.count * len(left[task.product.parts]) for task in tasks)
    progress, checked = Progress(total, total - to_do, "trust"), False
    try:
        with stop_requests() as stop:

            def tick(count: int, title: str) -> None:
                if count:
                    text = f"{title}, {progress.rate(count):,.0f} predictions/s"
                    progress.advance(count, text)
                stop.check(f"{run}: stopped; run the same command again to go on")

            for group in finished:
                lacking = [sorted(left[task.product.parts] & set(group.models)) for task in tasks]
                if not any(lacking):
                    continue
                stored = scoring.restored(run, group, network)
                posteriors: dict[tuple[int, ...], Any] = {}
                for task, models in zip(tasks, lacking, strict=True):
                    if task.by_laplace and models and not checked:
                        first = jax.tree.map(lambda leaf: leaf[0], stored)
                        few = np.asarray(_pixels(jnp.asarray(data.images[:CHECKED]), UNSCALED))
                        laplace.check_last_layer(network, experiment.network.arch, first, few)
                        checked = True
                    while models:
                        chunk = models[: scoring.contiguous(models[:together])]
                        run_on = programs(min(len(chunk), len(devices)))
                        place = np.array(chunk) - group.first
                        variables = jax.tree.map(lambda leaf, place=place: leaf[place], stored)
                        try:
                            if task.by_laplace and tuple(chunk) not in posteriors:
                                posteriors[tuple(chunk)] = _posteriors(
                                    run_on, experiment, data, chunk, variables, tick
                                )
                            model = variables
                            if task.by_laplace:
                                numbers = np.array(chunk, np.int32)
                                model = (variables, posteriors[tuple(chunk)], numbers)
                            arrays = _predict(run_on, model, task, len(chunk), tick)
                        except jax.errors.JaxRuntimeError as error:
                            together = ensemble.halved(run, len(chunk), error)
                            continue
                        _refuse_non_finite(run, chunk, arrays, task)
                        run_dir.write_part(folder, task.product, chunk[0], *arrays)
                        models = models[len(chunk) :]
    finally:
        progress.close()


Tick = Callable[[int, str], None]
"""Called with the predictions of each dispatch and what they are of; raises `Stopped` if a signal
has come."""


@dataclass(frozen=True)
class _Programs:
    """The jitted programs of a group of models.

    Attributes:
        mesh: devices.
        shape: steps and images of a dispatch, S and B.
        logits: (variables, images, numbers, scale) ↦ (logits,).
        factors: ((variables, factors, images, counts),) ↦ factors.
        posterior: ((variables, factors),) ↦ posterior.
        laplace: ((variables, posterior, number), images, numbers, scale) ↦ logits by LAPLACE.
    """

    mesh: Mesh
    shape: tuple[int, int]
    logits: Callable[..., Any]
    factors: Callable[..., Any]
    posterior: Callable[..., Any]
    laplace: Callable[..., Any]


def _programs(experiment: Experiment, network: Network, mesh: Mesh) -> _Programs:
    config, arch, width = experiment.trust, experiment.network.arch, experiment.train.width
    batch = ensemble.score_batch(experiment.score.batch_size, 1, mesh)

    def posterior(model: Any) -> Any:
        variables, factors = model
        kernel, bias = laplace.last_layer_weights(variables, arch)
        return laplace.posterior(factors, kernel, bias, config.laplace_prior)

    return _Programs(
        mesh=mesh,
        shape=(max(1, scoring.DISPATCH // batch), batch),
        logits=ensemble.over_models(logits_of_model(network), mesh, width),
        factors=ensemble.over_models(factors_of_model(network), mesh, width),
        posterior=ensemble.over_models(posterior, mesh, width),
        laplace=ensemble.over_models(
            laplace_of_model(network, experiment.seed, config.laplace_samples), mesh, width
        ),
    )


def _posteriors(
    run_on: _Programs,
    experiment: Experiment,
    data: Candidates,
    chunk: Sequence[int],
    variables: Any,
    tick: Tick,
) -> Any:
    """The Laplace approximation of some models, each of its own members, on the host."""
    members = membership.member_indices(data.keep[list(chunk)])  # [G, M]
    count, images = len(chunk), np.asarray(data.images)
    one = jax.tree.map(lambda leaf: leaf[0], variables)
    width, classes = laplace.last_layer_weights(one, experiment.network.arch)[0].shape
    nothing = laplace.no_factors(width, classes)
    # Adding a few members costs as much as adding as many as the last layer has inputs.
    steps, batch = run_on.shape
    batch *= -(-width // batch)
    steps = max(1, scoring.DISPATCH // batch)
    begin = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], count, axis=0), nothing)
    placed, factors = ensemble.put_padded((variables, begin), run_on.mesh)
    for start in range(0, members.shape[1], steps * batch):
        index = members[:, start : start + steps * batch]
        counts = np.zeros((count, steps * batch), np.float32)
        counts[:, : index.shape[1]] = 1
        # The last dispatch is filled up with example 0, which counts 0.
        index = np.pad(index, ((0, 0), (0, steps * batch - index.shape[1])))
        own = (
            images[index].reshape(count, steps, batch, *data.image_shape),
            counts.reshape(count, steps, batch),
        )
        factors = run_on.factors((placed, factors, *ensemble.put_padded(own, run_on.mesh)))
        jax.block_until_ready(factors)
        tick(0, "")
    return ensemble.on_host(run_on.posterior((placed, factors)), count)


def _predict(
    run_on: _Programs, model: Any, task: _Task, models: int, tick: Tick
) -> list[Float32[np.ndarray, "G M K"]]:
    """A product's arrays of some models."""
    placed, (steps, batch) = ensemble.put_padded(model, run_on.mesh), run_on.shape
    program = run_on.laplace if task.by_laplace else run_on.logits
    images, scale = task.inputs.images, np.float32(task.inputs.scale)
    arrays = [
        np.empty((models, task.count, *shape), np.float32) for shape in task.product.arrays.values()
    ]
    for start in range(0, task.count, steps * batch):
        part = np.asarray(images[start : start + steps * batch])
        # The last dispatch is filled up with noughts: one shape, one compilation.
        filled = np.zeros((steps * batch, *part.shape[1:]), np.uint8)
        filled[: len(part)] = part
        numbers = np.arange(start, start + steps * batch, dtype=np.int32)
        shared = ensemble.put_shared(
            (filled.reshape(steps, batch, *part.shape[1:]), numbers.reshape(steps, batch), scale),
            run_on.mesh,
        )
        found = ensemble.on_host(program(placed, *shared), models)
        for array, rows in zip(arrays, found, strict=True):
            array[:, start : start + len(part)] = rows.reshape(models, steps * batch, -1)[
                :, : len(part)
            ]
        title = f"{task.inputs.title}, Laplace" if task.by_laplace else task.inputs.title
        tick(len(part) * models, title)
    return arrays


def _refuse_non_finite(
    run: Path, models: Sequence[int], arrays: Sequence[np.ndarray], task: _Task
) -> None:
    for array in arrays:
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            # The same models' scores are finite: it is not the training.
            remedy = f"leave {task.inputs.kind} out, or give a smaller trust.scale if it is scaled"
            raise InputError(
                f"{run}: model {models[bad[0][0]]} gives a logit that is not finite on input "
                f"{bad[0][1]} of {task.product.files}; "
                + ("give --trust.laplace False" if task.by_laplace else remedy)
            )


def _say(
    run: Path,
    tasks: Sequence[_Task],
    left_out: Mapping[str, str],
    models: int,
    missing: Sequence[int],
    shard: Shard,
) -> None:
    """What was made, what was not and why, and what to do next."""
    folder = run / outputs.FOLDER
    plain = [task.inputs for task in tasks if not task.by_laplace]
    what = ", ".join(f"{len(one.images)} {one.title}" for one in plain)
    if any(task.by_laplace for task in tasks):
        what += ", and by a Laplace approximation"
    for kind, reason in left_out.items():
        print(f"{folder}: no {kind}: {reason}")
    if missing:
        print(
            f"{folder}: shard {shard} is done; of {what}, models {run_dir.as_ranges(missing)} are "
            "still missing"
        )
        return
    print(
        f"{folder}: {models} models have predicted {what}; run python attack.py --run "
        f"{shlex.quote(str(run))}"
    )
