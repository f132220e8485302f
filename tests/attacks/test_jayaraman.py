"""Merlin's order and ties, and Morgan's window against trying all windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lira_jax import evaluation
from lira_jax.attacks import jayaraman
from tests.attacks.shadow_outputs import blocked_masks, halved_masks, outputs, run


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_no_window_tells_members_better(pairs):
    values, member = np.array(pairs).T
    member = member.astype(bool)
    low, high = jayaraman.window(values.astype(float), member)
    if member.all() or not member.any():
        assert (low, high) == (-np.inf, np.inf)
        return

    def advantage(a, b):
        inside = (a <= values) & (values <= b)
        return inside[member].mean() - inside[~member].mean()

    best = max(advantage(a, b) for a in values for b in values if a <= b)
    assert advantage(low, high) == pytest.approx(best)
    assert low in values
    assert high in values


def test_a_window_has_two_ends():
    # Members between the non-members: neither −φ nor φ alone tells them.
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(1, 2, 50), rng.uniform(-4, 0, 60), rng.uniform(3, 9, 60)])
    low, high = jayaraman.window(values, np.arange(170) < 50)
    assert (low, high) == (values[:50].min(), values[:50].max())


def test_ties_break_at_random_and_nothing_else_changes_place():
    rng = np.random.default_rng(1)
    score_set = outputs(rng, halved_masks(rng, 10, 300), shift=1.0)
    merlin = run(score_set, "jayaraman")["merlin"]
    share = score_set.merlin
    for level in np.unique(share)[1:]:
        assert merlin[share >= level].min() > merlin[share < level].max()
    tied = share == 0.5
    assert len(np.unique(merlin[tied])) == tied.sum()
    # At random: the tie-break tells nothing of φ, although φ tells of membership.
    curve = evaluation.roc(merlin[tied], score_set.scores[..., 0][tied] > 0)
    assert evaluation.auc(curve) == pytest.approx(0.5, abs=0.08)


def test_morgan_puts_the_window_first_and_keeps_merlins_order_within():
    rng = np.random.default_rng(2)
    score_set = outputs(rng, blocked_masks(rng, 12, 300), shift=2.0)
    scores = run(score_set, "jayaraman")
    merlin, morgan = scores["merlin"], scores["morgan"]
    raised = morgan - merlin
    assert set(np.unique(raised).round(6)) == {0.0, float(len(np.unique(score_set.merlin)))}
    inside = raised > 0
    assert morgan[inside].min() > morgan[~inside].max()
    for part in (inside, ~inside):
        np.testing.assert_array_equal(morgan[part].argsort(), merlin[part].argsort())
    assert inside[score_set.keep].mean() > inside[~score_set.keep].mean() + 0.1
