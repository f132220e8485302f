"""Stage 2: every model on every example and view, written straight into memory-mapped files.

Inference runs in evaluation mode on the variables whose accuracy training reported. A model's row
is written once all its examples are done; a rerun goes on with the rows that are missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from lira_jax import checkpoints, ensemble, run_dir
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.interrupts import stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.training import build_network, candidates
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


def score(experiment: Experiment, run: Path, devices: list[jax.Device] | None = None) -> None:
    """Score all models of a run that are not scored yet.

    Args:
        experiment: of the run; its [score] section may differ from the run's own.
        run: a run directory whose models are trained.
        devices: to use; default all.

    Raises:
        InputError: models not trained yet, changed data, damaged or foreign files.
        Stopped: a signal came; whole rows were written first.
    """
    data = candidates(experiment)
    if run_dir.read_versions(run).get("data_digest") != data.digest:
        raise InputError(f"{run}: the data have changed since training; restore them")
    keep, _ = run_dir.read_membership(run, experiment)
    if not np.array_equal(keep, data.keep):
        raise InputError(f"{run / run_dir.KEEP}: masks are not those of this run's seed")
    models, examples = keep.shape
    finished, todo = checkpoints.plan(run, models, experiment.train.epochs, models)
    if todo:
        missing = [n for group in todo for n in range(group.first, group.last + 1)]
        raise InputError(
            f"{run}: models {run_dir.as_ranges(missing)} of {models} are not trained yet; "
            f"run python train.py --run {shlex.quote(str(run))}"
        )
    views = fixed_views(experiment.score.views)
    queries = len(views.mirror)
    check_shift(int(np.abs(views.down).max()), data.image_shape, f"score.views = {queries}")
    if (run / run_dir.SCORES).exists():
        held = run_dir.read_array(
            run / run_dir.SCORES, np.float32, (None, examples, None), "run score.py again"
        ).shape[2]
        if held != queries:
            raise InputError(
                f"{run / run_dir.SCORES}: holds {held} views, not score.views = {queries}; give "
                f"--score.views {held} to go on with it, or delete it to score anew"
            )
    if (run / run_dir.LOGITS).exists():
        run_dir.read_array(
            run / run_dir.LOGITS, np.float32, (None, examples, data.classes), "run score.py again"
        )
    for group in finished:  # all that is read, before the first file is made
        checkpoints.verify(run, group)
    phi = run_dir.open_scores(run / run_dir.SCORES, models, examples, queries)
    logits = run_dir.open_scores(run / run_dir.LOGITS, models, examples, data.classes)
    left = set(run_dir.unwritten(phi)) | set(run_dir.unwritten(logits))

    mesh = ensemble.models_mesh(devices)
    network = build_network(experiment, data)
    on_group = ensemble.over_models(scores_of_model(network, views), mesh, experiment.train.width)
    shared = ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
    together = ensemble.group_size(0, mesh)
    progress = Progress(models * examples, (models - len(left)) * examples, "score")

    def forward(
        variables: Any, count: int
    ) -> Iterator[tuple[slice, Float[np.ndarray, "G B Q"], Float[np.ndarray, "G B K"]]]:
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

    try:
        with stop_requests() as stop:
            for group in finished:
                rows = sorted(left.intersection(range(group.first, group.last + 1)))
                stored = checkpoints.restore(run, group, _like(network, group.size)) if rows else {}
                for first in range(0, len(rows), together):
                    chosen = np.array(rows[first : first + together])
                    variables = _rows(stored, chosen - group.first)
                    new_phi = np.empty((len(chosen), examples, queries), np.float32)
                    new_logits = np.empty((len(chosen), examples, data.classes), np.float32)
                    for part, part_phi, part_logits in forward(variables, len(chosen)):
                        new_phi[:, part], new_logits[:, part] = part_phi, part_logits
                        progress.advance(
                            (part.stop - part.start) * len(chosen),
                            f"{models - len(left)}/{models} models written, "
                            f"{progress.rate(len(chosen)) * queries:,.0f} queries/s",
                        )
                        stop.check(f"{run}: stopped; run the same command again to go on")
                    _refuse_non_finite(run / run_dir.SCORES, chosen, new_phi)
                    logits[chosen] = new_logits
                    phi[chosen] = new_phi
                    left -= set(chosen.tolist())
    finally:
        progress.close()
    correct = np.stack([np.argmax(row, axis=1) == data.labels for row in logits])
    print(
        f"{run}: {models} models × {examples} examples × {queries} "
        f"view{'s' * (queries > 1)} scored; accuracy "
        f"{correct[keep].mean():.2%} on members, {correct[~keep].mean():.2%} on non-members"
    )


def _like(network: Network, models: int) -> Any:
    """Empty arrays of the shapes and types of a finished group's checkpoint."""
    one = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.empty((models, *leaf.shape), leaf.dtype), one)


def _rows(tree: Any, index: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _refuse_non_finite(path: Path, models: np.ndarray, phi: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(phi))
    if len(bad):
        raise InputError(
            f"{path}: model {models[bad[0][0]]} gives a score that is not finite on example "
            f"{bad[0][1]}; train again in a new --run folder with a smaller train.learning_rate"
        )
