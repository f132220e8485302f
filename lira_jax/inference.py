"""The one loop of stage 2: what trained models give on examples, computed and written in parts.

A `Task` is one product and how some models compute it. `make` reads each group of models once, for
all tasks that lack something of them, brings as many models to the devices as fit, halves their
number where memory does not suffice, writes parts, and puts a product together once all is there.
The rows of a product are models, or, where every example is asked about under all models before the
next (label-only), examples.

A damaged checkpoint is found when its group is read: before the first file is made if it is the
first to be read, else after the groups before it, whose parts are kept. To look at all of them
first would read each twice, from an object store too.
"""

from __future__ import annotations

import functools
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from lira_jax import ensemble, software
from lira_jax.candidates import Candidates, build_network, candidates, place
from lira_jax.config import Experiment
from lira_jax.errors import InputError
from lira_jax.interrupts import StopRequest, stop_requests
from lira_jax.networks import Network
from lira_jax.progress import Progress
from lira_jax.run import checkpoints, parts, run_dir
from lira_jax.run.checkpoints import Group
from lira_jax.run.parts import Product
from lira_jax.run.shards import Shard

# Examples and images per dispatch: few enough that Ctrl-C is answered soon, enough to hide the
# dispatch.
DISPATCH, DISPATCH_IMAGES = 256, 18 * 256
# Dispatches that devices have waiting while the host takes the results of one.
AHEAD = 2


@dataclass(frozen=True, eq=False)
class Models:
    """Some models, on their devices.

    Attributes:
        numbers: of the models, G.
        mesh: of the devices.
        variables: theirs, [G, …], padded to a multiple of the devices.
        lift: (function of one model, width) ↦ function of all, compiled once; the width is that of
            the configuration where none is given.
        data: images uint8 [E, H, W, C] and labels int32 [E] of the run, on every device.
        kept: what a task keeps of models of this group until the next is read.
    """

    numbers: tuple[int, ...]
    mesh: Mesh
    variables: Any
    lift: Callable[..., Callable[..., Any]]
    data: Callable[[], tuple[Array, Array]]
    kept: dict[tuple[int, ...], Any]

    @property
    def count(self) -> int:
        return len(self.numbers)


Tick = Callable[[int], None]
"""Called with the queries of each dispatch; raises `Stopped` if a signal has come."""

Compute = Callable[[Models, range, Tick], Sequence[Float32[np.ndarray, "G B ..."]]]
"""Computes the arrays of a product for some models and examples."""


@dataclass(frozen=True, eq=False)
class Task:
    """One product, and how it is computed.

    Attributes:
        title: for progress.
        product: the arrays.
        compute: computes them for some models and examples.
        models: of the whole: N, or how many are asked.
        examples: of the whole.
        queries: of each model and example, at least 1; at most, where this is not known before.
        asked: numbers of the models asked, where rows are examples; empty where rows are models.
        part: examples of a part, where rows are examples.
        lock: name of the lock.
        not_finite: (model, example) ↦ what to say where a result is not finite; None where results
            are not looked at.
    """

    title: str
    product: Product
    compute: Compute
    models: int
    examples: int
    queries: int = 1
    asked: tuple[int, ...] = ()
    part: int = 0
    lock: str = "score"
    not_finite: Callable[[int, int], str] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return (self.examples, self.models) if self.asked else (self.models, self.examples)

    @property
    def rows(self) -> str:
        """What they are, for messages."""
        return "examples" if self.asked else "models"


def restored(run: Path, group: Group, network: Network) -> Any:
    """The variables [G, …] of a finished group, each array as NumPy.

    Raises:
        InputError: the checkpoint is damaged or of another network.
    """
    of_one = jax.eval_shape(network.init, jax.random.key(0))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((group.size, *leaf.shape), leaf.dtype), of_one
    )
    return checkpoints.restore(run, group, like)


@dataclass(frozen=True)
class Stage:
    """A call of score.py.

    Attributes:
        experiment: of the run; its [score], [label_only] and [trust] may differ from the run's own.
        run: a run directory whose models are trained.
        data: of the experiment.
        devices: to use.
        shard: the share to make.
        repair: make anew what is damaged.
    """

    experiment: Experiment
    run: Path
    data: Candidates
    devices: Sequence[jax.Device]
    shard: Shard
    repair: bool


