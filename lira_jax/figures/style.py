"""One look for all figures: width of a paper's column, one colour and line per attack.

Matplotlib's objects only: no global state, no display, and the same input gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

# A column of the usual two-column paper [inches].
WIDTH = 3.4

# Okabe and Ito's colours, told apart by colour-blind readers, and four of Paul Tol's.
BLUE, SKY, GREEN, ORANGE, RED, PINK, BLACK = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
WINE, OLIVE, INDIGO, PURPLE = "#882255", "#999933", "#332288", "#AA4499"
GREY = "#7F7F7F"

IN, OUT = RED, BLUE
"""Colours of models that trained on an example, and that did not."""

Line = Literal["-", "--", "-.", ":", "none"] | tuple[float, tuple[float, ...]]

# LiRA: a colour per variance, online solid, offline dashed. Baselines broken in ways of their own.
# The dashes of variants that often coincide lie in each other's gaps.
STYLES: dict[str, tuple[str, Line]] = {
    "lira-bayes": (PURPLE, "-"),
    "lira-bayes-offline": (PURPLE, "--"),
    "lira-online": (BLUE, "-"),
    "lira-online-global": (SKY, "-"),
    "lira-online-pooled": (GREEN, "-"),
    "lira-online-shrinkage": (ORANGE, "-"),
    "lira-offline": (BLUE, "--"),
    "lira-offline-global": (SKY, (0, (3.0, 3.0))),
    "lira-offline-pooled": (GREEN, (3, (3.0, 3.0))),
    "lira-offline-shrinkage": (ORANGE, "--"),
    "yeom": (BLACK, ":"),
    "shokri": (PINK, "-."),
    "merlin": (OLIVE, ":"),
    "morgan": (OLIVE, "-."),
    "song-mittal": (PINK, ":"),
    "sablayrolles": (RED, "--"),
    "long": (WINE, (0, (6.0, 1.5))),
    "watson": (BLACK, "-."),
    "ye": (GREEN, "-."),
    "rmia-online": (RED, "-"),
    "rmia-offline": (RED, ":"),
    "info-rmia-online": (WINE, "-."),
    "info-rmia-offline": (WINE, ":"),
    "bavaria-n-online": (BLACK, (0, (6.0, 1.5))),
    "bavaria-t-online": (GREEN, (0, (6.0, 1.5))),
    "bavaria-n-offline": (BLACK, (0, (1.5, 1.5))),
    "bavaria-t-offline": (GREEN, (0, (1.5, 1.5))),
    "base-online": (OLIVE, "-"),
    "base-offline": (OLIVE, (0, (6.0, 1.5))),
    "pmia-all": (SKY, "--"),
    "pmia-class": (SKY, (0, (6.0, 1.5))),
    "quantile-regression": (PINK, "-"),
    "gradient-norm": (INDIGO, "-."),
    "lira-online-gradient-norm": (INDIGO, "-"),
    "confidence": (INDIGO, "--"),
    "confidence-memguard": (INDIGO, ":"),
    "confidence-true-label": (BLACK, "-"),
    "gap": (BLACK, "--"),
    "augmentation-rotation": (SKY, "-."),
    "augmentation-translation": (SKY, ":"),
    "noise-gaussian": (PINK, "--"),
    "noise-bernoulli": (PINK, (0, (6.0, 1.5))),
    "boundary": (RED, "-."),
    "combined": (ORANGE, "-."),
    "lira-label-only": (WINE, "-"),
    "carlini-wagner": (OLIVE, "--"),
    "entropy": (GREEN, ":"),
    "max-score": (RED, (0, (6.0, 1.5))),
    "top-3": (ORANGE, ":"),
    "max-score-calibrated": (WINE, "--"),
}
# Runs beside one another: colours, lines and markers, each in its own cycle.
_RUN_COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK, WINE, INDIGO, OLIVE, GREY, "#8C564B")
_RUN_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X<>p"

_OWN_COLOURS = (GREY, WINE, OLIVE, INDIGO)
_OWN_LINES: tuple[Line, ...] = (
    (0, (8.0, 2.0)),
    (0, (8.0, 2.0, 1.0, 2.0)),
    (0, (5.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    (0, (2.0, 1.0)),
)

_RC: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lira_jax",
}


def style_of(name: str) -> tuple[str, Line]:
    """Colour and line of an attack; of a user's own, ones that depend on its name alone."""
    if name in STYLES:
        return STYLES[name]
    code = zlib.crc32(name.encode())
    return (
        _OWN_COLOURS[code % len(_OWN_COLOURS)],
        _OWN_LINES[code // len(_OWN_COLOURS) % len(_OWN_LINES)],
    )


def style_of_run(place: int) -> tuple[str, Line]:
    """Colour and line of the n-th of several runs."""
    colour = _RUN_COLOURS[place % len(_RUN_COLOURS)]
    return colour, _RUN_LINES[(place + place // len(_RUN_COLOURS)) % len(_RUN_LINES)]


def marker(place: int) -> str:
    """The marker of the n-th of several runs or calibrations."""
    return MARKERS[place % len(MARKERS)]


CHANCE: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4.0, 3.0)), "linewidth": 0.8}
"""How guessing is drawn."""


