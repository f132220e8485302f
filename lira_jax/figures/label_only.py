"""Figures of label-only attacks: ROC, distances to the boundary, and what queries give."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lira_jax.evaluation.judging import Curve
from lira_jax.figures.roc import FEW, Labelled, log_log
from lira_jax.figures.style import (
    GREY,
    IN,
    OUT,
    Drawing,
    Missing,
    figure,
    rendered,
    style_of,
)
from lira_jax.findings import Findings

_BINS = 40
_ASK = "the models were not asked: python score.py --run DIR --label-only"


def every(findings: Findings) -> list[Drawing | Missing]:
    """All figures of label-only attacks of one run."""
    return [_roc(findings), _distances(findings), _by_budget(findings)]


def _roc(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_roc", "Label-only attacks beside those that see confidences"
    found = findings.metrics.get("label_only")
    if findings.label_only is None or not found:
        return Missing(name, "", title, _ASK)
    drawn = [entry for entry in found["attacks"] if entry["name"] != "confidence-memguard"]
    lines = []
    for entry in drawn:
        curve = findings.label_only.curves[entry["name"]]
        banded = curve if entry["name"] == found["strongest"] else Curve(curve.roc)
        label = f"{entry['name']} ({entry['auc']:.3f})"
        lines.append(Labelled(label, style_of(entry["name"]), banded))
    caption = (
        "ROC over the targets of label-only attacks. lira-online and confidence see confidences, "
        "carlini-wagner gradients. An attack of few different scores, such as gap, has as few "
        f"steps. The band is {found['strongest']}'s 95 % interval. In brackets the AUC."
    )
    return Drawing(name, "", title, f"{caption} {FEW}", **log_log(lines, "attack (AUC)"))


def _distances(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_distances", "Distances to the decision boundary"
    held = findings.label_only
    if held is None or held.distances is None or held.member is None:
        reason = _ASK if held is None else f"{_ASK} --label_only.budget 2500"
        return Missing(name, "", title, reason)
    positive = held.distances[held.distances > 0]
    if not positive.size:
        return Missing(name, "", title, "every image asked about is given a wrong label")
    low, high = np.quantile(positive, [0.001, 1.0])
    edges = np.geomspace(low, max(high, 1.001 * low), _BINS + 1)
    with figure(1.75) as made:
        wrong, axes = made.subplots(1, 2, width_ratios=(1, 6))
        for place, (side, colour) in enumerate(((~held.member, OUT), (held.member, IN))):
            values = held.distances[side]
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
        handles = [
            Patch(color=IN, alpha=0.5, label="IN: trained on it"),
            Patch(color=OUT, alpha=0.5, label="OUT: did not"),
        ]
        made.legend(handles=handles, loc="outside lower center", ncols=2)
        pictures = rendered(made)
    caption = (
        "Distances that the boundary attack found from labels alone, of all targets and examples, "
        "by whether the target trained on the example. At 0, on a scale of its own: "
        "images that are given a wrong label."
    )
    return Drawing(name, "", title, caption, **pictures)


def _by_budget(findings: Findings) -> Drawing | Missing:
    name, title = "label_only_queries", "What more label queries give"
    found = findings.metrics.get("label_only")
    points = found["by_budget"] if found else []
    if not found or len(points) < 2:
        reason = f"{_ASK} --label_only.budget 2500" if found else _ASK
        return Missing(name, "", title, reason)
    entries = {entry["name"]: entry for entry in found["attacks"]}
    with figure(2.6) as made:
        axes = made.add_subplot()
        x = [point["queries"] for point in points]
        for key, beside, colour, line in (
            ("AUC", 1 / 1.012, GREY, ":"),
            ("balanced accuracy", 1.012, *style_of("boundary")),
        ):
            field = key.lower().replace(" ", "_")
            figures = [point if key == "AUC" else point["decision"] for point in points]
            y = [100 * one[field] for one in figures]
            places = [beside * place for place in x]
            axes.plot(places, y, color=colour, linestyle=line, marker="o", markersize=3)
            for place, one in zip(places, figures, strict=True):
                below, above = one[f"{field}_ci"]
                axes.vlines(place, 100 * below, 100 * above, color=colour, linewidth=0.8)
        handles = [
            Line2D([], [], color=GREY, linestyle=":", marker="o", markersize=3),
            _handle("boundary", marker="o", markersize=3),
        ]
        labels = ["boundary, AUC", "boundary, balanced accuracy"]
        for other in ("gap", "confidence-true-label", "carlini-wagner"):
            if other in entries:
                _level(axes, other, 100 * entries[other]["decision"]["balanced_accuracy"])
                handles.append(_handle(other))
                labels.append(other)
        axes.axhline(50, color="0.6", linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
        handles.append(Line2D([], [], color="0.6", linestyle=(0, (4, 3)), linewidth=0.8))
        axes.set_xscale("log")
        axes.set_xticks(x, [str(tick) for tick in x], rotation=90 if len(x) > 6 else 0)
        axes.minorticks_off()
        axes.set_xlabel("Label queries for each example")
        axes.set_ylabel("Balanced accuracy, AUC [%]")
        axes.grid(linewidth=0.3, color="0.9")
        axes.set_axisbelow(True)
        made.legend(
            handles, [*labels, "chance"], loc="outside lower center", ncols=2, handlelength=2.6
        )
        pictures = rendered(made)
    caption = (
        "The boundary attack by the distance it has reached within so many queries, its threshold "
        "tuned on the source models for each. Lines across: balanced accuracy of other attacks. "
        "Bars: 95 % intervals."
    )
    return Drawing(name, "", title, caption, **pictures)


def _handle(name: str, **marks: object) -> Line2D:
    colour, line = style_of(name)
    return Line2D([], [], color=colour, linestyle=line, **marks)  # type: ignore[arg-type]


def _level(axes: Axes, name: str, height: float) -> None:
    colour, line = style_of(name)
    axes.axhline(height, color=colour, linestyle=line, linewidth=0.9, zorder=1.5)