def begin(
    experiment: Experiment,
    run: Path,
    devices: Sequence[jax.Device] | None,
    shard: Shard,
    repair: bool,
) -> Stage:
    """A call of score.py, on all devices of this process where none are given."""
    data = candidates(experiment)
    return Stage(experiment, run, data, devices or jax.local_devices(), shard, repair)


def finished_groups(stage: Stage, needed: Sequence[int]) -> list[Group]:
    """The groups of all trained models of a run, the needed ones among them.

    Raises:
        InputError: changed data, foreign masks, or a needed model that is not trained.
    """
    experiment, run, data = stage.experiment, stage.run, stage.data
    if run_dir.read_versions(run).get("data_digest") != data.digest:
        raise InputError(f"{run}: the data have changed since training; restore them")
    keep, _ = run_dir.read_membership(run, experiment)
    if not np.array_equal(keep, data.keep):
        raise InputError(f"{run / run_dir.KEEP}: masks are not those of this run's seed")
    if old := run_dir.unbound(run, run_dir.CHECKPOINTS):
        print(f"{run}: written by an earlier version, so that nothing tells whose it is: {old}")
    models, steps = len(keep), experiment.train.total_steps(int(keep[0].sum()))
    finished, _ = checkpoints.plan(run, models, steps, models)
    trained = {n for group in finished for n in group.models}
    missing = sorted(set(needed) - trained)
    if missing:
        raise InputError(
            f"{run}: model{'s' * (len(missing) > 1)} {run_dir.as_ranges(missing)} of {models} not "
            f"trained yet; run python train.py --run {shlex.quote(str(run))}"
        )
    return finished


