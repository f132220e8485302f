"""Several runs in one figure (figures 7, 11 and 16 of the LiRA paper)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from lira_jax.evaluation import FPRS
from lira_jax.evaluation.judging import Curve
from lira_jax.evaluation.wording import fpr_text, is_few, tpr
from lira_jax.figures import style
from lira_jax.figures.roc import Labelled, log_log
from lira_jax.figures.style import figure, plain, rendered
from lira_jax.figures.trust import crossed, legend_of_calibrations
from lira_jax.findings import ComparedRun, Interval

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def roc(runs: Sequence[ComparedRun]) -> dict[str, bytes]:
    """The compared attack's ROC on every run, as pdf, png and svg, like all figures here."""
    lines = [
        Labelled(f"{run.name} ({run.entry['auc']:.3f})", style.style_of_run(place), Curve(run.roc))
        for place, run in enumerate(runs)
    ]
    return log_log(lines, f"{runs[0].entry['name']} (AUC)")


def accuracy(runs: Sequence[ComparedRun], key: str) -> dict[str, bytes]:
    """TPR against train-test gap and against held-out accuracy, with intervals both ways.

    Args:
        key: of the FPR at which the TPR is shown.
    """
    columns, rows = _legend_size([run.name for run in runs])
    with figure(2.3 + 0.125 * rows) as made:
        panels = made.subplots(1, 2, sharey=True)
        for place, run in enumerate(runs):
            for axes, measured in zip(panels, (run.gap, run.held_out), strict=True):
                if measured is not None:
                    hollow = is_few(run.entry, key)
                    _point(axes, measured, _rate(run, key), place, hollow=hollow)
        panels[0].set(xlabel="Train-test gap [points]", ylabel=f"TPR at {fpr_text(key)} FPR [%]")
        panels[1].set(xlabel="Accuracy held out [%]")
        for axes in panels:
            axes.set_ylim(bottom=0)
            axes.margins(x=0.12)
        style.with_grid(*panels)
        known = [(place, run) for place, run in enumerate(runs) if run.gap is not None]
        keys = [_key(place, hollow=is_few(run.entry, key)) for place, run in known]
        style.legend_below(made, keys, [plain(run.name) for _, run in known], columns)
        return rendered(made)


def defences(runs: Sequence[ComparedRun], key: str) -> dict[str, bytes]:
    """Figures 5 and 6 of Choquette-Choo et al. (arXiv 2007.14321): attacks against accuracy.

    Args:
        key: of the FPR at which LiRA's TPR is shown.
    """
    known = [(n, run) for n, run in enumerate(runs) if run.label_only and run.held_out]
    columns, rows = _legend_size([run.label for run in runs if run.label_only], more=3)
    floor = _floor((_rate(run, key)[0] for run in runs), key)
    with figure(5.3 + 0.125 * rows) as made:
        panels = made.subplots(3, 1, sharex=True)
        for place, run in known:
            assert run.held_out is not None
            for axes, name, hollow in (
                (panels[0], "confidence", False),
                (panels[1], "gap", True),
                (panels[1], run.strongest or "", False),
            ):
                if name in run.label_only:
                    _point(axes, run.held_out, run.label_only[name], place, hollow=hollow)
            rate = _at_least(floor, _rate(run, key))
            _point(panels[2], run.held_out, rate, place, hollow=is_few(run.entry, key))
        titles = (
            "Confidence attack: balanced accuracy [%]",
            "Label-only: balanced accuracy [%]",
            f"{runs[0].entry['name']}: TPR at {fpr_text(key)} FPR [%]",
        )
        for axes, title, chance in zip(panels, titles, (0.5, 0.5, FPRS[key]), strict=True):
            axes.set_title(title, loc="left")
            axes.margins(x=0.12)
            axes.axhline(100 * chance, zorder=1, **style.CHANCE)
        style.with_grid(*panels)
        panels[2].set_yscale("log")
        panels[2].set_ylim(bottom=100 * floor / 1.3)
        panels[2].yaxis.set_major_formatter(_PLAIN)
        panels[2].set_xlabel("Accuracy held out [%]")
        dot: dict[str, Any] = {"marker": "o", "markersize": 4.5}
        more = {
            "strongest label-only attack": style.key_to("0.3", **dot),
            "gap; LiRA: few false positives": style.key_to("0.3", markerfacecolor="white", **dot),
            "chance": style.chance_key(),
        }
        keys = [*(_key(place) for place, _ in known), *more.values()]
        style.legend_below(made, keys, [*(plain(run.label) for _, run in known), *more], columns)
        return rendered(made)


