"""The law of `hierarchical.py` fitted by EM, in rounds of two products of matrices.

Among examples with equally many references (a *cell*), a kind shrinks means by the same factors.
So within it the log evidence of an example is linear in STATISTICS of its references, and all that
the next law asks of examples is the sums of these, by kind and cell.

NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

# Parameters of a kind: π, m_out, m_in, t, b, r, v_out, v_in, less one that π sums to 1 once.
PARAMETERS = 8
# Of an example: 1; x_out and x_in, its means less the centre; x_out², x_out·x_in, x_in²; the sums
# of squared deviations of either side.
STATISTICS = 8
# Examples of a cell at most, where not all have equally many references.
CELL = 32

# Weights, in examples, of the priors: that kinds are as wide and as noisy as all examples; and that
# training contracts, with r = REST · v_out.
WEAK = 2.0
CONTRACTION = 20.0
REST = 1 / 16
# The least v of a kind, as a share of the usual.
LEAST_OF_USUAL = 1e-3


@dataclass(frozen=True)
class Side:
    """What one side's references of every example come to; any shapes that broadcast.

    Attributes:
        count: n, 0 where there are none.
        mean: their mean; any finite number where there are none.
        squares: the sum of their squared deviations from it.
    """

    count: Shaped[np.ndarray, "..."] | float
    mean: Float[np.ndarray, "..."]
    squares: Float[np.ndarray, "..."]

    def plus(self, score: Float[np.ndarray, "..."]) -> Side:
        """With one more score."""
        n, step = self.count, score - self.mean
        return Side(n + 1, self.mean + step / (n + 1), self.squares + step * step * n / (n + 1))

    def of(self, chosen: Shaped[np.ndarray, " C"] | slice) -> Side:
        """Of the chosen examples."""
        count = self.count[chosen] if isinstance(self.count, np.ndarray) else self.count
        return Side(count, self.mean[chosen], self.squares[chosen])

    def none(self) -> Side:
        """The same examples without references."""
        return Side(0.0, np.zeros_like(self.mean), np.zeros_like(self.squares))


@dataclass(frozen=True)
class Law:
    """The law of all examples; arrays [K], one entry per kind.

    Attributes:
        share: π.
        mean_out, mean_in: m.
        level: t, the variance of μ_out.
        contraction: b.
        rest: r, the variance of μ_in that μ_out does not tell.
        noise_out, noise_in: v.
        rounds: of EM.
        converged: whether these were enough.
    """

    share: Float[np.ndarray, " K"]
    mean_out: Float[np.ndarray, " K"]
    mean_in: Float[np.ndarray, " K"]
    level: Float[np.ndarray, " K"]
    contraction: Float[np.ndarray, " K"]
    rest: Float[np.ndarray, " K"]
    noise_out: Float[np.ndarray, " K"]
    noise_in: Float[np.ndarray, " K"]
    rounds: int = 0
    converged: bool = True

    def columns(self) -> tuple[Float[np.ndarray, "K 1"], ...]:
        """The arrays in the order of declaration, to broadcast against examples."""
        names = list(Law.__dataclass_fields__)[:PARAMETERS]
        return tuple(getattr(self, name)[:, np.newaxis] for name in names)


@dataclass(frozen=True)
class Cells:
    """Examples, laid out in cells of equally many references.

    Of a target whose side is not known, both answers have cells of their own, each of the same
    examples in the same order: first those in which it is OUT.

    Attributes:
        out, inside: references of each cell's examples, [L, 1].
        statistics: STATISTICS of each, [L, 8, P]; zero where a cell has fewer examples than P.
        taken: 1 where a cell has an example, else 0, [G, P]; L is G per answer.
        log_odds: of each cell's answer, [L, 1].
        centre: of OUT and of IN means.
    """

    out: Float[np.ndarray, "L 1"]
    inside: Float[np.ndarray, "L 1"]
    statistics: Float[np.ndarray, "L 8 P"]
    taken: Float[np.ndarray, "G P"]
    log_odds: Float[np.ndarray, "L 1"]
    centre: tuple[float, float]


def in_cells(out: Side, inside: Side, target: Float[np.ndarray, " C"] | None = None) -> Cells:
    """Lay out the references of C examples.

    Args:
        out, inside: the references.
        target: scores of one more model, whose side is not known; None without.
    """
    examples = out.mean.size
    counts = np.stack([np.broadcast_to(side.count, examples) for side in (out, inside)])
    centre_out, centre_in = float(np.median(out.mean)), float(np.median(inside.mean))
    both = counts[0] * (counts[1].max() + 1) + counts[1]
    _, group, sizes = np.unique(both, return_inverse=True, return_counts=True)
    width = examples if sizes.size == 1 else CELL
    cells = -(-sizes // width)
    # Examples group by group, each group from the start of a cell.
    first = (np.cumsum(cells) - cells) * width - (np.cumsum(sizes) - sizes)
    place = np.empty(examples, np.intp)
    place[np.argsort(group, kind="stable")] = np.arange(examples) + np.repeat(first, sizes)
    cell, slot = np.divmod(place, width)

    answers = [(out, inside, 1.0)]
    if target is not None:
        share_in = float(counts[1].mean() / counts.mean(axis=1).sum())
        answers = [(out.plus(target), inside, 1 - share_in), (out, inside.plus(target), share_in)]
    shape = (len(answers), int(cells.sum()))
    statistics = np.zeros((*shape, STATISTICS, width))
    of_out, of_in, log_odds = np.zeros((3, *shape, 1))
    for answer, (o, i, odds) in enumerate(answers):
        x_out, x_in = (
            np.where(side.count > 0, side.mean - centre, 0.0)
            for side, centre in ((o, centre_out), (i, centre_in))
        )
        statistics[answer, cell, :, slot] = np.stack([
            np.ones(examples), x_out, x_in, x_out**2, x_out * x_in, x_in**2, o.squares, i.squares
        ], axis=1)  # fmt: skip
        of_out[answer, cell, 0], of_in[answer, cell, 0] = o.count, i.count
        log_odds[answer] = np.log(odds)
    return Cells(
        out=of_out.reshape(-1, 1),
        inside=of_in.reshape(-1, 1),
        statistics=statistics.reshape(-1, STATISTICS, width),
        taken=statistics[0, :, 0].copy(),
        log_odds=log_odds.reshape(-1, 1),
        centre=(centre_out, centre_in),
    )


def fitted(
    law: Law, cells: Cells, usual: float, width: float, rounds: int, tolerance: float
) -> tuple[Law, float]:
    """The law that EM comes to from this one, and the mean log evidence of an example.

    Args:
        law: to start from.
        cells: the examples.
        usual: the usual v_out.
        width: how wide single scores lie.
        rounds: at most.
        tolerance: EM ends where a round changes the evidence by less.
    """
    law = _moved(law, -cells.centre[0], -cells.centre[1])
    prior = WEAK * width / law.share.size**2
    evidence = last = -np.inf
    for number in range(rounds + 1):
        known = _shrinkage(law, cells)
        evidence, sums = _expected(law, known, cells)
        # Either way: the priors may cost a little evidence.
        if number == rounds or abs(evidence - last) < tolerance:
            break
        last = evidence
        law = _maximised(law, known, cells, sums, usual, prior)
    law = _moved(law, *cells.centre)
    return replace(law, rounds=number, converged=number < rounds), evidence


def _moved(law: Law, out: float, inside: float) -> Law:
    return replace(law, mean_out=law.mean_out + out, mean_in=law.mean_in + inside)


@dataclass(frozen=True)
class _Shrinkage:
    """What a kind makes of references, by cell and kind, [L, K].

    Attributes:
        h_out, h_in: precision of their means about those of the example.
        p_oo, p_oi, p_ii: precision of their means about those of the kind.
        v_oo, v_oi, v_ii: covariance of (μ_out, μ_in) given them.
        log_det: of the covariance of their means about the kind's, as a share of their noise.
    """

    h_out: Float[np.ndarray, "L K"]
    h_in: Float[np.ndarray, "L K"]
    p_oo: Float[np.ndarray, "L K"]
    p_oi: Float[np.ndarray, "L K"]
    p_ii: Float[np.ndarray, "L K"]
    v_oo: Float[np.ndarray, "L K"]
    v_oi: Float[np.ndarray, "L K"]
    v_ii: Float[np.ndarray, "L K"]
    log_det: Float[np.ndarray, "L K"]


def _shrinkage(law: Law, cells: Cells) -> _Shrinkage:
    level, rest = law.level, law.rest
    common = law.contraction * level
    var_in = law.contraction * common + rest
    h_out, h_in = cells.out / law.noise_out, cells.inside / law.noise_in
    known_out, known_in = 1 + level * h_out, 1 + rest * h_in
    det = known_out * known_in + (var_in - rest) * h_in
    v_oi = common / det
    return _Shrinkage(
        h_out=h_out,
        h_in=h_in,
        p_oo=h_out * (1 + var_in * h_in) / det,
        p_oi=-v_oi * h_out * h_in,
        p_ii=h_in * known_out / det,
        v_oo=level * known_in / det,
        v_oi=v_oi,
        v_ii=(var_in + rest * (known_out - 1)) / det,
        log_det=np.log(det),
    )


def _expected(
    law: Law, known: _Shrinkage, cells: Cells
) -> tuple[float, Float[np.ndarray, "8 L K"]]:
    """The mean log evidence of an example, and the expected sums of statistics by kind."""
    m_out, m_in, kinds = law.mean_out, law.mean_in, law.share.size
    q_out = known.p_oo * m_out + known.p_oi * m_in
    q_in = known.p_oi * m_out + known.p_ii * m_in
    by = np.empty((8, *q_out.shape))  # what statistics count for
    by[0] = cells.log_odds + np.log(law.share) - 0.5 * (
        cells.out * np.log(law.noise_out) + cells.inside * np.log(law.noise_in)
        + known.log_det + q_out * m_out + q_in * m_in
    )  # fmt: skip
    by[1], by[2] = q_out, q_in
    by[3], by[4], by[5] = -0.5 * known.p_oo, -known.p_oi, -0.5 * known.p_ii
    by[6], by[7] = -0.5 / law.noise_out, -0.5 / law.noise_in
    each = by.transpose(1, 2, 0) @ cells.statistics
    of_answers = each.reshape(-1, len(cells.taken), kinds, cells.taken.shape[1])
    top = of_answers.max(axis=(0, 2))
    of_answers -= top[:, np.newaxis]
    np.exp(each, out=each)
    total = of_answers.sum(axis=(0, 2))
    evidence = float(np.vdot(np.log(total) + top, cells.taken) / cells.taken.sum())
    of_answers *= (cells.taken / total)[:, np.newaxis]
    return evidence, (cells.statistics @ each.swapaxes(1, 2)).swapaxes(0, 1)


def _maximised(
    law: Law,
    known: _Shrinkage,
    cells: Cells,
    sums: Float[np.ndarray, "8 L K"],
    usual: float,
    prior: float,
) -> Law:
    """The law that is likeliest given the expected sums, with the priors."""
    r, x_out, x_in, oo, oi, ii, squares_out, squares_in = sums
    m_out, m_in = law.mean_out, law.mean_in
    # From the means of the kinds that the posteriors are about.
    d_out, d_in = x_out - r * m_out, x_in - r * m_in
    oo = oo - m_out * (x_out + d_out)
    oi = oi - m_in * x_out - m_out * d_in
    ii = ii - m_in * (x_in + d_in)
    v_oo, v_oi, v_ii = r * known.v_oo, r * known.v_oi, r * known.v_ii
    # By these, (μ_out, μ_in) follow the references' means; the rest is noise.
    g_oo, g_oi = known.v_oo * known.h_out, known.v_oi * known.h_in
    g_io, g_ii = known.v_oi * known.h_out, known.v_ii * known.h_in
    n_oo, n_ii = 1 - g_oo, 1 - g_ii
    step_out, step_in, oo, oi, ii, squares_out, squares_in, count_out, count_in, number = np.stack([
        g_oo * d_out + g_oi * d_in,
        g_io * d_out + g_ii * d_in,
        g_oo * (g_oo * oo + 2 * g_oi * oi) + g_oi * g_oi * ii + v_oo,
        g_oo * (g_io * oo + g_ii * oi) + g_oi * (g_io * oi + g_ii * ii) + v_oi,
        g_io * (g_io * oo + 2 * g_ii * oi) + g_ii * g_ii * ii + v_ii,
        squares_out + cells.out * (n_oo * (n_oo * oo - 2 * g_oi * oi) + g_oi * g_oi * ii + v_oo),
        squares_in + cells.inside * (n_ii * (n_ii * ii - 2 * g_io * oi) + g_io * g_io * oo + v_ii),
        r * cells.out,
        r * cells.inside,
        r,
    ]).sum(axis=1)  # fmt: skip

    weight = number + 1e-9
    new_out, new_in = (number * m_out + step_out) / weight, (number * m_in + step_in) / weight
    by_out, by_in = m_out - new_out, m_in - new_in
    oo = oo + by_out * (2 * step_out + number * by_out)
    oi = oi + by_out * (step_in + number * by_in) + by_in * step_out
    ii = ii + by_in * (2 * step_in + number * by_in)
    b = (oi + prior) / (oo + prior)
    least = LEAST_OF_USUAL * usual
    v_out = np.maximum((squares_out + WEAK * usual) / (count_out + WEAK), least)
    contracted = CONTRACTION * b * b * v_out
    rest = np.maximum(ii - 2 * b * oi + b * b * oo, 0) + CONTRACTION * REST * v_out
    return Law(
        share=weight / weight.sum(),
        mean_out=new_out,
        mean_in=new_in,
        level=(oo + prior) / (weight + WEAK),
        contraction=b,
        rest=rest / (weight + CONTRACTION),
        noise_out=v_out,
        noise_in=np.maximum((squares_in + contracted) / (count_in + CONTRACTION), least),
    )