def make(
    stage: Stage,
    title: str,
    tasks: Sequence[Task],
    finished: Sequence[Group],
    folder: Path,
    begin: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Make the rows of a share that are not there yet; the last share puts products together.

    Args:
        title: of the work, for progress.
        tasks: what to make; rows are models in all of them, or in none.
        finished: from `finished_groups`.
        folder: of the products.
        begin: called once before the first file is made, and if none is.

    Returns:
        For each task, the rows that are still missing.

    Raises:
        InputError: products made with other settings, damaged or foreign files, a full disk,
            another process at work on the same share, results that are not finite, or too little
            memory for one model.
        Stopped: a signal came; parts written before are kept.
    """
    tasks = [_bound(stage.run, task) for task in tasks]
    work = [_Work(task, stage.shard.models(task.shape[0])) for task in tasks]
    with ExitStack() as stack:
        for name, item in {item.task.lock: item for item in work}.items():
            what = item.task.rows if name == title else f"{name} of {item.task.rows}"
            stack.enter_context(run_dir.lock(folder, name, item.share, what))
        for item in work:
            product, shape = item.task.product, item.task.shape
            made = parts.made(folder, product, *shape, item.share, repair=stage.repair)
            item.left = sorted(set(item.share) - made.rows)
            others = made.made_with - {product.made_with}
            if others and item.left:
                print(
                    f"{stage.run}: {item.task.title} goes on with other software "
                    f"({product.made_with}) than it began with ({'; '.join(sorted(others))}): "
                    "results may differ by rounding",
                    flush=True,
                )

        @functools.cache
        def begin_once() -> None:
            begin()
            for task in tasks:
                if task.product.record_first:
                    parts.write_record(folder / task.product.record, task.product.settings)

        loop = _Loop(stage, title, work)
        try:
            with stop_requests() as loop.stop:
                for wave in _waves(work, finished):
                    loop.read([group for group in finished if wave.intersection(group.models)])
                    begin_once()
                    for item in work:
                        for first, arrays in loop.parts(item, wave):
                            parts.write_part(folder, item.task.product, first, *arrays)
                        if item.task.asked and item.left:
                            # Attacks can use it while the rest is still being asked for.
                            parts.assemble(folder, item.task.product, *item.task.shape)
        finally:
            loop.progress.close()
        begin_once()
        return [parts.assemble(folder, task.product, *task.shape) for task in tasks]


def _bound(run: Path, task: Task) -> Task:
    """The task, its files bound to the run and to the models asked."""
    binding = {"run": run_dir.identity(run), **({"models": list(task.asked)} if task.asked else {})}
    product = replace(task.product, binding=binding, made_with=software.in_words())
    return replace(task, product=product)


@dataclass(eq=False)
class _Work:
    """A task, the rows of the share, those of them that are left, and how many are written."""

    task: Task
    share: range
    left: list[int] = field(default_factory=list)
    written: int = 0

    def queries(self, rows: int) -> int:
        return rows * self.task.shape[1] * self.task.queries


def _waves(work: Sequence[_Work], finished: Sequence[Group]) -> list[set[int]]:
    """Numbers of the models that are read together: all that are asked, or a group's."""
    needed = {n for item in work if item.left for n in item.task.asked or item.left}
    asked = work[0].task.asked
    groups = [needed] if asked else [needed.intersection(group.models) for group in finished]
    return [wave for wave in groups if wave]


class _Loop:
    """Models that were read, as many at a time on the devices as fit, and how far the work is."""

    stop: StopRequest

    def __init__(self, stage: Stage, title: str, work: Sequence[_Work]):
        self._stage, self._network = stage, build_network(stage.experiment, stage.data)
        self._together = ensemble.group_size(0, ensemble.models_mesh(stage.devices))
        self._on_devices = functools.cache(self._on_so_many_devices)
        total = sum(item.queries(len(item.share)) for item in work)
        done = total - sum(item.queries(len(item.left)) for item in work)
        self.progress, self._asked = Progress(total, done, title), 0
        for item in work:
            item.written = len(item.share) - len(item.left)

    def _on_so_many_devices(
        self, count: int
    ) -> tuple[Mesh, Callable[..., Any], Callable[[], tuple[Array, Array]]]:
        """Their mesh, and `lift` and `data` of `Models`."""
        mesh = ensemble.models_mesh(self._stage.devices[:count])
        usual = self._stage.experiment.train.width

        @functools.cache
        def lift(function: Callable[..., Any], width: int = usual) -> Callable[..., Any]:
            return ensemble.over_models(function, mesh, width)

        return mesh, lift, functools.cache(lambda: place(self._stage.data, mesh))

    def read(self, groups: Sequence[Group]) -> None:
        """Read the models of these groups, and forget those before."""
        self._placed: Models | None = None
        self._kept: dict[tuple[int, ...], Any] = {}
        self._stored: dict[int, Any] = {}
        for group in groups:
            tree = restored(self._stage.run, group, self._network)
            for row, n in enumerate(group.models):
                self._stored[n] = jax.tree.map(lambda leaf, row=row: leaf[row], tree)

    def parts(
        self, work: _Work, wave: set[int]
    ) -> Iterator[tuple[int, list[Float32[np.ndarray, "R ..."]]]]:
        """The first row and the arrays of each part that is to be written, of the models read."""
        task = work.task
        if task.asked:
            for examples in pieces(work.left, task.part):
                chunks = [arrays for _, arrays in self._computed(work, task.asked, examples)]
                by_models = zip(*chunks, strict=True)
                work.written += len(examples)
                yield (
                    examples.start,
                    [np.moveaxis(np.concatenate(some), 0, 1) for some in by_models],
                )
            return
        every = range(task.examples)
        for models, arrays in self._computed(work, sorted(wave.intersection(work.left)), every):
            _refuse_non_finite(task, models, arrays)
            work.written += len(models)
            yield models[0], arrays

    def _computed(
        self, work: _Work, models: Sequence[int], examples: range
    ) -> Iterator[tuple[tuple[int, ...], list[Float32[np.ndarray, "G B ..."]]]]:
        """What the models give on these examples, as many models at a time as fit."""
        run, task = self._stage.run, work.task
        while models:
            # Models of a part follow one another.
            together = models if task.asked else pieces(models)[0]
            chunk = tuple(together[: self._together])
            counted = 0

            def tick(queries: int) -> None:
                nonlocal counted
                counted += queries
                self._asked += queries
                self._advance(work, queries)
                self.stop.check(f"{run}: stopped; run the same command again to go on")

            try:
                results = task.compute(self._place(chunk), examples, tick)
            except jax.errors.JaxRuntimeError as error:
                self._together = ensemble.halved(run, len(chunk), error)
                self.progress.take_back(counted)
                continue
            # What was allowed and not needed.
            self._advance(work, task.queries * len(chunk) * len(examples) - counted)
            models = models[len(chunk) :]
            yield (
                chunk,
                [
                    np.asarray(array, np.float32).reshape(len(chunk), len(examples), *inner)
                    for array, inner in zip(results, task.product.arrays.values(), strict=True)
                ],
            )

    def _place(self, numbers: tuple[int, ...]) -> Models:
        """Bring models that were read to the devices, unless they are there."""
        if self._placed is None or self._placed.numbers != numbers:
            self._placed = None  # before others take its memory
            mesh, lift, shared = self._on_devices(min(len(numbers), len(self._stage.devices)))
            stored = [self._stored[n] for n in numbers]
            variables = jax.tree.map(lambda *leaves: np.stack(leaves), *stored)
            placed = ensemble.put_padded(variables, mesh)
            self._placed = Models(numbers, mesh, placed, lift, shared, self._kept)
        return self._placed

    def _advance(self, work: _Work, queries: int) -> None:
        if queries:
            rate = self._asked / max(time.monotonic() - self.progress.start, 1e-9)
            text = f"{work.task.title}, {work.written}/{len(work.share)} {work.task.rows} written"
            self.progress.advance(queries, f"{text}, {rate:,.0f} queries/s")


def _refuse_non_finite(task: Task, models: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
    for array in arrays:
        bad = np.argwhere(~np.isfinite(array))
        if len(bad) and task.not_finite is not None:
            raise InputError(task.not_finite(models[bad[0][0]], int(bad[0][1])))


def pieces(numbers: Sequence[int], size: int = 2**62) -> list[range]:
    """Ascending numbers as ranges, cut wherever they leave out one and at multiples of `size`."""
    cuts = [i for i, n in enumerate(numbers) if not i or n != numbers[i - 1] + 1 or not n % size]
    return [
        range(numbers[low], numbers[high - 1] + 1)
        for low, high in zip(cuts, [*cuts, len(numbers)][1:], strict=True)
    ]


def cut(images: int, queries: int) -> tuple[int, int]:
    """Steps of a dispatch, and examples of a step, of so many images, each asked so many times."""
    batch = max(1, images // queries)
    return max(1, min(DISPATCH, DISPATCH_IMAGES // queries) // batch), batch


def in_steps(step: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """The function (variables, index [S, B], images, labels) ↦ arrays [S, B, …] that makes S steps
    of (variables, index [B], images, labels) ↦ arrays [B, …], one after the other."""

    def of_model(variables: Any, index: Array, images: Array, labels: Array) -> tuple[Array, ...]:
        return lax.map(lambda row: step(variables, row, images, labels), index)

    return of_model


def in_dispatches(
    call: Callable[[Int32[np.ndarray, "S B"]], Sequence[Array]],
    models: Models,
    examples: range,
    shape: tuple[int, int],
    tick: Tick,
    queries: int = 1,
) -> list[Float[np.ndarray, "G B ..."]]:
    """Compute arrays of many examples, while the host takes the results of those before.

    Args:
        call: numbers of examples [S, B] ↦ arrays [G, S, B, …] on the devices.
        models: of which they are.
        examples: all of them.
        shape: S and B of a dispatch.
        tick: called after each dispatch.
        queries: of each model and example.
    """
    steps, batch = shape
    arrays: list[np.ndarray] = []
    waiting: deque[tuple[slice, Sequence[Array]]] = deque()

    def take() -> None:
        part, results = waiting.popleft()
        length = part.stop - part.start
        each = [
            array.reshape(models.count, steps * batch, *array.shape[3:])
            for array in ensemble.on_host(results, models.count)
        ]
        if not arrays:
            shapes = [(models.count, len(examples), *array.shape[2:]) for array in each]
            arrays.extend(np.empty(shape, np.float32) for shape in shapes)
        for array, rows in zip(arrays, each, strict=True):
            array[:, part] = rows[:, :length]
        tick(queries * length * models.count)

    for start in range(0, len(examples), steps * batch):
        # The last dispatch is filled up with example 0: one shape, one compilation.
        part = slice(start, min(start + steps * batch, len(examples)))
        index = np.zeros(steps * batch, np.int32)
        index[: part.stop - start] = examples[part]
        results = call(index.reshape(steps, batch))
        for array in results:
            array.copy_to_host_async()
        waiting.append((part, results))
        if len(waiting) > AHEAD:
            take()
    while waiting:
        take()
    return arrays
