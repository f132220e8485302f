"""Stage 3: every attack on one set of scores, its figures, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from lira_jax import evaluation
from lira_jax.attacks import ATTACKS, reference_code, references
from lira_jax.config import AttackConfig
from lira_jax.errors import InputError
from lira_jax.evaluation import FPRS, Roc
from lira_jax.figures import roc_figure
from lira_jax.score_set import ScoreSet, check
from lira_jax.storage import is_remote, write_text, write_whole

# Fewer expected false positives than this behind a TPR, and the output marks it.
FEW_FALSE_POSITIVES = 10

Protocol = Literal["leave-block-out", "reference-code"]


def attack(
    score_set: ScoreSet,
    config: AttackConfig,
    protocol: Protocol,
    out: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Run every attack and write what came out.

    Writes `metrics.json`, `table.csv`, `roc.npz`, `figures/roc.png` and `figures/roc.pdf` into
    `out`, each at once or not at all, and nothing before all input is checked. The same input
    writes the same bytes.

    Args:
        score_set: scores and masks.
        config: views to use and the centre of references (the reference code's is the median).
        protocol: `leave-block-out` takes every model as target (leave-one-out where the masks form
            no blocks); `reference-code` evaluates as the public LiRA code does.
        out: folder to write into, made if missing.
        progress: show progress bars, if standard error is a terminal.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: arrays that no attack could use, masks that leave a target without references,
            more views asked for than there are, an `out` that cannot be written.
    """
    check(score_set)
    models, examples, views = score_set.scores.shape
    if config.queries > views:
        raise InputError(
            f"attack.queries = {config.queries}: {score_set.source} holds {views} views; "
            f"give at most {views}, or 0 for all"
        )
    metrics: dict[str, Any] = {
        "schema": 1,
        "models": models,
        "examples": examples,
        "queries": config.queries or views,
        "protocol": protocol,
    }
    entries: list[dict[str, Any]] = []
    curves: dict[str, Roc] = {}

    if protocol == "reference-code":
        member = score_set.keep[-1:]
        count_in, count_out = reference_code.list_lengths(score_set)
        _prepare(out)
        metrics |= _rule(reference_code.WORDS, count_in, count_out, "median", member)
        scores_of = reference_code.attack(score_set, config.queries, progress)
        for name, scores in scores_of.items():
            curve = evaluation.roc(scores, member)
            figures = evaluation.reference_code_summary(curve)
            entries.append(_entry(name, scores, member, figures, fold=1))
            curves[name] = evaluation.thin(curve)
    else:
        member = score_set.keep
        rule = references.find(score_set)
        _prepare(out)
        metrics |= _rule(rule.words, rule.count_in, rule.count_out, config.centre, member)
        families = tqdm(
            ATTACKS.values(), desc="attacks", leave=False, disable=None if progress else True
        )
        for family in families:
            for name, scores in family.attack(score_set, rule, config, progress).items():
                curve = evaluation.roc(scores, member)
                figures = evaluation.summary(curve)
                entries.append(_entry(name, scores, member, figures, rule.fold))
                curves[name] = evaluation.thin(curve)

    metrics["attacks"] = entries
    _write(out, metrics, curves)
    return metrics


def _rule(
    words: str, count_in: int, count_out: int, centre: str, member: Bool[np.ndarray, "T E"]
) -> dict[str, Any]:
    members = int(member.sum())
    return {
        "rule": words,
        "references": {"in": count_in, "out": count_out},
        "centre": centre,
        "members": members,
        "nonmembers": member.size - members,
    }


def _entry(
    name: str,
    scores: Float[np.ndarray, "T E"],
    member: Bool[np.ndarray, "T E"],
    figures: dict[str, Any],
    fold: int,
) -> dict[str, Any]:
    """One attack's part of `metrics.json`."""
    nonmembers = member.size - int(member.sum())
    return {
        "name": name,
        **figures,
        **evaluation.intervals(scores, member, fold),
        "targets": scores.shape[0],
        "mean_over_targets": evaluation.mean_over_targets(scores, member),
        "expected_false_positives": {key: fpr * nonmembers for key, fpr in FPRS.items()},
    }


def _prepare(out: Path) -> None:
    """Make the folders, or say why not. An object store has none."""
    if is_remote(out):
        return
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made a folder ({error.strerror}); give another"
        ) from None


def _write(out: Path, metrics: dict[str, Any], curves: Mapping[str, Roc]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, curve in curves.items():
        arrays |= {f"{name}.fpr": curve.fpr, f"{name}.tpr": curve.tpr}
    aucs = {entry["name"]: entry["auc"] for entry in metrics["attacks"]}
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(out / "metrics.json", text)
    write_text(out / "table.csv", _as_csv(metrics["attacks"]))
    write_whole(out / "roc.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    kinds: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")
    for kind in kinds:
        path = out / "figures" / f"roc.{kind}"
        write_whole(path, partial(roc_figure, curves, aucs, kind))


def _as_csv(entries: list[dict[str, Any]]) -> str:
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
            }
        rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_table(metrics: dict[str, Any], out: Path) -> str:
    """What the terminal shows: every attack in percent with 95 % intervals, rule and files.

    Args:
        metrics: from `attack`.
        out: where `attack` wrote.
    """
    heads = ["attack", "AUC", "bal. acc.", *(f"TPR@{_percent_text(fpr)}" for fpr in FPRS.values())]
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
            few = entry["expected_false_positives"][key] < FEW_FALSE_POSITIVES
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
    lines.append(f"Written to {out}: metrics.json, table.csv, roc.npz, figures/roc.png, roc.pdf")
    return "\n".join(lines)


def _setting(metrics: dict[str, Any]) -> str:
    counts = metrics["references"]
    targets = metrics["attacks"][0]["targets"]
    return (
        f"{metrics['models']} models, {metrics['examples']:,} examples, "
        f"{metrics['queries']} view{'s' * (metrics['queries'] > 1)}; "
        f"{targets} target{'s' * (targets > 1)}; "
        f"{counts['in']} IN and {counts['out']} OUT references."
    )


def _cell(value: float, interval: list[float] | None, few: bool = False) -> str:
    text = _percent(value) + "*" * few
    return text if interval is None else f"{text} ({_percent(interval[0])}–{_percent(interval[1])})"


def _percent(share: float) -> str:
    """Two decimals below 10 %, one above: three or so digits that count."""
    return f"{100 * share:.2f}" if share < 0.09995 else f"{100 * share:.1f}"


def _percent_text(fpr: float) -> str:
    return f"{100 * fpr:.3f}".rstrip("0").rstrip(".") + "%"
