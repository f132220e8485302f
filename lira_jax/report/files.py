"""Every file that the attack stage writes, each at once or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import figures
from lira_jax.analysis import exposure
from lira_jax.evaluation.judging import Curve
from lira_jax.figures import Missing
from lira_jax.findings import Findings
from lira_jax.report import page, tables
from lira_jax.report.formats import to_latex, to_markdown
from lira_jax.report.label_only_tables import label_only_csv, label_only_table
from lira_jax.report.tables import Table
from lira_jax.report.trust_tables import (
    calibrated_attacks_table,
    calibration_table,
    trust_calibration_csv,
    trust_inputs_csv,
    trust_inputs_table,
)
from lira_jax.run.result_folder import replaced
from lira_jax.storage import write_text, write_whole

# What readers open first: missing wherever the other files may be of another attack.
HEADS = ("metrics.json", "report.html")
# Files that not every protocol and score set has.
OPTIONAL = (
    "ablation.md", "ablation.tex", "label_only.csv", "label_only.md", "label_only.tex",
    "trust_calibration.csv", "trust_calibration.md", "trust_calibration.tex", "trust_inputs.csv",
    "trust_inputs.md", "trust_inputs.tex", "vulnerability.csv",
)  # fmt: skip


def write(findings: Findings, out: Path) -> list[str]:
    """Write all that was found, in place of what an earlier attack wrote.

    | file | what |
    |---|---|
    | `metrics.json` | every figure and the verdict, schema 2 |
    | `table.csv`, `.md`, `.tex`; `ablation.md`, `.tex` | the tables |
    | `label_only.csv`, `.md`, `.tex` | the table of label-only attacks, where models were asked |
    | `trust_inputs.csv`, `.md`, `.tex` | attacks on inputs from elsewhere, where there are any |
    | `trust_calibration.csv`, … | calibrated predictions, and attacks on them |
    | `roc.npz` | per attack `NAME.fpr`, `NAME.tpr`, and the band `NAME.band_fpr`, `_lo`, `_hi` |
    | | the same as `label_only.NAME`, of label-only attacks and those beside them |
    | `vulnerability.csv` | a line per example, most exposed to the default attack first |
    | `figures/*.pdf`, `*.png` | the figures |
    | `report.html` | all of it on one page |

    Returns:
        The files' names.

    Raises:
        InputError: the folder cannot be written.
    """
    metrics = findings.metrics
    drawings = figures.draw(findings)
    texts = {"table.csv": tables.main_csv(metrics), **text_tables(metrics)}
    if findings.vulnerability is not None:
        scored = findings.score_set
        texts["vulnerability.csv"] = exposure.as_csv(
            findings.vulnerability, scored.labels, scored.canary
        )
    if metrics.get("label_only"):
        texts["label_only.csv"] = label_only_csv(metrics)
    if metrics.get("trust"):
        texts["trust_inputs.csv"] = trust_inputs_csv(metrics)
        texts["trust_calibration.csv"] = trust_calibration_csv(metrics)
    of_labels = findings.label_only.curves if findings.label_only else {}
    named = {f"label_only.{name}": curve for name, curve in of_labels.items()}
    arrays = _curve_arrays({**findings.curves, **named})
    texts["report.html"] = page.write_report(findings, drawings)
    texts["metrics.json"] = (
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    # What an earlier attack on other scores left, and this one has none of.
    stale = [name for name in OPTIONAL if name not in texts]
    for drawing in drawings:
        if isinstance(drawing, Missing):
            stale += [f"figures/{drawing.name}.{kind}" for kind in ("pdf", "png")]
    with replaced(out, HEADS, stale) as folder:
        write_whole(folder / "roc.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        drawn = figures.write(drawings, folder / "figures")
        for name, text in texts.items():
            write_text(folder / name, text)
    return [*texts, "roc.npz", *(f"figures/{name}" for name in drawn)]


def text_tables(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Tables as `.md` and `.tex`, each where it has something to tell.

    `table`, `ablation` where the ladders were run, `label_only` where live models were asked, and
    `trust_inputs` and `trust_calibration` where models were asked about inputs from elsewhere.
    """
    made: dict[str, list[Table | None]] = {
        "table": [tables.main_table(metrics)],
        "ablation": [tables.ablation_table(metrics)],
        "label_only": [label_only_table(metrics)],
        "trust_inputs": [trust_inputs_table(metrics)],
        "trust_calibration": [calibration_table(metrics), calibrated_attacks_table(metrics)],
    }
    return {
        f"{name}.{ending}": "\n".join(render(table) for table in known)
        for name, maybe in made.items()
        if (known := [table for table in maybe if table is not None])
        for ending, render in (("md", to_markdown), ("tex", to_latex))
    }


def _curve_arrays(curves: Mapping[str, Curve]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, curve in curves.items():
        arrays |= {f"{name}.fpr": curve.roc.fpr, f"{name}.tpr": curve.roc.tpr}
        if curve.band is not None:
            band = curve.band
            arrays |= {
                f"{name}.band_fpr": band.fpr,
                f"{name}.band_lo": band.lo,
                f"{name}.band_hi": band.hi,
            }
    return arrays
