"""Stage 2: every model on every example and view.

Inference runs in evaluation mode on the variables whose accuracy training reported. Models are
scored some at a time and written once all their examples are done; a rerun goes on with those that
are missing. When none is, all goes into one file.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from lira_jax import checkpoints, ensemble, run_dir
from lira_jax.checkpoints import Group
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.interrupts import stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.shards import Shard
from lira_jax.training import Candidates, build_network, candidates, total_steps
from lira_jax.views import Views, check_shift, fixed_views, take

# Examples per dispatch: few enough that Ctrl-C is answered soon, enough to hide the dispatch.
DISPATCH = 256


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
    if run_dir.read_versions(run).get("data_digest") != data.digest:
        raise InputError(f"{run}: the data have changed since training; restore them")
    keep, _ = run_dir.read_membership(run, experiment)
    if not np.array_equal(keep, data.keep):
        raise InputError(f"{run / run_dir.KEEP}: masks are not those of this run's seed")
    models, examples = keep.shape
    share = shard.models(models)
    finished, _ = checkpoints.plan(run, models, total_steps(experiment, int(keep[0].sum())), models)
    trained = {n for group in finished for n in group.models}
    missing = [n for n in share if n not in trained]
    if missing:
        raise InputError(
            f"{run}: model{'s' * (len(missing) > 1)} {run_dir.as_ranges(missing)} of {models} not "
            f"trained yet; run python train.py --run {shlex.quote(str(run))}"
        )
    views = fixed_views(experiment.score.views)
    queries, classes = len(views.mirror), data.classes
    check_shift(int(np.abs(views.down).max()), data.image_shape, f"score.views = {queries}")
    with run_dir.lock(run, "score", share):
        done = run_dir.scored(run, models, examples, queries, classes, share, repair=repair).models
        left = [
            (group, [n for n in group.models if n in share and n not in done]) for group in finished
        ]
        left = [(group, rows) for group, rows in left if rows]
        for group, _ in left:  # all that is read, before the first file is made
            checkpoints.verify(run, group)
        _score_groups(experiment, run, data, views, left, devices or jax.local_devices(), share)
        missing = run_dir.assemble_scores(run, models, examples, queries, classes)
    what = f"{models} models × {examples} examples × {queries} view{'s' * (queries > 1)}"
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
        (models, examples, classes),
        "run score.py again, or give score.py --repair True",
    )
    correct = np.stack([np.argmax(row, axis=1) == data.labels for row in logits])
    print(
        f"{run}: {what} scored; accuracy "
        f"{correct[keep].mean():.2%} on members, {correct[~keep].mean():.2%} on non-members"
    )


def _score_groups(
    experiment: Experiment,
    run: Path,
    data: Candidates,
    views: Views,
    left: list[tuple[Group, list[int]]],
    devices: Sequence[jax.Device],
    share: range,
) -> None:
    """Score the given models of each group and write them, some at a time."""
    network = build_network(experiment, data)
    examples, queries = len(data.labels), len(views.mirror)
    together = ensemble.group_size(0, ensemble.models_mesh(devices))

    @functools.cache
    def on_devices(count: int) -> tuple[Mesh, Callable[..., Any], Any]:
        mesh = ensemble.models_mesh(devices[:count])
        function = scores_of_model(network, views)
        shared = ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
        return mesh, ensemble.over_models(function, mesh, experiment.train.width), shared

    def forward(
        variables: Any, count: int
    ) -> Iterator[tuple[slice, Float[np.ndarray, "G B Q"], Float[np.ndarray, "G B K"]]]:
        mesh, on_group, shared = on_devices(min(count, len(devices)))
        placed = ensemble.put_padded(variables, mesh)
        batch = ensemble.score_batch(experiment.score.batch_size, queries, mesh)
        steps = max(1, DISPATCH // batch)
        for start in range(0, examples, steps * batch):
            # The last dispatch is filled up with example 0: one shape, one compilation.
            part = slice(start, min(start + steps * batch, examples))
            index = np.zeros(steps * batch, np.int32)
            index[: part.stop - start] = np.arange(part.start, part.stop)
            results = on_group(placed, index.reshape(steps, batch), *shared)
            phi, logits = (
                rows.reshape(len(rows), steps * batch, -1)[:, : part.stop - start]
                for rows in ensemble.on_host(results, count)
            )
            yield part, phi, logits

    done = len(share) - sum(len(models) for _, models in left)
    progress = Progress(len(share) * examples, done * examples, "score")
    try:
        with stop_requests() as stop:
            for group, models in left:
                stored = checkpoints.restore(run, group, _like(network, group.size))
                while models:
                    chunk = models[: _contiguous(models[:together])]
                    variables = _rows(stored, np.array(chunk) - group.first)
                    phi = np.empty((len(chunk), examples, queries), np.float32)
                    logits = np.empty((len(chunk), examples, data.classes), np.float32)
                    try:
                        for part, part_phi, part_logits in forward(variables, len(chunk)):
                            phi[:, part], logits[:, part] = part_phi, part_logits
                            progress.advance(
                                (part.stop - part.start) * len(chunk),
                                f"{done}/{len(share)} models written, "
                                f"{progress.rate(len(chunk)) * queries:,.0f} queries/s",
                            )
                            stop.check(f"{run}: stopped; run the same command again to go on")
                    except jax.errors.JaxRuntimeError as error:
                        together = ensemble.halved(run, len(chunk), error)
                        continue
                    _refuse_non_finite(run, chunk, phi)
                    run_dir.write_part(run, chunk[0], phi, logits)
                    models, done = models[len(chunk) :], done + len(chunk)
    finally:
        progress.close()


def _contiguous(models: Sequence[int]) -> int:
    """How many of these ascending numbers follow one another from the first on."""
    return next((i for i, n in enumerate(models) if n != models[0] + i), len(models))


def _like(network: Network, models: int) -> Any:
    """Empty arrays of the shapes and types of a finished group's checkpoint."""
    one = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.empty((models, *leaf.shape), leaf.dtype), one)


def _rows(tree: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _refuse_non_finite(run: Path, models: Sequence[int], phi: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(phi))
    if len(bad):
        raise InputError(
            f"{run}: model {models[bad[0][0]]} gives a score that is not finite on example "
            f"{bad[0][1]}; train again in a new --run folder with a smaller train.learning_rate"
        )
