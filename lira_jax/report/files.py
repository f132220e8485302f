"""Every file that the attack stage writes, each at once or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import figures
from lira_jax.analysis import exposure
from lira_jax.errors import InputError
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.judging import Curve
from lira_jax.figures import Missing
from lira_jax.findings import Findings
from lira_jax.report import page, tables
from lira_jax.run.storage import is_remote, remove, write_text, write_whole

# Files that not every protocol and score set has.
OPTIONAL = (
    "ablation.md", "ablation.tex", "label_only.csv", "label_only.md", "label_only.tex",
    "trust_calibration.csv", "trust_calibration.md", "trust_calibration.tex", "trust_inputs.csv",
    "trust_inputs.md", "trust_inputs.tex", "vulnerability.csv",
)  # fmt: skip


def prepare(out: Path) -> None:
    """Make the folders, or say why not. An object store has none.

    Raises:
        InputError: a file in the way, or no right to write.
    """
    if is_remote(out):
        return
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made a folder ({error.strerror}); give another"
        ) from None


def write(findings: Findings, out: Path) -> list[str]:
    """Write all that was found.

    | file | what |
    |---|---|
    | `metrics.json` | every figure, schema 2 |
    | `table.csv`, `.md`, `.tex`; `ablation.md`, `.tex` | the tables |
    | `label_only.csv`, `.md`, `.tex` | the table of label-only attacks, where models were asked |
    | `trust_inputs.csv`, `.md`, `.tex` | attacks on inputs from elsewhere, where there are any |
    | `trust_calibration.csv`, … | calibrated predictions, and attacks on them |
    | `roc.npz` | per attack `NAME.fpr`, `NAME.tpr`, and the band `NAME.band_fpr`, `_lo`, `_hi` |
    | | the same as `label_only.NAME`, of label-only attacks and those beside them |
    | `vulnerability.csv` | a line per example, most exposed first |
    | `figures/*.pdf`, `*.png` | the figures |
    | `report.html` | all of it on one page |

    Returns:
        The files' names.

    Raises:
        InputError: the folder cannot be written.
    """
    prepare(out)
    metrics = findings.metrics
    drawings = figures.draw(findings)
    texts = {
        "metrics.json": json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "table.csv": table_csv(metrics["attacks"]),
        **tables.files(metrics),
        "report.html": page.write_report(findings, drawings),
    }
    if findings.vulnerability is not None:
        held = findings.score_set
        texts["vulnerability.csv"] = exposure.as_csv(
            findings.vulnerability, held.labels, held.canary
        )
    if metrics.get("label_only"):
        texts["label_only.csv"] = tables.label_only_csv(metrics)
    if metrics.get("trust"):
        texts["trust_inputs.csv"] = tables.trust_inputs_csv(metrics)
        texts["trust_calibration.csv"] = tables.trust_calibration_csv(metrics)
    of_labels = findings.label_only.curves if findings.label_only else {}
    named = {f"label_only.{name}": curve for name, curve in of_labels.items()}
    arrays = _curve_arrays({**findings.curves, **named})
    write_whole(out / "roc.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    drawn = figures.write(drawings, out / "figures")
    # What an earlier attack on other scores left, and this one has none of.
    stale = [out / name for name in OPTIONAL if name not in texts]
    for one in drawings:
        if isinstance(one, Missing):
            stale += [out / "figures" / f"{one.name}.{kind}" for kind in ("pdf", "png")]
    for path in stale:
        remove(path)
    for name, text in texts.items():
        write_text(out / name, text)
    return [*texts, "roc.npz", *(f"figures/{name}" for name in drawn)]


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


def table_csv(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line per attack, one column per figure; intervals as _lo and _hi, empty where none."""
    rows = []
    for entry in entries:
        row = {"name": entry["name"], "targets": entry["targets"]}
        for key in ("auc", "balanced_accuracy"):
            low, high = entry[f"{key}_ci"] or ("", "")
            row |= {key: entry[key], f"{key}_lo": low, f"{key}_hi": high}
        for key in FPRS:
            low, high = entry["tpr_at_fpr_ci"][key] or ("", "")
            row |= {
                f"tpr_at_fpr_{key}": entry["tpr_at_fpr"][key],
                f"tpr_at_fpr_{key}_lo": low,
                f"tpr_at_fpr_{key}_hi": high,
                f"expected_false_positives_{key}": entry["expected_false_positives"][key],
                f"few_false_positives_{key}": entry["few_false_positives"][key],
            }
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
