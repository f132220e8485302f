"""Stage 2: every model on every example and view.

Scores are made in evaluation mode on the variables whose accuracy training reported. Models are
scored some at a time and written once all their examples are done (`inference.py`); a rerun goes on
with those that are missing. Noisy queries and gradient norms, if asked for, are arrays of their
own: asking later leaves the scores as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from lira_jax import ensemble, inference, tuning
from lira_jax.candidates import build_network
from lira_jax.config import Experiment
from lira_jax.data.views import Views, check_shift, fixed_views, plain, take
from lira_jax.defences.memguard import memguard
from lira_jax.ensemble import Program
from lira_jax.inference import Compute, Models, Stage, Task, Tick
from lira_jax.networks import Network
from lira_jax.random_streams import NOISY_QUERIES
from lira_jax.run import run_dir, score_files
from lira_jax.run.parts import Product
from lira_jax.run.shards import Shard
from lira_jax.storage import read_array

# Images per inference step to choose from, where that is measured.
ACCELERATOR_STEPS = (1024, 4096, 16384)
# A guess: not measured on an accelerator. On CPU one at a time is fastest.
ACCELERATOR_GRADIENTS = 64


def logit_scaled(
    logits: Float[Array, "*batch K"], labels: Int32[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """φ = log(p_y / (1 − p_y)) = z_y − logsumexp_{k≠y} z_k (LiRA, section V-A), from logits.

    Differences to the true label's logit come first, so that nothing cancels: float32 logits up to
    ±200 give φ to 1e-5 of its size.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    label_logit = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    return -jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits - label_logit), axis=-1)


