"""What the attack gains by more shadow models and more views (figures 9 and 17), and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lira_jax.analysis.budgets import DECISIONS, TARGETS
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.wording import fpr_text, is_few, telling_fpr, tpr
from lira_jax.figures import style
from lira_jax.figures.style import Drawing, Missing, figure, plain, rendered
from lira_jax.findings import Findings

_PART = (
    f"Bars: 95 % intervals. With more than {DECISIONS:,} decisions, all points but the last rest "
    "on a random part of the examples."
)
_FILLED = "Filled: at least ten false positives are expected behind the rate; hollow: fewer."


def every(findings: Findings) -> list[Drawing | Missing]:
    """All budget figures of one run."""
    return [
        _budget(
            findings, "by_models", "models", "by_models", "Figures 9 and 17",
            "More shadow models", "Shadow models",
            "TPR where the run's models are cut into groups of so many, each is attacked as a run "
            "of its own, and all targets are pooled; of more than "
            f"{TARGETS} models, the first groups of {TARGETS} targets or more.",
        ),
        _budget(
            findings, "by_queries", "queries", "by_queries", "", "More views of each example",
            "Views (queries)", "TPR with the first so many views of each example.",
        ),
        _accuracy(findings),
    ]  # fmt: skip


def _budget(
    findings: Findings,
    field: str,
    by: str,
    name: str,
    paper: str,
    title: str,
    xlabel: str,
    caption: str,
) -> Drawing | Missing:
    entries = findings.metrics.get(field) or ()
    if len({entry[by] for entry in entries}) < 2:
        reason = f"fewer than two numbers of {'views' if by == 'queries' else 'shadow models'}"
        return Missing(name, paper, title, f"the run allows {reason}")
    key = telling_fpr(findings.metrics) or "0.01"
    names = list(dict.fromkeys(entry["name"] for entry in entries))
    with figure(2.0 + 0.13 * (len(names) // 2 + 1)) as made:
        axes = made.add_subplot()
        for place, attack in enumerate(names):
            mine = sorted((e for e in entries if e["name"] == attack), key=lambda e: int(e[by]))
            _with_intervals(axes, mine, by, key, attack, 1 + 0.02 * (place - (len(names) - 1) / 2))
        axes.axhline(100 * FPRS[key], zorder=1, **style.CHANCE)
        ticks = sorted({int(entry[by]) for entry in entries})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"TPR at {fpr_text(key)} FPR [%]")
        axes.set_ylim(bottom=0)
        style.with_grid(axes)
        keys = [style.key_to(*style.style_of(name), marker="o", markersize=3) for name in names]
        labels = [*map(plain, names), "chance"]
        style.legend_below(made, [*keys, style.chance_key()], labels, handlelength=2.6)
        pictures = rendered(made)
    return Drawing(name, paper, title, f"{caption} {_PART} {_FILLED}", **pictures)


def _with_intervals(
    axes: Axes,
    entries: Sequence[Mapping[str, Any]],
    by: str,
    key: str,
    attack: str,
    factor: float,
) -> None:
    colour, line = style.style_of(attack)
    x = np.array([int(entry[by]) for entry in entries]) * factor
    axes.plot(x, [100 * tpr(entry, key)[0] for entry in entries], color=colour, linestyle=line)
    for place, entry in zip(x, entries, strict=True):
        rate, interval = tpr(entry, key)
        if interval is not None:
            axes.vlines(place, 100 * interval[0], 100 * interval[1], color=colour, linewidth=0.8)
        face = "white" if is_few(entry, key) else colour
        axes.plot(place, 100 * rate, "o", markersize=3.2, color=colour, markerfacecolor=face)


def _accuracy(findings: Findings) -> Drawing | Missing:
    name, title = "accuracy", "Accuracy of every model"
    accuracy = findings.metrics.get("accuracy")
    if not accuracy:
        return Missing(name, "", title, "accuracy needs logits and labels, which are not there")
    with figure(1.5) as made:
        axes = made.add_subplot()
        for row, (side, colour) in enumerate((("nonmember", style.OUT), ("member", style.IN))):
            values = np.array([100 * entry[side] for entry in accuracy])
            # Spread a little, the same every time, so that equal values can be told apart.
            jitter = np.random.default_rng(0).uniform(-0.22, 0.22, values.size)
            axes.plot(values, row + jitter, "o", color=colour, markersize=2.5, alpha=0.6)
            mean = float(values.mean())
            axes.plot([mean, mean], [row - 0.35, row + 0.35], color="0.1", linewidth=1.2)
            axes.annotate(f"{mean:.2f}", (mean, row + 0.36), ha="center", va="bottom", fontsize=6)
        axes.set_yticks([0, 1], ["held out", "trained on"])
        axes.set_ylim(-0.5, 1.75)
        axes.set_xlabel("Accuracy [%]")
        style.with_grid(axes, axis="x")
        pictures = rendered(made)
    caption = "Each point is one model: its accuracy on what it trained on, and on the rest."
    return Drawing(name, "", title, caption + " Lines: means.", **pictures)
