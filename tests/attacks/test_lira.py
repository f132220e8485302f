"""LiRA against brute force with SciPy's densities, without leakage, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from lira_jax import evaluation
from lira_jax.attacks import ATTACKS, lira, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet


def blocked_masks(rng, models, examples, block=2, per_block=1):
    ranks = rng.random((models // block, block, examples)).argsort(axis=1)
    return (ranks < per_block).reshape(models, examples)


def free_masks(rng, models, examples, least=2):
    """Coin tosses, on examples that have `least` models on each side."""
    keep = rng.random((models, 20 * examples)) < 0.5
    count = keep.sum(axis=0)
    return keep[:, (count >= least) & (count <= models - least)][:, :examples]


def halved_masks(rng, models, examples):
    """Every example in exactly half of the models, without blocks."""
    return rng.random((models, examples)).argsort(axis=0) < models // 2


def uneven_scores(rng, keep, queries, shift):
    """Examples of unlike location and spread; members higher by `shift` spreads."""
    spread = rng.gamma(2.0, size=(keep.shape[1], 1))
    noise = rng.normal(size=(*keep.shape, queries))
    return 3 * rng.normal(size=(keep.shape[1], 1)) + spread * (noise + shift * keep[..., None])


def run(scores, keep, family="lira", **config):
    score_set = ScoreSet(scores, keep, None, "test")
    return ATTACKS[family].attack(
        score_set, references.find(score_set), AttackConfig(**config), False
    )


def brute_force(scores, keep, centre, variance):
    """One target and one example at a time, references refitted, SciPy's densities."""
    rule = references.find(ScoreSet(scores, keep, None, "test"))
    models, examples, queries = scores.shape
    middle = np.mean if centre == "mean" else np.median
    online, offline = np.zeros((2, models, examples))

    def chosen(target, example, side):
        if rule.order is None:
            out = np.arange(models) // rule.fold != target // rule.fold
            return np.flatnonzero(out & (keep[:, example] == side))
        on_side = [n for n in rule.order[:, example] if keep[n, example] == side]
        count = rule.base_in if side else rule.base_out
        base = on_side[:count]
        base.remove(target if target in base else base[-1])
        return np.array(base)

    for target in range(models):
        center, std = {}, {}
        for side in (True, False):
            left = [scores[chosen(target, e, side), e] for e in range(examples)]
            everything = np.concatenate(left).std(axis=0, ddof=1)
            residual = sum(((one - one.mean(axis=0)) ** 2).sum(axis=0) for one in left)
            freedom = max(len(left[0]) - 1, 1)
            for e, one in enumerate(left):
                center[side, e] = middle(one, axis=0)
                std[side, e] = {
                    "": np.sqrt(((one - one.mean(axis=0)) ** 2).sum(axis=0) / freedom),
                    "-global": everything,
                    "-pooled": np.sqrt(residual / (freedom * examples)),
                }[variance]
                std[side, e] = np.maximum(std[side, e], np.maximum(0.01 * everything, 1e-6))
        for e in range(examples):
            for q in range(queries):
                phi = scores[target, e, q]
                inside = (center[True, e][q], std[True, e][q])
                outside = (center[False, e][q], std[False, e][q])
                online[target, e] += norm.logpdf(phi, *inside) - norm.logpdf(phi, *outside)
                offline[target, e] -= norm.logsf(phi, *outside)
    return {f"lira-online{variance}": online, f"lira-offline{variance}": offline}


@pytest.mark.parametrize("variance", lira.VARIANCES)
@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize(
    "masks",
    [
        lambda rng: blocked_masks(rng, 6, 7),
        lambda rng: blocked_masks(rng, 9, 7, block=3, per_block=2),
        lambda rng: free_masks(rng, 7, 7, least=3),
        lambda rng: halved_masks(rng, 4, 7),  # one reference on each side
    ],
)
def test_scores_equal_brute_force(masks, centre, variance, monkeypatch):
    rng = np.random.default_rng(0)
    keep = masks(rng)
    scores = uneven_scores(rng, keep, queries=2, shift=2)
    expected = brute_force(scores, keep, centre, variance)
    monkeypatch.setattr(references, "CHUNK_BYTES", 8 * keep.shape[0] * 2 * 3)  # three examples
    for offset in (0.0, 1e4):
        got = run(scores + offset, keep, centre=centre)
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-6, atol=1e-6)


def far_off(rng, keep):
    """All scores within a few float32 steps of 1e6."""
    return 1e6 + 0.25 * rng.normal(size=(*keep.shape, 2)), 1e6


def further_off_than_wide(rng, keep):
    """All scores within a few float32 steps of −1e4."""
    return 0.005 * uneven_scores(rng, keep, 2, 1) - 1e4, -1e4


def nearly_constant(rng, keep):
    """Examples with equal scores but for one model, or for a few float32 steps, among others."""
    scores = uneven_scores(rng, keep, 2, 1)
    scores[:, :2] = 300.0
    scores[1, 0] += 1
    scores[:, 1] += 1e-4 * rng.normal(size=(len(keep), 2))
    return scores, 0.0


