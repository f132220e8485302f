"""Many models over many devices.

`shard_map` spreads the models of a group over a mesh with the single axis `models`; on each device
`lax.map` runs over its share, `width` of them vectorised at a time: width 1 is a sequential scan,
the whole share is `vmap`. Models never communicate, and at width 1 each is bitwise what it would be
alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lira_jax.errors import InputError

AXIS = "models"
# Guesses: nothing has been measured on an accelerator yet.
ACCELERATOR_MODELS_PER_DEVICE = 16
ACCELERATOR_SCORE_IMAGES = 4096
CPU_SCORE_IMAGES = 72


def use_all_cpu_cores() -> None:
    """Offer one host device per CPU core; call before JAX touches a device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)


def models_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (default: all) whose single axis is `models`."""
    chosen = np.array(jax.devices() if devices is None else devices)
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def group_size(requested: int, mesh: Mesh) -> int:
    """Models to train together: `requested`, or a default for the platform, never below 1."""
    if requested:
        return requested
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return mesh.size * (1 if on_cpu else ACCELERATOR_MODELS_PER_DEVICE)


def score_batch(requested: int, queries: int, mesh: Mesh) -> int:
    """Examples per inference step of one model, for `requested` images (0: platform's default).

    On CPU small steps are faster: activations stay in the caches.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    images = requested or (CPU_SCORE_IMAGES if on_cpu else ACCELERATOR_SCORE_IMAGES)
    return max(1, images // queries)


def slots(models: int, mesh: Mesh) -> int:
    """The least multiple of the device count that holds this many models."""
    return -(-models // mesh.size) * mesh.size


def put_padded(tree: Any, mesh: Mesh) -> Any:
    """Place arrays [G, …] with their leading axis over the devices; the last row is repeated until
    all devices have equally many."""

    def padded(rows: np.ndarray) -> np.ndarray:
        missing = slots(len(rows), mesh) - len(rows)
        return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])

    return jax.device_put(jax.tree.map(padded, tree), NamedSharding(mesh, P(AXIS)))


def on_host(tree: Any, models: int) -> Any:
    """The first `models` rows of each array, as NumPy: what was padded is left out."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:models], tree)


def put_shared(tree: Any, mesh: Mesh) -> Any:
    """Place a copy of each array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def over_models(
    function: Callable[..., Any], mesh: Mesh, width: int = 0, *, donate: bool = False
) -> Callable[..., Any]:
    """Lift a function of one model to a jitted function of a group.

    Args:
        function: (model, *shared) ↦ result, on trees of arrays.
        mesh: of `models_mesh`.
        width: models vectorised together on a device; 0 is 1 on CPU and the whole share elsewhere.
        donate: reuse the memory of the first argument.

    Returns:
        (models, *shared) ↦ results, every array of `models` and `results` with a leading axis of
        length G, a multiple of the device count.

    Raises:
        InputError: a negative width.
    """
    if width < 0:
        raise InputError(f"train.width = {width}: must be at least 0")
    if width == 0 and mesh.devices.flat[0].platform == "cpu":
        width = 1

    def share(models: Any, *shared: Any) -> Any:
        local = jax.tree.leaves(models)[0].shape[0]
        together = min(width or local, local)
        return lax.map(
            lambda model: function(model, *shared),
            models,
            batch_size=None if together == 1 else together,
        )

    def group(models: Any, *shared: Any) -> Any:
        specs = (P(AXIS), *(P() for _ in shared))
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)(
            models, *shared
        )

    return jax.jit(group, donate_argnums=(0,) if donate else ())
