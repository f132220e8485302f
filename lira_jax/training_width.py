"""How many models of a group share a device at a time, and how their gradients are written: the
fastest way is found by training with each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lira_jax import ensemble, tuning
from lira_jax.candidates import Candidates, place
from lira_jax.config import Experiment
from lira_jax.networks import Variables
from lira_jax.networks.conv import Gradients
from lira_jax.run.checkpoints import Group
from lira_jax.shadow_models import group_inputs, programs


@dataclass(frozen=True)
class Way:
    """How the models of a group share a device.

    Attributes:
        width: models vectorised together, at least 1.
        conv_gradients: how their convolutions' gradients are written, see there.
    """

    width: int
    conv_gradients: Gradients

    def __str__(self) -> str:
        gradients = f" with {self.conv_gradients} gradients" if self.width > 1 else ""
        return f"width {self.width}{gradients}"


def ways(experiment: Experiment, share: int, on_cpu: bool) -> list[Way]:
    """Those that a configuration leaves open, for `share` models on each device."""
    config = experiment.train
    # Of both, the one that was faster in the one case that was measured on a GPU comes first.
    gradients: tuple[Gradients, ...] = ("grouped", "vmap")
    if config.conv_gradients != "auto":
        gradients = (config.conv_gradients,)
    elif ":" in experiment.network.arch:  # a user's own convolutions know no such ways
        gradients = ("vmap",)
    if config.width or on_cpu:  # on CPU one at a time is the fastest, and the same everywhere
        return [Way(config.width or 1, gradients[0])]
    several = [Way(width, how) for width in tuning.up_to(share)[1:] for how in gradients]
    return [Way(1, gradients[0]), *several]  # one model alone has one kind of gradients


def in_way(experiment: Experiment, way: Way) -> Experiment:
    """The experiment with a way settled."""
    return replace(experiment, train=replace(experiment.train, **asdict(way)))


def find_way(
    experiment: Experiment,
    data: Candidates,
    group: Group,
    mesh: Mesh,
    where: str,
    initial: Variables | None = None,
    placed: tuple[Array, Array] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Way:
    """The fastest way to train a group, of those that the configuration leaves open.

    Each trains the group's own models, from their beginning, with a program that also serves the
    run.

    Raises:
        jax.errors.JaxRuntimeError: no way has enough memory.
    """
    share = ensemble.slots(group.size, mesh) // mesh.size
    open_ways = ways(experiment, share, ensemble.on_cpu(mesh))
    placed = place(data, mesh) if placed is None and len(open_ways) > 1 else placed

    def trial(way: Way) -> tuning.Trial:
        on_mesh = programs(in_way(experiment, way), data, mesh, initial, placed)
        inputs = group_inputs(experiment, data.keep, group, mesh)
        begin = on_mesh.begin.compiled(inputs["number"])
        advance = on_mesh.advance.compiled(on_mesh.shapes(inputs), np.int32(0), np.int32(1))
        state: Any = None

        def run(steps: int) -> None:
            nonlocal state
            before = (begin(inputs["number"]), inputs) if state is None else state
            state = jax.block_until_ready(advance(before, np.int32(0), np.int32(steps)))

        most = experiment.train.steps_per_epoch(inputs["members"].shape[1])
        return tuning.Trial(run, work=group.size, most=most)

    about = {
        "work": "train",
        "models per device": share,
        "network": asdict(experiment.network),
        "images": data.image_shape,
        "classes": data.classes,
        "batch": experiment.train.batch_size,
        "dtype": experiment.train.dtype,
        "defence": asdict(experiment.defence) | {"transfer_from": initial is not None},
    }
    candidates = {way: functools.partial(trial, way) for way in open_ways}
    return tuning.fastest(candidates, about, mesh, where, "model-steps", check)
