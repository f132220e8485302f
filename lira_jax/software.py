"""The software that trains and scores: rounding, and so results, may differ between versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

import flax
import jax
import numpy as np
import optax

import lira_jax


def versions() -> dict[str, str]:
    """By name, as `config.toml` keeps them under [run]."""
    return {
        "lira_jax": lira_jax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "platform": f"{sys.platform} {jax.default_backend()}",
    }


def in_words() -> str:
    """What a group's log and the files of scores tell, on one line."""
    return ", ".join(f"{name} {text}" for name, text in versions().items())


def changed(begun: Mapping[str, str]) -> str:
    """What differs from the versions that a run began with, "jax 0.10.2 → 0.12.0"; empty if nothing
    does that may change results. What the run does not tell is passed over."""
    return ", ".join(
        f"{name} {begun[name]} → {text}"
        for name, text in versions().items()
        if name != "python" and begun.get(name, text) != text
    )
