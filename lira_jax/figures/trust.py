"""Figures of inputs from elsewhere, of calibration, and of what it gives away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.special import logit

from lira_jax.evaluation.wording import is_few
from lira_jax.figures import style
from lira_jax.figures.histograms import picture
from lira_jax.figures.style import Drawing, Missing, figure, plain, rendered
from lira_jax.findings import Findings, Interval, Trust

_ASK = "nothing was predicted elsewhere: python score.py --run DIR --trust"
_COLUMNS = 3
# Sample images of each kind.
_SHOWN = 6
_BINS = 48
# Scores above are drawn as this: in float32 they soon round to 1.
_HIGHEST = 0.99999
_TICKS = {0.01: ".01", 0.1: ".1", 0.5: ".5", 0.9: ".9", 0.99: ".99", 0.999: ".999", 0.9999: ".9999"}
_MARKS = {
    "entropy": "v",
    "max-score": "o",
    "top-3": "s",
    "gap": "X",
    "max-score-calibrated": "D",
    "lira-offline": "P",
    "lira-online": "*",
}
# Attacks of the trade-off, whose scores a calibration changes.
_TRADED = ("entropy", "max-score", "top-3", "lira-online")
# Bins with a smaller share of predictions say nothing of how right these are.
_RARE = 1e-3


def every(findings: Findings) -> list[Drawing | Missing]:
    """All figures of one run about inputs from elsewhere and calibration."""
    return [
        _inputs(findings),
        _false_positives(findings),
        _reliability(findings),
        _trade_off(findings),
    ]


# Inputs from elsewhere.


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the figure of inputs.

    Attributes:
        title: of the inputs.
        images: some of them; None where there are none to show.
        confidence: maximum prediction scores of all models.
        colour: of the distribution.
    """

    title: str
    images: UInt8[np.ndarray, "S H W C"] | None
    confidence: Float[np.ndarray, " P"]
    colour: str


def _inputs(findings: Findings) -> Drawing | Missing:
    name, title = "trust_inputs", "Inputs and how sure the models are of them"
    results, predicted = findings.metrics.get("trust"), findings.trust
    if predicted is None or not results or not results["kinds"]:
        return Missing(name, "", title, _ASK)
    rows = _rows(findings, predicted, results)
    least = max(min(float(row.confidence.min()) for row in rows), 1e-3)
    edges = np.linspace(logit(least) - 0.2, logit(_HIGHEST), _BINS + 1)
    members = _shares(rows[0], edges)
    with figure(0.42 + 0.41 * len(rows)) as made:
        grid = made.subplots(len(rows), 2, width_ratios=(1, 1.05), squeeze=False)
        made.set_layout_engine("constrained", h_pad=0.008, w_pad=0.03, hspace=0, wspace=0)
        for (left, right), row in zip(grid, rows, strict=True):
            left.set_axis_off()
            left.set_title(plain(row.title), loc="left", pad=1.5)
            if row.images is not None:
                left.imshow(_strip(row.images), interpolation="nearest", cmap="grey",
                            vmin=0, vmax=255, aspect="equal")  # fmt: skip
                left.set_anchor("W")
            shares = _shares(row, edges)
            # Every distribution as high as its row: one that stands on one score too.
            right.stairs(shares / shares.max(), edges, fill=True, color=row.colour, alpha=0.5)
            right.stairs(members / members.max(), edges, color=style.IN, linewidth=0.7)
            mean = float(row.confidence.mean())
            right.axvline(
                min(logit(mean), edges[-1]), color="black", linewidth=1.1, solid_capstyle="butt"
            )
            right.annotate(
                f"{mean:.3f}", (1.03, 0.1), xycoords="axes fraction", fontsize=6.5, va="bottom"
            )
            right.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.12), yticks=[])
            right.spines[["left", "top", "right"]].set_visible(False)
            ticks = {place: label for place, label in _TICKS.items() if place > least}
            right.set_xticks([logit(place) for place in ticks], labels=[])
        grid[0, 1].annotate(
            "mean", (1.03, 1.0), xycoords="axes fraction", fontsize=6.5, va="bottom"
        )
        grid[-1, 1].set_xticks(grid[-1, 1].get_xticks(), list(ticks.values()))
        grid[-1, 1].set_xlabel("Maximum prediction score p")
        pictures = rendered(made)
    caption = (
        f"Maximum prediction scores of all {results['targets']} models, evenly spaced by "
        f"log(p/(1−p)); what exceeds {_HIGHEST} stands at the right end. Black: the mean. Red "
        "outline, in every row: the scores of members. Each distribution is drawn to the same "
        "height. Images: some of the inputs as the network sees them"
    )
    caption += "." if findings.images is not None else "; those of the examples are not at hand."
    return Drawing(name, "", title, caption, **pictures)


