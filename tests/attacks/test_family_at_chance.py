"""The attacks of one exponential family, and InfoRMIA, are at chance where nothing leaks.

At few models and at many; the null check gives models levels of their own, and examples, spreads.
"""

from __future__ import annotations

import numpy as np
import pytest

from lira_jax.analysis import null_check
from lira_jax.attacks import ATTACKS
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import blocked_masks, halved_masks

FAMILIES = {name: ATTACKS[name] for name in ("info-rmia", "bavaria", "base", "pmia", "pmia-class")}


@pytest.mark.parametrize(
    ("models", "masks"),
    [
        *((models, blocked_masks) for models in (4, 8, 16, 64)),
        (8, halved_masks),
        (16, halved_masks),
    ],
)
def test_without_leakage_all_are_at_chance_at_any_number_of_models(models, masks, monkeypatch):
    monkeypatch.setattr(null_check, "ENTRIES", 4_800)
    keep = masks(np.random.default_rng(models), models, 4_800 // models)
    score_set = ScoreSet(np.zeros((*keep.shape, 2), np.float32), keep, None, "test")
    found = null_check.null_check(score_set, AttackConfig(), FAMILIES, draws=6)
    assert found["ok"], [entry for entry in found["attacks"] if not entry["ok"]]
    assert all(entry["auc"]["error"] < 0.015 for entry in found["attacks"])