def trade_off(runs: Sequence[ComparedRun]) -> dict[str, bytes]:
    """Calibration error against AUROC of the maximum score and against online LiRA's TPR."""
    points = [point for run in runs for point in run.calibrated]
    titles = {point.name: point.title for point in points}
    marks = {name: style.marker(place) for place, name in enumerate(titles)}
    columns, rows = _legend_size([run.label for run in runs], more=1)
    floor = _floor((point.lira_tpr[0] for point in points), "0.001")
    with figure(4.3 + 0.125 * (rows + len(titles) // 3)) as made:
        upper, lower = made.subplots(2, 1, sharex=True)
        for place, run in enumerate(runs):
            colour, _ = style.style_of_run(place)
            for point in run.calibrated:
                mark = marks[point.name]
                crossed(upper, point.ece, point.max_score_auc, colour, mark)
                rate = _at_least(floor, point.lira_tpr)
                crossed(lower, point.ece, rate, colour, mark, hollow=point.few)
        upper.axhline(50, zorder=1, **style.CHANCE)
        lower.axhline(0.1, zorder=1, **style.CHANCE)
        upper.set_title("Maximum score: AUROC [%]", loc="left")
        lower.set_title(
            "LiRA online: TPR at 0.1 % FPR [%]; hollow: few false positives", loc="left"
        )
        lower.set_yscale("log")
        lower.set_ylim(bottom=100 * floor / 1.3)
        lower.yaxis.set_major_formatter(_PLAIN)
        lower.set_xlabel("Expected calibration error, non-members [%]")
        lower.set_xlim(left=0)
        style.with_grid(upper, lower)
        legend_of_calibrations(made, titles.values())
        keys = [
            style.key_to(style.style_of_run(place)[0], "-", linewidth=2)
            for place in range(len(runs))
        ]
        labels = [*(plain(run.label) for run in runs), "chance"]
        style.legend_below(made, [*keys, style.chance_key()], labels, columns)
        return rendered(made)


def _legend_size(labels: Sequence[str], more: int = 0) -> tuple[int, int]:
    """Columns and rows of a legend of these labels and some short ones."""
    columns = 1 if max(map(len, labels)) > 24 else 2
    return columns, -(-(len(labels) + more) // columns)


def _rate(run: ComparedRun, key: str) -> Interval:
    """The compared attack's TPR and the ends of its interval, if there is one."""
    rate, interval = tpr(run.entry, key)
    low, high = interval or (rate, rate)
    return rate, low, high


def _floor(tprs: Iterable[float], key: str) -> float:
    """The least that a log scale, which has no 0, shows: what lies below is drawn at its edge."""
    return max(min(tprs), FPRS[key] / 10) / 2


def _at_least(floor: float, interval: Interval) -> Interval:
    value, low, high = (max(end, floor) for end in interval)
    return value, low, high


def _point(axes: Axes, x: Interval, y: Interval, place: int, *, hollow: bool) -> None:
    crossed(axes, x, y, style.style_of_run(place)[0], style.marker(place), hollow=hollow)


def _key(place: int, *, hollow: bool = False) -> Line2D:
    colour, _ = style.style_of_run(place)
    face = "white" if hollow else colour
    return style.key_to(colour, marker=style.marker(place), markersize=4.5, markerfacecolor=face)
