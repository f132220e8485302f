"""Loss traces while the models of the first block train, and whom they name (arXiv 2411.05743).

After an epoch the members of these models are evaluated as scores are made, under the identity view
and the weights whose accuracy is reported, by a program of its own: what trains the models is as it
is without. The models go back to the host and from there to all devices, each of which takes a
share of the members, so that none waits while few models of a large group are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float32

from lira_jax import ensemble
from lira_jax.analysis import loss_traces as analysis
from lira_jax.candidates import Candidates
from lira_jax.config import Experiment
from lira_jax.data import membership
from lira_jax.inference import DISPATCH_IMAGES
from lira_jax.interrupts import StopRequest
from lira_jax.run import loss_traces
from lira_jax.run.checkpoints import Group
from lira_jax.run.loss_traces import Plan
from lira_jax.shadow_models import Programs
from lira_jax.storage import write_text

LIKELY = "likely_exposed.csv"
# How many examples are named where training ends.
NAMED = 5
# For a loss beyond all bounds, so that the trace stays finite.
_LARGEST = 1e30


@dataclass(eq=False)
class Tracing:
    """The traces of a group in training; of no models where it has none of the first block.

    Attributes:
        run: that the models are of.
        planned: by which traces are kept.
        group: in training.
        on_mesh: its programs.
        models: those of it whose traces are kept.
        members: theirs.
        per_epoch: steps.
        images: of a step of evaluation.
        rows: made so far, each of all `models`.
        written: how many of them are in the files.
    """

    run: Path
    planned: Plan
    group: Group
    on_mesh: Programs
    models: list[int]
    members: np.ndarray
    per_epoch: int
    images: int
    rows: list[Float32[np.ndarray, "G M"]]
    written: int

    def take(self, states: Any, step: int, stop: StopRequest, *, last: bool = False) -> None:
        """Make the row of the epoch that ends with a step, if one is due and not there yet.

        Where a signal comes meanwhile it is left for when training goes on.

        Args:
            states: of the group after that step.
            last: training ends here, and its checkpoint will hold no state to go on from, so that
                a signal must wait.
        """
        epoch, within = divmod(step, self.per_epoch)
        due = not within and epoch % self.planned.every == 0
        if not self.models or not due or len(self.rows) >= self.planned.made(epoch):
            return
        row = self._losses(states, lambda: not last and stop.signum != 0)
        if row is None:
            return
        if states.early_stopping is not None:
            stopped = np.asarray(states.early_stopping.stopped_epoch)[self._places]
            row[(stopped > 0) & (stopped < epoch)] = np.nan
        self.rows.append(row)

    @property
    def _places(self) -> list[int]:
        """Of the models in the group."""
        return [model - self.group.first for model in self.models]

    def _losses(
        self, states: Any, stopped: Callable[[], bool]
    ) -> Float32[np.ndarray, "G M"] | None:
        """The members' losses under each model; None if a signal came meanwhile."""
        mesh, count, members = self.on_mesh.mesh, len(self.models), self.planned.members
        shares = max(1, mesh.size // count)
        steps = -(-members // (shares * self.images))
        together = min(steps, max(1, DISPATCH_IMAGES // self.images))
        dispatches = -(-steps // together)
        # Filled up with example 0: one shape, one compilation.
        index = np.zeros((count, dispatches * shares * together * self.images), np.int32)
        index[:, :members] = self.members
        index = index.reshape(count, dispatches, shares, together, self.images)
        evaluated = replace(states, optimizer=(), adversary=None, early_stopping=None)
        evaluated = ensemble.on_host(evaluated, self.group.size)
        evaluated = ensemble.put_padded(
            jax.tree.map(lambda leaf: np.repeat(leaf[self._places], shares, axis=0), evaluated),
            mesh,
        )
        losses = np.empty(index.shape, np.float32)
        for dispatch in range(dispatches):
            if dispatch and stopped():
                return None
            some = index[:, dispatch].reshape(count * shares, together, self.images)
            made = self.on_mesh.losses((evaluated, ensemble.put_padded(some, mesh)))
            made = ensemble.on_host(made, count * shares)
            losses[:, dispatch] = made.reshape(count, shares, together, self.images)
        row = losses.reshape(count, -1)[:, :members]
        return np.minimum(np.nan_to_num(row, nan=_LARGEST), _LARGEST)

    def save(self, *, finished: bool) -> None:
        """Write what there is; to be called before the checkpoint that it belongs to.

        Args:
            finished: the models are trained, and epochs that are missing are those after all have
                stopped early.

        Raises:
            InputError: it cannot be written, or the run is gone.
        """
        if finished and self.models:
            none = np.full((len(self.models), self.planned.members), np.nan, np.float32)
            self.rows += [none] * (self.planned.rows - len(self.rows))
        if len(self.rows) > self.written:
            for place, model in enumerate(self.models):
                loss_traces.write(self.run, model, np.stack([row[place] for row in self.rows]))
            self.written = len(self.rows)


def begin(
    experiment: Experiment,
    run: Path,
    keep: Bool[np.ndarray, "N E"],
    group: Group,
    on_mesh: Programs,
) -> Tracing:
    """The traces of a group that begins or goes on from its checkpoint.

    A model whose trace lacks earlier epochs, as it began with an earlier version, is left out.

    Raises:
        InputError: a damaged or foreign file.
    """
    members = int(keep[0].sum())
    planned = loss_traces.plan(experiment, members)
    per_epoch = experiment.train.steps_per_epoch(members)
    epoch, within = divmod(group.step, per_epoch)
    there = planned.made(epoch)
    # A row that a signal kept from being made can still be, at the end of its epoch.
    due = group.step > 0 and not within and epoch % planned.every == 0
    kept: dict[int, np.ndarray] = {}
    for model in group.models if planned.rows > 1 else ():
        if model in planned.models:
            trace = loss_traces.read(run, model, planned) if there else None
            trace = np.empty((0, members), np.float32) if trace is None else trace[:there]
            if len(trace) >= there - due:
                kept[model] = np.array(trace)
    # Models of a group are always traced together, so that they lack the same row if any.
    count = min(map(len, kept.values()), default=0)
    rows = [np.stack([trace[row] for trace in kept.values()]) for row in range(count)]
    return Tracing(
        run=run,
        planned=planned,
        group=group,
        on_mesh=on_mesh,
        models=[*kept],
        members=membership.member_indices(keep[[*kept]]) if kept else np.empty((0, members)),
        per_epoch=per_epoch,
        images=min(experiment.train.batch_size, ensemble.score_batch(0, 1, on_mesh.mesh)),
        rows=rows,
        written=count,
    )


def name_likely(experiment: Experiment, run: Path, data: Candidates) -> list[int]:
    """Write likely_exposed.csv once all models of the first block are trained.

    Returns:
        The examples most likely to be exposed, canaries apart; none where there are no traces.

    Raises:
        InputError: damaged traces, or it cannot be written.
    """
    ranges = analysis.of_run(run, experiment)
    if ranges is None:
        return []
    canary = np.arange(len(data.labels)) >= len(data.labels) - data.canaries
    write_text(run / LIKELY, analysis.as_csv(ranges, data.labels, canary))
    order = analysis.most_likely_first(ranges)
    return [int(example) for example in order[~canary[order]][:NAMED]]
