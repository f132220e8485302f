"""The part of stage 2 that asks models about inputs from elsewhere: `score.py --trust`.

Each array of the table in `outputs.py` is a product of its own. The same programs serve every kind:
they are given images, not numbers of images in an array whose length would make each kind a program
of its own.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, UInt8

from lira_jax import ensemble, inference, scoring, storage
from lira_jax.candidates import Candidates, build_network
from lira_jax.config import Experiment
from lira_jax.data import datasets, membership
from lira_jax.errors import InputError
from lira_jax.inference import Models, Stage, Task, Tick
from lira_jax.networks import Network
from lira_jax.random_streams import LAPLACE
from lira_jax.run import parts, run_dir
from lira_jax.run.parts import Product
from lira_jax.run.shards import Shard
from lira_jax.trust import inputs, laplace, outputs
from lira_jax.trust.inputs import Inputs

# Images of one model that its last layer is checked with.
CHECKED = 8
UNSCALED = np.float32(1)


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
        experiment, run, devices, shard, repair: as for `scoring.score`.

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
    stage = inference.begin(experiment, run, devices, shard, repair)
    folder, models = run / outputs.FOLDER, len(stage.data.keep)
    source = datasets.load(experiment.data, experiment.seed)
    images = np.asarray(stage.data.images)
    gathered = inputs.gather(experiment.trust, source, images, experiment.seed)
    plain = [*([gathered.fit] if gathered.fit else []), *gathered.kinds]
    tasks = _tasks(stage, plain, gathered.kinds)
    finished = inference.finished_groups(stage, shard.models(models))
    if not repair:
        parts.check_all_settings(folder, [task.product for task in tasks])
    scoring.score(experiment, run, devices, shard, repair=repair)

    def begin() -> None:
        for kind in plain:
            samples = np.asarray(kind.images[: outputs.SAMPLES])
            for name, array in (("labels", kind.labels), ("samples", samples)):
                about = outputs.about_inputs(run, kind.kind, name, inputs.digest(kind))
                storage.write_array(folder / f"{kind.kind}_{name}.npy", array, about)

    lacking = inference.make(stage, "trust", tasks, finished, folder, begin)
    what = ", ".join(f"{len(kind.images)} {kind.title}" for kind in plain)
    what += ", and by a Laplace approximation" * experiment.trust.laplace
    for kind, reason in gathered.left_out.items():
        print(f"{folder}: no {kind}: {reason}")
    if missing := sorted({n for rows in lacking for n in rows}):
        print(
            f"{folder}: shard {shard} is done; of {what}, models {run_dir.as_ranges(missing)} are "
            "still missing"
        )
        return
    print(
        f"{folder}: {models} models have predicted {what}; run python attack.py --run "
        f"{shlex.quote(str(run))}"
    )


def _tasks(stage: Stage, plain: Sequence[Inputs], elsewhere: Sequence[Inputs]) -> list[Task]:
    """What is to be made, plain predictions first."""
    experiment, run, data = stage.experiment, stage.run, stage.data
    config, network = experiment.trust, build_network(experiment, data)
    by_laplace = _Laplace(experiment, network, data)

    def task(kind: Inputs, product: Product, program: Program, remedy: str, end: str = "") -> Task:
        def not_finite(model: int, number: int) -> str:
            # The same models' scores are finite: it is not the training.
            files = " and ".join(product.files)
            return (
                f"{run}: model {model} gives a logit that is not finite on input {number} of "
                f"{files}; {remedy}"
            )

        compute = functools.partial(_predict, experiment, kind, program)
        title, count = f"{kind.title}{end}", len(kind.images)
        return Task(
            title, product, compute, len(data.keep), count, lock="trust", not_finite=not_finite
        )

    def directly(models: Models, tick: Tick) -> tuple[Callable[..., Any], Any]:
        del tick
        return logits, models.variables

    tasks, logits = [], logits_of_model(network)
    for kind in plain:
        digest = inputs.digest(kind)
        settings = outputs.record_of(kind.title, len(kind.images), kind.scale, digest)
        product = outputs.plain(kind.kind, data.classes, settings)
        remedy = f"leave {kind.kind} out, or give a smaller trust.scale if it is scaled"
        tasks.append(task(kind, product, directly, remedy))
    if config.laplace:
        examples = Inputs(outputs.CANDIDATES, "candidates", np.asarray(data.images), data.labels)
        settings = {"prior": config.laplace_prior, "samples": config.laplace_samples}
        for kind in (examples, *elsewhere):
            of_kind = settings | {"digest": inputs.digest(kind)}
            product = outputs.laplace(kind.kind, data.classes, of_kind)
            remedy = "give --trust.laplace False"
            tasks.append(task(kind, product, by_laplace, remedy, ", Laplace"))
    return tasks


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
    key = jax.random.fold_in(jax.random.key(seed), LAPLACE)

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


Program = Callable[[Models, Tick], tuple[Callable[..., Any], Any]]
"""Some models ↦ a function of one model, and what it takes of each, on the devices."""


def _predict(
    experiment: Experiment, kind: Inputs, program: Program, models: Models, examples: range,
    tick: Tick,
) -> list[Float32[np.ndarray, "G M K"]]:  # fmt: skip
    """Logits of some models on inputs of a kind."""
    function, of_models = program(models, tick)
    scale = np.float32(kind.scale)

    def call(numbers: np.ndarray) -> tuple[Array, ...]:
        some = (np.asarray(kind.images[numbers.ravel()]), numbers, scale)
        images = some[0].reshape(*numbers.shape, *some[0].shape[1:])
        shared = ensemble.put_shared((images, numbers, scale), models.mesh)
        results: tuple[Array, ...] = models.lift(function)(of_models, *shared)
        return results

    shape = _dispatch(experiment, models)
    return inference.in_dispatches(call, models, examples, shape, tick)


def _dispatch(experiment: Experiment, models: Models) -> tuple[int, int]:
    """Steps and images of a dispatch."""
    return inference.cut(ensemble.score_batch(experiment.score.batch_size, 1, models.mesh), 1)


class _Laplace:
    """Predictions by a Laplace approximation of each model, made of its own members."""

    def __init__(self, experiment: Experiment, network: Network, data: Candidates):
        self._experiment, self._network, self._data = experiment, network, data
        config = experiment.trust
        self._checked = False
        self._factors = factors_of_model(network)
        self._predict = laplace_of_model(network, experiment.seed, config.laplace_samples)

    def _posterior(self, model: Any) -> Any:
        variables, factors = model
        kernel, bias = laplace.last_layer_weights(variables, self._experiment.network.arch)
        prior = self._experiment.trust.laplace_prior
        return laplace.posterior(factors, kernel, bias, prior)

    def __call__(self, models: Models, tick: Tick) -> tuple[Callable[..., Any], Any]:
        if models.numbers not in models.kept:
            models.kept[models.numbers] = self._posteriors(models, tick)
        numbers = np.array(models.numbers, np.int32)
        own = ensemble.put_padded((models.kept[models.numbers], numbers), models.mesh)
        return self._predict, (models.variables, *own)

    def _posteriors(self, models: Models, tick: Tick) -> Any:
        """The approximation of some models, on the host."""
        data, arch = self._data, self._experiment.network.arch
        first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), models.variables)
        if not self._checked:
            few = np.asarray(_pixels(jnp.asarray(data.images[:CHECKED]), UNSCALED))
            laplace.check_last_layer(self._network, arch, first, few)
            self._checked = True
        members = membership.member_indices(data.keep[list(models.numbers)])  # [G, M]
        count, images = models.count, np.asarray(data.images)
        width, classes = laplace.last_layer_weights(first, arch)[0].shape
        nothing = laplace.no_factors(width, classes)
        # Adding a few members costs as much as adding as many as the last layer has inputs.
        _, batch = _dispatch(self._experiment, models)
        batch *= -(-width // batch)
        steps = max(1, inference.DISPATCH // batch)
        begin = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], count, axis=0), nothing)
        factors = ensemble.put_padded(begin, models.mesh)
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
            placed = ensemble.put_padded(own, models.mesh)
            factors = models.lift(self._factors)((models.variables, factors, *placed))
            jax.block_until_ready(factors)
            tick(0)
        return ensemble.on_host(models.lift(self._posterior)((models.variables, factors)), count)