def key_to(colour: str, line: Line = "none", **marks: Any) -> Line2D:
    """What stands for a line or for points in a legend."""
    return Line2D([], [], color=colour, linestyle=line, **marks)


def chance_key() -> Line2D:
    """What stands for guessing in a legend."""
    return Line2D([], [], **CHANCE)


def side_keys(trained: str = "IN: trained on it", did_not: str = "OUT: did not") -> list[Artist]:
    """What stands for models that trained on an example, and that did not, in a legend."""
    labels = {IN: trained, OUT: did_not}
    return [Patch(color=colour, alpha=0.5, label=label) for colour, label in labels.items()]


def legend_below(
    made: Figure,
    keys: Sequence[Artist],
    labels: Sequence[str] | None = None,
    columns: int = 2,
    **how: Any,
) -> None:
    """A legend under the axes; without labels, each key brings its own."""
    shown = {"handles": keys} if labels is None else {"handles": keys, "labels": labels}
    made.legend(loc="outside lower center", ncols=columns, **shown, **how)


def with_powers_of_ten(*log: Axis) -> None:
    """Powers of ten at the larger ticks of logarithmic axes, in letters, and nothing between.

    As formulas, and with empty labels between, they took a third of the time of drawing.
    """
    for axis in log:
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", label1On=False)


def _power_of_ten(value: float, _: int | None) -> str:
    return "10" + f"{np.log10(value):.0f}".translate(_SUPERSCRIPTS)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def with_grid(*panels: Axes, axis: Literal["both", "x"] = "both") -> None:
    """Thin lines at the ticks, behind all else."""
    for axes in panels:
        axes.grid(axis=axis, linewidth=0.3, color="0.9")
        axes.set_axisbelow(True)


@dataclass(frozen=True)
class Drawing:
    """A figure, drawn.

    Attributes:
        name: of its files, without the ending.
        paper: where the LiRA paper has it, such as "Figure 3"; empty if it has not.
        title: what it shows, in a few words.
        caption: what it shows, how examples were chosen, what the marks mean.
        pdf, png, svg: the picture.
    """

    name: str
    paper: str
    title: str
    caption: str
    pdf: bytes
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Missing:
    """A figure that these artefacts do not allow.

    Attributes:
        name, paper, title: as in `Drawing`.
        reason: why it is not drawn, and what would have to be there.
    """

    name: str
    paper: str
    title: str
    reason: str


@contextmanager
def figure(height: float, width: float = WIDTH) -> Iterator[Figure]:
    """A figure of this size [inches] in the common style, for as long as the context lasts."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # Names are the user's: letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        made = Figure(figsize=(width, height), dpi=300, layout="constrained")
        FigureCanvasAgg(made)
        yield made


def rendered(made: Figure, square: Sequence[Axes] = ()) -> dict[str, bytes]:
    """The figure as pdf, png and svg; no dates, so the same figure gives the same bytes.

    Args:
        square: axes to make square within the room that they have.
    """
    # Laid out once; the three pictures then agree and are drawn in half the time.
    made.draw_without_rendering()
    made.set_layout_engine("none")
    # Not before: what a square leaves free of its room, the layout would take from its labels.
    for axes in square:
        axes.set_box_aspect(1)
    none: dict[str, dict[str, Any] | None] = {
        "pdf": {"CreationDate": None},
        "png": None,
        "svg": {"Date": None},
    }
    pictures = {}
    for kind, metadata in none.items():
        file = io.BytesIO()
        made.savefig(file, format=kind, metadata=metadata)
        pictures[kind] = file.getvalue()
    return pictures


def plain(text: str) -> str:
    """Text for Matplotlib to show as it is: no formulas, no line breaks, no hidden legend entry."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
