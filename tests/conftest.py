"""Four host devices for all tests, a list of those for an accelerator, and small experiments.

`pytest -m accelerator` runs the tests that make sense on a machine with one GPU or TPU and only
what the list needs installed. On the list may be what computes something: values and gradients,
training, scoring, answers, each compiled in few programs, since a GPU takes seconds for each. Not
what compares bitwise what runs with other programs (other groups, widths, devices) or twice, other
than by `precision.assert_same`; nor what needs several devices, looks at defaults or memory of a
CPU, or starts, kills or locks out processes. LIRA_JAX_TEST_DEVICES=1 gives a CPU the one device of
such a machine; XLA_PYTHON_CLIENT_PREALLOCATE=false lets several processes (`-n 4`) share its GPU;
LIRA_JAX_TEST_CACHE names a folder that keeps compiled programs for the next time.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jaxtyping
import pytest
from etils.epath import backend, gpath
from fsspec.registry import _registry
from matplotlib.figure import Figure

from lira_jax import config_file
from lira_jax.config import DataConfig, Experiment, NetworkConfig, ScoreConfig, TrainConfig
from lira_jax.errors import InputError
from tests.object_store import ObjectStore
from tests.precision import on_cpu

# Packages that a bare machine with an accelerator may lack.
NOT_ON_THE_LIST = {
    "tyro",
    "tensorflow_datasets",
    "array_record",
    "jax_privacy",
    "dp_accounting",
    "beartype",
}


def pytest_configure(config: pytest.Config) -> None:
    # Most of the time goes into compiling networks that then take a few steps. Read by the first
    # use of a device, here and in the processes that tests start.
    cheap = "--xla_backend_optimization_level=1"
    if cheap not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {cheap}".strip()
    jax.config.update("jax_num_cpu_devices", int(os.environ.get("LIRA_JAX_TEST_DEVICES", 4)))
    # Many tests train the same small network: compile it once a session, also where pytest-xdist
    # spreads the session over processes; or once for all sessions that name the same folder.
    if "LIRA_JAX_TEST_CACHE" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="lira_jax_tests_")
        config.add_cleanup(folder.cleanup)
        os.environ["LIRA_JAX_TEST_CACHE"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["LIRA_JAX_TEST_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What an accelerator warns about is shown, and fails no test: nobody has seen all of it."""
    if not on_cpu():
        for item in items:
            if item.get_closest_marker("accelerator"):
                item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Where only the list is asked for, files that need packages which are missing are left out;
    none of them has a test of the list (test_precision.py)."""
    report = yield
    call = getattr(report, "call", None)
    cause = call.excinfo.value.__cause__ if call is not None and call.excinfo else None
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
    if collector.config.option.markexpr == "accelerator" and missing in NOT_ON_THE_LIST:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, f"Skipped: {cause}")
    return report


@pytest.fixture(scope="session", autouse=True)
def _all_digits() -> None:
    """Float32 products of float32 numbers, where an accelerator's default is less."""
    if not on_cpu():
        jax.config.update("jax_default_matmul_precision", "highest")


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


@pytest.fixture(scope="session")
def pair(tiny: Experiment) -> Experiment:
    """Those two models side by side, scored with 18 views."""
    return dataclasses.replace(
        with_train(tiny, group=2, eval_examples=60), score=ScoreConfig(views=18, batch_size=50)
    )


@pytest.fixture(scope="module")
def quick_to_compile() -> Iterator[None]:
    """Slower programs, sooner, on a CPU."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", on_cpu())
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def any_shape() -> Iterator[None]:
    """Shapes are not checked: the test gives senseless ones to see them refused."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but neither laid out nor drawn, which takes most of the attack stage."""
    sketch(monkeypatch)


def sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `sketched` does, for fixtures of a wider scope."""

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


def begin_run(run: Path, seed: int = 0) -> Path:
    """Make a folder a run, of which nothing is trained."""
    experiment = Experiment(seed=seed)
    run.mkdir(parents=True, exist_ok=True)
    versions = {"data_digest": "0123456789abcdef" * 4}
    (run / "config.toml").write_text(config_file.to_toml(experiment, versions))
    return run


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
