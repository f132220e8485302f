"""One law of all examples, and what a few scores of one example mean under it.

Scores x of one example under models that did not train on it (OUT), and that did (IN), are Gaussian
about means (μ_out, μ_in) of its own, with a noise of its own, v. Over all examples,

    log v ~ N(log v₀, ω²),  with u = log v − log v₀,
    μ_out | u ~ N(m₀ + m₁ u, v₀ e^(t₀ + t₁ u)),
    a | u     ~ N(m₀ + T (a₀ + a₁ u), (s T)²),
    μ_in = h(μ_out) = T log(e^(μ_out/T) + e^(a/T)),
    x | OUT ~ N(μ_out, v),  x | IN ~ N(μ_in, v (e + (1 − e) b²)),  b = h′(μ_out).

**Why this form.** Training on an example takes its score up to about a, its *reach*, if it would
be lower without, and leaves it nearly where it is if it would be far higher: the gradient of the
loss fades as e^(−φ/T). So what training adds falls exponentially with the score that an example has
anyway, and where it adds much it *contracts* (b < 1): differences between models, v, as well as
between examples. An example that varies more between models has more to gain (a₁ > 0). These are
one law for what shrinkage of σ, global variances, offline attacks, and scores of loss in place of φ
do each in part (docs/methods.md, 1, "A hierarchical LiRA").

`law_fit.py` finds the eleven numbers; nothing is to be chosen. Given v, and h about where the
example is thought to lie (`_about`, in LINES steps), all is Gaussian, and the law of one more score
given any numbers of references on either side, none included, is a mixture of Gaussians over
KINDS values of v (`predict`). NumPy and SciPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit, log_ndtr

# Values of u/ω and their shares: as good as the integral over u, whose integrand is wider.
KINDS = np.linspace(-3, 3, 9)
LOG_SHARE = -0.5 * KINDS**2 - np.log(np.exp(-0.5 * KINDS**2).sum())
# How often the line that stands for h is drawn anew, at the mean of μ_out by the one before.
LINES = 3
# What μ_in varies by at least, as a share of v: no mean is known without error.
LEAST_REST = 1e-6


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

    def of(self, chosen: Shaped[np.ndarray, " C"] | slice) -> Side:
        """Of the chosen examples."""
        count = self.count[chosen] if isinstance(self.count, np.ndarray) else self.count
        return Side(count, self.mean[chosen], self.squares[chosen])

    def none(self) -> Side:
        """The same examples without references."""
        return Side(0.0, np.zeros_like(self.mean), np.zeros_like(self.squares))


@dataclass(frozen=True)
class Law:
    """The law of all examples, by the names of the module's formulas.

    Attributes:
        log_noise: log v₀.
        log_spread: log ω.
        level, level_slope: t₀, t₁.
        mean, mean_slope: m₀, m₁.
        reach, reach_slope: a₀, a₁.
        log_scale: log T.
        log_varied: log s.
        floor: log(e/(1 − e)).
        converged: whether the fit came to an end.
    """

    log_noise: float
    log_spread: float
    level: float
    level_slope: float
    mean: float
    mean_slope: float
    reach: float
    reach_slope: float
    log_scale: float
    log_varied: float
    floor: float
    converged: bool = True

    def numbers(self) -> Float[np.ndarray, " 11"]:
        """All that is fitted, in the order of declaration."""
        return np.array([getattr(self, each.name) for each in fields(self)[:-1]])

    def kinds(self) -> Kinds:
        """By value of u."""
        u = np.exp(self.log_spread) * KINDS[:, np.newaxis]
        scale = float(np.exp(self.log_scale))
        return Kinds(
            u=u,
            noise=np.exp(self.log_noise + u),
            level=np.exp(self.log_noise + self.level + self.level_slope * u),
            mean=self.mean + self.mean_slope * u,
            reach=self.mean / scale + self.reach + self.reach_slope * u,
            scale=scale,
            varied=float(np.exp(self.log_varied)) * scale,
            floor=float(expit(self.floor)),
        )


@dataclass(frozen=True)
class Kinds:
    """The law by value of u.

    Attributes:
        u: itself.
        noise: v.
        level: the variance of μ_out.
        mean: of μ_out.
        reach: the mean of a, over T.
        scale: T.
        varied: s T.
        floor: e.
    """

    u: Float[np.ndarray, "K 1"]
    noise: Float[np.ndarray, "K 1"]
    level: Float[np.ndarray, "K 1"]
    mean: Float[np.ndarray, "K 1"]
    reach: Float[np.ndarray, "K 1"]
    scale: float
    varied: float
    floor: float


@dataclass(frozen=True)
class Line:
    """The line μ_in = added + place + b (μ_out − place) that stands for h about `place`.

    Attributes:
        place: of every kind and example.
        b: its slope.
        added: what training adds there.
        rest: the variance of μ_in about it, r = (s T (1 − b))².
        noise_in: the variance of IN scores.
    """

    place: Float[np.ndarray, "K C"]
    b: Float[np.ndarray, "K C"]
    added: Float[np.ndarray, "K C"]
    rest: Float[np.ndarray, "K C"]
    noise_in: Float[np.ndarray, "K C"]


@dataclass(frozen=True)
class Posterior:
    """What references say of an example, by kind, [K, C].

    Attributes:
        log_evidence: log p(kind, references), up to what is the same for all kinds and laws.
        out, inside: means of μ_out and μ_in.
        var_out, cov, var_in: their covariance.
    """

    log_evidence: Float[np.ndarray, "K C"]
    out: Float[np.ndarray, "K C"]
    inside: Float[np.ndarray, "K C"]
    var_out: Float[np.ndarray, "K C"]
    cov: Float[np.ndarray, "K C"]
    var_in: Float[np.ndarray, "K C"]


def line_at(kinds: Kinds, place: Float[np.ndarray, "K C"]) -> Line:
    """The tangent of h, at that place."""
    below = kinds.reach - place / kinds.scale
    gap = expit(below)  # 1 − b, exact where it is small
    b = 1 - gap
    rest = np.square(kinds.varied * gap) + LEAST_REST * kinds.noise
    noise_in = kinds.noise * (kinds.floor + (1 - kinds.floor) * b * b)
    return Line(place, b, kinds.scale * np.logaddexp(0, below), rest, noise_in)


def posterior(kinds: Kinds, line: Line, out: Side, inside: Side) -> Posterior:
    """The posterior of kind and means, closed form; no difference of large numbers in it."""
    level, b, rest = kinds.level, line.b, line.rest
    h_out, h_in = out.count / kinds.noise, inside.count / line.noise_in  # precision of the means
    m_in = line.place + line.added + b * (kinds.mean - line.place)
    from_out, from_in = out.mean - kinds.mean, inside.mean - m_in
    apart = from_in - b * from_out
    var_in = b * b * level + rest
    det = 1 + level * h_out + var_in * h_in + level * rest * h_out * h_in
    fit_out = h_out * from_out * (1 + rest * h_in)
    distance = fit_out * from_out + h_in * (from_in**2 + level * h_out * apart**2)
    evidence = LOG_SHARE[:, np.newaxis] - 0.5 * (
        out.count * np.log(kinds.noise) + out.squares / kinds.noise
        + inside.count * np.log(line.noise_in) + inside.squares / line.noise_in
        + np.log(det) + distance / det
    )  # fmt: skip
    pull_out = (fit_out - h_out * h_in * b * level * apart) / det
    pull_in = h_in * (from_in + level * h_out * apart) / det
    common = level * (pull_out + b * pull_in)
    return Posterior(
        log_evidence=evidence,
        out=kinds.mean + common,
        inside=m_in + b * common + rest * pull_in,
        var_out=level * (1 + rest * h_in) / det,
        cov=b * level / det,
        var_in=(var_in + level * rest * h_out) / det,
    )


def line_about(kinds: Kinds, out: Side, inside: Side) -> Line:
    """The line where references say that μ_out lies: by OUT ones at first, then by all."""
    known = kinds.level * out.count / (kinds.noise + kinds.level * out.count)
    line = line_at(kinds, kinds.mean + known * (out.mean - kinds.mean))
    for _ in range(LINES - 1):
        line = line_at(kinds, posterior(kinds, line, out, inside).out)
    return line


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians for every example: the law of one more score.

    Attributes:
        log_share: of the kinds; shares sum to 1.
        mean, variance: of each kind.
    """

    log_share: Float[np.ndarray, "K C"]
    mean: Float[np.ndarray, "K C"]
    variance: Float[np.ndarray, "K C"]

    def of(self, chosen: Shaped[np.ndarray, " L"]) -> Mixture:
        """Of the chosen examples."""
        return Mixture(self.log_share[:, chosen], self.mean[:, chosen], self.variance[:, chosen])

    def log_density(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Log p(x), for x [C] or any [..., C]."""
        x = x[..., np.newaxis, :]
        exponent = (x - self.mean) ** 2 / self.variance + np.log(self.variance)
        return log_sum(self.log_share - 0.5 * (exponent + np.log(2 * np.pi)), axis=-2)

    def log_tail(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Log Pr[X ≥ x], exact far out in the tail."""
        z = (x[..., np.newaxis, :] - self.mean) / np.sqrt(self.variance)
        return np.minimum(log_sum(self.log_share + log_ndtr(-z), axis=-2), 0.0)


def predict(law: Law, out: Side, inside: Side) -> tuple[Mixture, Mixture]:
    """The laws of one more OUT and one more IN score, given an example's references.

    Args:
        law: of all examples.
        out, inside: the references; either side may be without any.
    """
    kinds = law.kinds()
    line = line_about(kinds, out, inside)
    known = posterior(kinds, line, out, inside)
    share = known.log_evidence - log_sum(known.log_evidence, axis=0)
    return (
        Mixture(share, known.out, known.var_out + kinds.noise),
        Mixture(share, known.inside, known.var_in + line.noise_in),
    )


def log_odds(law: Law, out: Side, inside: Side, x: Float[np.ndarray, "..."]) -> np.ndarray:
    """Λ = log p(x | IN, references) − log p(x | OUT, references), [..., C]."""
    of_out, of_in = predict(law, out, inside)
    return of_in.log_density(x) - of_out.log_density(x)


def log_sum(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Log Σ exp along axes, several times as fast as SciPy's on small arrays."""
    top = values.max(axis=axis, keepdims=True)
    return (top + np.log(np.exp(values - top).sum(axis=axis, keepdims=True))).squeeze(axis)
