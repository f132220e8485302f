"""Four host devices for all tests, and small experiments on real digits."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from etils.epath import backend, gpath
from fsspec.registry import _registry
from matplotlib.figure import Figure

from lira_jax.config import DataConfig, Experiment, NetworkConfig, ScoreConfig, TrainConfig
from lira_jax.errors import InputError
from tests.object_store import ObjectStore


def pytest_configure(config: pytest.Config) -> None:
    import jax

    # Most of the time goes into compiling networks that then take a few steps. Read by the first
    # use of a device, here and in the processes that tests start.
    cheap = "--xla_backend_optimization_level=1"
    if cheap not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {cheap}".strip()
    jax.config.update("jax_num_cpu_devices", 4)
    # Many tests train the same small network: compile it once a session, also where pytest-xdist
    # spreads the session over processes.
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="lira_jax_tests_")
        config.add_cleanup(folder.cleanup)
        os.environ["LIRA_JAX_TEST_CACHE"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["LIRA_JAX_TEST_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """Two models of a narrow ResNet-8 on 120 digits, 20 steps each."""
    return Experiment(
        seed=3,
        data=DataConfig(limit=120),
        network=NetworkConfig("resnet", 8, 4),
        train=TrainConfig(models=2, epochs=4, batch_size=12, shift=1, ema=0.9, eval_examples=16),
        score=ScoreConfig(views=2, batch_size=50),
    )


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but neither laid out nor drawn, which takes most of the attack stage."""

    def save(self: Figure, file: BinaryIO, *, format: str, **_: Any) -> None:
        del self
        file.write(f"a {format} of a figure".encode())

    monkeypatch.setattr(Figure, "draw_without_rendering", lambda self: None)
    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """The objects of an empty object store that `gs://` paths lead to."""
    monkeypatch.setenv("EPATH_USE_TF", "false")
    for name in ObjectStore.protocol:
        monkeypatch.setitem(_registry, name, ObjectStore)
    monkeypatch.setattr(ObjectStore, "objects", {})
    with fresh_epath():
        yield ObjectStore.objects


@contextmanager
def fresh_epath() -> Iterator[None]:
    """Let `etils.epath` find its file systems anew, here and afterwards."""
    found = (gpath._is_tf_installed, backend.fsspec_backend._get_filesystem)
    for cached in found:
        cached.cache_clear()
    yield
    for cached in found:
        cached.cache_clear()


def with_train(experiment: Experiment, **changes: object) -> Experiment:
    """The experiment with fields of [train] replaced."""
    train = dataclasses.replace(experiment.train, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(experiment, train=train)


def refusal(folder: Path | None, call: Callable[[], object]) -> str:
    """The one line with which a call is refused; every file in the folder stays as it was."""
    before = files_of(folder) if folder else {}
    with pytest.raises(InputError) as caught:
        call()
    assert (files_of(folder) if folder else {}) == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what it holds."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
