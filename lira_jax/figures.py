"""Figures of the attack stage. Matplotlib's objects only: no global state, no display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lira_jax.evaluation import Roc

# Okabe and Ito's colours, told apart by colour-blind readers, and one style per attack everywhere:
# online solid, offline dashed, baselines dotted or dash-dotted.
_BLUE, _SKY, _GREEN, _ORANGE, _RED, _PINK, _BLACK = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
_Line = str | tuple[int, tuple[float, float]]
STYLES: dict[str, tuple[str, _Line]] = {
    "lira-online": (_BLUE, "-"),
    "lira-online-global": (_SKY, "-"),
    "lira-online-pooled": (_GREEN, "-"),
    "lira-offline": (_RED, "--"),
    # These two often coincide: the dashes of one lie in the gaps of the other.
    "lira-offline-global": (_ORANGE, (0, (3.0, 3.0))),
    "lira-offline-pooled": (_PINK, (3, (3.0, 3.0))),
    "watson": (_BLACK, "-."),
    "yeom": (_BLACK, ":"),
    "global-threshold": (_GREEN, ":"),
}
_UNKNOWN: tuple[str, _Line] = ("#7F7F7F", "-")

_TEXT: dict[Any, Any] = {"font.size": 8, "pdf.fonttype": 42, "axes.linewidth": 0.6}


def roc_figure(
    curves: Mapping[str, Roc],
    aucs: Mapping[str, float],
    kind: Literal["png", "pdf"],
    file: Path | BinaryIO,
) -> None:
    """Draw ROC curves on log-log axes, at the width of a paper's column.

    Both axes begin at one false positive among all non-members. Curves are steps: at each FPR, the
    largest TPR that some threshold reaches without exceeding it.

    Args:
        curves: by name of the attack, in the legend's order; thinned or not.
        aucs: areas under the whole curves, by the same names.
        kind: of picture.
        file: where to write.
    """
    nonmembers = max(int(curve.false_positives[-1]) for curve in curves.values())
    left = 1 / max(nonmembers, 10)
    with mpl.rc_context(_TEXT):
        rows = len(curves) // 2 + 2
        figure = Figure(figsize=(3.8, 3.75 + 0.15 * rows), dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for name, curve in curves.items():
            colour, line = STYLES.get(name, _UNKNOWN)
            axes.step(
                *_corners(curve, left),
                where="post",
                color=colour,
                linestyle=line,
                linewidth=1.2,
                label=f"{name} ({aucs[name]:.3f})",
            )
        chance = np.array([left, 1.0])
        axes.plot(
            chance,
            chance,
            color="0.6",
            linestyle=(0, (4, 3)),
            linewidth=0.8,
            zorder=1,
            label="chance (0.500)",
        )
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(left, 1),
            ylim=(left, 1),
            xlabel="False-positive rate",
            ylabel="True-positive rate",
        )
        axes.set_aspect("equal")
        axes.grid(linewidth=0.3, color="0.9")
        axes.set_axisbelow(True)
        figure.legend(
            loc="outside lower center",
            ncols=2,
            title="attack (AUC)",
            frameon=False,
            fontsize=8,
            handlelength=1.8,
            columnspacing=1.0,
            labelspacing=0.25,
        )
        # No date in the file: the same curves give the same bytes.
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(file, format=kind, metadata=metadata)


def _corners(curve: Roc, left: float) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """FPR and TPR to draw: the largest TPR at each FPR, the first at `left`."""
    fpr = np.maximum(curve.fpr, left)
    highest = np.append(fpr[1:] != fpr[:-1], True)
    # Zero has no logarithm: a curve that is yet at zero comes up from far below.
    return fpr[highest], np.maximum(curve.tpr[highest], 1e-12)
