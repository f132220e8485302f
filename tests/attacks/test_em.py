"""EM by products of matrices: against sums over examples, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from lira_jax.attacks import em
from lira_jax.attacks.em import CONTRACTION, REST, WEAK, Law, Side, fitted, in_cells
from lira_jax.attacks.hierarchical import posterior

NAMES = list(Law.__dataclass_fields__)[:8]
USUAL, WIDTH = 0.8, 3.0


def any_law(rng, kinds):
    return Law(
        share=rng.dirichlet(np.full(kinds, 3.0)),
        mean_out=20 + 2 * rng.normal(size=kinds),
        mean_in=22 + 2 * rng.normal(size=kinds),
        level=rng.gamma(2.0, size=kinds),
        contraction=rng.uniform(0.1, 1.2, kinds),
        rest=rng.gamma(1.0, size=kinds) + 0.01,
        noise_out=rng.gamma(2.0, size=kinds) + 0.05,
        noise_in=rng.gamma(2.0, size=kinds) + 0.05,
    )


def references(rng, examples, counts):
    """Sides of examples with so many references, or with any from none to five."""
    sides = []
    for mean, count in zip((20, 22), counts or (None, None), strict=True):
        n = rng.integers(6, size=examples).astype(float) if count is None else float(count)
        some = np.broadcast_to(np.asarray(n) > 0, examples)
        more = np.broadcast_to(np.asarray(n) > 1, examples)
        sides.append(
            Side(
                n,
                np.where(some, mean + 2 * rng.normal(size=examples), 0.0),
                np.where(more, rng.gamma(2.0, size=examples), 0.0),
            )
        )
    return sides


def round_by_examples(law, out, inside, target):
    """One round of EM and the evidence before it, from the posterior of each example and answer."""
    answers = [(out, inside, 1.0)]
    if target is not None:
        share = np.mean(inside.count) / (np.mean(inside.count) + np.mean(out.count))
        answers = [(out.plus(target), inside, 1 - share), (out, inside.plus(target), share)]
    known = [posterior(law, o, i) for o, i, _ in answers]
    each = np.stack([k.log_evidence + np.log(a[2]) for k, a in zip(known, answers, strict=True)])
    total = logsumexp(each, axis=(0, 1))
    r = np.exp(each - total)  # [A, K, C]

    def summed(values):
        return sum((weight * value).sum(axis=1) for weight, value in zip(r, values, strict=True))

    weight = r.sum(axis=(0, 2))
    m_out = summed([k.out for k in known]) / weight
    m_in = summed([k.inside for k in known]) / weight
    from_out = [k.out - m_out[:, np.newaxis] for k in known]
    from_in = [k.inside - m_in[:, np.newaxis] for k in known]
    every = list(zip(from_out, from_in, known, strict=True))
    oo = summed([o**2 + k.var_out for o, _, k in every])
    oi = summed([o * i + k.cov for o, i, k in every])
    ii = summed([i**2 + k.var_in for _, i, k in every])
    squares_out, squares_in = (
        summed([
            side.squares + side.count * ((side.mean - mean) ** 2 + variance)
            for side, mean, variance in of_side
        ])
        for of_side in (
            [(a[0], k.out, k.var_out) for a, k in zip(answers, known, strict=True)],
            [(a[1], k.inside, k.var_in) for a, k in zip(answers, known, strict=True)],
        )
    )  # fmt: skip
    one = np.ones_like(known[0].out)
    count_out, count_in = (summed([a[s].count * one for a in answers]) for s in (0, 1))
    prior = WEAK * WIDTH / law.share.size**2
    b = (oi + prior) / (oo + prior)
    v_out = (squares_out + WEAK * USUAL) / (count_out + WEAK)
    new = Law(
        share=weight / weight.sum(),
        mean_out=m_out,
        mean_in=m_in,
        level=(oo + prior) / (weight + WEAK),
        contraction=b,
        rest=(ii - 2 * b * oi + b * b * oo + CONTRACTION * REST * v_out) / (weight + CONTRACTION),
        noise_out=v_out,
        noise_in=(squares_in + CONTRACTION * b * b * v_out) / (count_in + CONTRACTION),
    )
    return new, total.mean()


@pytest.mark.parametrize("counts", [(3, 3), (1, 4), None], ids=["equal", "unlike sides", "any"])
@pytest.mark.parametrize("unknown", [False, True], ids=["references", "and a target"])
@given(seed=st.integers(0, 2**32 - 1), kinds=st.integers(1, 4))
@settings(deadline=None, max_examples=6)
def test_a_round_is_that_of_the_posteriors_of_examples_one_by_one(counts, unknown, seed, kinds):
    rng = np.random.default_rng(seed)
    law, examples = any_law(rng, kinds), 150
    out, inside = references(rng, examples, counts)
    target = 21 + rng.normal(size=examples) if unknown else None
    expected, evidence = round_by_examples(law, out, inside, target)
    cells = in_cells(out, inside, target)
    _, before = fitted(law, cells, USUAL, WIDTH, 0, 0.0)
    found, _ = fitted(law, cells, USUAL, WIDTH, 1, -np.inf)
    assert before == pytest.approx(evidence, abs=1e-9)
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), 1e-8, 1e-9, err_msg=name
        )


def test_where_scores_lie_changes_nothing_but_the_means():
    rng = np.random.default_rng(0)
    law = any_law(rng, 2)
    out, inside = references(rng, 400, (2, 3))
    far = [Side(side.count, side.mean + 1e5, side.squares) for side in (out, inside)]
    moved = Law(**{
        name: getattr(law, name) + 1e5 * name.startswith("mean") for name in NAMES
    })  # fmt: skip
    here, _ = fitted(law, in_cells(out, inside), USUAL, WIDTH, 20, -np.inf)
    there, _ = fitted(moved, in_cells(*far), USUAL, WIDTH, 20, -np.inf)
    for name in NAMES:
        expected = getattr(here, name) + 1e5 * name.startswith("mean")
        np.testing.assert_allclose(getattr(there, name), expected, 1e-6, err_msg=name)


def test_cells_hold_every_example_once_and_of_equal_counts():
    rng = np.random.default_rng(1)
    out, inside = references(rng, 333, None)
    cells = in_cells(out, inside)
    assert cells.taken.sum() == 333
    assert cells.taken.shape[1] == em.CELL
    taken = cells.taken > 0
    found = np.stack([
        np.broadcast_to(cells.out, taken.shape)[taken],
        np.broadcast_to(cells.inside, taken.shape)[taken],
        cells.statistics[:, 6][taken],
        cells.statistics[:, 7][taken],
    ])  # fmt: skip
    expected = np.stack([out.count, inside.count, out.squares, inside.squares])
    assert (found[:, np.lexsort(found)] == expected[:, np.lexsort(expected)]).all()
