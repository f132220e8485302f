"""The part of stage 2 that asks live models for labels: `score.py --label-only`.

What is asked is `answers.ask`'s; the arrays are those of the table in `answers.py`. Each is a
product of its own, kept by `run_dir` as scores are, but with examples in the place of models: a
part is some examples under all models asked. NAME.json tells the settings of each from before its
first part on. A label is that of the served prediction, behind MemGuard if score.memguard says so.
"""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, Key, UInt8

from lira_jax import ensemble, scoring
from lira_jax.candidates import Candidates, build_network, candidates
from lira_jax.config import Experiment, keep_fraction
from lira_jax.data.views import plain
from lira_jax.errors import InputError
from lira_jax.interrupts import stop_requests
from lira_jax.label_only import answers, carlini_wagner, hop_skip_jump, transforms
from lira_jax.label_only.answers import Asked, shifts
from lira_jax.label_only.hop_skip_jump import State
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.run import run_dir, storage
from lira_jax.run.checkpoints import Group
from lira_jax.run.run_dir import Product
from lira_jax.run.shards import Shard

# Examples of a part, which a kill may cost: at most so many, and of distances, unless they are
# searched for together anyway, so few that they take no more than so many queries.
PART, DISTANCES_PART, PART_QUERIES = 256, 32, 500_000
# Examples whose distances are searched for together on a CPU, and those of Carlini and Wagner's
# attack: few enough that Ctrl-C is answered soon.
SEARCHES, GRADIENTS = 8, 4
# Images of the data set that a search may start from, where noise is given the label.
OTHERS = 64
# Streams of randomness, fold_in(key(seed), ·); no model has these numbers, nor has scoring.NOISE.
NOISE, FLIPS, BOUNDARY = 2**31 - 2, 2**31 - 3, 2**31 - 4


@dataclass(frozen=True)
class Models:
    """Some of the models asked, on their devices.

    Attributes:
        count: how many, G.
        mesh: of the devices.
        variables: theirs, [G, …], padded to a multiple of the devices.
        images: uint8 [E, H, W, C], a copy on every device.
        labels: int32 [E], likewise.
        lift: a function of one model to a function of all of them, compiled once.
    """

    count: int
    mesh: Mesh
    variables: Any
    images: UInt8[Array, "E H W C"]
    labels: Int32[Array, " E"]
    lift: Callable[[Callable[..., Any]], Callable[..., Any]]


Tick = Callable[[int], None]
"""Called with the queries of each dispatch; raises `Stopped` if a signal has come."""

Answer = Callable[[Models, range, Tick], list[Float32[np.ndarray, "G B ..."]]]
"""Asks some models about some examples for the arrays of a product."""


