"""One look for all figures: width of a paper's column, one colour and line per attack.

Matplotlib's objects only: no global state, no display, and the same input gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# A column of the usual two-column paper [inches].
WIDTH = 3.4

# Okabe and Ito's colours, told apart by colour-blind readers, and three darker ones of Paul Tol's.
BLUE, SKY, GREEN, ORANGE, RED, PINK, BLACK = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
WINE, OLIVE, INDIGO = "#882255", "#999933", "#332288"
GREY = "#7F7F7F"

IN, OUT = RED, BLUE
"""Colours of models that trained on an example, and that did not."""

Line = Literal["-", "--", "-.", ":"] | tuple[float, tuple[float, ...]]

# LiRA: a colour per variance, online solid, offline dashed. Baselines broken in ways of their own.
# The dashes of variants that often coincide lie in each other's gaps.
STYLES: dict[str, tuple[str, Line]] = {
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


def rendered(made: Figure) -> dict[str, bytes]:
    """The figure as pdf, png and svg; no dates, so the same figure gives the same bytes."""
    # Laid out once; the three pictures then agree and are drawn in half the time.
    made.draw_without_rendering()
    made.set_layout_engine("none")
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
