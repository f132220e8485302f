"""Lower bounds on ε against mechanisms whose ε is known."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom

from lira_jax.analysis import epsilon


def masks(rng, targets, examples, share=0.5):
    return rng.random((targets, examples)) < share


def randomised_response(rng, member, value):
    """Each score tells the truth with odds e^ε : 1. It is ε-private and no less."""
    honest = rng.random(member.shape) < 1 / (1 + np.exp(-value))
    return np.where(honest, member, ~member).astype(np.float64)


@pytest.fixture
def one_draw(monkeypatch):
    """What holds of one draw holds of the median over many; and is soon computed."""
    pytest.importorskip("jax_privacy.auditing", exc_type=ImportError)
    monkeypatch.setattr(epsilon, "DRAWS", 1)


@pytest.mark.parametrize(("value", "share"), [(0.5, 0.5), (2.0, 0.5), (1.0, 0.25), (1.0, 0.8)])
def test_bound_holds_as_often_as_it_says_and_is_close(one_draw, value, share):
    rng = np.random.default_rng(0)
    runs = 40
    bounds = []
    for seed in range(runs):
        member = masks(rng, 4, 1_500, share)
        scores = randomised_response(rng, member, value)
        bounds.append(epsilon.lower_bound(scores, member, seed=seed)["epsilon"])
    assert np.mean(np.array(bounds) <= value) >= 0.95
    assert np.mean(bounds) > value - 0.5
    member = masks(rng, 4, 50_000, share)
    scores = randomised_response(rng, member, value)
    # δ so small that so many canaries do not come near it.
    many = epsilon.lower_bound(scores, member, delta=1e-9)
    assert many["epsilon"] == pytest.approx(value, abs=0.1)
    assert many["clopper_pearson"] == pytest.approx(value, abs=0.1)


def test_largest_bound_over_thresholds_needs_its_correction(one_draw):
    # docs/methods.md, 3.13. Scores that know nothing: any bound above 0 is wrong.
    rng = np.random.default_rng(1)
    fixed, largest = [], []
    for _ in range(200):
        right = np.cumsum(rng.permutation(1_000) < 500)  # in descending order of scores
        # Auditing in one run at 5 % for each number of guesses: is ε = 0 refuted?
        refuted = binom.sf(right - 1, np.arange(1, 1_001), 0.5) <= 0.05
        fixed.append(refuted[99])
        largest.append(refuted.any())
    assert np.mean(fixed) < 0.08
    assert np.mean(largest) > 0.2

    wrong = 0
    for seed in range(40):
        member = masks(rng, 2, 1_000)
        found = epsilon.lower_bound(rng.normal(size=member.shape), member, seed=seed)
        wrong += found["epsilon"] > 0 or found["clopper_pearson"] > 0
    assert wrong <= 3


def test_each_example_counts_once_however_many_targets_repeat_it(one_draw):
    # Sixty targets that are copies of one: sixty times the entries, no more evidence.
    from jax_privacy.auditing import CanaryScoreAuditor

    rng = np.random.default_rng(2)
    pooled, once = [], []
    for seed in range(60):
        member = np.repeat(masks(rng, 1, 60), 60, axis=0)
        scores = np.repeat(randomised_response(rng, member[:1], 0.5), 60, axis=0)
        auditor = CanaryScoreAuditor(scores[member], scores[~member])
        pooled.append(auditor.epsilon_clopper_pearson(0.05))
        once.append(epsilon.lower_bound(scores, member, seed=seed))
    assert np.mean(np.array(pooled) > 0.5) > 0.2
    for key in ("epsilon", "clopper_pearson"):
        assert np.mean(np.array([one[key] for one in once]) > 0.5) <= 0.05


def test_more_delta_more_confidence_and_more_candidates_lower_the_bound(one_draw):
    rng = np.random.default_rng(3)
    member = masks(rng, 4, 2_000)
    scores = rng.normal(size=member.shape) + 2 * member
    base = epsilon.lower_bound(scores, member)
    assert 0.5 < base["epsilon"] < base["ceiling"]
    assert base["canaries"] == pytest.approx(2_000, rel=0.02)
    for change in ({"delta": 1e-2}, {"significance": 1e-4}, {"candidates": 100}):
        for key in ("epsilon", "clopper_pearson"):
            assert epsilon.lower_bound(scores, member, **change)[key] < base[key]
    assert epsilon.lower_bound(scores, member, significance=0.01)["confidence"] == 0.99


def test_only_the_order_of_scores_counts(one_draw):
    rng = np.random.default_rng(4)
    member = masks(rng, 3, 500)
    scores = rng.normal(size=member.shape) + member
    base = epsilon.lower_bound(scores, member)
    assert epsilon.lower_bound(np.exp(100 * scores), member) == base
    assert epsilon.lower_bound(scores, member, seed=1) != base


def test_median_over_draws_depends_little_on_the_seed():
    pytest.importorskip("jax_privacy.auditing", exc_type=ImportError)
    rng = np.random.default_rng(5)
    member = masks(rng, 16, 1_000)
    scores = rng.normal(size=member.shape) + 2 * member
    bounds = [epsilon.lower_bound(scores, member, seed=seed)["epsilon"] for seed in range(3)]
    assert max(bounds) - min(bounds) < 0.25
    found = epsilon.lower_bound(scores, member)
    assert found["epsilon"] == bounds[0]
    assert json.loads(json.dumps(found)) == found


def test_a_handful_of_canaries_bounds_nothing(one_draw):
    member = np.array([[True, False, False], [False, True, True]])
    found = epsilon.lower_bound(member.astype(float), member)
    assert found["epsilon"] == 0
    assert found["reason"] is None


def test_without_jax_privacy_the_reason_is_stated(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy.auditing", None)
    member = np.array([[True, False]])
    found = epsilon.lower_bound(np.array([[1.0, 0.0]]), member)
    assert found["epsilon"] is None
    assert "lira_jax[audit]" in found["reason"]


def test_importing_the_module_imports_no_jax():
    code = "import sys, lira_jax.analysis.epsilon; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "change", [{"delta": 0.0}, {"delta": 1.0}, {"significance": 0.5}, {"candidates": 0}]
)
def test_senseless_arguments_are_refused(change):
    member = np.array([[True, False]])
    with pytest.raises(ValueError, match="delta"):
        epsilon.lower_bound(np.array([[1.0, 0.0]]), member, **change)
    with pytest.raises(ValueError, match="non-members"):
        epsilon.lower_bound(np.array([[1.0, 0.0]]), np.array([[True, True]]))
