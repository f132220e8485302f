"""One law of all examples, and what a few scores of one example mean under it.

Scores x of one example under models that did not train on it (OUT), and that did (IN), are Gaussian
about means (μ_out, μ_in) of its own. Over examples these follow a mixture of K kinds:

    k ~ π,  μ_out ~ N(m_out,k, t_k),  μ_in = m_in,k + b_k (μ_out − m_out,k) + N(0, r_k),
    x | side s ~ N(μ_s, v_s,k).

So of an example's references both means and variances are shrunk, IN and OUT jointly, and unlike
kinds of examples unlike. All is conjugate within a kind: the law of one more score, given any
numbers of references on either side, none included, is a mixture of K Gaussians (`predict`). LiRA
and its global variance are limits of it, with K = 1 and t → ∞ or v common.

**Training contracts scores**: where many models show the law, b is in (0, 1) and
v_in ≈ b² v_out, r ≈ v_out/16, whatever the data and networks. Of few references b alone shows, as
examples spread wider than noise. So v_in and r have that as a prior of `em.CONTRACTION` examples'
weight (docs/methods.md, 1, "A hierarchical LiRA").

**Kinds of noise**: EM starts from slices of examples by how far their references spread, all as
wide in level. The number of kinds is that of the best BIC: two scores of an example tell two kinds
apart, a hundred scores tell six.

The law is fitted (`fit`, by `em.py`) to references alone. Where these are few, the scores of the
one target have a part in it too (`with_target`), whose side is unknown: both answers count with the
probability that the law gives them. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import log_ndtr

from lira_jax.attacks import em
from lira_jax.attacks.em import Law, Side
from lira_jax.errors import InputError

__all__ = ["Law", "Mixture", "Side", "fit", "log_odds", "posterior", "predict", "with_target"]

# Numbers of kinds that are tried, in this order, until the BIC is no better.
KINDS = (1, 2, 3, 4, 6)
# An example beyond which so many more of a kind are of no more use to start from.
LEAST_OF_A_KIND = 8

# EM ends where a round changes the mean log evidence of an example by less than this.
TOLERANCE = 1e-4
ROUNDS = 500

# The least v_out of the start, as a share of the spread of means, and what is left where all scores
# are equal: about float32's resolution of φ.
LEAST_NOISE = 1e-6
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class _Posterior:
    """What references say of an example, by kind, [K, C].

    Attributes:
        log_evidence: log p(k, references), up to what is the same for all kinds and laws.
        out, inside: means of μ_out and μ_in.
        var_out, cov, var_in: their covariance.
    """

    log_evidence: Float[np.ndarray, "K C"]
    out: Float[np.ndarray, "K C"]
    inside: Float[np.ndarray, "K C"]
    var_out: Float[np.ndarray, "K C"]
    cov: Float[np.ndarray, "K C"]
    var_in: Float[np.ndarray, "K C"]


def posterior(law: Law, out: Side, inside: Side) -> _Posterior:
    """The posterior of kind and means, closed form; no difference of large numbers in it."""
    share, m_out, m_in, level, b, rest, v_out, v_in = law.columns()
    h_out, h_in = out.count / v_out, inside.count / v_in  # precision of the references' means
    var_in = b * b * level + rest
    det = 1 + level * h_out + var_in * h_in + level * rest * h_out * h_in
    # Of what all examples with as many references share: what distances from the means of the kind
    # count for, and from the line along which training moves scores.
    of_out, of_in = h_out * (1 + rest * h_in) / det, h_in / det
    of_apart = level * h_out * of_in
    constant = np.log(share) - 0.5 * (
        out.count * np.log(v_out) + inside.count * np.log(v_in) + np.log(det)
    )
    from_out, from_in = out.mean - m_out, inside.mean - m_in
    apart = from_in - b * from_out
    pull_in = of_in * from_in + of_apart * apart
    common = level * of_out * from_out + level * b * of_in * from_in
    distance = of_out * from_out**2 + of_in * from_in**2 + of_apart * apart**2
    distance += out.squares * (1 / v_out)
    distance += inside.squares * (1 / v_in)
    return _Posterior(
        log_evidence=constant - 0.5 * distance,
        out=m_out + common,
        inside=m_in + b * common + rest * pull_in,
        var_out=level * (1 + rest * h_in) / det,
        cov=b * level / det,
        var_in=(var_in + level * rest * h_out) / det,
    )


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians for every example: the law of one more score.

    Attributes:
        log_share: of the kinds, [K, C]; shares sum to 1.
        mean: [K, C].
        variance: [K, C], or [K, 1] where all examples have equally many references.
    """

    log_share: Float[np.ndarray, "K C"]
    mean: Float[np.ndarray, "K C"]
    variance: Float[np.ndarray, "K C"]

    def of(self, chosen: Shaped[np.ndarray, " L"]) -> Mixture:
        """Of the chosen examples."""
        variance = np.broadcast_to(self.variance, self.mean.shape)
        return Mixture(self.log_share[:, chosen], self.mean[:, chosen], variance[:, chosen])

    def log_density(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Log p(x), for x [C] or any [..., C]."""
        x = x[..., np.newaxis, :]
        exponent = (x - self.mean) ** 2 / self.variance + np.log(self.variance)
        return _log_sum(self.log_share - 0.5 * (exponent + np.log(2 * np.pi)), axis=-2)

    def log_tail(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Log Pr[X ≥ x], exact far out in the tail."""
        z = (x[..., np.newaxis, :] - self.mean) / np.sqrt(self.variance)
        return np.minimum(_log_sum(self.log_share + log_ndtr(-z), axis=-2), 0.0)


def predict(law: Law, out: Side, inside: Side) -> tuple[Mixture, Mixture]:
    """The laws of one more OUT and one more IN score, given an example's references.

    Args:
        law: of all examples.
        out, inside: the references; either side may be without any.
    """
    known = posterior(law, out, inside)
    share = known.log_evidence - _log_sum(known.log_evidence, axis=0)
    *_, v_out, v_in = law.columns()
    return (
        Mixture(share, known.out, known.var_out + v_out),
        Mixture(share, known.inside, known.var_in + v_in),
    )


def log_odds(law: Law, out: Side, inside: Side, x: Float[np.ndarray, "..."]) -> np.ndarray:
    """Λ = log p(x | IN, references) − log p(x | OUT, references), [..., C]."""
    known = posterior(law, out, inside)
    *_, v_out, v_in = law.columns()
    # As in `predict`, but for the evidence of all kinds, which is the same on both sides.
    of_out = Mixture(known.log_evidence, known.out, known.var_out + v_out)
    of_in = Mixture(known.log_evidence, known.inside, known.var_in + v_in)
    return of_in.log_density(x) - of_out.log_density(x)


def fit(
    out: Side,
    inside: Side,
    kinds: tuple[int, ...] | None = None,
    rounds: int | None = None,
    tolerance: float = TOLERANCE,
) -> Law:
    """The law of these examples by EM, of the number of kinds that has the best BIC.

    Args:
        out, inside: references of C examples.
        kinds: numbers to try, ascending; None: KINDS.
        rounds, tolerance: of EM; None: ROUNDS.

    Raises:
        InputError: no law found, which finite scores that are not absurd never come to.
    """
    best, best_bic = None, np.inf
    examples = max(out.mean.size, 2)
    cells = em.in_cells(out, inside)
    for number in kinds or KINDS:
        if number > max(1, examples // LEAST_OF_A_KIND):
            break
        start, usual, width = _start(out, inside, number)
        law, evidence = em.fitted(start, cells, usual, width, _rounds(rounds), tolerance)
        bic = em.PARAMETERS * number * np.log(examples) - 2 * evidence * examples
        if not bic < best_bic:
            break
        best, best_bic = law, bic
    return _checked(best, examples)


def with_target(
    law: Law,
    out: Side,
    inside: Side,
    target: Float[np.ndarray, " C"],
    rounds: int | None = None,
    tolerance: float = TOLERANCE,
) -> Law:
    """The law that these references gave, fitted on with the scores of one more model.

    Args:
        law: from `fit` on the references.
        out, inside, rounds, tolerance: as there.
        target: scores whose side is not known.
    """
    _, usual, width = _start(out, inside, law.share.size)
    cells = em.in_cells(out, inside, target)
    law, _ = em.fitted(law, cells, usual, width, _rounds(rounds), tolerance)
    return _checked(law, out.mean.size)


def _rounds(rounds: int | None) -> int:
    return ROUNDS if rounds is None else rounds


def _checked(law: Law | None, examples: int) -> Law:
    if law is None or not all(np.isfinite(column).all() for column in law.columns()):
        raise InputError(
            f"lira-bayes: no law fits the scores of these {examples} examples; look for absurd or "
            "constant scores, and leave such models or examples out"
        )
    return law


def _start(out: Side, inside: Side, kinds: int) -> tuple[Law, float, float]:
    """Where EM starts; the usual v_out; and how wide single scores lie."""
    both = (np.broadcast_to(out.count, out.mean.shape) > 0) & (
        np.broadcast_to(inside.count, inside.mean.shape) > 0
    )
    if not both.any():
        raise InputError("lira-bayes: no example has references on both sides; train more models")
    n_o, n_i = (np.broadcast_to(s.count, s.mean.shape)[both] for s in (out, inside))
    x_o, x_i, s_o, s_i = out.mean[both], inside.mean[both], out.squares[both], inside.squares[both]
    difference = x_i - x_o
    if (n_o > 1).any():
        usual = s_o.sum() / (n_o - 1).sum()
    else:  # of two single references, so that one absurd score moves little
        low, high = np.quantile(difference, [0.25, 0.75])
        usual = ((high - low) / 1.3489795003921634) ** 2 / 2
    freedom = max(x_o.size - 1, 1)
    level = float(np.square(x_o - x_o.mean()).sum() / freedom)
    covariance = float(((x_o - x_o.mean()) * (x_i - x_i.mean())).sum() / freedom)
    usual = float(max(usual, LEAST_NOISE * level + LEAST_VARIANCE))
    width = level + usual
    spread = s_o + s_i + n_o * n_i / (n_o + n_i) * difference**2
    slices = np.array_split(np.argsort(spread, kind="stable"), min(kinds, spread.size))
    slices += [np.arange(spread.size)] * (kinds - len(slices))
    relative = np.array([spread[part].mean() for part in slices]) / (spread.mean() + 1e-300)
    noise = usual * np.maximum(0.1, relative)
    level = max(level - usual / float(n_o.mean()), 0.1 * level)
    b = np.full(kinds, np.clip(covariance / (level + 1e-300), 0.1, 1.0))
    law = Law(
        share=np.full(kinds, 1 / kinds),
        mean_out=np.array([x_o[part].mean() for part in slices]),
        mean_in=np.array([x_i[part].mean() for part in slices]),
        level=np.full(kinds, level),
        contraction=b,
        rest=em.REST * noise,
        noise_out=noise,
        noise_in=b * b * noise,
    )
    return law, usual, width


def _log_sum(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Log Σ exp along axes, several times as fast as SciPy's on small arrays."""
    top = values.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(values - top).sum(axis=axis, keepdims=True))).squeeze(axis)
