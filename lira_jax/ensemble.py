"""Many models over many devices.

`shard_map` spreads the models of a group over a mesh with the single axis `models`; on each device
`lax.map` runs over its share, `width` of them vectorised at a time: width 1 is a sequential scan,
the whole share is `vmap`. Models never communicate, and at width 1 each is bitwise what it would be
alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lira_jax.errors import InputError
from lira_jax.progress import say
from lira_jax.run import shards
from lira_jax.run.shards import Shard

AXIS = "models"
ACCELERATOR_MODELS_PER_DEVICE = 16  # a guess; how many of them are vectorised is measured
ACCELERATOR_SCORE_IMAGES = 4096  # a guess, where it is not measured
CPU_SCORE_IMAGES = 72


def set_up(shard: str) -> Shard:
    """Prepare JAX, which must not have been used yet, and tell which share of models is ours.

    Every CPU core becomes a host device. Compiled programs are kept in
    `lira_jax/xla` of the user's cache folder (`~/.cache` or `$XDG_CACHE_HOME`), or where
    `JAX_COMPILATION_CACHE_DIR` says.

    Args:
        shard: as `shards.parse` takes it, or `distributed`: start jax.distributed, which TPU pods
            need, and take the share of this process.

    Raises:
        InputError: not a share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs  # a bare machine with an accelerator may lack it

        folder = platformdirs.user_cache_path("lira_jax") / "xla" / _processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if shard != "distributed":
        return shards.parse(shard)
    try:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )
        share = Shard(jax.process_index(), jax.process_count())
        # The devices are known now, and models never talk: no process should wait for another at
        # its end, or die with it.
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--shard distributed: jax.distributed does not start ({reason}); "
            "docs/cluster.md tells what it needs"
        ) from None
    return share


def _number(name: str) -> int | None:
    """A variable that jax.distributed does not read by itself; None lets it find out."""
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"--shard distributed: {name} = {text!r} must be a whole number")
    return None if text is None else int(text)


def _processor() -> str:
    """A name for this kind of processor: a home folder may be shared by hosts of several kinds,
    and code compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        about = sorted({line for line in lines if line.startswith(("flags", "model name"))})
    except OSError:
        about = [platform.processor()]
    digest = hashlib.sha256("\n".join(about).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def models_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (default: all of this process) with the axis `models`."""
    chosen = np.array(jax.local_devices() if devices is None else devices)
    return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def group_size(requested: int, mesh: Mesh) -> int:
    """Models to work on together: `requested`, or a default for the platform.

    More models than devices come in a multiple of the devices, so that none waits for the others.
    """
    if requested:
        return requested - requested % mesh.size if requested > mesh.size else requested
    return mesh.size * (1 if on_cpu(mesh) else ACCELERATOR_MODELS_PER_DEVICE)


def halved(run: Path, models: int, error: jax.errors.JaxRuntimeError) -> int:
    """Half of a group that a device had too little memory for; says so.

    Raises:
        InputError: there was only one model.
        jax.errors.JaxRuntimeError: the error, if it was another.
    """
    reason = str(error).splitlines()[0]
    if "RESOURCE_EXHAUSTED" not in reason:
        raise error
    if models == 1:
        raise InputError(
            f"{run}: one model alone does not fit into memory ({reason[:200]}); use a device with "
            "more, a smaller --score.batch_size, or a smaller train.batch_size in a new run"
        )
    say(f"{run}: {models} models do not fit into memory together; going on with {models // 2}")
    return models // 2


def score_batch(requested: int, queries: int, mesh: Mesh) -> int:
    """Examples per inference step of one model, for `requested` images (0: platform's default).

    On CPU small steps are faster: activations stay in the caches.
    """
    images = requested or (CPU_SCORE_IMAGES if on_cpu(mesh) else ACCELERATOR_SCORE_IMAGES)
    return max(1, images // queries)


def slots(models: int, mesh: Mesh) -> int:
    """The least multiple of the device count that holds this many models."""
    return -(-models // mesh.size) * mesh.size


def over_devices(mesh: Mesh) -> NamedSharding:
    """Where the models [G, …] of a group lie: their leading axis over the devices."""
    return NamedSharding(mesh, P(AXIS))


def put_padded(tree: Any, mesh: Mesh) -> Any:
    """Place arrays [G, …] with their leading axis over the devices; the last row is repeated until
    all devices have equally many."""

    def padded(rows: np.ndarray) -> np.ndarray:
        missing = slots(len(rows), mesh) - len(rows)
        return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])

    return jax.device_put(jax.tree.map(padded, tree), over_devices(mesh))


def on_host(tree: Any, models: int) -> Any:
    """The first `models` rows of each array, as NumPy: what was padded is left out."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:models], tree)


def put_shared(tree: Any, mesh: Mesh) -> Any:
    """Place a copy of each array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


@dataclass(frozen=True)
class Program:
    """A jitted function of a group of models, and what it shares with every group.

    Attributes:
        function: (*own, *shared) ↦ results; of `over_models`.
        shared: arrays on the mesh.
    """

    function: Any
    shared: tuple[Any, ...] = ()

    def __call__(self, *own: Any) -> Any:
        return self.function(*own, *self.shared)

    def compiled(self, *own: Any) -> Callable[..., Any]:
        """Compiled for arguments of these shapes and places; programs may be so in many threads."""
        executable = self.function.lower(*own, *self.shared).compile()
        return lambda *own: executable(*own, *self.shared)


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are cores of a CPU."""
    return mesh.devices.flat[0].platform == "cpu"


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
    if width == 0 and on_cpu(mesh):
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

    # Said, since a program compiled ahead takes arrays in the places that it was told.
    return jax.jit(group, donate_argnums=(0,) if donate else (), out_shardings=over_devices(mesh))
