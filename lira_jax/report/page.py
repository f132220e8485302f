"""`report.html`: one self-contained file about one run, from the verdict to the versions.

Semantic HTML with inline style, no scripts and no network; what it says is in `templates/`, a file
per section. Names, labels, settings and reasons come from the user's data and files: every value
that a template shows is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from lira_jax.analysis import outliers, verdict
from lira_jax.evaluation import FPRS, wording
from lira_jax.figures import Drawing, Missing, style_of
from lira_jax.figures.histograms import picture
from lira_jax.findings import Findings
from lira_jax.label_only import outliers as label_only_outliers
from lira_jax.report import label_only_tables, tables, trust_tables
from lira_jax.report.formats import counted

# Images of the most, and as many of the least, exposed examples.
SHOWN = 12
# Larger images are reduced to this side [pixels].
_IMAGE_SIDE = 96


def write_report(findings: Findings, drawings: Sequence[Drawing | Missing]) -> str:
    """The whole report.

    Args:
        findings: what was measured.
        drawings: from `figures.draw`, in any order.

    Returns:
        HTML, one file; the same findings give the same text.
    """
    metrics = findings.metrics
    settings = metrics.get("settings") or {}
    page = _TEMPLATES.get_template("page.html").render(
        findings=findings,
        metrics=metrics,
        settings=settings,
        name=settings.get("data.name") or metrics.get("source") or "scores",
        verdict=metrics["verdict"],
        in_words=verdict.in_words(metrics["verdict"]),
        absurd=outliers.in_words(metrics.get("outliers")),
        drawn={drawing.name: drawing for drawing in drawings if isinstance(drawing, Drawing)},
        missing=[drawing for drawing in drawings if isinstance(drawing, Missing)],
        cards=_cards(findings),
    )
    return page + "\n"


def _cards(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """The most and the least exposed examples; none without images of them."""
    if findings.vulnerability is None or findings.images is None:
        return {}
    order = findings.vulnerability.order
    order = order[np.isfinite(findings.vulnerability.success[order])]
    extremes = {"Most exposed": order[:SHOWN], "Least exposed": order[::-1][:SHOWN]}
    return {
        title: [_card(findings, findings.images[example], int(example)) for example in examples]
        for title, examples in extremes.items()
    }


def _card(findings: Findings, image: np.ndarray, example: int) -> dict[str, Any]:
    label, canary = tables.label(findings, example), findings.score_set.canary
    words = f"example {example}" + (f", labelled {label}" if label else "")
    if canary is not None and canary[example]:
        label, words = f"{label} (canary)".strip(), f"{words}, a canary"
    return {
        "example": example,
        "image": _image(image),
        "words": words,
        "label": label or words,
        "success": tables.success_cell(findings, example),
    }


def _image(image: np.ndarray) -> str:
    """An image [H, W, C] as a PNG to inline, small ones pixel by pixel."""
    from PIL import Image

    shown = Image.fromarray(np.ascontiguousarray(picture(image)))
    shown.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    file = io.BytesIO()
    shown.save(file, "png", optimize=True)
    return _data_uri("image/png", file.getvalue())


# What templates ask for.


def _unbroken(value: Any) -> Any:
    """A number and its % stay on one line."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_DASHES = {"-": "", "--": "5.6 2.4", ":": "1.5 2.5", "-.": "9.6 2.4 1.5 2.4"}


def _swatch(name: str) -> tuple[str, str]:
    """Colour and dashes of the line that stands for the attack in every figure."""
    colour, line = style_of(name)
    if isinstance(line, str):
        return colour, _DASHES[line]
    return colour, " ".join(f"{1.5 * length:g}" for length in line[1])


def _share(of: Mapping[str, Any], key: str) -> str:
    """A share and its interval: "10.0 % (9.30–11.7)"."""
    return wording.share_text(of[key], of[f"{key}_ci"], " %")


def _mean_accuracy(accuracy: Iterable[Mapping[str, Any]], side: str) -> str:
    return wording.percent(float(np.mean([row[side] for row in accuracy])))


def _sentence(text: Any) -> str:
    text = str(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")


_TEMPLATES = Environment(
    loader=PackageLoader("lira_jax.report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_unbroken,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals |= {
    "FPRS": FPRS,
    "counted": counted,
    "data_uri": _data_uri,
    "label_only_tables": label_only_tables,
    "mean_accuracy": _mean_accuracy,
    "outliers": label_only_outliers,
    "wording": wording,
    "sentence": _sentence,
    "share": _share,
    "swatch": _swatch,
    "tables": tables,
    "trust_tables": trust_tables,
    "values": tables.values,
}
