"""LiRA against brute force with SciPy's densities, and what its variants promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import f, norm, t

from lira_jax import evaluation
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig
from lira_jax.score_set import ScoreSet
from tests.attacks.synthetic import blocked_masks, free_masks, halved_masks, uneven_scores


def run(scores, keep, **config):
    score_set = ScoreSet(scores, keep, None, "test")
    return lira.attack(score_set, references.find(score_set), AttackConfig(**config))


def reference_models(scores, keep):
    """[target][example, side]: the models chosen."""
    rule = references.find(ScoreSet(scores, keep, None, "test"))
    models, examples = keep.shape

    def chosen(target, example, side):
        if rule.order is None:
            out = np.arange(models) // rule.fold != target // rule.fold
            return np.flatnonzero(out & (keep[:, example] == side))
        on_side = [n for n in rule.order[:, example] if keep[n, example] == side]
        count = rule.base_in if side else rule.base_out
        base = on_side[:count]
        base.remove(target if target in base else base[-1])
        return np.array(base)

    return [
        {(e, side): chosen(target, e, side) for e in range(examples) for side in (True, False)}
        for target in range(models)
    ]


def brute_force(scores, keep, centre, variance, offset=0.0):
    """One target and one example at a time, references refitted, SciPy's densities.

    The offset is taken off first, so that there are digits to compute with.
    """
    referred = reference_models(scores, keep)
    scores = scores.astype(np.float64) - offset
    models, examples, queries = scores.shape
    middle = np.mean if centre == "mean" else np.median
    online, offline = np.zeros((2, models, examples))
    for target, chosen in enumerate(referred):
        left = {place: scores[chosen[place], place[0]] for place in chosen}
        laws = (shrunk_laws if variance == "-shrinkage" else gaussian_laws)(left, variance)
        for e, q in np.ndindex(examples, queries):
            phi = scores[target, e, q]
            centers = {side: middle(left[e, side], axis=0)[q] for side in (True, False)}
            inside, outside = (laws[e, side][q] for side in (True, False))
            online[target, e] += inside.logpdf(phi - centers[True])
            online[target, e] -= outside.logpdf(phi - centers[False])
            offline[target, e] -= outside.logsf(phi - centers[False])
    return {f"lira-online{variance}": online, f"lira-offline{variance}": offline}


def gaussian_laws(left, variance):
    """[example, side][view]: the law of one more score less the centre."""
    laws = {}
    examples = sorted({e for e, _ in left})
    for side in (True, False):
        together = np.concatenate([left[e, side] for e in examples])
        everything = together.std(axis=0, ddof=1)
        residual = sum(squares_of(left[e, side]) for e in examples)
        freedom = max(len(left[0, side]) - 1, 1)
        for e in examples:
            std = {
                "": np.sqrt(squares_of(left[e, side]) / freedom),
                "-global": everything,
                "-pooled": np.sqrt(residual / (freedom * len(examples))),
            }[variance]
            std = np.maximum(std, np.maximum(0.01 * everything, 1e-6))
            laws[e, side] = [norm(0, one) for one in std]
    return laws


def shrunk_laws(left, _=None):
    """[example, side][view]: d₀ by a root finder on SciPy's quantiles of F."""
    examples = sorted({e for e, _ in left})
    queries = left[0, True].shape[1]
    priors = {}
    for side in (True, False):
        d = len(left[0, side]) - 1
        for q in range(queries):
            if d:
                s2 = np.array([squares_of(left[e, side])[q] / d for e in examples])
                quarter = np.quantile(np.log(np.maximum(s2, 1e-12)), [0.25, 0.5, 0.75])
                priors[side, q] = matched(quarter, d)
    for q in range(queries):
        if (True, q) not in priors and (False, q) not in priors:
            gaps = [float((left[e, True] - left[e, False])[0, q]) for e in examples]
            std = np.subtract(*np.quantile(gaps, [0.75, 0.25])) / (2 * norm.ppf(0.75))
            priors[True, q] = priors[False, q] = (1000, std**2 / 2)
        for side in (True, False):
            priors.setdefault((side, q), priors.get((not side, q)))
    laws = {}
    for e, side in left:
        n, squares = len(left[e, side]), squares_of(left[e, side])
        laws[e, side] = []
        for q in range(queries):
            d0, s02 = priors[side, q]
            shrunk = (d0 * s02 + squares[q]) / (d0 + n - 1)
            scale = np.sqrt(max(shrunk, 1e-12) * (1 + 1 / n))
            laws[e, side].append(t(d0 + n - 1, 0, scale))
    return laws


def matched(quarter, d):
    def quartiles(d0):
        return np.log(f(d, d0).ppf([0.25, 0.5, 0.75]))

    def excess(d0):
        return np.ptp(quartiles(d0)) - (quarter[2] - quarter[0])

    d0 = 1 if excess(1) <= 0 else 1000 if excess(1000) >= 0 else brentq(excess, 1, 1000)
    return d0, np.exp(quarter[1] - quartiles(d0)[1])


