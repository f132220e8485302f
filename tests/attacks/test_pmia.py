"""PMIA against a plain loop, and what its proxies may and may not know."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from lira_jax.attacks import pmia, references
from lira_jax.config import AttackConfig
from tests.attacks.synthetic import MASKS, blocked_masks, references_of, uneven_scores, with_rule


def run(scores, keep, labels, **config):
    """Scores of both attacks."""
    score_set, rule = with_rule(scores, keep)
    score_set = dataclasses.replace(score_set, labels=labels)
    arguments = score_set, rule, AttackConfig(**config)
    return pmia.all_examples(*arguments) | pmia.same_class(*arguments)


def plain(scores, keep, labels, centre):
    """One target, example and view at a time."""
    _, rule = with_rule(scores, keep)
    models, examples, queries = scores.shape
    result = {name: np.zeros(keep.shape) for name in ("pmia-all", "pmia-class")}
    for target, q in np.ndindex(models, queries):
        inside, outside = (
            np.stack(
                [scores[references_of(rule, keep, target, e, side), e, q] for e in range(examples)]
            )
            for side in (True, False)
        )
        for e in range(examples):
            own = outside[e]
            std_out = own.std(ddof=1) if own.size > 1 else outside.std(ddof=1)
            std_out = max(std_out, 0.01 * outside.std(ddof=1))
            middle = np.median(own) if centre == "median" else own.mean()
            phi = scores[target, e, q]
            log_out = norm.logpdf(phi, middle, std_out)
            others = np.arange(examples) != e
            same = others & (labels == labels[e])
            for name, chosen in (("pmia-all", others), ("pmia-class", same)):
                proxies = inside[chosen if chosen.any() else others]
                std = max(proxies.std(ddof=1), 0.01 * inside.std(ddof=1))
                result[name][target, e] += norm.logpdf(phi, proxies.mean(), std) - log_out
    return result


@pytest.mark.parametrize(
    ("masks", "centre"), [*((masks, "mean") for masks in MASKS), ("free", "median")]
)
def test_scores_equal_a_plain_loop(masks, centre, monkeypatch):
    rng = np.random.default_rng(0)
    keep = MASKS[masks](rng)
    labels = np.array([4, 2, 2, 4, 0, 2, 2, 4, 2, 4, 4])  # class 0 has one example
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * len(keep) * 2 * 3)  # three examples
    expected, got = plain(scores, keep, labels, centre), run(scores, keep, labels, centre=centre)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], 1e-8, 1e-8, err_msg=name)


def small(rng):
    keep = blocked_masks(rng, 8, 20)
    return keep, rng.integers(3, size=20), uneven_scores(rng, keep, queries=2, shift=1)


def test_an_examples_own_in_scores_play_no_part():
    rng = np.random.default_rng(1)
    keep, labels, scores = small(rng)
    before, changed = run(scores, keep, labels), scores.copy()
    changed[keep[:, 3], 3] += 40 * rng.normal(size=(4, 2))
    outside = ~keep[:, 3]
    for name, after in run(changed, keep, labels).items():
        # Of 40 times the scores' spread, rounding errors are left.
        np.testing.assert_allclose(after[outside, 3], before[name][outside, 3], 1e-8, 1e-8)


def test_other_classes_play_no_part_in_the_proxies_of_a_class():
    rng = np.random.default_rng(2)
    keep, labels, scores = small(rng)
    changed = np.where((labels == 1)[:, np.newaxis] & keep[..., np.newaxis], scores + 2, scores)
    before, after = run(scores, keep, labels), run(changed, keep, labels)
    others = np.ones((8, 1), dtype=bool) & (labels != 1)
    np.testing.assert_array_equal(after["pmia-class"][others], before["pmia-class"][others])
    assert not np.isclose(after["pmia-all"][others], before["pmia-all"][others]).any()


def test_classes_are_told_apart_by_label_and_one_class_is_all_data():
    rng = np.random.default_rng(3)
    keep, labels, scores = small(rng)
    names = np.array([70, 3, 500])
    got, renamed = run(scores, keep, labels), run(scores, keep, names[labels])
    np.testing.assert_allclose(renamed["pmia-class"], got["pmia-class"])
    one = run(scores, keep, np.full(20, 6))
    np.testing.assert_allclose(one["pmia-class"], one["pmia-all"])


@pytest.mark.parametrize("masks", ["blocks of 2", "2 of 4"])
def test_the_rest_of_the_targets_block_matters_neither_for_x_nor_for_its_proxies(masks):
    rng = np.random.default_rng(4)
    keep = MASKS[masks](rng)
    labels = rng.integers(2, size=11)
    scores = uneven_scores(rng, keep, queries=1, shift=1)
    _, rule = with_rule(scores, keep)
    before, changed = run(scores, keep, labels), scores.copy()
    changed[1 : rule.fold] += 5
    for name, after in run(changed, keep, labels).items():
        np.testing.assert_allclose(after[0], before[name][0], 1e-9, 1e-9)
