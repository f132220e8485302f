"""ROC figures: 1, 2, 5, 6, 8 and 15 of the LiRA paper, and one of newer attacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lira_jax.evaluation import FEW_FALSE_POSITIVES, Roc
from lira_jax.evaluation.judging import Band, Curve
from lira_jax.figures import style
from lira_jax.figures.style import Drawing, Line, Missing, figure, plain, rendered
from lira_jax.findings import Findings

# The rows of Table I, and the figures of their own that the variants have.
TABLE_1 = (
    "yeom",
    "shokri",
    "merlin",
    "morgan",
    "song-mittal",
    "sablayrolles",
    "long",
    "watson",
    "ye",
    "lira-online",
)
VARIANCES = ("", "-global", "-pooled", "-shrinkage")
ONLINE = tuple(f"lira-online{variance}" for variance in VARIANCES)
OFFLINE = tuple(f"lira-offline{variance}" for variance in VARIANCES)
HIERARCHICAL = ("lira-bayes", "lira-bayes-offline")
GRADIENT = ("gradient-norm", "lira-online-gradient-norm")

GREY_AREA = f"Grey: fewer than {FEW_FALSE_POSITIVES} false positives are expected there."
# Letters of the longest labels of two columns that fit a figure's width together.
_LEGEND = 56
_STATISTIC_STYLES: tuple[tuple[str, Line], ...] = (
    (style.BLUE, "-"),
    (style.SKY, "--"),
    (style.BLACK, "-."),
    (style.PINK, ":"),
    (style.GREEN, (0, (6.0, 1.5))),
    (style.ORANGE, "-"),
    (style.RED, "--"),
)


@dataclass(frozen=True)
class Labelled:
    """One line of a ROC figure."""

    label: str
    style: tuple[str, Line]
    curve: Curve


def every(findings: Findings) -> list[Drawing | Missing]:
    """All ROC figures of one run."""
    curves = findings.curves
    known = {*TABLE_1, *ONLINE, *OFFLINE, *GRADIENT, *HIERARCHICAL}
    others = [name for name in curves if name not in known]
    of_out = [name for name in others if name.endswith("-offline") or name.startswith("pmia-")]
    newer = [name for name in others if name not in of_out]
    return [
        _attacks(
            findings, "roc", "Figure 1", "LiRA and earlier attacks",
            (HIERARCHICAL[0], *TABLE_1),
            "ROC of the attacks of Table I and of hierarchical LiRA, with its 95 % interval.",
            bands=(HIERARCHICAL[0],),
        ),
        _linear_and_log(findings),
        _attacks(
            findings, "roc_online", "Figure 5", "Online LiRA by its estimate of variance", ONLINE,
            "ROC of online LiRA with a variance per example, one for all examples (global), one "
            "within examples (pooled), and one per example shrunk towards all (shrinkage).",
            bands=("lira-online",),
        ),
        _attacks(
            findings, "roc_offline", "Figure 6", "Online beside offline LiRA",
            (*ONLINE, *OFFLINE),
            "ROC of online (solid) and offline (broken) LiRA; offline attacks know only models "
            "that did not train on the example.",
            needs=OFFLINE,
        ),
        _statistics(findings),
        _attacks(
            findings, "roc_gradient_norm", "Figure 15", "White-box gradient norm beside φ",
            ("lira-online", *GRADIENT),
            "ROC of the gradient's norm by the weights, as it is and under the online "
            "likelihood ratio, beside LiRA on φ.",
            needs=GRADIENT,
        ),
        _attacks(
            findings, "roc_newer", "", "Newer attacks and attacks of one's own beside LiRA",
            (HIERARCHICAL[0], "lira-online", "lira-online-shrinkage", *newer),
            "ROC of attacks that are later than the LiRA paper, and of the user's own.",
            needs=tuple(newer) or ("rmia-online",),
        ),
        _attacks(
            findings, "roc_newer_offline", "", "Newer offline attacks beside LiRA",
            (HIERARCHICAL[1], "lira-offline", "lira-offline-shrinkage", *of_out),
            "ROC of later attacks that need no model that trained on the example.",
            needs=tuple(of_out) or ("rmia-offline",),
        ),
    ]  # fmt: skip


def _attacks(
    findings: Findings,
    name: str,
    paper: str,
    title: str,
    attacks: Sequence[str],
    caption: str,
    needs: Sequence[str] = (),
    bands: Sequence[str] = (),
) -> Drawing | Missing:
    """One log-log panel of those of the attacks that were run."""
    present = [attack for attack in attacks if attack in findings.curves]
    if not present or (needs and not set(needs) & set(present)):
        missing = needs or attacks
        return Missing(name, paper, title, _why(findings, missing))
    aucs = {entry["name"]: entry["auc"] for entry in findings.metrics["attacks"]}
    lines = []
    for attack in present:
        curve = findings.curves[attack]
        lines.append(
            Labelled(
                f"{attack} ({aucs[attack]:.3f})",
                style.style_of(attack),
                curve if attack in bands else Curve(curve.roc),
            )
        )
    absent = [attack for attack in attacks if attack not in findings.curves]
    if absent:
        caption += f" Not run: {', '.join(absent)}."
    return Drawing(
        name,
        paper,
        title,
        f"{caption} In brackets the AUC. {GREY_AREA}",
        **log_log(lines, "attack (AUC)"),
    )


def _why(findings: Findings, attacks: Iterable[str]) -> str:
    """The first reason given for an attack that was not run."""
    reasons = {entry["name"]: entry["reason"] for entry in findings.metrics.get("not_run", ())}
    for attack in attacks:
        if attack in reasons:
            return f"{attack} was not run: {reasons[attack]}"
    return f"none of {', '.join(attacks)} was run"


def _statistics(findings: Findings) -> Drawing | Missing:
    name, paper, title = "roc_statistics", "Figure 8", "Online LiRA on other statistics than φ"
    if not findings.statistics:
        return Missing(name, paper, title, "the attack was not run on other statistics")
    lines = [
        Labelled(plain(label), style, Curve(roc))
        for (label, roc), style in zip(findings.statistics.items(), _STATISTIC_STYLES, strict=False)
    ]
    caption = "ROC of online LiRA, one query, with the logit-scaled confidence φ and instead of it."
    if len(lines) < 6:
        caption += " The hinge and the plain logit need logits and labels, which are not there."
    return Drawing(name, paper, title, f"{caption} {GREY_AREA}", **log_log(lines, "statistic"))


def log_log(lines: Sequence[Labelled], title: str) -> dict[str, bytes]:
    """One square log-log panel with its legend below, as pdf, png and svg."""
    half, widths = len(lines) // 2, [len(line.label) for line in lines]
    columns = 1 if max(widths[:half], default=0) + max(widths[half:]) > _LEGEND else 2
    rows = -(-(len(lines) + 1) // columns) + 1
    with figure(style.WIDTH + 0.115 * rows) as made:
        axes = made.add_subplot()
        _log_panel(axes, lines)
        _legend(made, lines, title, columns)
        return rendered(made, [axes])


def _linear_and_log(findings: Findings) -> Drawing | Missing:
    """Figure 2: one attack of which linear axes hide that it fails at low FPR."""
    name, paper, title = "roc_loss", "Figure 2", "The loss attack on linear and on log axes"
    if "yeom" not in findings.curves:
        return Missing(name, paper, title, _why(findings, ["yeom"]))
    lines = [
        Labelled(attack, style.style_of(attack), Curve(findings.curves[attack].roc))
        for attack in ("yeom", "lira-online")
        if attack in findings.curves
    ]
    with figure(1.95) as made:
        linear, logarithmic = made.subplots(1, 2)
        for line in lines:
            linear.step(
                line.curve.roc.fpr,
                line.curve.roc.tpr,
                where="post",
                color=line.style[0],
                linestyle=line.style[1],
            )
        linear.plot([0, 1], [0, 1], zorder=1, **style.CHANCE)
        linear.set(xlim=(0, 1), ylim=(0, 1), xlabel="False-positive rate")
        linear.set_ylabel("True-positive rate")
        _log_panel(logarithmic, lines)
        logarithmic.set_ylabel("")
        style.with_grid(linear)
        _legend(made, lines, None, 3)
        pictures = rendered(made, [linear, logarithmic])
    caption = (
        "The same curves twice. Linear axes show how an attack does on average; only log axes show "
        f"whether it finds any members at low false-positive rates. {GREY_AREA}"
    )
    return Drawing(name, paper, title, caption, **pictures)


def _log_panel(axes: Axes, lines: Sequence[Labelled]) -> None:
    """ROC curves on log-log axes that begin at one false positive among all non-members.

    Curves are steps: at each FPR, the largest TPR that some threshold reaches without exceeding it.
    """
    nonmembers = [int(line.curve.roc.false_positives[-1]) for line in lines]
    left = 1 / max(*nonmembers, 10)
    few = min(FEW_FALSE_POSITIVES / min(nonmembers), 1)
    axes.axvspan(left, few, color="0.93", linewidth=0, zorder=0)
    for line in lines:
        colour, pattern = line.style
        if line.curve.band is not None:
            axes.fill_between(
                *_band_corners(line.curve.band, left),
                step="post",
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
        axes.step(*_corners(line.curve.roc, left), where="post", color=colour, linestyle=pattern)
    axes.plot([left, 1], [left, 1], zorder=1, **style.CHANCE)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(left, 1),
        ylim=(left, 1),
        xlabel="False-positive rate",
        ylabel="True-positive rate",
    )
    style.with_powers_of_ten(axes.xaxis, axes.yaxis)
    style.with_grid(axes)


def _legend(made: Figure, lines: Sequence[Labelled], title: str | None, columns: int) -> None:
    keys = [style.key_to(*line.style) for line in lines]
    labels = [plain(line.label) for line in lines]
    # At the end of the first of two columns: lines in pairs then stand side by side.
    place = len(lines) // 2 if columns == 2 else len(lines)
    keys.insert(place, style.chance_key())
    labels.insert(place, "chance")
    spacing = {"handlelength": 2.6, "columnspacing": 1.2, "labelspacing": 0.25}
    style.legend_below(made, keys, labels, columns, title=title, **spacing)


def _corners(curve: Roc, left: float) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """FPR and TPR to draw: the largest TPR at each FPR, the first at `left`."""
    fpr = np.maximum(curve.fpr, left)
    highest = np.append(fpr[1:] != fpr[:-1], True)
    # Zero has no logarithm: a curve that is yet at zero comes up from far below.
    return fpr[highest], np.maximum(curve.tpr[highest], 1e-12)


def _band_corners(
    band: Band, left: float
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """FPR, least and greatest TPR to fill between; what lies left of `left` is cut off."""
    last = max(int(np.searchsorted(band.fpr, left, side="right")) - 1, 0)
    fpr = np.maximum(band.fpr[last:], left)
    low, high = (np.maximum(values[last:], 1e-12) for values in (band.lo, band.hi))
    return fpr, low, high
