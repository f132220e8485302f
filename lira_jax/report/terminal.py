"""What the attack stage shows in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lira_jax.analysis import outliers, verdict
from lira_jax.evaluation.wording import share_text
from lira_jax.report.formats import to_text
from lira_jax.report.tables import terminal_table
from lira_jax.report.trust_tables import attack_of, best_calibrated, on_kind, worst_kind

WIDTH = 100


def summary(metrics: Mapping[str, Any], out: Path) -> str:
    """What the terminal shows: every attack in percent with 95 % intervals, the verdict, files.

    Args:
        metrics: from `attack`.
        out: where `attack` wrote.
    """
    lines = [to_text(terminal_table(metrics)), _setting(metrics), f"Rule: {metrics['rule']}."]
    lines += _not_run(metrics["not_run"])
    if metrics.get("label_only"):
        lines += _label_only(metrics["label_only"])
    if metrics.get("trust"):
        lines += _trust(metrics["trust"])
    if metrics["null_check"] is not None:
        lines.append(_null(metrics["null_check"]))
    for words in outliers.in_words(metrics.get("outliers")):
        lines += ["", textwrap.fill(words, WIDTH, break_on_hyphens=False)]
    judged = metrics["verdict"]
    words = f"{judged['title']}. {verdict.in_words(judged)}"
    lines += ["", textwrap.fill(words, WIDTH, break_on_hyphens=False), ""]
    lines.append(f"Written to {out}: report.html, metrics.json, table.csv, figures/, …")
    return "\n".join(lines)


def _label_only(results: Mapping[str, Any]) -> list[str]:
    """Balanced accuracy of label-only attacks, the strongest and those that readers compare."""
    entries = {entry["name"]: entry for entry in results["attacks"]}
    names = (results["strongest"], "gap", "boundary", "confidence", "confidence-memguard")
    accuracies = _listed(
        (name, entries[name]["decision"], "balanced_accuracy")
        for name in dict.fromkeys(names)
        if name in entries
    )
    sources, targets = len(results["sources"]), len(results["targets"])
    lines = [
        f"Label-only, thresholds from {sources} source model{'s' * (sources > 1)}, {targets} "
        f"target{'s' * (targets > 1)}; balanced accuracy: {accuracies}."
    ]
    lines += _not_run(results["not_run"])
    return lines


def _trust(results: Mapping[str, Any]) -> list[str]:
    """False positives on what fools the maximum score most, and calibration errors."""
    plain = results["calibrations"][0]
    lines = []
    if results["kinds"]:
        worst = worst_kind(attack_of(plain, "max-score"))["kind"]
        title = next(kind["title"] for kind in results["kinds"] if kind["name"] == worst)
        on_worst = {
            name: on_kind(attack_of(plain, name), worst)
            for name in ("max-score", "max-score-calibrated")
        }
        rates = _listed((name, part["decision"], "fpr") for name, part in on_worst.items() if part)
        lines.append(f"Falsely called members, of {title}: {rates}.")
    best = best_calibrated(results["calibrations"])
    errors = _listed(
        (calibration["title"], calibration["nonmembers"], "ece")
        for calibration in ((plain,) if best is plain else (plain, best))
    )
    lines.append(f"Calibration error on non-members, by calibration: {errors}.")
    lines += [f"Not run: {entry['title']}, {entry['reason']}." for entry in results["not_run"]]
    return lines


def _listed(figures: Iterable[tuple[str, Mapping[str, Any], str]]) -> str:
    """Names with figures of theirs and intervals, in percent."""
    return ", ".join(f"{name} {share_text(of[key], of[f'{key}_ci'])}" for name, of, key in figures)


def _setting(metrics: Mapping[str, Any]) -> str:
    counts = metrics["references"]
    targets = metrics["attacks"][0]["targets"]
    return (
        f"{metrics['models']} models, {metrics['examples']:,} examples, "
        f"{metrics['queries']} view{'s' * (metrics['queries'] > 1)}; "
        f"{targets} target{'s' * (targets > 1)}; "
        + "at least " * (0 in counts.values())
        + f"{counts['in']} IN and {counts['out']} OUT references."
    )


def _null(check: Mapping[str, Any]) -> str:
    off = [entry["name"] for entry in check["attacks"] if not entry["ok"]]
    result = "every attack at chance" if check["ok"] else f"NOT at chance: {', '.join(off)}"
    return f"Null check, {check['draws']} draws without leakage: {result}."


def _not_run(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each reason, with all that it keeps from being run."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry["reason"], []).append(entry["name"])
    return [
        f"Not run: {', '.join(those)}, which "
        + (reason.replace("needs ", "need ", 1) if len(those) > 1 else reason)
        + "."
        for reason, those in names.items()
    ]
