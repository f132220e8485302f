from __future__ import annotations

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.train_step import Case
from lira_jax.config import NetworkConfig

TINY = Case(NetworkConfig("resnet", 8, 2), (4, 4, 1), 4)
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_every_method_is_timed_and_printed_beside_the_engine(capsys):
    medians = train_step.time_case("tiny/4", TINY, 1)
    expected = ["engine", "Python loop", "vmap"]
    expected += ["PyTorch contiguous", "PyTorch channels_last"] if HAS_TORCH else []
    assert list(medians) == expected
    assert all(seconds > 0 for seconds in medians.values())
    printed = capsys.readouterr().out
    assert all(method in printed for method in expected)
    assert ("PyTorch is not installed" in printed) != HAS_TORCH


def test_what_would_take_too_long_is_left_out_with_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(train_step, "PATIENCE", 0.0)
    medians = train_step.time_case("tiny/4", TINY, 1)
    assert "vmap" not in medians
    assert "tiny/4: vmap left out, it would take about" in capsys.readouterr().out


def test_an_unknown_case_is_refused_by_name():
    with pytest.raises(SystemExit, match="resnet9/1: choose of digits-w8/32"):
        train_step.main(train_step.Options(cases=("resnet9/1",)))


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
@pytest.mark.parametrize("config", [("resnet", 8, 4), ("wide_resnet", 10, 1)])
def test_the_network_in_pytorch_is_the_same_function(config):
    import torch

    # At odd sizes, where SAME padding is PyTorch's: the same on both sides.
    case = dataclasses.replace(TINY, network=NetworkConfig(*config), image_shape=(9, 9, 3))
    network = train_step.ordinary_network(case)
    variables = jax.jit(network.init)(jax.random.key(0))
    model = train_step.torch_network(case)
    state = model.state_dict()
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        keys = [str(getattr(part, "key", part)) for part in path[1:]]
        value = np.array(leaf)
        if keys[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = ".".join([*keys[:-1], names.get(keys[-1], keys[-1])])
        assert state[name].shape == value.shape
        state[name].copy_(torch.from_numpy(value.copy()))
    x = np.random.default_rng(0).normal(size=(4, 9, 9, 3)).astype(np.float32)
    ours, _ = jax.jit(network.apply_train)(variables, x, jax.random.key(0))
    with torch.no_grad():
        theirs = model(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
