"""The part of stage 2 that asks live models for labels: `score.py --label-only`.

What is asked is `answers.ask`'s; the arrays are those of the table in `answers.py`. Each is a
product of its own with examples for rows: a part is some examples under all models asked. A label
is that of the served prediction, behind MemGuard if score.memguard says so.
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
from jax.sharding import Mesh
from jaxtyping import Array, Int32, Key

from lira_jax import ensemble, inference, scoring, storage
from lira_jax.candidates import Candidates, build_network
from lira_jax.config import Experiment, keep_fraction
from lira_jax.data.views import plain
from lira_jax.ensemble import Program
from lira_jax.errors import InputError
from lira_jax.fields import as_text
from lira_jax.inference import Compute, Models, Task, Tick
from lira_jax.label_only import answers, carlini_wagner, hop_skip_jump, transforms
from lira_jax.label_only.answers import Asked, shifts
from lira_jax.label_only.hop_skip_jump import State
from lira_jax.networks import Network
from lira_jax.random_streams import BOUNDARY, LABEL_FLIPS, LABEL_NOISE
from lira_jax.run import parts, run_dir
from lira_jax.run.parts import Product
from lira_jax.run.shards import Shard

# Examples of a part, which a kill may cost: at most so many, and of distances, unless they are
# searched for together anyway, so few that they take no more than so many queries.
PART, DISTANCES_PART, PART_QUERIES = 256, 32, 500_000
# Examples whose distances are searched for together on a CPU, and those of Carlini and Wagner's
# attack: few enough that Ctrl-C is answered soon.
SEARCHES, GRADIENTS = 8, 4
# What is made of the models themselves, not of labels asked for.
NO_LABELS = ("features", "carlini_wagner")
# Images of the data set that a search may start from, where noise is given the label.
OTHERS = 64


def query(
    experiment: Experiment,
    run: Path,
    devices: Sequence[jax.Device] | None = None,
    shard: Shard = Shard(),
    *,
    repair: bool = False,
) -> None:
    """Ask what [label_only] of an experiment asks for and is not answered yet.

    Scores come first, where they are missing: they are what label-only attacks are compared with.

    Args:
        experiment, run, devices, repair: as for `scoring.score`.
        shard: the share of the examples to ask about, and of the models to score; default all.

    Raises:
        InputError: questions that do not fit the run or its images, answers to other ones in
            their place, models not trained yet, damaged or foreign files, a full disk, another
            process at work on the same share, or too little memory for one model.
        Stopped: a signal came; parts written before are kept.
    """
    stage = inference.begin(experiment, run, devices, shard, repair)
    data, folder = stage.data, run / answers.FOLDER
    models, examples = data.keep.shape
    _, block = keep_fraction(experiment.train.keep)
    asked = answers.ask(experiment.label_only, models, examples, block)
    tasks = _tasks(experiment, data, asked)
    finished = inference.finished_groups(stage, asked.models)
    keep = data.keep[list(asked.models)]
    for task in tasks:
        words = answers.tells_nothing(keep[:, : task.examples], len(asked.sources))
        if words:
            raise InputError(
                f"label_only: of {task.product.name}, {words}; ask about more with "
                "--label_only.examples 0 --label_only.boundary_examples 0"
            )
    _check_models(run, asked)
    if not repair:
        parts.check_all_settings(folder, [task.product for task in tasks])
    scoring.score(experiment, run, devices, shard, repair=repair)

    def begin() -> None:
        _check_models(run, asked)  # another shard may have begun since
        bound = _models(asked) | {"run": run_dir.identity(run)}
        parts.write_record(folder / answers.MODELS, bound)

    lacking = inference.make(stage, "label-only", tasks, finished, folder, begin)
    _say(run, asked, tasks, lacking, shard)


def _tasks(experiment: Experiment, data: Candidates, asked: Asked) -> list[Task]:
    """What is asked, once it is known to fit the images.

    Raises:
        InputError: it does not.
    """
    config, score, key = experiment.label_only, experiment.score, jax.random.key(experiment.seed)
    side = min(data.image_shape[:2])
    for name, distance in (
        ("translations", max(asked.translations, default=0)),
        ("combined", config.combined),
    ):
        if distance >= side:
            raise InputError(
                f"label_only.{name}: a shift of {distance} pixels does not fit images of "
                f"{data.image_shape[0]}×{data.image_shape[1]}; it must be below the smaller side"
            )
    values = np.unique(data.images) if asked.flips else ()
    if asked.flips and len(values) != 2:
        raise InputError(
            f'label_only.flips = "{as_text(config.flips)}": features have {len(values)} values, '
            "and only two can be flipped; leave it empty, and ask for label_only.noise"
        )
    if asked.checkpoints:
        hop_skip_jump.check_budget(config.budget, data.image_shape)
    if config.combined:
        name = "label_only.combined_budget"
        hop_skip_jump.check_budget(config.combined_budget, data.image_shape, name)
    plain_network = build_network(experiment, data)
    network = scoring.served(plain_network, score.memguard)
    names = {
        "rotations": list(asked.rotations),
        "translations": list(asked.translations),
        "noise": list(asked.noise),
        "flips": list(asked.flips),
        "copies": config.copies,
        "checkpoints": list(asked.checkpoints),
        "distance": config.combined,
        "budget": config.combined_budget,
        "steps": config.carlini_wagner,
    }

    def task(
        shapes: dict[str, tuple[int, ...]],
        queries: int,
        compute: Compute,
        *,
        examples: int = asked.examples,
        models: tuple[int, ...] = asked.models,
        part: int = PART,
    ) -> Task:
        name = next(iter(shapes))
        settings = {"examples": examples} | {key: names[key] for key in answers.SETTINGS[name]}
        product = Product(shapes, f"{name}_parts", answers.COMMAND, settings, record_first=True)
        return Task(name, product, compute, len(models), examples, queries, models, part, lock=name)

    def images(queries: int) -> Callable[[Mesh], tuple[int, int]]:
        return lambda mesh: inference.cut(ensemble.score_batch(score.batch_size, 1, mesh), queries)

    def bits(views: Callable[[Array, Array], Array], queries: int, mean: bool = False) -> Compute:
        return _at_once(_answers(network, views, mean), queries, images(queries))

    tasks = [task({"correct": ()}, 1, bits(plain, 1))]
    if asked.rotations:
        turns = [0.0] + [sign * angle for angle in asked.rotations for sign in (-1, 1)]
        answer = bits(_views(transforms.rotated, turns), len(turns))
        tasks.append(task({"rotation": (len(turns),)}, len(turns), answer))
    if asked.translations:
        moves = [(0, 0)] + [move for distance in asked.translations for move in shifts(distance)]
        answer = bits(_views(transforms.translated, *zip(*moves, strict=True)), len(moves))
        tasks.append(task({"translation": (len(moves),)}, len(moves), answer))
    if asked.noise:
        queries, own = len(asked.noise) * config.copies, jax.random.fold_in(key, LABEL_NOISE)

        def noisy(images: Array, index: Array) -> Array:
            return transforms.noisy(images, index, own, asked.noise, config.copies)

        answer = bits(noisy, queries, mean=True)
        tasks.append(task({"noise": (len(asked.noise),)}, queries, answer))
    if asked.flips:
        queries, own_flips = len(asked.flips) * config.copies, jax.random.fold_in(key, LABEL_FLIPS)

        def flipped(images: Array, index: Array) -> Array:
            copies = config.copies
            low, high = map(int, values)
            return transforms.flipped(images, index, own_flips, asked.flips, copies, (low, high))

        answer = bits(flipped, queries, mean=True)
        tasks.append(task({"flips": (len(asked.flips),)}, queries, answer))

    if config.features:
        variables = jax.eval_shape(plain_network.init, key)
        image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
        (width,) = jax.eval_shape(plain_network.features, variables, image).shape[1:]
        answer = _at_once(_features(plain_network), 1, images(1))
        tasks.append(task({"features": (width,)}, 1, answer, models=asked.sources))

    # The distances take as long as all else many times over: last, and in smaller parts.
    few, own_distances = asked.boundary_examples, jax.random.fold_in(key, BOUNDARY)

    def of_few(queries: int) -> dict[str, Any]:
        part = PART_QUERIES // (queries * len(asked.models)) // SEARCHES * SEARCHES
        return {"examples": few, "part": min(max(part, SEARCHES), DISTANCES_PART)}

    if config.carlini_wagner:
        function = _carlini_wagner(plain_network, config.carlini_wagner)
        answer = _at_once(function, 1, lambda mesh: (1, _few(mesh, GRADIENTS)))
        tasks.append(task({"carlini_wagner": ()}, 1, answer, **of_few(1)))
    distances = functools.partial(_distances, network, own_distances)
    if asked.checkpoints:
        count = len(asked.checkpoints)
        answer = distances(asked.checkpoints, [(0, 0)], score.batch_size)
        shapes = {"boundary": (count,), "boundary_queries": ()}
        tasks.append(task(shapes, config.budget, answer, **of_few(config.budget)))
    if config.combined:
        moves = [(0, 0), *shifts(config.combined)]
        answer = distances((config.combined_budget,), moves, score.batch_size)
        shapes = {"combined": (len(moves),), "combined_queries": (len(moves),)}
        queries = len(moves) * config.combined_budget
        tasks.append(task(shapes, queries, answer, **of_few(queries)))
    return tasks


def _views(
    transform: Callable[..., Array], *parameters: Sequence[float]
) -> Callable[[Array, Array], Array]:
    """The function (images, index [B]) ↦ [B, V, H, W, C] of a transform with V parameters."""

    def views(images: Array, index: Array) -> Array:
        batch, count = len(index), len(parameters[0])
        tiled = [jnp.tile(jnp.array(values), batch) for values in parameters]
        x = transform(images, jnp.repeat(index, count), *tiled)
        return x.reshape(batch, count, *x.shape[1:])

    return views


def _answers(
    network: Network, views: Callable[[Array, Array], Array], mean: bool
) -> Callable[..., tuple[Array]]:
    """The function (variables, index [B], images, labels) ↦ ([B, …],): 1 where a view is given its
    example's label, else 0; with `mean`, its mean over the last axis of views."""

    def step(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        x = views(images, index)
        given = jnp.argmax(network.apply(variables, x.reshape(-1, *x.shape[-3:])), axis=-1)
        right = given.reshape(len(index), -1) == labels[index][:, None]
        right = right.reshape(x.shape[:-3]).astype(jnp.float32)
        return (jnp.mean(right, axis=-1) if mean else right,)

    return step


def _at_once(
    step: Callable[..., tuple[Array, ...]],
    queries: int,
    dispatch: Callable[[Mesh], tuple[int, int]],
) -> Compute:
    """Answers that a function of one model, (variables, index [B], images, labels) ↦ arrays
    [B, …], gives in one go, with so many queries about each example; `dispatch` tells S and B on a
    mesh."""
    of_model = inference.in_steps(step)

    def compute(models: Models, examples: range, tick: Tick) -> list[np.ndarray]:
        program = Program(models.lift(of_model), models.data())
        call = functools.partial(program, models.variables)
        shape = dispatch(models.mesh)
        return inference.in_dispatches(call, models, examples, shape, tick, queries)

    return compute


def _features(network: Network) -> Callable[..., tuple[Array]]:
    """The function (variables, index [B], images, labels) ↦ (features [B, F],)."""

    def step(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        del labels
        return (network.features(variables, plain(images, index)),)

    return step


def _carlini_wagner(network: Network, steps: int) -> Callable[..., tuple[Array]]:
    """The function (variables, index [B], images, labels) ↦ (distance [B],); from gradients of the
    model itself, which MemGuard does not stand before."""

    def step(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        logits = functools.partial(network.apply, variables)
        images = plain(images, index)
        return (carlini_wagner.distances(logits, images, labels[index], steps),)

    return step


def _distances(
    network: Network,
    key: Key[Array, ""],
    checkpoints: tuple[int, ...],
    moves: Sequence[tuple[int, int]],
    batch_size: int,
) -> Compute:
    """Distances of each translated copy to the boundary, by HopSkipJump, and the queries spent.

    Args:
        network: as it is served.
        key: of all randomness; that of a copy is a function of it and of the numbers of the
            example and the copy.
        checkpoints: numbers of queries, the budget last.
        moves: V translations.
        batch_size: most images classified together; 0 for the platform's default.

    Returns:
        Asks for distances [G, B, V, C] and queries [G, B, V].
    """

    def classify(variables: Any) -> Callable[[Array], Array]:
        return lambda x: jnp.argmax(network.apply(variables, x), axis=-1).astype(jnp.int32)

    # One function of a model for each size of a chunk: compiled once.
    @functools.cache
    def steps(chunk: int) -> tuple[Callable[..., State], Callable[..., State]]:
        def begin(
            variables: Any, index: Array, real: Array, copy: Array, images: Array, labels: Array
        ) -> State:
            down, right = jnp.array(moves, jnp.int32)[copy]
            batch = jnp.ones_like(index)
            x = transforms.translated(images, index, down * batch, right * batch)
            # What fills up a batch has no label that a model gives, and so is done at once.
            truth = jnp.where(real, labels[index], -1)
            others = plain(images, jnp.array(_others(len(images))))
            own = jax.random.fold_in(key, copy)
            return hop_skip_jump.start(
                classify(variables), x, truth, index, others, own, checkpoints, chunk
            )

        def go_on(model: tuple[Any, State], copy: Array) -> State:
            variables, state = model
            own = jax.random.fold_in(key, copy)
            return hop_skip_jump.advance(classify(variables), state, own, checkpoints, chunk)

        return begin, go_on

    def compute(models: Models, examples: range, tick: Tick) -> list[np.ndarray]:
        begin, go_on = steps(ensemble.score_batch(batch_size, 1, models.mesh))
        size = _few(models.mesh, SEARCHES)
        shape = (models.count, len(examples), len(moves))
        reached, queries = np.empty((*shape, len(checkpoints)), np.float32), np.empty(shape)

        def search(numbers: range, copy: int) -> tuple[np.ndarray, np.ndarray]:
            real = np.arange(size) < len(numbers)
            index = np.where(real, numbers.start + np.arange(size), 0).astype(np.int32)
            place = np.int32(copy)
            state = models.lift(begin)(models.variables, index, real, place, *models.data())
            spent = 0
            while True:
                now, active = ensemble.on_host((state.queries, state.active), models.count)
                now = now[:, real]
                tick(int(now.sum()) - spent)
                if not active.any():
                    return ensemble.on_host(state.reached, models.count)[:, real], now
                spent = int(now.sum())
                state = models.lift(go_on)((models.variables, state), place)

        for numbers in inference.pieces(examples, size):
            rows = slice(numbers.start - examples.start, numbers.stop - examples.start)
            for copy in range(len(moves)):
                reached[:, rows, copy], queries[:, rows, copy] = search(numbers, copy)
        return [reached, queries]

    return compute


def _few(mesh: Mesh, on_cpu: int) -> int:
    """Examples of a long dispatch: a whole part, but on a CPU so many."""
    return on_cpu if ensemble.on_cpu(mesh) else DISTANCES_PART


def _others(examples: int) -> Int32[np.ndarray, " S"]:
    """Numbers of the images that a search may start from, where noise is no start."""
    return np.linspace(0, examples - 1, min(examples, OTHERS)).astype(np.int32)


def _models(asked: Asked) -> dict[str, Any]:
    """What models.json tells."""
    return {"sources": list(asked.sources), "targets": list(asked.targets)}


def _check_models(run: Path, asked: Asked) -> None:
    """Refuse to ask other models than those whose answers are there, or unknown ones."""
    folder, before = run / answers.FOLDER, answers.read_models(run)
    if before is None and any((folder / f"{name}.json").exists() for name in answers.SETTINGS):
        raise InputError(
            f"{folder}: {answers.MODELS}, which tells whose answers these are, is missing; delete "
            f"{folder} to ask anew"
        )
    for name, numbers in _models(asked).items():
        if before is not None and before.get(name) != numbers:
            there = ", ".join(map(str, before.get(name, ())))
            raise InputError(
                f'{folder / answers.MODELS}: {name} were "{there}", not '
                f'"{", ".join(map(str, numbers))}"; give --label_only.{name} "{there}", or '
                f"delete {folder} to ask anew"
            )


def _say(
    run: Path,
    asked: Asked,
    tasks: Sequence[Task],
    lacking: Sequence[Sequence[int]],
    shard: Shard,
) -> None:
    """One line: what was asked, and what to do next."""
    folder, names = run / answers.FOLDER, ", ".join(task.title for task in tasks)
    what = (
        f"{asked.examples} examples under {len(asked.sources)} source and {len(asked.targets)} "
        f"target models asked for {names}"
    )
    for task, missing in zip(tasks, lacking, strict=True):
        if missing:
            print(
                f"{folder}: shard {shard} is done; of {what}, {task.title} of examples "
                f"{run_dir.as_ranges(missing)} is still missing"
            )
            return
    queries = sum(_queries(folder, task) for task in tasks)
    print(
        f"{folder}: {what}: {queries:,} queries; run python attack.py --run {shlex.quote(str(run))}"
    )


def _queries(folder: Path, task: Task) -> int:
    """Label queries that a finished product took."""
    if task.title in NO_LABELS:
        return 0
    counted = f"{task.title}_queries"
    if counted not in task.product.arrays:
        return task.examples * task.models * task.queries
    shape = (*task.shape, *task.product.arrays[counted])
    counts = storage.read_array(folder / f"{counted}.npy", np.float32, shape, task.product.remedy)
    return int(counts.sum(dtype=np.float64))
