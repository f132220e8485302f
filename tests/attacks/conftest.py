"""Learned attacks that are soon fitted."""

from __future__ import annotations

import pytest

from lira_jax.attacks import quantile_regression, shokri


@pytest.fixture
def small_fits(monkeypatch):
    """Fits of few pairs, so that many runs are soon done."""
    monkeypatch.setattr(shokri, "SEEN", 1)
    monkeypatch.setattr(shokri, "HIDDEN", 16)
    monkeypatch.setattr(quantile_regression, "MIN_PAIRS", 60)
    monkeypatch.setattr(quantile_regression, "GROUPS", 2)
    monkeypatch.setattr(quantile_regression, "TREES", 5)
