"""Histograms of scores: figures 3, 4 and 13 of the LiRA paper, and φ of chosen examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from scipy.special import expit
from scipy.stats import norm

from lira_jax.analysis.exposure import four_examples, mean_loss_out, privacy_score, with_spread
from lira_jax.figures import style
from lira_jax.figures.style import Drawing, Missing, figure, plain, rendered
from lira_jax.findings import Findings
from lira_jax.score_set import ScoreSet

Floats = Float[np.ndarray, " M"]

_FEW_MODELS = "no example has two models on each side"
_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "confidence p": expit,
    "cross-entropy −log p": lambda phi: np.logaddexp(0.0, -phi),
    "φ = log p/(1−p)": lambda phi: phi,
}
_FIT = style.key_to("0.3", "-", label="Gaussian fit")
# Examples of which figure 4 standardises the scores.
_POOLED = 2_000


def every(findings: Findings) -> list[Drawing | Missing]:
    """All histograms of one run."""
    score_set = findings.score_set
    known = with_spread(score_set)
    if findings.vulnerability is None:
        d = np.where(known, privacy_score(score_set, 1), np.nan)
    else:
        d = findings.vulnerability.d
    natural = known if score_set.canary is None else known & ~score_set.canary
    picks = four_examples(mean_loss_out(score_set), np.where(natural, d, np.nan))
    return [
        _losses(findings, picks),
        _statistics(findings, picks),
        _logits(findings, picks),
        _privacy_scores(findings, d),
    ]


def describe(findings: Findings, example: int) -> str:
    """An example in words: its number, and its label if there is one."""
    labels, classes = findings.score_set.labels, findings.classes
    if labels is None:
        return f"example {example}"
    label = int(labels[example])
    named = classes is not None and label < len(classes)
    name = classes[label] if classes is not None and named else f"class {label}"
    return f"example {example}: {name}"


def picture(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] as [H, W] or [H, W, 3]: odd numbers of channels by their mean."""
    if image.shape[2] >= 3:
        return image[..., :3]
    return image.mean(axis=2).round().astype(np.uint8)


def _losses(findings: Findings, picks: dict[str, int]) -> Drawing | Missing:
    name, paper, title = "histograms_loss", "Figure 3", "Losses of four examples"
    if not picks:
        return Missing(name, paper, title, _FEW_MODELS)

    columns = findings.score_set.scores[:, :, 0][:, list(picks.values())]
    # No loss is zero, but one below the least float64 is rounded to it.
    losses = np.maximum(np.logaddexp(0.0, -np.asarray(columns, dtype=np.float64)), 1e-300)
    low, high = losses.min() / 1.5, losses.max() * 1.5
    edges = np.geomspace(low, high, 41)

    def draw(axes: Axes, inside: Floats, outside: Floats) -> None:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        style.with_powers_of_ten(axes.xaxis)
        for phi, colour in ((outside, style.OUT), (inside, style.IN)):
            values = np.maximum(np.logaddexp(0.0, -phi), 1e-300)
            axes.hist(values, edges.tolist(), color=colour, alpha=0.5, histtype="stepfilled")

    pictures = _four_panels(findings, picks, draw, "Cross-entropy loss", "Models", fits=False)
    caption = (
        "Loss of four examples under models that trained on them (IN) and that did not (OUT), "
        "identity view. Easy: low mean OUT loss; outlier: high privacy score d; each is the "
        "example nearest to its corner by both ranks."
    )
    return Drawing(name, paper, title, caption, **pictures)


def _logits(findings: Findings, picks: dict[str, int]) -> Drawing | Missing:
    name, title = "histograms_logit", "φ of four examples with Gaussian fits"
    if not picks:
        return Missing(name, "", title, _FEW_MODELS)

    def draw(axes: Axes, inside: Floats, outside: Floats) -> None:
        _two_histograms(axes, inside, outside)
        _fits(axes, inside, outside)

    pictures = _four_panels(findings, picks, draw, "φ = log p/(1−p)", "Density", fits=True)
    caption = (
        "The same examples as in figure 3 on the scale on which LiRA tests, with a Gaussian "
        "fitted to each side. The further the two curves are apart, the more surely a model "
        "gives the example away."
    )
    return Drawing(name, "", title, caption, **pictures)


