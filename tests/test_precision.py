"""What an accelerator's default arithmetic changes, there or emulated; and the list of tests."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lira_jax import scoring, training
from lira_jax.config import NetworkConfig
from lira_jax.networks import build
from lira_jax.networks.conv import conv_general_dilated
from lira_jax.optimization import cross_entropy
from lira_jax.run import run_dir, score_files
from tests.conftest import NOT_ON_THE_LIST, with_train
from tests.precision import (
    DEFAULTS,
    REORDERED,
    Default,
    assert_same,
    default_arithmetic,
    distance,
    on_cpu,
)
from tests.test_training import trained_weights

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(params=DEFAULTS)
def default(request: pytest.FixtureRequest) -> Default:
    chosen = DEFAULTS[request.param]
    if not on_cpu() and jax.default_backend() != chosen.platform:
        pytest.skip(f"another accelerator's, emulated on CPUs only ({jax.default_backend()} here)")
    return chosen


def assert_within(found: float, allowed: float, at_least: float = 0.0) -> None:
    """What an emulation changes is more than nothing: there is one."""
    assert found < allowed
    assert found > at_least * allowed or not on_cpu()


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def of_convolution(strides: tuple[int, int]):
    """A function of its own, and so compiled anew: value and both gradients."""

    @jax.jit
    def evaluate(x, w, dy):
        y, pull_back = jax.vjp(lambda x, w: conv_general_dilated(x, w, strides, "SAME"), x, w)
        return y, *pull_back(dy)

    return evaluate


@pytest.mark.accelerator
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_keep_the_digits_that_the_table_states(default, stride):
    arrays = (
        normal(0, 8, 8, 8, 16),
        normal(1, 3, 3, 16, 16),
        normal(2, 8, 8 // stride, 8 // stride, 16),
    )
    exact = of_convolution((stride, stride))(*arrays)
    with default_arithmetic(default):
        rounded = of_convolution((stride, stride))(*arrays)
    for got, want in zip(rounded, exact, strict=True):
        assert_within(distance(got, want), default.product, 0.1)


@pytest.mark.accelerator
def test_products_that_ask_for_all_digits_get_them(default):
    x, w = normal(0, 64, 100), normal(1, 100, 32)
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    with default_arithmetic(default):
        asked = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))(x, w)
        with jax.default_matmul_precision("highest"):
            asked_for_all = jax.jit(lambda x, w: x @ w)(x, w)
        not_asked = jax.jit(lambda x, w: x @ w)(x, w)
    assert_within(distance(not_asked, expected), default.product, 0.1)
    assert distance(asked, expected) < REORDERED / 10
    assert distance(asked_for_all, expected) < REORDERED / 10


def logits_and_gradient(arch: str, dtype: str = "float32"):
    """Of 32 images of noise, in training mode, and of weights that do not depend on the type."""
    network = build(NetworkConfig(arch, 8, 4), (8, 8, 1), 10, dtype)
    x, labels = normal(0, 32, 8, 8, 1), jnp.arange(32) % 10

    @jax.jit
    def evaluate(variables):
        def loss(params):
            logits, _ = network.apply_train(variables | {"params": params}, x, jax.random.key(0))
            return cross_entropy(logits, labels, 0.0), logits

        gradient, logits = jax.grad(loss, has_aux=True)(variables["params"])
        return logits, gradient

    return evaluate


@pytest.fixture(scope="module")
def exact():
    """Of each network its variables, and logits and gradient with all digits."""

    def of(arch: str):
        network = build(NetworkConfig(arch, 8, 4), (8, 8, 1), 10)
        variables = jax.jit(network.init)(jax.random.key(0))
        return variables, jax.tree.map(np.asarray, logits_and_gradient(arch)(variables))

    return {arch: of(arch) for arch in ("resnet", "speed_net")}


@pytest.mark.accelerator
@pytest.mark.parametrize("arch", ["resnet", "speed_net"])
def test_logits_and_gradients_of_networks_keep_the_digits_that_the_table_states(
    exact, default, arch
):
    variables, (logits, gradient) = exact[arch]
    with default_arithmetic(default):
        got = logits_and_gradient(arch)(variables)
    assert_within(distance(got[0], logits), default.logits)
    assert_within(distance(got[1], gradient), default.gradient[arch])


@pytest.mark.accelerator
@pytest.mark.parametrize("arch", ["resnet", "speed_net"])
def test_bfloat16_activations_keep_about_what_bfloat16_products_do(exact, arch):
    variables, (logits, gradient) = exact[arch]
    got = logits_and_gradient(arch, "bfloat16")(variables)
    allowed = DEFAULTS["bfloat16"]
    assert_within(distance(got[0], logits), 2 * allowed.logits)
    assert_within(distance(got[1], gradient), 2 * allowed.gradient[arch])


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory) -> Path:
    """Two models trained and scored with all digits; not to be changed."""
    run = tmp_path_factory.mktemp("precision") / "run"
    training.train(pair, run, jax.devices()[:1])
    scoring.score(pair, run, jax.devices()[:1])
    return run


@pytest.mark.accelerator
def test_weights_of_a_pair_are_those_of_each_alone(pair, run, tmp_path):
    if on_cpu():
        pytest.skip("bitwise so in test_training.py")
    alone = with_train(pair, group=1)
    training.train(alone, tmp_path / "run", jax.devices()[:1])
    weights, others = trained_weights(pair, run), trained_weights(alone, tmp_path / "run")
    for model in (0, 1):
        assert_same(others[model], weights[model])
    losses = [np.mean(line["loss"]) for line in run_dir.read_log(run)]
    assert losses[-1] < losses[0]


@pytest.mark.accelerator
def test_scores_of_trained_weights_keep_the_digits_that_the_table_states(
    pair, run, default, tmp_path
):
    """Of the same weights: training goes other ways from the first ReLU on that turns."""
    copy = shutil.copytree(run, tmp_path / "run")
    for name in (score_files.SCORES, score_files.LOGITS):
        (copy / name).unlink()
    with default_arithmetic(default):
        scoring.score(pair, copy, jax.devices()[:1])
    got, want = (np.load(folder / score_files.SCORES) for folder in (copy, run))
    assert_within(np.sqrt(np.mean((got - want) ** 2)) / want.std(), default.phi)


def files_of_the_list() -> list[Path]:
    root = Path(__file__).parent
    return [path for path in sorted(root.rglob("test_*.py")) if _is_on_the_list(path)]


def _is_on_the_list(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == "accelerator"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(getattr(node, "value", None), ast.Attribute)
    )


def test_no_test_of_the_list_needs_packages_that_a_bare_machine_may_lack():
    """All its files are imported where these packages are missing."""
    root = Path(__file__).parents[1]
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files_of_the_list()]
    assert {"tests.test_training", "tests.trust.test_predicting", __name__} <= set(names)
    code = (
        f"import sys; sys.modules |= dict.fromkeys({sorted(NOT_ON_THE_LIST)})\n"
        f"import {', '.join(names)}"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
