"""What this machine is: devices, driver, versions, and the rates that all others are shares of."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp

from benchmarks.accelerator import matrix_rate
from benchmarks.parts.results import Task

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "torch")


def run(task: Task) -> None:
    """Record the machine, then each rate."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    task.record(
        "machine",
        device=device.device_kind,
        platform=device.platform,
        devices=len(jax.devices()),
        memory_bytes=memory,
        driver=_driver(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
    )
    size = 512 if task.toy else 8192
    for dtype in ("bfloat16", "float32"):
        rate = matrix_rate(device, dtype, size)
        task.record("matrix rate", dtype=dtype, size=size, flops_per_second=rate)
    task.record("copy rate", bytes_per_second=_copy_rate(2**22 if task.toy else 2**30))


def _driver() -> str | None:
    """The NVIDIA driver's version, where there is one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _copy_rate(size: int) -> float:
    """Bytes read and written per second, by negating so many of float32."""
    x = jax.random.normal(jax.random.key(0), (size // 4,), jnp.float32)
    negate = jax.jit(jnp.negative)
    x = negate(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(8):
            x = negate(x)
        x.block_until_ready()
        seconds.append((time.perf_counter() - start) / 8)
    return 2 * size / statistics.median(seconds)