def _four_panels(
    findings: Findings,
    picks: dict[str, int],
    draw: Callable[[Axes, Floats, Floats], None],
    xlabel: str,
    ylabel: str,
    fits: bool,
) -> dict[str, bytes]:
    rows = -(-len(picks) // 2)
    with figure(0.55 + 1.45 * rows) as made:
        grid = made.subplots(rows, 2, squeeze=False)
        for axes, (kind, example) in zip(grid.flat, picks.items(), strict=False):
            inside, outside = _sides(findings.score_set, example)
            draw(axes, inside, outside)
            axes.set_title(f"{kind}\n{plain(_shortened(describe(findings, example)))}")
            axes.set_yticks([])
            # Room for the picture above the bars.
            if findings.images is not None:
                axes.set_ylim(0, axes.get_ylim()[1] * 1.6)
                _inset(axes, findings.images[example])
        for axes in grid.flat[len(picks) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        made.supylabel(ylabel, fontsize=7)
        style.legend_below(
            made, [*style.side_keys(), _FIT] if fits else style.side_keys(), columns=3
        )
        return rendered(made)


def _inset(axes: Axes, image: np.ndarray) -> None:
    inset = axes.inset_axes((0.02, 0.64, 0.34, 0.34))
    shown = picture(image)
    inset.imshow(shown, cmap="gray" if shown.ndim == 2 else None, interpolation="nearest")
    inset.set_anchor("NW")
    inset.set_xticks([])
    inset.set_yticks([])


def _shortened(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _statistics(findings: Findings, picks: dict[str, int]) -> Drawing | Missing:
    name, paper = "histograms_statistics", "Figure 4"
    title = "Confidence, cross-entropy and φ, with Gaussian fits"
    if not picks:
        return Missing(name, paper, title, _FEW_MODELS)
    example = picks.get("hard outlier", next(iter(picks.values())))
    inside, outside = _sides(findings.score_set, example)
    with figure(4.3) as made:
        grid = made.subplots(3, 2)
        for row, (statistic, of) in zip(grid, _STATISTICS.items(), strict=True):
            single, pooled = row
            _two_histograms(single, of(inside), of(outside))
            _fits(single, of(inside), of(outside))
            single.set_xlabel(statistic)
            _standardised(pooled, findings.score_set, of)
            pooled.set_xlabel(f"{statistic.split(' ')[0]}, standardised")
            for axes in row:
                axes.set_yticks([])
        grid[0, 0].set_title(plain(_shortened(describe(findings, example))))
        grid[0, 1].set_title("all examples")
        made.supylabel("Density", fontsize=7)
        style.legend_below(made, [*style.side_keys("IN", "OUT"), _FIT], columns=3)
        pictures = rendered(made)
    caption = (
        "Left: one example (the hard outlier of figure 3) under all models. Right: scores of "
        f"up to {_POOLED:,} examples, each less its mean and over its standard deviation on its "
        "side, against the standard normal density. LiRA uses φ because the paper found it the "
        "nearest to Gaussian."
    )
    return Drawing(name, paper, title, caption, **pictures)


def _standardised(
    axes: Axes,
    score_set: ScoreSet,
    of: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Residuals of each side over its own spread, beside N(0, 1)."""
    usable = np.flatnonzero(with_spread(score_set))
    chosen = usable[np.linspace(0, usable.size - 1, min(_POOLED, usable.size)).round().astype(int)]
    values = of(np.asarray(score_set.scores[:, :, 0][:, chosen], dtype=np.float64))
    keep = score_set.keep[:, chosen]
    edges = np.linspace(-4, 4, 65)
    for side, colour in ((keep, style.IN), (~keep, style.OUT)):
        residuals = _residuals(values, side)
        counts, _ = np.histogram(residuals, edges)
        axes.stairs(
            counts / max(residuals.size, 1) / (edges[1] - edges[0]),
            edges,
            fill=True,
            color=colour,
            alpha=0.5,
        )
    grid = np.linspace(-4, 4, 200)
    axes.plot(grid, norm.pdf(grid), color="0.2")
    axes.set_xlim(-4, 4)


def _residuals(values: Float[np.ndarray, "N C"], side: Bool[np.ndarray, "N C"]) -> Floats:
    count = side.sum(axis=0)
    centred = values - values.sum(axis=0, where=side) / count
    spread = np.sqrt(np.square(centred).sum(axis=0, where=side) / (count - 1))
    return (centred / np.maximum(spread, 1e-12))[side]


def _privacy_scores(findings: Findings, d: Float[np.ndarray, " E"]) -> Drawing | Missing:
    name, paper, title = "privacy_scores", "Figure 13", "Privacy score of every example"
    finite = np.isfinite(d)
    if not finite.any():
        return Missing(name, paper, title, _FEW_MODELS)
    canary = findings.score_set.canary
    apart = canary is not None and bool(canary.any())
    high = float(d[finite].max())
    most = float(np.quantile(d[finite], 0.995))
    cut = high > 2 * most > 0  # a few examples far out would squeeze the rest
    edges = np.linspace(0, 1.2 * most if cut else max(high, 1e-6), 51)
    with figure(2.2) as made:
        axes = made.add_subplot()
        if canary is not None and apart:
            groups = [("candidates", ~canary, style.OUT), ("canaries", canary, style.ORANGE)]
        else:
            groups = [("", np.ones(d.shape, dtype=bool), style.OUT)]
        for label, group, colour in groups:
            chosen = np.minimum(d[finite & group], edges[-1])
            weights = np.full(chosen.size, 1 / max(chosen.size, 1))
            axes.hist(chosen, edges.tolist(), weights=weights, color=colour, alpha=0.6, label=label)
        median = float(np.median(d[finite & groups[0][1]]))
        axes.axvline(median, color="0.3", linestyle=":", linewidth=0.9)
        axes.annotate(
            f"median {median:.2f}",
            (median, 1),
            (3, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
        )
        axes.set(xlabel="Privacy score d = |μ_in − μ_out| / (σ_in + σ_out)")
        axes.set_ylabel("Share of examples")
        if apart:
            axes.legend()
        pictures = rendered(made)
    caption = "How far each example's scores under IN and OUT models lie apart; higher is riskier."
    if cut:
        caption += f" The last bin holds all beyond, up to {high:.3g}."
    if apart:
        caption += " Canaries, inserted to be memorised, are apart, each group as shares of itself."
    return Drawing(name, paper, title, caption, **pictures)


def _sides(score_set: ScoreSet, example: int) -> tuple[Floats, Floats]:
    phi = np.asarray(score_set.scores[:, example, 0], dtype=np.float64)
    keep = score_set.keep[:, example]
    return phi[keep], phi[~keep]


def _two_histograms(axes: Axes, inside: Floats, outside: Floats) -> None:
    """Densities of both sides over common bins: few where there are few models."""
    both = np.concatenate([inside, outside])
    low, high = float(both.min()), float(both.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, int(np.clip(2 * np.sqrt(both.size), 8, 30)) + 1)
    for values, colour in ((outside, style.OUT), (inside, style.IN)):
        axes.hist(
            values, edges.tolist(), density=True, color=colour, alpha=0.5, histtype="stepfilled"
        )


def _fits(axes: Axes, inside: Floats, outside: Floats) -> None:
    """The Gaussian of each side, over the range that the bars take."""
    low, high = axes.get_xlim()
    top = axes.get_ylim()[1]
    grid = np.linspace(low, high, 300)
    for values, colour in ((outside, style.OUT), (inside, style.IN)):
        spread = float(values.std(ddof=1))
        if spread > 0:
            axes.plot(grid, norm.pdf(grid, values.mean(), spread), color=colour)
    # A fit to values that are nearly all equal would dwarf the bars.
    axes.set_ylim(0, min(axes.get_ylim()[1], 1.6 * top))
