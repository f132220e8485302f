"""What the attack stage shows in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lira_jax.evaluation import FEW_FALSE_POSITIVES, FPRS
from lira_jax.report.tables import fpr_text, percent


def summary(metrics: Mapping[str, Any], out: Path) -> str:
    """What the terminal shows: every attack in percent with 95 % intervals, rule and files.

    Args:
        metrics: from `attack`.
        out: where `attack` wrote.
    """
    heads = [
        "attack",
        "AUC",
        "bal. acc.",
        *(f"{'TPR ' * (FPRS[key] >= 1e-3)}@{fpr_text(key)}" for key in FPRS),
    ]
    rows = [heads]
    for entry in metrics["attacks"]:
        row = [
            entry["name"],
            _cell(entry["auc"], entry["auc_ci"]),
            _cell(entry["balanced_accuracy"], None),
        ]
        for key in FPRS:
            # Two columns of intervals fit a terminal; metrics.json and table.csv have them all.
            interval = entry["tpr_at_fpr_ci"][key] if FPRS[key] >= 1e-3 else None
            few = entry["few_false_positives"][key]
            row.append(_cell(entry["tpr_at_fpr"][key], interval, few))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    lines.append(f"Percent (95 % interval). {_setting(metrics)}")
    lines.append(f"Rule: {metrics['rule']}.")
    if any("*" in line for line in lines):
        lines.append(
            f"* fewer than {FEW_FALSE_POSITIVES} expected false positives behind this rate"
        )
    for entry in metrics["not_run"]:
        lines.append(f"Not run: {entry['name']}, which {entry['reason']}.")
    if metrics.get("label_only"):
        lines += _label_only(metrics["label_only"])
    if metrics.get("trust"):
        lines += _trust(metrics["trust"])
    if metrics["null_check"] is not None:
        lines.append(_null(metrics["null_check"]))
    lines.append(f"Written to {out}: report.html, metrics.json, table.csv, figures/, …")
    return "\n".join(lines)


def _label_only(found: Mapping[str, Any]) -> list[str]:
    """Balanced accuracy of label-only attacks, the strongest and those that readers compare."""
    entries = {entry["name"]: entry for entry in found["attacks"]}
    names = dict.fromkeys(
        name
        for name in (found["strongest"], "gap", "boundary", "confidence", "confidence-memguard")
        if name in entries
    )
    shown = []
    for name in names:
        decided = entries[name]["decision"]
        shown.append(
            f"{name} {_cell(decided['balanced_accuracy'], decided['balanced_accuracy_ci'])}"
        )
    sources, targets = len(found["sources"]), len(found["targets"])
    lines = [
        f"Label-only, thresholds from {sources} source model{'s' * (sources > 1)}, {targets} "
        f"target{'s' * (targets > 1)}; balanced accuracy: {', '.join(shown)}."
    ]
    for entry in found["not_run"]:
        lines.append(f"Not run: {entry['name']}, which {entry['reason']}.")
    return lines


def _trust(found: Mapping[str, Any]) -> list[str]:
    """False positives on what fools the maximum score most, and calibration errors."""
    plain = found["calibrations"][0]
    attacks = {entry["name"]: entry for entry in plain["attacks"]}
    lines = []
    if found["kinds"]:
        inputs = attacks["max-score"]["inputs"]
        worst = max(inputs, key=lambda judged: judged["decision"]["fpr"])["kind"]
        title = next(kind["title"] for kind in found["kinds"] if kind["name"] == worst)
        shown = []
        for name in ("max-score", "max-score-calibrated"):
            on = next(one for one in attacks[name]["inputs"] if one["kind"] == worst)["decision"]
            shown.append(f"{name} {_cell(on['fpr'], on['fpr_ci'])}")
        lines.append(f"Falsely called members, of {title}: {', '.join(shown)}.")
    best = min(found["calibrations"], key=lambda one: one["nonmembers"]["ece"])
    errors = [
        f"{one['title']} {_cell(one['nonmembers']['ece'], one['nonmembers']['ece_ci'])}"
        for one in ((plain,) if best is plain else (plain, best))
    ]
    lines.append(f"Calibration error on non-members, by calibration: {', '.join(errors)}.")
    for entry in found["not_run"]:
        lines.append(f"Not run: {entry['title']}, {entry['reason']}.")
    return lines


def _setting(metrics: Mapping[str, Any]) -> str:
    counts = metrics["references"]
    targets = metrics["attacks"][0]["targets"]
    return (
        f"{metrics['models']} models, {metrics['examples']:,} examples, "
        f"{metrics['queries']} view{'s' * (metrics['queries'] > 1)}; "
        f"{targets} target{'s' * (targets > 1)}; "
        f"{counts['in']} IN and {counts['out']} OUT references."
    )


def _cell(value: float, interval: Sequence[float] | None, few: bool = False) -> str:
    text = percent(value) + "*" * few
    return text if interval is None else f"{text} ({percent(interval[0])}–{percent(interval[1])})"


def _null(check: Mapping[str, Any]) -> str:
    off = [entry["name"] for entry in check["attacks"] if not entry["ok"]]
    verdict = "every attack at chance" if check["ok"] else f"NOT at chance: {', '.join(off)}"
    return f"Null check, {check['draws']} draws without leakage: {verdict}."