@dataclass(frozen=True)
class _Task:
    """One product, and how it is asked for.

    Attributes:
        product: the arrays; examples are what its rows are of.
        settings: what NAME.json tells.
        examples: the first so many are asked about.
        models: the first so many of the models asked.
        part: examples of a part.
        queries: of each example and model; at most, where this is not known before.
        answer: asks some models about some examples.
    """

    product: Product
    settings: dict[str, Any]
    examples: int
    models: int
    part: int
    queries: int
    answer: Answer

    @property
    def name(self) -> str:
        return next(iter(self.product.arrays))


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
        experiment: of the run; its [score] and [label_only] may differ from the run's own.
        run: a run directory whose models are trained.
        devices: to use; default all of this process.
        shard: the share of the examples to ask about, and of the models to score; default all.
        repair: ask again where answers are damaged, and score anew where scores are.

    Raises:
        InputError: questions that do not fit the run or its images, answers to other ones in
            their place, models not trained yet, damaged or foreign files, a full disk, another
            process at work on the same share, or too little memory for one model.
        Stopped: a signal came; parts written before are kept.
    """
    data, chosen = candidates(experiment), devices or jax.local_devices()
    folder, (_, block) = run / answers.FOLDER, keep_fraction(experiment.train.keep)
    models, examples = data.keep.shape
    asked = answers.ask(experiment.label_only, models, examples, block)
    tasks = _tasks(experiment, data, asked)
    finished = scoring.finished_groups(experiment, run, data, asked.models)
    keep = data.keep[list(asked.models)]
    for task in tasks:
        words = answers.tells_nothing(keep[:, : task.examples], len(asked.sources))
        if words:
            raise InputError(
                f"label_only: of {task.name}, {words}; ask about more with --label_only.examples 0 "
                "--label_only.boundary_examples 0"
            )
    _check_models(folder, asked)
    for task in tasks:
        run_dir.check_record(folder, task.product, task.settings)
    scoring.score(experiment, run, devices, shard, repair=repair)

    shares = [shard.models(task.examples) for task in tasks]
    with ExitStack() as locks:
        for task, share in zip(tasks, shares, strict=True):
            locks.enter_context(_lock(folder, task, share))
        storage.sweep(folder)
        left = []
        for task, share in zip(tasks, shares, strict=True):
            done = run_dir.scored(
                folder, task.product, task.examples, task.models, share, repair=repair
            )
            left.append(sorted(set(share) - done.models))
        if any(left):
            place = _placing(experiment, run, data, finished, asked.models, chosen)
            together = ensemble.group_size(0, ensemble.models_mesh(chosen))
            _check_models(folder, asked)  # another shard may have begun since
            storage.write_text(folder / answers.MODELS, _as_json(_models(asked)))
            for task, numbers, share in zip(tasks, left, shares, strict=True):
                if numbers:
                    run_dir.check_record(
                        folder, task.product, task.settings
                    )  # another shard may have begun since
                    storage.write_text(folder / task.product.record, _as_json(task.settings))
                    _make(run, task, numbers, len(share), place, together)
                    # Attacks can use it while the rest is still being asked for.
                    run_dir.assemble(folder, task.product, task.examples, task.models)
        missing = {
            task.name: run_dir.assemble(folder, task.product, task.examples, task.models)
            for task in tasks
        }
    _say(run, asked, tasks, missing, shard)


def _tasks(experiment: Experiment, data: Candidates, asked: Asked) -> list[_Task]:
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
            f'label_only.flips = "{config.flips}": features have {len(values)} values, and only '
            "two can be flipped; leave it empty, and ask for label_only.noise"
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
        answer: Answer,
        *,
        examples: int = asked.examples,
        models: int = len(asked.models),
        part: int = PART,
    ) -> _Task:
        name = next(iter(shapes))
        settings = {"examples": examples} | {one: names[one] for one in answers.SETTINGS[name]}
        product = Product(shapes, f"{name}_parts", answers.COMMAND)
        return _Task(product, settings, examples, models, part, queries, answer)

    def images(each: int) -> Callable[[Mesh], tuple[int, int]]:
        """Steps and examples per dispatch, of so many images each."""

        def of_mesh(mesh: Mesh) -> tuple[int, int]:
            batch = ensemble.score_batch(score.batch_size, each, mesh)
            most = min(scoring.DISPATCH, scoring.DISPATCH_IMAGES // each)
            return max(1, most // batch), batch

        return of_mesh

    def bits(views: Callable[[Array, Array], Array], queries: int, mean: bool = False) -> Answer:
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
        queries, own = len(asked.noise) * config.copies, jax.random.fold_in(key, NOISE)

        def noisy(images: Array, index: Array) -> Array:
            return transforms.noisy(images, index, own, asked.noise, config.copies)

        answer = bits(noisy, queries, mean=True)
        tasks.append(task({"noise": (len(asked.noise),)}, queries, answer))
    if asked.flips:
        queries, own_flips = len(asked.flips) * config.copies, jax.random.fold_in(key, FLIPS)

        def flipped(images: Array, index: Array) -> Array:
            copies = config.copies
            low, high = map(int, values)
            return transforms.flipped(images, index, own_flips, asked.flips, copies, (low, high))

        answer = bits(flipped, queries, mean=True)
        tasks.append(task({"flips": (len(asked.flips),)}, queries, answer))

    if config.features:
        one = jax.eval_shape(plain_network.init, key)
        image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
        (width,) = jax.eval_shape(plain_network.features, one, image).shape[1:]
        answer = _at_once(_features(plain_network), 0, images(1))
        tasks.append(task({"features": (width,)}, 0, answer, models=len(asked.sources)))

    # The distances take as long as all else many times over: last, and in smaller parts.
    few, own_distances = asked.boundary_examples, jax.random.fold_in(key, BOUNDARY)

    def of_few(queries: int) -> dict[str, int]:
        part = PART_QUERIES // (max(queries, 1) * len(asked.models)) // SEARCHES * SEARCHES
        return {"examples": few, "part": min(max(part, SEARCHES), DISTANCES_PART)}

    if config.carlini_wagner:
        function = _carlini_wagner(plain_network, config.carlini_wagner)
        answer = _at_once(function, 0, lambda mesh: (1, _few(mesh, GRADIENTS)))
        tasks.append(task({"carlini_wagner": ()}, 0, answer, **of_few(0)))
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
    """The function (variables, index [S, B], images, labels) ↦ ([S, B, …],): 1 where a view is
    given its example's label, else 0; with `mean`, its mean over the last axis of views."""

    def step(variables: Any, index: Array, images: Array, labels: Array) -> Array:
        x = views(images, index)
        found = jnp.argmax(network.apply(variables, x.reshape(-1, *x.shape[-3:])), axis=-1)
        right = found.reshape(len(index), -1) == labels[index][:, None]
        right = right.reshape(x.shape[:-3]).astype(jnp.float32)
        return jnp.mean(right, axis=-1) if mean else right

    def of_model(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        return (lax.map(lambda row: step(variables, row, images, labels), index),)

    return of_model


def _at_once(
    function: Callable[..., tuple[Array, ...]],
    queries: int,
    dispatch: Callable[[Mesh], tuple[int, int]],
) -> Answer:
    """Answers that a function of one model, (variables, index [S, B], images, labels) ↦ arrays
    [S, B, …], gives in one go, with so many label queries about each example; `dispatch` tells S
    and B on a mesh."""

    def answer(models: Models, examples: range, tick: Tick) -> list[np.ndarray]:
        steps, batch = dispatch(models.mesh)
        found: list[list[np.ndarray]] = []
        for start in range(examples.start, examples.stop, steps * batch):
            # The last dispatch is filled up with example 0: one shape, one compilation.
            numbers = np.arange(start, min(start + steps * batch, examples.stop))
            index = np.zeros(steps * batch, np.int32)
            index[: len(numbers)] = numbers
            results = models.lift(function)(
                models.variables, index.reshape(steps, batch), models.images, models.labels
            )
            found.append(
                [
                    rows.reshape(models.count, steps * batch, *rows.shape[3:])[:, : len(numbers)]
                    for rows in ensemble.on_host(results, models.count)
                ]
            )
            tick(queries * len(numbers) * models.count)
        return [np.concatenate(pieces, axis=1) for pieces in zip(*found, strict=True)]

    return answer


def _features(network: Network) -> Callable[..., tuple[Array]]:
    """The function (variables, index [S, B], images, labels) ↦ (features [S, B, F],)."""

    def of_model(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        del labels
        return (lax.map(lambda row: network.features(variables, plain(images, row)), index),)

    return of_model


def _carlini_wagner(network: Network, steps: int) -> Callable[..., tuple[Array]]:
    """The function (variables, index [S, B], images, labels) ↦ (distance [S, B],); from gradients
    of the model itself, which MemGuard does not stand before."""

    def of_model(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array]:
        def step(row: Array) -> Array:
            logits = functools.partial(network.apply, variables)
            return carlini_wagner.distances(logits, plain(images, row), labels[row], steps)

        return (lax.map(step, index),)

    return of_model


def _distances(
    network: Network,
    key: Key[Array, ""],
    checkpoints: tuple[int, ...],
    moves: Sequence[tuple[int, int]],
    batch_size: int,
) -> Answer:
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

    def answer(models: Models, examples: range, tick: Tick) -> list[np.ndarray]:
        begin, go_on = steps(ensemble.score_batch(batch_size, 1, models.mesh))
        size = _few(models.mesh, SEARCHES)
        shape = (models.count, len(examples), len(moves))
        reached, queries = np.empty((*shape, len(checkpoints)), np.float32), np.empty(shape)

        def search(numbers: range, copy: int) -> tuple[np.ndarray, np.ndarray]:
            real = np.arange(size) < len(numbers)
            index = np.where(real, numbers.start + np.arange(size), 0).astype(np.int32)
            place = np.int32(copy)
            state = models.lift(begin)(
                models.variables, index, real, place, models.images, models.labels
            )
            spent = 0
            while True:
                now, active = ensemble.on_host((state.queries, state.active), models.count)
                now = now[:, real]
                tick(int(now.sum()) - spent)
                if not active.any():
                    return ensemble.on_host(state.reached, models.count)[:, real], now
                spent = int(now.sum())
                state = models.lift(go_on)((models.variables, state), place)

        for numbers in _pieces(examples, size):
            rows = slice(numbers.start - examples.start, numbers.stop - examples.start)
            for copy in range(len(moves)):
                reached[:, rows, copy], queries[:, rows, copy] = search(numbers, copy)
        return [reached, queries]

    return answer


def _few(mesh: Mesh, on_cpu: int) -> int:
    """Examples of a long dispatch: a whole part, but on a CPU so many."""
    return on_cpu if mesh.devices.flat[0].platform == "cpu" else DISTANCES_PART


def _others(examples: int) -> Int32[np.ndarray, " S"]:
    """Numbers of the images that a search may start from, where noise is no start."""
    return np.linspace(0, examples - 1, min(examples, OTHERS)).astype(np.int32)


def _placing(
    experiment: Experiment,
    run: Path,
    data: Candidates,
    finished: Sequence[Group],
    asked: Sequence[int],
    devices: Sequence[jax.Device],
) -> Callable[[range], Models]:
    """Read the models asked; the function that brings some of them, by position, to devices."""
    network, row_of = build_network(experiment, data), {n: row for row, n in enumerate(asked)}
    stored: list[Any] = [None] * len(asked)
    for group in finished:
        if not row_of.keys().isdisjoint(group.models):
            held = scoring.restored(run, group, network)
            for row, n in enumerate(group.models):
                if n in row_of:
                    stored[row_of[n]] = jax.tree.map(lambda leaf, row=row: leaf[row], held)

    @functools.cache
    def on_devices(count: int) -> tuple[Mesh, Any, Callable[..., Any]]:
        mesh = ensemble.models_mesh(devices[:count])
        shared = ensemble.put_shared((np.asarray(data.images), data.labels), mesh)
        width = experiment.train.width
        return mesh, shared, functools.cache(lambda f: ensemble.over_models(f, mesh, width))

    @functools.lru_cache(maxsize=1)
    def place(rows: range) -> Models:
        mesh, (images, labels), lift = on_devices(min(len(rows), len(devices)))
        variables = jax.tree.map(lambda *leaves: np.stack(leaves), *(stored[n] for n in rows))
        placed = ensemble.put_padded(variables, mesh)
        return Models(len(rows), mesh, placed, images, labels, lift)

    return place


def _make(
    run: Path,
    task: _Task,
    numbers: Sequence[int],
    share: int,
    place: Callable[[range], Models],
    together: int,
) -> None:
    """Ask about the examples of these numbers and write the answers, part by part.

    Args:
        share: how many examples the share has, for progress.
        place: brings models to devices.
        together: models at a time.
    """
    units = max(1, task.queries)  # of an example under a model
    done, queries, spare = share - len(numbers), 0, 0
    total = share * task.models * units
    progress = Progress(total, done * task.models * units, f"label-only {task.name}")

    def advance(count: int) -> None:
        rate = queries / max(time.monotonic() - progress.start, 1e-9)
        text = f"{done}/{share} examples written" + f", {rate:,.0f} queries/s" * bool(queries)
        progress.advance(count, text)

    def tick(count: int) -> None:
        nonlocal queries, spare
        queries += count
        spare -= count
        advance(count)
        stop.check(f"{run}: stopped; run the same command again to go on")

    try:
        with stop_requests() as stop:
            for part in _pieces(numbers, task.part):
                arrays = [
                    np.empty((len(part), task.models, *shape), np.float32)
                    for shape in task.product.arrays.values()
                ]
                first, spare = 0, len(part) * task.models * units
                while first < task.models:
                    rows = range(first, min(first + together, task.models))
                    try:
                        found = task.answer(place(rows), part, tick)
                    except jax.errors.JaxRuntimeError as error:
                        together = ensemble.halved(run, len(rows), error)
                        continue
                    for array, of_rows in zip(arrays, found, strict=True):
                        some = array[:, rows.start : rows.stop]
                        some[...] = np.moveaxis(of_rows, 0, 1).reshape(some.shape)
                    first = rows.stop
                run_dir.write_part(run / answers.FOLDER, task.product, part.start, *arrays)
                done += len(part)
                advance(spare)  # what was allowed and not needed
    finally:
        progress.close()


def _pieces(numbers: Sequence[int], size: int) -> list[range]:
    """Ascending numbers as ranges, cut wherever they leave out one and at multiples of `size`."""
    cuts = [i for i, n in enumerate(numbers) if not i or n != numbers[i - 1] + 1 or not n % size]
    return [
        range(numbers[low], numbers[high - 1] + 1)
        for low, high in zip(cuts, [*cuts[1:], len(numbers)], strict=True)
    ]


def _lock(folder: Path, task: _Task, share: range) -> AbstractContextManager[None]:
    refusal = (
        f"{folder}: another score.py asks for {task.name} of examples among "
        f"{run_dir.as_ranges(share)}; wait for it or stop it"
    )
    return storage.lock(folder / f".lock-{task.name}", share, refusal)


def _as_json(table: Mapping[str, Any]) -> str:
    return json.dumps(table) + "\n"


def _models(asked: Asked) -> dict[str, list[int]]:
    """What models.json tells."""
    return {"sources": list(asked.sources), "targets": list(asked.targets)}


def _check_models(folder: Path, asked: Asked) -> None:
    """Refuse to ask other models than those whose answers are there, or unknown ones."""
    held = run_dir.read_record(folder / answers.MODELS, answers.COMMAND)
    if held is None and any((folder / f"{name}.json").exists() for name in answers.SETTINGS):
        raise InputError(
            f"{folder}: {answers.MODELS}, which tells whose answers these are, is missing; delete "
            f"{folder} to ask anew"
        )
    for name, numbers in _models(asked).items():
        if held is not None and held.get(name) != numbers:
            before = ", ".join(map(str, held.get(name, ())))
            raise InputError(
                f'{folder / answers.MODELS}: {name} were "{before}", not '
                f'"{", ".join(map(str, numbers))}"; give --label_only.{name} "{before}", or '
                f"delete {folder} to ask anew"
            )


def _say(
    run: Path, asked: Asked, tasks: Sequence[_Task], missing: Mapping[str, list[int]], shard: Shard
) -> None:
    """One line: what was asked, and what to do next."""
    folder, names = run / answers.FOLDER, ", ".join(task.name for task in tasks)
    what = (
        f"{asked.examples} examples under {len(asked.sources)} source and {len(asked.targets)} "
        f"target models asked for {names}"
    )
    first = next((name for name, numbers in missing.items() if numbers), None)
    if first:
        print(
            f"{folder}: shard {shard} is done; of {what}, {first} of examples "
            f"{run_dir.as_ranges(missing[first])} is still missing"
        )
        return
    queries = sum(_queries(folder, task) for task in tasks)
    print(
        f"{folder}: {what}: {queries:,} queries; run python attack.py --run {shlex.quote(str(run))}"
    )


def _queries(folder: Path, task: _Task) -> int:
    """Label queries that a finished product took."""
    counted = f"{task.name}_queries"
    if counted not in task.product.arrays:
        return task.examples * task.models * task.queries
    shape = (task.examples, task.models, *task.product.arrays[counted])
    counts = run_dir.read_array(folder / f"{counted}.npy", np.float32, shape, task.product.remedy)
    return int(counts.sum(dtype=np.float64))