def outliers(rng, keep):
    """On two examples, one model's score beside which all others look equal."""
    scores = uneven_scores(rng, keep, 2, 1)
    scores[2, 3] = 1e5
    scores[5, 4] = -1e9
    return scores, 0.0


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("masks", [blocked_masks, lambda *args: free_masks(*args, least=3)])
@pytest.mark.parametrize("make", [far_off, further_off_than_wide, nearly_constant, outliers])
def test_subtracting_the_targets_block_loses_no_digits(make, masks, centre):
    rng = np.random.default_rng(0)
    keep = masks(rng, 8, 7)
    scores, offset = make(rng, keep)
    scores = scores.astype(np.float32)
    got = run(scores, keep, centre=centre)
    for variance in lira.VARIANCES:
        # Without the offset, which float64 takes off exactly, brute force has no digits to lose.
        expected = brute_force(scores.astype(np.float64) - offset, keep, centre, variance)
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("models", [4, 8, 16])
@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_without_leakage_auc_is_one_half(models, masks):
    # Scores know nothing of the masks. METHODS.md, 3.10: leave-one-out on halved masks with
    # unequal counts would give .431 at N = 8.
    rng = np.random.default_rng(models)
    areas: dict[str, list[float]] = {}
    for _ in range(40):
        keep = masks(rng, models, 600)
        scores = uneven_scores(rng, keep, queries=2, shift=0)
        for family in ATTACKS:
            for name, values in run(scores, keep, family).items():
                curve = evaluation.roc(values, keep)
                areas.setdefault(name, []).append(evaluation.auc(curve))
    for name, area in areas.items():
        error = np.std(area, ddof=1) / np.sqrt(len(area))
        assert abs(np.mean(area) - 0.5) < 4 * error, (name, np.mean(area), error)
        assert error < 0.004


@pytest.mark.parametrize("models", [4, 8])
@pytest.mark.parametrize("masks", [blocked_masks, free_masks, halved_masks])
def test_models_that_differ_in_general_tell_nothing_of_membership(models, masks):
    # Some models are more confident on everything, as models made elsewhere are: which of them are
    # a target's references must then not depend on the answer either.
    rng = np.random.default_rng(models)
    areas: dict[str, list[float]] = {}
    for _ in range(60):
        keep = masks(rng, models, 400)
        scores = uneven_scores(rng, keep, queries=1, shift=0)
        scores += 3 * rng.normal(size=(models, 1, 1))
        for name, values in run(scores, keep).items():
            areas.setdefault(name, []).append(evaluation.auc(evaluation.roc(values, keep)))
    for name, area in areas.items():
        error = np.std(area, ddof=1) / np.sqrt(len(area))
        assert abs(np.mean(area) - 0.5) < 4 * error, (name, np.mean(area), error)
        assert error < 0.015


def test_with_leakage_every_attack_finds_it():
    rng = np.random.default_rng(5)
    keep = blocked_masks(rng, 16, 500)
    scores = uneven_scores(rng, keep, queries=2, shift=2)
    for family in ATTACKS:
        for name, values in run(scores, keep, family).items():
            assert evaluation.auc(evaluation.roc(values, keep)) > 0.55, name


def test_order_of_examples_does_not_matter():
    # With blocks. Leave-one-out draws each example's references by its place in the file.
    rng = np.random.default_rng(1)
    keep = blocked_masks(rng, 8, 40)
    scores = uneven_scores(rng, keep, queries=3, shift=1)
    order = rng.permutation(40)
    for family in ATTACKS:
        whole, permuted = run(scores, keep, family), run(scores[:, order], keep[:, order], family)
        for name in whole:
            np.testing.assert_allclose(permuted[name], whole[name][:, order], rtol=1e-9)


def test_order_of_blocks_does_not_matter():
    rng = np.random.default_rng(2)
    keep = blocked_masks(rng, 12, 40, block=3)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    order = np.arange(12).reshape(4, 3)[[2, 0, 3, 1]].ravel()
    for family in ATTACKS:
        whole, permuted = run(scores, keep, family), run(scores[order], keep[order], family)
        for name in whole:
            np.testing.assert_allclose(permuted[name], whole[name][order], rtol=1e-9)


def test_a_constant_added_to_every_score_changes_nothing():
    rng = np.random.default_rng(3)
    keep = blocked_masks(rng, 8, 30)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    for centre in ("mean", "median"):
        before, after = (run(scores + shift, keep, centre=centre) for shift in (0.0, -250.0))
        for name in before:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-7, atol=1e-9)


def test_only_the_first_queries_are_used():
    rng = np.random.default_rng(4)
    keep = blocked_masks(rng, 8, 30)
    scores = uneven_scores(rng, keep, queries=5, shift=1)
    for family in ATTACKS:
        prefix = run(scores, keep, family, queries=2)
        alone = run(scores[:, :, :2].copy(), keep, family)
        for name in alone:
            np.testing.assert_array_equal(prefix[name], alone[name])


def test_offline_scores_keep_rising_where_a_normal_cdf_is_one():
    # Two examples, one block of targets far above its OUT references, by 9, 12, 40 and 400 σ.
    rng = np.random.default_rng(6)
    keep = np.tile([[True, False], [False, True]], (20, 1))
    scores = rng.normal(size=(40, 2, 1))
    tail = []
    for height in (9.0, 12.0, 40.0, 400.0):
        scores[0, 0, 0] = height
        tail.append(run(scores, keep)["lira-offline"][0, 0])
    assert np.isfinite(tail).all()
    assert (np.diff(tail) > 1).all()


def test_constant_scores_tie_everywhere():
    keep = blocked_masks(np.random.default_rng(0), 8, 20)
    for name, values in run(np.full((8, 20, 3), np.float32(0.1)), keep).items():
        assert np.isfinite(values).all()
        assert evaluation.auc(evaluation.roc(values, keep)) == 0.5, name


def test_results_do_not_depend_on_the_size_of_chunks(monkeypatch):
    rng = np.random.default_rng(8)
    keep = blocked_masks(rng, 8, 50)
    scores = uneven_scores(rng, keep, queries=2, shift=1).astype(np.float32)
    whole = run(scores, keep)
    monkeypatch.setattr(references, "CHUNK_BYTES", 1)
    for name, values in run(scores, keep).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-9)
