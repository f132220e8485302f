from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, iqr

from lira_jax.analysis import loss_traces
from lira_jax.data import membership
from tests.synthetic_findings import vulnerability


def block(seed=0, kept=1, models=2, examples=40, epochs=7):
    """Traces of a block, and its masks."""
    keep = membership.blocked_masks(seed, models, examples, kept, models)
    rng = np.random.default_rng(seed)
    shape = (models, epochs, int(keep[0].sum()))
    return list(rng.exponential(size=shape).astype(np.float32)), keep


@pytest.mark.parametrize(("kept", "models"), [(1, 2), (1, 4), (3, 4)])
@pytest.mark.parametrize("epochs", [2, 7])
def test_the_range_is_the_mean_over_the_models_that_trained_on_the_example(kept, models, epochs):
    traces, keep = block(1, kept, models, epochs=epochs)
    whole = np.full((models, epochs, 40), np.nan)
    for model in range(models):
        whole[model][:, keep[model]] = traces[model]
    expected = [
        np.mean([iqr(whole[model, :, example]) for model in np.flatnonzero(keep[:, example])])
        for example in range(40)
    ]
    np.testing.assert_allclose(loss_traces.interquartile_ranges(traces, keep), expected, rtol=1e-6)


def test_epochs_after_early_stopping_do_not_count():
    traces, keep = block()
    padded = [np.concatenate([trace, np.full_like(trace, np.nan)]) for trace in traces]
    ranges = loss_traces.interquartile_ranges(traces, keep)
    np.testing.assert_array_equal(loss_traces.interquartile_ranges(padded, keep), ranges)
    padded[0][:] = np.nan
    one_untold = loss_traces.interquartile_ranges(padded, keep)
    np.testing.assert_array_equal(one_untold, np.where(keep[0], 0, ranges))


@settings(max_examples=20)
@given(st.integers(0, 100), st.floats(0.01, 100), st.permutations(range(7)))
def test_neither_the_order_of_epochs_nor_the_unit_of_losses_changes_the_ranking(seed, unit, order):
    traces, keep = block(seed)
    ranges = loss_traces.interquartile_ranges(traces, keep)
    changed = [(unit * trace[list(order)]).astype(np.float32) for trace in traces]
    again = loss_traces.interquartile_ranges(changed, keep)
    np.testing.assert_allclose(again, unit * ranges, rtol=1e-4)


def exposed(seed=0, examples=300):
    """What an attack found, at random."""
    rng = np.random.default_rng(seed)
    keep = membership.blocked_masks(seed, 8, examples, 1, 2)
    return vulnerability(rng.normal(size=keep.shape) + keep, keep)


def test_precision_is_the_share_of_the_named_among_as_many_most_exposed():
    found, ranges = exposed(), np.random.default_rng(2).exponential(size=300)
    ranges[found.order[:4]] += 10  # the fourth is one too many for 1 %
    natural = np.ones(300, bool)
    result = loss_traces.judged(ranges, found, natural)
    assert (result["attack"], result["examples"]) == ("lira-online", 300)
    for share, named in (("0.01", 3), ("0.05", 15)):
        likely = set(sorted(range(300), key=lambda example: -ranges[example])[:named])
        hits = len(likely & {n for n in range(300) if found.rank[n] <= named})
        told = result["precision"][share]
        assert (told["named"], told["hits"]) == (named, hits)
        assert told["precision"] == hits / named
        assert told["chance"] == pytest.approx(float(share))
        interval = binomtest(hits, named).proportion_ci(method="exact")
        np.testing.assert_allclose(told["precision_ci"], interval, atol=1e-12)


def test_the_ranking_itself_is_always_right_and_its_reverse_never():
    found, natural = exposed(), np.ones(300, bool)
    for ranges, precision in ((1.0 / found.rank, 1.0), (found.rank.astype(float), 0.0)):
        told = loss_traces.judged(ranges, found, natural)["precision"]
        assert [one["precision"] for one in told.values()] == [precision] * 2


def test_a_guess_without_knowledge_is_right_as_often_as_chance():
    found, natural, rng = exposed(), np.ones(300, bool), np.random.default_rng(3)
    mean = np.mean(
        [
            loss_traces.judged(rng.random(300), found, natural)["precision"]["0.05"]["precision"]
            for _ in range(400)
        ]
    )
    assert mean == pytest.approx(0.05, abs=0.01)  # 3.7 standard errors


def test_canaries_neither_take_nor_give_a_place():
    found, natural = exposed(), np.ones(300, bool)
    natural[found.order[:20]] = False
    ranges = np.where(natural, 1.0 / found.rank, 100.0)
    told = loss_traces.judged(ranges, found, natural)
    assert told["examples"] == 280
    assert [one["precision"] for one in told["precision"].values()] == [1.0, 1.0]


def test_without_traces_there_is_nothing_to_judge():
    assert loss_traces.judged(None, exposed(), np.ones(300, bool)) is None


def test_csv_has_the_most_likely_first_and_ties_by_place():
    ranges, labels = np.array([0.5, 2.0, 0.5, 0.25]), np.array([3, 1, 4, 1])
    text = loss_traces.as_csv(ranges, labels, np.array([False, False, True, False]))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["example"] for row in rows] == ["1", "0", "2", "3"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[2] == {"rank": "3", "example": "2", "label": "4", "iqr": "0.5", "canary": "1"}
