"""Figures of label-only attacks: ROC, distances to the boundary, and what queries give."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lira_jax.evaluation.judging import Curve
from lira_jax.figures import style
from lira_jax.figures.roc import GREY_AREA, Labelled, log_log
from lira_jax.figures.style import Drawing, Missing, figure, rendered
from lira_jax.findings import Findings

_BINS = 40
_ASK = "the models were not asked: python score.py --run DIR --label-only"


def every(findings: Findings) -> list[Drawing | Missing]:
    """All figures of label-only attacks of one run."""
    return [_roc(findings), _distances(findings), _by_budget(findings)]


def _roc(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_roc", "Label-only attacks beside those that see confidences"
    results = findings.metrics.get("label_only")
    if findings.label_only is None or not results:
        return Missing(name, "", title, _ASK)
    lines = []
    for entry in results["attacks"]:
        attack = entry["name"]
        if attack == "confidence-memguard":
            continue
        curve = findings.label_only.curves[attack]
        banded = curve if attack == results["strongest"] else Curve(curve.roc)
        lines.append(Labelled(f"{attack} ({entry['auc']:.3f})", style.style_of(attack), banded))
    caption = (
        "ROC over the targets of label-only attacks. lira-online and confidence see confidences, "
        "carlini-wagner gradients. An attack of few different scores, such as gap, has as few "
        f"steps. The band is {results['strongest']}'s 95 % interval. In brackets the AUC."
    )
    return Drawing(name, "", title, f"{caption} {GREY_AREA}", **log_log(lines, "attack (AUC)"))


def _distances(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_distances", "Distances to the decision boundary"
    asked = findings.label_only
    if asked is None or asked.distances is None or asked.member is None:
        reason = _ASK if asked is None else f"{_ASK} --label_only.budget 2500"
        return Missing(name, "", title, reason)
    positive = asked.distances[asked.distances > 0]
    if not positive.size:
        return Missing(name, "", title, "every image asked about is given a wrong label")
    low, high = np.quantile(positive, [0.001, 1.0])
    edges = np.geomspace(low, max(high, 1.001 * low), _BINS + 1)
    with figure(1.75) as made:
        wrong, axes = made.subplots(1, 2, width_ratios=(1, 6))
        for place, (side, colour) in enumerate(
            ((~asked.member, style.OUT), (asked.member, style.IN))
        ):
            values = asked.distances[side]
            share = np.full(values.size, 1 / values.size)
            # Those below all bars are few, and belong to the first.
            shown = np.where(values > 0, np.maximum(values, low), 0)
            axes.hist(shown, edges.tolist(), weights=share, color=colour, alpha=0.5)
            height = float((values == 0).mean())
            wrong.bar([place], [height], width=0.8, color=colour, alpha=0.5)
        axes.set_xscale("log")
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("L2 distance to the boundary, images in [0, 1]")
        wrong.set_xticks([0.5], ["0"])
        wrong.set_xlim(-0.8, 1.8)
        wrong.set_ylabel("Share of examples [%]")
        for panel in (wrong, axes):
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
        style.legend_below(made, style.side_keys())
        pictures = rendered(made)
    caption = (
        "Distances that the boundary attack found from labels alone, of all targets and examples, "
        "by whether the target trained on the example. At 0, on a scale of its own: "
        "images that are given a wrong label."
    )
    return Drawing(name, "", title, caption, **pictures)


def _by_budget(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_queries", "What more label queries give"
    results = findings.metrics.get("label_only")
    points = results["by_budget"] if results else []
    if not results or len(points) < 2:
        reason = f"{_ASK} --label_only.budget 2500" if results else _ASK
        return Missing(name, "", title, reason)
    entries = {entry["name"]: entry for entry in results["attacks"]}
    boundary = style.style_of("boundary")
    with figure(2.6) as made:
        axes = made.add_subplot()
        queries = [point["queries"] for point in points]
        for key, parts, beside, (colour, line) in (
            ("auc", points, 1 / 1.012, (style.GREY, ":")),
            ("balanced_accuracy", [point["decision"] for point in points], 1.012, boundary),
        ):
            places = [beside * count for count in queries]
            values = [100 * part[key] for part in parts]
            axes.plot(places, values, color=colour, linestyle=line, marker="o", markersize=3)
            for place, part in zip(places, parts, strict=True):
                low, high = part[f"{key}_ci"]
                axes.vlines(place, 100 * low, 100 * high, color=colour, linewidth=0.8)
        keys = [style.key_to(*of, marker="o", markersize=3) for of in ((style.GREY, ":"), boundary)]
        labels = ["boundary, AUC", "boundary, balanced accuracy"]
        for other in ("gap", "confidence-true-label", "carlini-wagner"):
            if other in entries:
                height = 100 * entries[other]["decision"]["balanced_accuracy"]
                colour, line = style.style_of(other)
                axes.axhline(height, color=colour, linestyle=line, linewidth=0.9, zorder=1.5)
                keys.append(style.key_to(colour, line))
                labels.append(other)
        axes.axhline(50, zorder=1, **style.CHANCE)
        axes.set_xscale("log")
        ticks = [str(count) for count in queries]
        axes.set_xticks(queries, ticks, rotation=90 if len(queries) > 6 else 0)
        axes.minorticks_off()
        axes.set_xlabel("Label queries for each example")
        axes.set_ylabel("Balanced accuracy, AUC [%]")
        style.with_grid(axes)
        style.legend_below(made, [*keys, style.chance_key()], [*labels, "chance"], handlelength=2.6)
        pictures = rendered(made)
    caption = (
        "The boundary attack by the distance it has reached within so many queries, its threshold "
        "tuned on the source models for each. Lines across: balanced accuracy of other attacks. "
        "Bars: 95 % intervals."
    )
    return Drawing(name, "", title, caption, **pictures)
