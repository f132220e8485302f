"""One line on what a benchmark ran on, for all scripts of this folder."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def line(*packages: str) -> str:
    """Processor, usable cores, the machine's load at this moment, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [text.split(":", 1)[1].strip() for text in names if text.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{processor}, {cores()} of {os.cpu_count()} cores usable, "
        f"load average {os.getloadavg()[0]:.1f} over the last minute; "
        f"Python {platform.python_version()}, {versions}"
    )
