from __future__ import annotations

import importlib.util

import pytest

from benchmarks import train_step
from benchmarks.train_step import Case
from lira_jax.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TINY = Case(NetworkConfig("resnet", 8, 2), (4, 4, 1), 4)
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_every_method_is_timed_and_printed_beside_the_engine(capsys, monkeypatch):
    product = train_step.matmul_rate(64)
    monkeypatch.setattr(train_step, "matmul_rate", lambda: product)
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
    monkeypatch.setattr(train_step, "matmul_rate", lambda: lambda: 1e9)
    methods = {"engine": lambda: lambda: 0.5, "vmap": lambda: pytest.fail("begun")}
    monkeypatch.setattr(train_step, "methods", lambda *_: methods)
    assert train_step.time_case("tiny/4", TINY, 1) == {"engine": 0.5}
    assert "tiny/4: vmap left out, it would take about" in capsys.readouterr().out


def test_an_unknown_case_is_refused_by_name():
    with pytest.raises(SystemExit, match="resnet9/1: choose of digits-w8/32"):
        train_step.main(train_step.Options(cases=("resnet9/1",)))
