"""Figures of the attack stage: each of the LiRA paper's that one run's artefacts allow.

`draw(findings)` gives every figure as pdf, png and svg, or the reason why it is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller
from pathlib import Path

from lira_jax.figures import budgets, histograms, label_only, roc, trust
from lira_jax.figures.style import Drawing, Missing, style_of
from lira_jax.findings import Findings
from lira_jax.storage import write_whole

__all__ = ["Drawing", "Missing", "draw", "style_of", "write"]

# Figures of the paper that need more than one run, or other models than a run has.
_OTHER_RUNS = (
    ("compare", "Figures 7, 11 and 16", "Attack against accuracy over several runs",
     "it needs several runs: python attack.py compare RUN RUN … --out DIR"),
    ("shifted", "Figure 10", "Disjoint or shifted shadow data",
     "it needs targets trained on other data than the shadow models"),
    ("dp_sgd", "Figure 14", "Models trained with DP-SGD",
     "it needs runs trained with DP-SGD"),
    ("other_data", "Figures 18 to 21", "Figure 1 for other data sets",
     "each is figure 1 of a run on that data set"),
)  # fmt: skip


def draw(findings: Findings) -> list[Drawing | Missing]:
    """Every figure, in the order of the report."""
    made = [
        *roc.every(findings),
        *histograms.every(findings),
        *budgets.every(findings),
        *label_only.every(findings),
        *trust.every(findings),
    ]
    return made + [Missing(*words) for words in _OTHER_RUNS]


def write(drawings: Iterable[Drawing | Missing], folder: Path) -> list[str]:
    """Write `NAME.pdf` and `NAME.png` of every figure that is drawn; return the names of files.

    Raises:
        InputError: the folder cannot be written.
    """
    written = []
    for drawing in drawings:
        if isinstance(drawing, Drawing):
            for kind, content in (("pdf", drawing.pdf), ("png", drawing.png)):
                write_whole(folder / f"{drawing.name}.{kind}", methodcaller("write", content))
                written.append(f"{drawing.name}.{kind}")
    return written