def served(network: Network, guarded: bool) -> Network:
    """The network as users meet it: behind MemGuard if `guarded`, else itself."""

    def apply(variables: Any, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        logits = network.apply(variables, images)
        # MemGuard would hide that a model has diverged.
        finite = jnp.all(jnp.isfinite(logits), axis=-1, keepdims=True)
        return jnp.where(finite, memguard(logits), jnp.nan)

    return dataclasses.replace(network, apply=apply) if guarded else network


def scores_of_model(network: Network, views: Views) -> Callable[..., tuple[Array, ...]]:
    """The function (variables, index [S, B], images, labels) ↦ φ [S, B, Q], logits of view 0
    [S, B, K], in S steps of B examples."""
    queries = len(views.mirror)

    def step(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array, Array]:
        batch = index.shape[0]
        x = take(
            images,
            jnp.repeat(index, queries),
            *(jnp.tile(part, batch) for part in views),
        )
        logits = network.apply(variables, x).reshape(batch, queries, -1)
        by_view = jnp.broadcast_to(labels[index][:, None], (batch, queries))
        return logit_scaled(logits, by_view), logits[:, 0]

    return inference.in_steps(step)


def merlin_of_model(
    network: Network, seed: int, noisy_queries: int, noise: float
) -> Callable[..., tuple[Array, ...]]:
    """The function (variables, index [S, B], images, labels) ↦ (share [S, B],): for each example
    the share of T noisy copies x + ε_t with a greater loss than x (Merlin, Jayaraman et al. 2021).

    ε_t ~ N(0, noise²) for every pixel and channel, in units of the network's input in [−1, 1],
    which it may leave; a function of (seed, example, t) alone, the same for every model. Losses are
    compared by φ, since ℓ = softplus(−φ) falls in φ: where ℓ rounds to 0, φ still differs.
    """

    def copies(number: Array, image: Float[Array, "H W C"]) -> Float[Array, "copies H W C"]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), NOISY_QUERIES), number)
        draw = jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), image.shape))
        noisy = image + noise * draw(jnp.arange(noisy_queries))
        return jnp.concatenate([image[None], noisy])

    def step(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        x = jax.vmap(copies)(index, plain(images, index))
        logits = network.apply(variables, x.reshape(-1, *x.shape[2:]))
        by_copy = jnp.broadcast_to(labels[index][:, None], x.shape[:2])
        phi = logit_scaled(logits.reshape(*by_copy.shape, -1), by_copy)
        return (jnp.mean(phi[:, 1:] < phi[:, :1], axis=1),)

    return inference.in_steps(step)


def gradient_norm_of_model(network: Network) -> Callable[..., tuple[Array]]:
    """The function (variables, index [S, B], images, labels) ↦ (norm [S, B],): the L2 norm of each
    example's gradient of the cross-entropy loss by all trained weights, in evaluation mode (LiRA,
    figure 15); B examples are vectorised."""

    def norm(variables: Any, number: Array, images: Array, labels: Array) -> Array:
        def loss(params: Any) -> Array:
            logits = network.apply(variables | {"params": params}, plain(images, number[None]))
            # By φ, so that the gradient does not round to 0 where p_y rounds to 1.
            return jax.nn.softplus(-logit_scaled(logits, labels[number[None]]))[0]

        gradient = jax.tree.leaves(jax.grad(loss)(variables["params"]))
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in gradient))

    def norms(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        together = index.shape[1]
        each = lax.map(
            lambda number: norm(variables, number, images, labels),
            index.reshape(-1),
            batch_size=None if together == 1 else together,
        )
        return (each.reshape(index.shape),)

    return norms


@dataclass(frozen=True)
class Inference:
    """How the models of a group share a device in inference.

    Attributes:
        width: models vectorised together.
        images: per step and model.
    """

    width: int
    images: int

    def __str__(self) -> str:
        return f"width {self.width}, {self.images} images a step"

    def cut(self, queries: int) -> tuple[int, int]:
        """Steps of a dispatch, and examples of a step, of so many images each."""
        return inference.cut(self.images, queries)


def inference_ways(width: int, steps: Sequence[int], share: int, mesh: Mesh) -> list[Inference]:
    """The ways that are open for `share` models on each device.

    Args:
        width: of the configuration; 0 leaves it open, but for CPUs.
        steps: images per step to choose from.
    """
    widths = [width or 1] if width or ensemble.on_cpu(mesh) else sorted({1, share})
    return [Inference(together, images) for together in widths for images in steps]


def score(
    experiment: Experiment,
    run: Path,
    devices: Sequence[jax.Device] | None = None,
    shard: Shard = Shard(),
    *,
    repair: bool = False,
) -> None:
    """Score the models of a share that are not scored yet; the last share puts all into one file.

    Args:
        experiment: of the run; its [score] section may differ from the run's own.
        run: a run directory whose models are trained.
        devices: to use; default all of this process.
        shard: the share of the models to score; default all.
        repair: score models anew whose scores are damaged.

    Raises:
        InputError: models not trained yet, changed data, damaged or foreign files, a full disk,
            another process at work on the same models, or too little memory for one model.
        Stopped: a signal came; models scored before are saved.
    """
    stage = inference.begin(experiment, run, devices, shard, repair)
    data, share = stage.data, shard.models(len(stage.data.keep))
    models, examples = data.keep.shape
    finished = inference.finished_groups(stage, share)
    views = fixed_views(experiment.score.views)
    queries = len(views.mirror)
    check_shift(int(np.abs(views.down).max()), data.image_shape, f"score.views = {queries}")
    tasks = _tasks(stage, views)
    lacking = inference.make(stage, "score", tasks, finished, run)
    what = f"{models} models × {examples} examples × {queries} view{'s' * (queries > 1)}"
    what += "".join(f", {task.title}" for task in tasks[1:])
    if missing := sorted({n for rows in lacking for n in rows}):
        names = f"models {run_dir.as_ranges(share)}" if share else "no models"
        print(
            f"{run}: shard {shard} ({names}) is scored; of {what}, models "
            f"{run_dir.as_ranges(missing)} are still missing"
        )
        return
    logits = read_array(
        run / score_files.LOGITS,
        np.float32,
        (models, examples, data.classes),
        "run score.py again, or give score.py --repair True",
    )
    correct = np.stack([np.argmax(row, axis=1) == data.labels for row in logits])
    natural = ~run_dir.canary_mask(experiment, examples)
    print(
        f"{run}: {what} scored; accuracy {correct[data.keep & natural].mean():.2%} on members, "
        f"{correct[~data.keep & natural].mean():.2%} on non-members"
        + f", {data.canaries} canaries left out"
        * bool(data.canaries)
    )


def _tasks(stage: Stage, views: Views) -> list[Task]:
    experiment, run, data = stage.experiment, stage.run, stage.data
    config, network = experiment.score, build_network(experiment, data)

    def of_queries(mesh: Mesh) -> Sequence[int]:
        if config.batch_size or ensemble.on_cpu(mesh):
            return [config.batch_size or ensemble.CPU_SCORE_IMAGES]
        return ACCELERATOR_STEPS

    def of_gradients(mesh: Mesh) -> Sequence[int]:
        return [1 if ensemble.on_cpu(mesh) else ACCELERATOR_GRADIENTS]

    def task(
        title: str,
        gives: str,
        product: Product,
        of_model: Callable[..., tuple[Array, ...]],
        queries: int,
        steps: Callable[[Mesh], Sequence[int]] = of_queries,
    ) -> Task:
        def not_finite(model: int, example: int) -> str:
            return (
                f"{run}: model {model} gives {gives} that is not finite on example {example}; "
                "train again in a new --run folder with a smaller train.learning_rate"
            )

        compute = _in_fastest_way(stage, title, of_model, queries, steps)
        models, examples = data.keep.shape
        return Task(title, product, compute, models, examples, queries, not_finite=not_finite)

    queries, copies = len(views.mirror), config.noisy_queries + 1
    product = score_files.phi(queries, data.classes, config.memguard)
    of_model = scores_of_model(served(network, config.memguard), views)
    tasks = [task("score", "a score", product, of_model, queries)]
    if config.noisy_queries:
        product = score_files.merlin(config.noisy_queries, config.noise)
        of_copies = merlin_of_model(network, experiment.seed, config.noisy_queries, config.noise)
        tasks.append(task("noisy queries", "a share of noisy queries", product, of_copies, copies))
    if config.gradient_norm:
        product, of_gradient = score_files.gradient_norm(), gradient_norm_of_model(network)
        tasks.append(
            task("gradient norms", "a gradient norm", product, of_gradient, 1, of_gradients)
        )
    return tasks


def _in_fastest_way(
    stage: Stage,
    title: str,
    of_model: Callable[..., tuple[Array, ...]],
    queries: int,
    steps: Callable[[Mesh], Sequence[int]],
) -> Compute:
    """Computes what a function of one model gives, in the way that is fastest where that is open.

    Args:
        title: of the work.
        of_model: (variables, index [S, B], images, labels) ↦ arrays [S, B, …].
        queries: images per example.
        steps: images per step to choose from on a mesh.
    """
    experiment, run, data = stage.experiment, stage.run, stage.data
    way, measured = Inference(1, 1), 0  # for so many models together

    def program(models: Models, way: Inference) -> Program:
        return Program(models.lift(of_model, way.width), models.data())

    def fastest(models: Models, check: Callable[[], None]) -> Inference:
        share = ensemble.slots(models.count, models.mesh) // models.mesh.size
        about = {
            "work": title,
            "models per device": share,
            "network": dataclasses.asdict(experiment.network),
            "images": data.image_shape,
            "classes": data.classes,
            "dtype": experiment.train.dtype,
            "queries": queries,
        }

        def trial(way: Inference) -> tuning.Trial:
            index = np.zeros(way.cut(queries), np.int32)
            infer = program(models, way).compiled(models.variables, index)

            def dispatches(units: int) -> None:
                for _ in range(units):
                    results = infer(models.variables, index)
                jax.block_until_ready(results)

            return tuning.Trial(dispatches, models.count * index.size * queries, most=1000)

        ways = inference_ways(experiment.train.width, steps(models.mesh), share, models.mesh)
        trials = {way: functools.partial(trial, way) for way in ways}
        return tuning.fastest(trials, about, models.mesh, str(run), "images", check)

    def compute(models: Models, examples: range, tick: Tick) -> list[np.ndarray]:
        nonlocal way, measured
        if models.count > measured:
            way, measured = fastest(models, functools.partial(tick, 0)), models.count
        call = functools.partial(program(models, way), models.variables)
        return inference.in_dispatches(call, models, examples, way.cut(queries), tick, queries)

    return compute
