"""Stage 2: every model on every example and view.

Inference runs in evaluation mode on the variables whose accuracy training reported. Models are
scored some at a time and written once all their examples are done; a rerun goes on with those that
are missing. When none is, all goes into one file. Noisy queries and gradient norms, if asked for,
are made the same way afterwards, each for itself: asking later leaves the scores as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from lira_jax import ensemble, tuning
from lira_jax.candidates import Candidates, build_network, candidates, place, total_steps
from lira_jax.config import Experiment
from lira_jax.data.views import Views, check_shift, fixed_views, plain, take
from lira_jax.defences.memguard import memguard
from lira_jax.ensemble import Program
from lira_jax.errors import InputError
from lira_jax.interrupts import stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.run import checkpoints, run_dir
from lira_jax.run.checkpoints import Group
from lira_jax.run.run_dir import Product
from lira_jax.run.shards import Shard

# Examples and images per dispatch: few enough that Ctrl-C is answered soon, enough to hide the
# dispatch.
DISPATCH, DISPATCH_IMAGES = 256, 18 * 256
# Dispatches that devices have waiting while the host takes the results of one.
AHEAD = 2
# Images per inference step to choose from, where that is measured.
ACCELERATOR_STEPS = (1024, 4096, 16384)
# The stream of noisy queries' randomness, fold_in(key(seed), NOISE): no model has this number.
NOISE = 2**31 - 1
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


def scores_of_model(network: Network, views: Views) -> Callable[..., tuple[Array, Array]]:
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

    def score(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array, Array]:
        return lax.map(lambda row: step(variables, row, images, labels), index)

    return score


def merlin_of_model(
    network: Network, seed: int, noisy_queries: int, noise: float
) -> Callable[..., tuple[Array]]:
    """The function (variables, index [S, B], images, labels) ↦ (share [S, B],): for each example
    the share of T noisy copies x + ε_t with a greater loss than x (Merlin, Jayaraman et al. 2021).

    ε_t ~ N(0, noise²) for every pixel and channel, in units of the network's input in [−1, 1],
    which it may leave; a function of (seed, example, t) alone, the same for every model. Losses are
    compared by φ, since ℓ = softplus(−φ) falls in φ: where ℓ rounds to 0, φ still differs.
    """

    def copies(number: Array, image: Float[Array, "H W C"]) -> Float[Array, "T+1 H W C"]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), NOISE), number)
        draw = jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(key, t), image.shape))
        noisy = image + noise * draw(jnp.arange(noisy_queries))
        return jnp.concatenate([image[None], noisy])

    def step(variables: Any, index: Array, images: Array, labels: Array) -> Array:
        x = jax.vmap(copies)(index, plain(images, index))
        logits = network.apply(variables, x.reshape(-1, *x.shape[2:]))
        by_copy = jnp.broadcast_to(labels[index][:, None], x.shape[:2])
        phi = logit_scaled(logits.reshape(*by_copy.shape, -1), by_copy)
        return jnp.mean(phi[:, 1:] < phi[:, :1], axis=1)

    def merlin(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        return (lax.map(lambda row: step(variables, row, images, labels), index),)

    return merlin


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
        found = lax.map(
            lambda number: norm(variables, number, images, labels),
            index.reshape(-1),
            batch_size=None if together == 1 else together,
        )
        return (found.reshape(index.shape),)

    return norms


@dataclass(frozen=True)
class _Task:
    """One product of scoring, and how it is computed.

    Attributes:
        title: one or two words, for progress.
        product: the arrays.
        of_model: (variables, index [S, B], images, labels) ↦ the arrays of one model, each
            [S, B, …].
        images: queried per example, for the length of a dispatch.
        steps: images per step to choose from on a mesh; the fastest is taken.
    """

    title: str
    product: Product
    of_model: Callable[..., tuple[Array, ...]]
    images: int
    steps: Callable[[Mesh], Sequence[int]]


def _tasks(experiment: Experiment, data: Candidates, views: Views) -> list[_Task]:
    config, network = experiment.score, build_network(experiment, data)

    def of_queries(mesh: Mesh) -> Sequence[int]:
        if config.batch_size or ensemble.on_cpu(mesh):
            return [config.batch_size or ensemble.CPU_SCORE_IMAGES]
        return ACCELERATOR_STEPS

    def of_gradients(mesh: Mesh) -> Sequence[int]:
        return [1 if ensemble.on_cpu(mesh) else ACCELERATOR_GRADIENTS]

    queries = len(views.mirror)
    product = run_dir.phi(queries, data.classes, config.memguard)
    of_model = scores_of_model(served(network, config.memguard), views)
    tasks = [_Task("score", product, of_model, queries, of_queries)]
    if config.noisy_queries:
        copies = config.noisy_queries + 1
        product = run_dir.merlin(config.noisy_queries, config.noise)
        function = merlin_of_model(network, experiment.seed, config.noisy_queries, config.noise)
        tasks.append(_Task("noisy queries", product, function, copies, of_queries))
    if config.gradient_norm:
        function = gradient_norm_of_model(network)
        product = run_dir.gradient_norm()
        tasks.append(_Task("gradient norms", product, function, 1, of_gradients))
    return tasks


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
        batch = max(1, self.images // queries)
        return max(1, min(DISPATCH, DISPATCH_IMAGES // queries) // batch), batch


def inference_ways(width: int, steps: Sequence[int], share: int, mesh: Mesh) -> list[Inference]:
    """The ways that are open for `share` models on each device.

    Args:
        width: of the configuration; 0 leaves it open, but for CPUs.
        steps: images per step to choose from.
    """
    widths = [width or 1] if width or ensemble.on_cpu(mesh) else sorted({1, share})
    return [Inference(one, images) for one in widths for images in steps]


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
    data = candidates(experiment)
    keep = data.keep
    models, examples = keep.shape
    share = shard.models(models)
    finished = finished_groups(experiment, run, data, share)
    views = fixed_views(experiment.score.views)
    queries = len(views.mirror)
    check_shift(int(np.abs(views.down).max()), data.image_shape, f"score.views = {queries}")
    tasks = _tasks(experiment, data, views)
    with run_dir.lock(run, "score", share):
        work = []
        for task in tasks:
            done = run_dir.scored(run, task.product, models, examples, share, repair=repair).models
            left = [(g, [n for n in g.models if n in share and n not in done]) for g in finished]
            work.append((task, [(group, rows) for group, rows in left if rows]))
        # All that is read, before the first file is made.
        for group in finished:
            if any(group in (held for held, _ in left) for _, left in work):
                checkpoints.verify(run, group)
        for task, left in work:
            _score_groups(experiment, run, data, task, left, devices or jax.local_devices(), share)
        missing = sorted(
            {n for task in tasks for n in run_dir.assemble(run, task.product, models, examples)}
        )
    what = f"{models} models × {examples} examples × {queries} view{'s' * (queries > 1)}"
    what += "".join(f", {task.title}" for task in tasks[1:])
    if missing:
        names = f"models {run_dir.as_ranges(share)}" if share else "no models"
        print(
            f"{run}: shard {shard} ({names}) is scored; of {what}, models "
            f"{run_dir.as_ranges(missing)} are still missing"
        )
        return
    logits = run_dir.read_array(
        run / run_dir.LOGITS,
        np.float32,
        (models, examples, data.classes),
        "run score.py again, or give score.py --repair True",
    )
    correct = np.stack([np.argmax(row, axis=1) == data.labels for row in logits])
    ordinary = np.arange(examples) < examples - data.canaries
    print(
        f"{run}: {what} scored; accuracy {correct[keep & ordinary].mean():.2%} on members, "
        f"{correct[~keep & ordinary].mean():.2%} on non-members"
        + f", {data.canaries} canaries left out"
        * bool(data.canaries)
    )


def finished_groups(
    experiment: Experiment, run: Path, data: Candidates, needed: Sequence[int]
) -> list[Group]:
    """The groups of all trained models of a run, the needed ones among them.

    Raises:
        InputError: changed data, foreign masks, or a needed model that is not trained.
    """
    if run_dir.read_versions(run).get("data_digest") != data.digest:
        raise InputError(f"{run}: the data have changed since training; restore them")
    keep, _ = run_dir.read_membership(run, experiment)
    if not np.array_equal(keep, data.keep):
        raise InputError(f"{run / run_dir.KEEP}: masks are not those of this run's seed")
    models, steps = len(keep), total_steps(experiment, int(keep[0].sum()))
    finished, _ = checkpoints.plan(run, models, steps, models)
    trained = {n for group in finished for n in group.models}
    missing = sorted(set(needed) - trained)
    if missing:
        raise InputError(
            f"{run}: model{'s' * (len(missing) > 1)} {run_dir.as_ranges(missing)} of {models} not "
            f"trained yet; run python train.py --run {shlex.quote(str(run))}"
        )
    return finished


def _score_groups(
    experiment: Experiment,
    run: Path,
    data: Candidates,
    task: _Task,
    left: list[tuple[Group, list[int]]],
    devices: Sequence[jax.Device],
    share: range,
) -> None:
    """Make a product's rows of the given models of each group and write them, some at a time."""
    if not left:
        return
    network = build_network(experiment, data)
    examples, inner = len(data.labels), list(task.product.arrays.values())
    together = ensemble.group_size(0, ensemble.models_mesh(devices))

    @functools.cache
    def on_devices(count: int) -> tuple[Mesh, tuple[Array, Array]]:
        mesh = ensemble.models_mesh(devices[:count])
        return mesh, place(data, mesh)

    @functools.cache
    def inference(count: int, way: Inference) -> Program:
        mesh, placed = on_devices(count)
        return Program(ensemble.over_models(task.of_model, mesh, way.width), placed)

    def fastest_way(variables: Any, count: int, check: Callable[[], None]) -> Inference:
        mesh, _ = on_devices(min(count, len(devices)))
        share = ensemble.slots(count, mesh) // mesh.size
        about = {
            "work": task.title,
            "models per device": share,
            "network": dataclasses.asdict(experiment.network),
            "images": data.image_shape,
            "classes": data.classes,
            "dtype": experiment.train.dtype,
            "queries": task.images,
        }

        def trial(way: Inference) -> tuning.Trial:
            placed = ensemble.put_padded(variables, mesh)
            index = np.zeros(way.cut(task.images), np.int32)
            infer = inference(mesh.size, way).compiled(placed, index)

            def dispatches(units: int) -> None:
                for _ in range(units):
                    results = infer(placed, index)
                jax.block_until_ready(results)

            return tuning.Trial(dispatches, count * index.size * task.images, most=1000)

        open_ways = {
            way: functools.partial(trial, way)
            for way in inference_ways(experiment.train.width, task.steps(mesh), share, mesh)
        }
        return tuning.fastest(open_ways, about, mesh, str(run), "images", check)

    def forward(
        variables: Any, count: int, way: Inference
    ) -> Iterator[tuple[slice, list[Float[np.ndarray, "G B ..."]]]]:
        """Examples and their results, while the devices make those of the next ones."""
        mesh, _ = on_devices(min(count, len(devices)))
        on_group = inference(mesh.size, way)
        placed = ensemble.put_padded(variables, mesh)
        waiting: deque[tuple[slice, tuple[Array, ...]]] = deque()

        def taken() -> tuple[slice, list[np.ndarray]]:
            part, results = waiting.popleft()
            rows = ensemble.on_host(results, count)
            length = part.stop - part.start
            return part, [
                array.reshape(count, -1, *shape)[:, :length]
                for array, shape in zip(rows, inner, strict=True)
            ]

        steps, batch = way.cut(task.images)
        for start in range(0, examples, steps * batch):
            # The last dispatch is filled up with example 0: one shape, one compilation.
            part = slice(start, min(start + steps * batch, examples))
            index = np.zeros(steps * batch, np.int32)
            index[: part.stop - start] = np.arange(part.start, part.stop)
            results = on_group(placed, index.reshape(steps, batch))
            for array in results:
                array.copy_to_host_async()
            waiting.append((part, results))
            if len(waiting) > AHEAD:
                yield taken()
        while waiting:
            yield taken()

    done = len(share) - sum(len(models) for _, models in left)
    progress = Progress(len(share) * examples, done * examples, task.title)
    way, measured = Inference(1, 1), 0  # for so many models together
    stopped = f"{run}: stopped; run the same command again to go on"
    try:
        with stop_requests() as stop:
            for group, models in left:
                stored = restored(run, group, network)
                while models:
                    chunk = models[: contiguous(models[:together])]
                    check = functools.partial(stop.check, stopped)
                    variables = _rows(stored, np.array(chunk) - group.first)
                    arrays = [
                        np.empty((len(chunk), examples, *shape), np.float32) for shape in inner
                    ]
                    try:
                        if len(chunk) > measured:
                            way = fastest_way(variables, len(chunk), check)
                            measured = len(chunk)
                        for part, found in forward(variables, len(chunk), way):
                            for array, rows in zip(arrays, found, strict=True):
                                array[:, part] = rows
                            progress.advance(
                                (part.stop - part.start) * len(chunk),
                                f"{done}/{len(share)} models written, "
                                f"{progress.rate(len(chunk)) * task.images:,.0f} queries/s",
                            )
                            check()
                    except jax.errors.JaxRuntimeError as error:
                        together = ensemble.halved(run, len(chunk), error)
                        continue
                    _refuse_non_finite(run, chunk, arrays[0], task.title)
                    run_dir.write_part(run, task.product, chunk[0], *arrays)
                    models, done = models[len(chunk) :], done + len(chunk)
    finally:
        progress.close()


def contiguous(models: Sequence[int]) -> int:
    """How many of these ascending numbers follow one another from the first on."""
    return next((i for i, n in enumerate(models) if n != models[0] + i), len(models))


def restored(run: Path, group: Group, network: Network) -> Any:
    """The variables [G, …] of a finished group, each array as NumPy.

    Raises:
        InputError: the checkpoint is damaged or of another network.
    """
    one = jax.eval_shape(network.init, jax.random.key(0))
    like = jax.tree.map(lambda leaf: np.empty((group.size, *leaf.shape), leaf.dtype), one)
    return checkpoints.restore(run, group, like)


def _rows(tree: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _refuse_non_finite(run: Path, models: Sequence[int], array: np.ndarray, title: str) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise InputError(
            f"{run}: model {models[bad[0][0]]} gives a {title.removesuffix('s')} that is not "
            f"finite on example {bad[0][1]}; train again in a new --run folder with a smaller "
            "train.learning_rate"
        )