def squares_of(one):
    return ((one - one.mean(axis=0)) ** 2).sum(axis=0)


def assert_equal(got, expected, variance):
    # Shrinkage keeps log variances in float32 and reads d₀ off a table.
    tolerance = 1e-4 if variance == "-shrinkage" else 1e-6
    for name, values in expected.items():
        assert np.isfinite(got[name]).all()
        finite = np.isfinite(values)  # SciPy's Student tails underflow
        np.testing.assert_allclose(
            got[name][finite], values[finite], tolerance, tolerance, err_msg=name
        )


@pytest.mark.parametrize("variance", lira.VARIANCES)
@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize(
    "masks",
    [
        lambda rng: blocked_masks(rng, 6, 5),
        lambda rng: blocked_masks(rng, 9, 5, block=3, per_block=2),
        lambda rng: free_masks(rng, 7, 5, least=3),
        lambda rng: halved_masks(rng, 4, 5),  # one reference on each side
        lambda rng: blocked_masks(rng, 6, 5, block=3),  # one IN and two OUT
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
        assert_equal(got, expected, variance)


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


@pytest.mark.parametrize(
    ("masks", "centre"),
    [(blocked_masks, "mean"), (lambda *args: free_masks(*args, least=3), "median")],
)
@pytest.mark.parametrize("make", [far_off, further_off_than_wide, nearly_constant, outliers])
def test_subtracting_the_targets_block_loses_no_digits(make, masks, centre):
    rng = np.random.default_rng(0)
    keep = masks(rng, 8, 5)
    scores, offset = make(rng, keep)
    scores = scores.astype(np.float32)
    got = run(scores, keep, centre=centre)
    for variance in lira.VARIANCES:
        # Without the offset, which float64 takes off exactly, brute force has no digits to lose.
        expected = brute_force(scores, keep, centre, variance, offset)
        assert_equal(got, expected, variance)


def test_a_constant_added_to_every_score_changes_nothing():
    rng = np.random.default_rng(3)
    keep = blocked_masks(rng, 8, 30)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    for centre in ("mean", "median"):
        before, after = (run(scores + shift, keep, centre=centre) for shift in (0.0, -250.0))
        for name in before:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-7, atol=1e-9)


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


def test_results_do_not_depend_on_the_size_of_chunks(monkeypatch):
    rng = np.random.default_rng(8)
    keep = blocked_masks(rng, 8, 50)
    scores = uneven_scores(rng, keep, queries=2, shift=1).astype(np.float32)
    whole = run(scores, keep)
    monkeypatch.setattr(references, "CHUNK_BYTES", 1)
    for name, values in run(scores, keep).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-9, atol=1e-9)


def test_one_absurd_score_spoils_shrinkage_for_its_own_example_only():
    rng = np.random.default_rng(9)
    keep = blocked_masks(rng, 16, 2_000)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    spoilt = scores.copy()
    spoilt[3, 17] = 1e6
    before, after = run(scores, keep), run(spoilt, keep)
    others = np.arange(2_000) != 17

    def moved(name):
        change = np.abs(after[name] - before[name])[:, others]
        return np.median(change / (1 + np.abs(before[name][:, others])))

    for name in ("lira-online", "lira-offline"):
        assert moved(f"{name}-shrinkage") < 1e-3
        assert moved(f"{name}-global") > 0.05 < moved(f"{name}-pooled")
        assert np.isfinite(after[f"{name}-shrinkage"]).all()


@pytest.mark.parametrize("models", [4, 6, 8])
def test_with_few_references_shrinkage_is_ahead_of_a_variance_per_example(models):
    # One, two and three references a side, on examples of unlike spread.
    rng = np.random.default_rng(10)
    keep = blocked_masks(rng, models, 4_000)
    scores = uneven_scores(rng, keep, queries=2, shift=2)
    got = run(scores, keep)
    tpr = {
        name: evaluation.tpr_at_fpr(evaluation.roc(values, keep), 0.01)
        for name, values in got.items()
    }
    for kind in ("online", "offline"):
        shrunk = tpr[f"lira-{kind}-shrinkage"]
        assert shrunk >= tpr[f"lira-{kind}"], tpr
        # With one reference there is but one variance, known as badly by all.
        assert shrunk > (0.9 if models == 4 else 1) * tpr[f"lira-{kind}-global"], tpr


def test_a_target_of_its_own_meets_every_model_as_reference():
    # A model's scores against all others: as in a larger run, of which its block is left out.
    rng = np.random.default_rng(11)
    keep = blocked_masks(rng, 10, 30)
    scores = uneven_scores(rng, keep, queries=2, shift=1)
    for centre in ("mean", "median"):
        within = run(scores, keep, centre=centre)
        others = ScoreSet(scores[2:], keep[2:], None, "test")
        config = AttackConfig(centre=centre)
        alone = lira.likelihoods(others, references.find(others), config, targets=scores[:2])
        for name, values in alone.items():
            np.testing.assert_allclose(values, within[name][:2], rtol=1e-9, atol=1e-9)