def _rows(findings: Findings, predicted: Trust, results: Mapping[str, Any]) -> list[_Row]:
    """Members and other examples of all models, and each kind."""
    # Canaries come last and are left out.
    keep = findings.score_set.keep[:, : predicted.confidence.shape[1]]
    rows = []
    for title, side, colour in (
        ("members", keep, style.IN),
        ("non-members: other examples", ~keep, style.OUT),
    ):
        # Images on that side of the first model.
        images = None
        if findings.images is not None:
            images = np.asarray(findings.images[np.flatnonzero(side[0])[:_SHOWN]])
        rows.append(_Row(title, images, predicted.confidence[side], colour))
    for kind in results["kinds"]:
        name = kind["name"]
        images = predicted.samples[name][:_SHOWN]
        rows.append(_Row(kind["title"], images, predicted.of_kinds[name].ravel(), style.GREY))
    return rows


def _strip(images: UInt8[np.ndarray, "S H W C"]) -> np.ndarray:
    """Images beside one another, white between them and where there are fewer than the most."""
    height, width = images.shape[1:3]
    gap = max(1, width // 16)
    shown = [picture(image) for image in images]
    strip = np.full((height, _SHOWN * (width + gap) - gap, *shown[0].shape[2:]), 255, np.uint8)
    for place, image in enumerate(shown):
        strip[:, place * (width + gap) : place * (width + gap) + width] = image
    return strip


def _shares(row: _Row, edges: Float[np.ndarray, " B"]) -> Float[np.ndarray, " C"]:
    """The share of scores in each bin; those beyond the ends belong to the outermost."""
    with np.errstate(divide="ignore"):
        places = np.clip(logit(row.confidence), edges[0], edges[-1])
    counts, _ = np.histogram(places, edges)
    return counts / row.confidence.size


def _false_positives(findings: Findings) -> Drawing | Missing:
    name, title = "trust_fpr", "False positives on inputs from elsewhere"
    results = findings.metrics.get("trust")
    if not results or not results["kinds"]:
        return Missing(name, "", title, _ASK)
    attacks = [entry for entry in results["calibrations"][0]["attacks"] if entry["inputs"]]
    kinds = {kind["name"]: place for place, kind in enumerate(results["kinds"], start=1)}
    titles = ["non-members:\nother examples", *(plain(kind["title"]) for kind in results["kinds"])]
    with figure(0.75 + 0.1 * len(attacks) + 0.37 * len(titles)) as made:
        axes = made.add_subplot()
        for place in range(0, len(titles), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=0)
        for place, entry in enumerate(attacks):
            offset = 0.13 * (place - (len(attacks) - 1) / 2)
            colour, _ = style.style_of(entry["name"])
            judged = [(0, entry["decision"])]
            judged += [(kinds[part["kind"]], part["decision"]) for part in entry["inputs"]]
            for row, decision in judged:
                low, high = decision["fpr_ci"]
                axes.hlines(row + offset, 100 * low, 100 * high, color=colour, linewidth=0.8)
                axes.plot(
                    [100 * decision["fpr"]], [row + offset], color=colour, linestyle="none",
                    marker=_MARKS[entry["name"]], markersize=3.2, clip_on=False, zorder=3,
                )  # fmt: skip
        axes.set(xlim=(0, 100), ylim=(len(titles) - 0.5, -0.5))
        axes.set_yticks(range(len(titles)), titles)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("Falsely called members [%]")
        style.with_grid(axes, axis="x")
        names = [entry["name"] for entry in attacks]
        keys = [
            style.key_to(style.style_of(name)[0], marker=_MARKS[name], markersize=4)
            for name in names
        ]
        style.legend_below(made, keys, names)
        pictures = rendered(made)
    caption = (
        "The share of inputs that each attack calls members, though no model trained on them, at "
        "the threshold tuned on one source model; mean over "
        f"{results['targets']} targets, plain predictions. entropy, max-score and top-3 "
        "have one threshold for all inputs; max-score-calibrated and lira-offline compare with "
        "what other models say of the same input, lira-offline of the label or, where there is "
        "none, of the class that the target predicts. gap needs a label. Bars: 95 % intervals."
    )
    return Drawing(name, "", title, caption, **pictures)


# Calibration.


def _trade_off(findings: Findings) -> Drawing | Missing:
    name, title = "trust_trade_off", "Better calibrated, and what leaks then"
    results = findings.metrics.get("trust")
    if not results:
        return Missing(name, "", title, _ASK)
    calibrations = results["calibrations"]
    with figure(2.75 + 0.125 * -(-len(calibrations) // _COLUMNS)) as made:
        left, right = made.subplots(1, 2)
        few = False
        for place, calibration in enumerate(calibrations):
            mark = style.marker(place)
            errors = interval_of(calibration["nonmembers"], "ece")
            for entry in calibration["attacks"]:
                colour, _ = style.style_of(entry["name"])
                if entry["name"] in _TRADED:
                    crossed(left, errors, interval_of(entry, "auc"), colour, mark)
                if entry["name"] == "lira-online":
                    hollow = is_few(entry, "0.001")
                    few |= hollow
                    crossed(right, errors, low_tpr(entry), colour, mark, hollow=hollow)
        left.axhline(50, zorder=1, **style.CHANCE)
        right.axhline(0.1, zorder=1, **style.CHANCE)
        left.set_ylabel("AUROC [%]")
        right.set_ylabel("LiRA online: TPR at 0.1 % FPR [%]")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xlabel("ECE, non-members [%]")
            axes.set_xlim(left=0)
            axes.margins(x=0.08)
            style.with_grid(axes)
        legend_of_calibrations(made, (entry["title"] for entry in calibrations))
        keys = [style.key_to(style.style_of(name)[0], "-", linewidth=2) for name in _TRADED]
        style.legend_below(made, [*keys, style.chance_key()], [*_TRADED, "chance"], columns=3)
        pictures = rendered(made)
    caption = (
        "Each point is one calibration of the same models: its expected calibration error on "
        "examples that a model did not train on, and what the attacks then find. Left: area under "
        "the ROC; right: online LiRA's members found at 0.1 % false positives. Bars: 95 % "
        f"intervals, over {results['targets']} targets."
    )
    if few:
        caption += " Hollow: fewer than ten false positives are expected there."
    return Drawing(name, "", title, caption, **pictures)


def legend_of_calibrations(made: Figure, titles: Iterable[str]) -> None:
    """Above the axes, the marks of calibrations, in the order of `marker`."""
    labels = [plain(title) for title in titles]
    keys = [style.key_to("0.3", marker=style.marker(n), markersize=4) for n in range(len(labels))]
    made.legend(
        keys, labels, loc="outside upper center", ncols=_COLUMNS, title="calibration",
        handletextpad=0.2,
    )  # fmt: skip


def low_tpr(entry: Mapping[str, Any]) -> Interval:
    """TPR at 0.1 % FPR of an attack, and the ends of its interval."""
    rate, (low, high) = entry["tpr_at_fpr"]["0.001"], entry["tpr_at_fpr_ci"]["0.001"]
    return rate, low, high


def interval_of(entry: Mapping[str, Any], key: str) -> Interval:
    """A figure and the ends of its interval."""
    low, high = entry[f"{key}_ci"]
    return float(entry[key]), float(low), float(high)


def crossed(
    axes: Axes, x: Interval, y: Interval, colour: str, mark: str, *, hollow: bool = False
) -> None:
    """A point with its intervals in both directions, shares drawn in percent."""
    (across, left, right), (up, low, high) = (tuple(100 * end for end in side) for side in (x, y))
    axes.hlines(up, left, right, color=colour, linewidth=0.6)
    axes.vlines(across, low, high, color=colour, linewidth=0.6)
    axes.plot(
        [across], [up], linestyle="none", color=colour, marker=mark, markersize=3.8,
        markerfacecolor="white" if hollow else colour, markeredgewidth=0.7,
    )  # fmt: skip


def _reliability(findings: Findings) -> Drawing | Missing:
    """Accuracy against confidence, a panel for each calibration, three beside one another."""
    name, title = "trust_reliability", "Confidence against accuracy"
    results = findings.metrics.get("trust")
    if not results:
        return Missing(name, "", title, _ASK)
    panels = results["calibrations"]
    rows = -(-len(panels) // _COLUMNS)
    columns = min(_COLUMNS, len(panels))
    with figure(0.7 + 1.45 * rows) as made:
        ratios = [3.2, 1] * rows
        axes = made.subplots(
            2 * rows, columns, sharex=True, sharey="row", squeeze=False, height_ratios=ratios
        )
        made.set_layout_engine("constrained", h_pad=0.015, w_pad=0.015, hspace=0.02, wspace=0.03)
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            if place < len(panels):
                _diagram(above, panels[place])
                _histogram(below, panels[place])
            else:
                above.set_axis_off()
                below.set_axis_off()
            if place < len(panels) <= place + columns:
                below.tick_params(labelbottom=True)
                below.set_xlabel("Confidence [%]")
        for row in range(rows):
            axes[2 * row, 0].set_ylabel("Accuracy [%]")
            axes[2 * row + 1, 0].set_ylabel("Share\n[%]")
        keys = {
            "accuracy, ± spread of models": style.key_to(
                "black", "-", marker="o", markersize=2.5, linewidth=0.8
            ),
            "too confident": Patch(color=style.RED, alpha=0.35, linewidth=0),
            "not confident enough": Patch(color=style.SKY, alpha=0.5, linewidth=0),
            "calibrated": style.chance_key(),
        }
        made.align_ylabels(axes[:, 0])
        style.legend_below(made, list(keys.values()), list(keys))
        pictures = rendered(made)
    caption = (
        "Predictions of all models by their confidence, the largest probability, in bins of equal "
        "width: the share of correct ones at their mean confidence, but for bins with fewer than "
        "one in 1,000. Shaded: the gap to equality. Bars: standard deviation between models. "
        "ECE: expected calibration error, mean over models. Below: the share of predictions in "
        "each bin."
    )
    return Drawing(name, "", title, caption, **pictures)


def _diagram(axes: Axes, calibration: Mapping[str, Any]) -> None:
    """The accuracy in each bin of confidence, and by how much it misses equality."""
    counts, centres = _bins(calibration)
    filled = counts >= max(_RARE * counts.sum(), 1)
    reliability = calibration["nonmembers"]["reliability"]
    confidence, accuracy, spread = (
        100 * np.array(reliability[key], float)[filled]
        for key in ("confidence", "accuracy", "spread")
    )
    spread = np.nan_to_num(spread)  # not known of one model
    axes.plot([0, 100], [0, 100], zorder=1, **style.CHANCE)
    for side, colour, alpha in (
        (accuracy < confidence, style.RED, 0.35),
        (accuracy > confidence, style.SKY, 0.5),
    ):
        axes.bar(
            centres[filled][side],
            (accuracy - confidence)[side],
            width=100 / counts.size,
            bottom=confidence[side],
            color=colour,
            alpha=alpha,
            linewidth=0,
        )
    # A share lies between 0 and 1, and so do the ends of its bar.
    ends = np.stack([np.minimum(spread, accuracy), np.minimum(spread, 100 - accuracy)])
    axes.errorbar(
        confidence, accuracy, ends, color="black", marker="o", markersize=1.8, linewidth=0.8,
        elinewidth=0.5,
    )  # fmt: skip
    title, ece = calibration["title"], calibration["nonmembers"]["ece"]
    if calibration["name"] == "temperature-fit":
        title += f" ({calibration['temperature']['mean']:.3g})"
    axes.set_title(plain(title), pad=3)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([0, 50, 100])
    axes.tick_params(labelbottom=False)
    # In the corner that the points leave free.
    below = np.average(confidence - accuracy, weights=counts[filled]) > 0
    axes.annotate(
        f"ECE {100 * ece:.1f} %",
        (0.06, 0.94) if below else (0.95, 0.06),
        xycoords="axes fraction",
        ha="left" if below else "right",
        va="top" if below else "bottom",
        fontsize=6.5,
    )


def _histogram(axes: Axes, calibration: Mapping[str, Any]) -> None:
    """The share of predictions in each bin of confidence."""
    counts, centres = _bins(calibration)
    share = 100 * counts / counts.sum()
    axes.bar(centres, share, width=100 / counts.size, color=style.GREY, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 100])
    axes.tick_params(labelbottom=False)


def _bins(calibration: Mapping[str, Any]) -> tuple[Int[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Predictions in each bin of confidence, the bins being of equal width, and their middles."""
    counts = np.array(calibration["nonmembers"]["reliability"]["counts"], np.int64)
    return counts, 100 * (np.arange(counts.size) + 0.5) / counts.size
