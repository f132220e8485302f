"""Tables of attacks on inputs from elsewhere, and of calibration."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from lira_jax.csv_text import csv_text, with_interval
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.wording import fpr_text, tpr
from lira_jax.report.tables import (
    AUC,
    INTERVALS,
    UNKNOWN,
    Cell,
    Column,
    Entry,
    Table,
    difference_cell,
    named,
    pairs_table,
    rate_columns,
    share_cell,
    share_of,
    tabulate,
    text_of,
)

NONMEMBERS = "other examples"
_AUROC: dict[str, Column] = {"AUROC": AUC["AUC"]}
# How decisions are judged, in the order of tables.
_DECIDED: dict[str, Column] = {
    head: share_of(key, "decision")
    for head, key in {"FPR": "fpr", "precision": "precision", "recall": "tpr", "FNR": "fnr"}.items()
}
# What is worth its place in tables of calibration, and how it is called.
_CALIBRATION = {
    "accuracy": "accuracy",
    "ECE": "ece",
    "adaptive ECE": "adaptive_ece",
    "overconfidence error": "overconfidence_error",
}


def attack_of(calibration: Entry, name: str) -> Entry:
    """An attack under a calibration."""
    return next(entry for entry in calibration["attacks"] if entry["name"] == name)


def on_kind(attack: Entry, kind: str) -> Entry | None:
    """An attack's part on a kind of inputs, if it was asked about them."""
    return next((part for part in attack["inputs"] if part["kind"] == kind), None)


def worst_kind(attack: Entry) -> Entry:
    """The attack's part on the kind of inputs that it falsely calls members most often."""
    return max(attack["inputs"], key=lambda part: part["decision"]["fpr"])


def title_of(metrics: Entry, part: Entry) -> str:
    """What the kind of inputs is called that a part is about."""
    kinds = metrics["trust"]["kinds"]
    return next(str(kind["title"]) for kind in kinds if kind["name"] == part["kind"])


def best_calibrated(calibrations: Iterable[Entry]) -> Entry:
    """The calibration of the least error on examples that a model did not train on."""
    return min(calibrations, key=lambda calibration: calibration["nonmembers"]["ece"])


def trust_fpr_table(metrics: Entry, threshold: str = "decision") -> Table | None:
    """False-positive rates, a row for each kind of inputs; None where there are none.

    Args:
        metrics: what `metrics.json` holds.
        threshold: `decision`, or the key of one for few false positives (`trust.results.LOW`).
    """
    results = metrics.get("trust")
    if not results or not results["kinds"]:
        return None

    def fpr(attack: Entry, kind: Entry) -> Cell:
        part = on_kind(attack, kind["name"]) if kind["name"] else attack
        if part is None:
            return UNKNOWN
        decided = part["decision"] if threshold == "decision" else part["low"][threshold]
        return share_cell(decided["fpr"], decided["fpr_ci"])

    attacks = [attack for attack in results["calibrations"][0]["attacks"] if attack["inputs"]]
    tuned = "the most accurate threshold on the source model"
    if threshold != "decision":
        share = fpr_text(threshold)
        tuned = f"a threshold that at most {share} of the source model's non-members reach"
    return tabulate(
        f"Inputs called members though no model trained on them, by {tuned}: {INTERVALS}",
        {
            "inputs": text_of("title"),
            **{attack["title"]: partial(fpr, attack) for attack in attacks},
        },
        [{"name": "", "title": NONMEMBERS}, *results["kinds"]],
    )


def trust_inputs_table(metrics: Entry) -> Table | None:
    """Plain predictions: every attack, against each kind of inputs; None where there are none."""
    results = metrics.get("trust")
    if not results or not results["kinds"]:
        return None
    titles = {kind["name"]: kind["title"] for kind in results["kinds"]}

    def of_members(cell: Column) -> Column:
        """The members are the same for every kind of inputs."""
        return lambda entry: Cell("") if "kind" in entry else cell(entry)

    def against(entry: Entry) -> Cell:
        return Cell(titles[entry["kind"]] if "kind" in entry else NONMEMBERS)

    return tabulate(
        f"Members against each kind of inputs, plain predictions: {INTERVALS}",
        {
            "attack": of_members(named),
            "against": against,
            "FPR": _DECIDED["FPR"],
            "precision": _DECIDED["precision"],
            "recall": of_members(_DECIDED["recall"]),
            "FNR": of_members(_DECIDED["FNR"]),
            **_AUROC,
            "MMPS of FP": lambda entry: _mean_score(entry["mmps"]["fp"]),
            "MMPS of TP": of_members(lambda entry: _mean_score(entry["mmps"]["tp"])),
        },
        [
            part
            for attack in results["calibrations"][0]["attacks"]
            for part in (attack, *attack["inputs"])
        ],
        words=2,
        remarks=(
            "By the most accurate threshold on the source model; precision as if half of the "
            "candidates were members; recall, FNR and MMPS of TP are of members, whatever they are "
            "told from. MMPS: mean maximum prediction score of what is rightly (TP) or falsely "
            "(FP) called a member",
        ),
    )


def _mean_score(score: Entry | None) -> Cell:
    return UNKNOWN if score is None else share_cell(score["mean"], score["ci"])


def calibration_table(metrics: Entry) -> Table | None:
    """How well calibrated predictions are; None where there is no part on trust."""
    results = metrics.get("trust")
    if not results:
        return None

    def brier(calibration: Entry) -> Cell:
        others = calibration["nonmembers"]
        low, high = others["brier_ci"]
        return Cell(f"{others['brier']:.3f}", f"{low:.3f}–{high:.3f}")

    return tabulate(
        f"Calibration on examples that a model did not train on: {INTERVALS}",
        {
            "calibration": _calibration_title,
            **{head: share_of(key, "nonmembers") for head, key in _CALIBRATION.items()},
            "Brier score": brier,
            "ECE, members": share_of("ece", "members"),
        },
        results["calibrations"],
        remarks=(
            "ECE: expected calibration error, 15 bins of equal width; adaptive: of equal numbers. "
            "The Brier score is no share: from 0, the best, to 2",
        ),
    )


def _calibration_title(calibration: Entry) -> Cell:
    """With the mean of fitted temperatures."""
    title = str(calibration["title"])
    if calibration["name"] == "temperature-fit":
        title += f", mean {calibration['temperature']['mean']:.3g}"
    return Cell(title)


def calibrated_attacks_table(metrics: Entry) -> Table | None:
    """Every attack under each calibration; None where there is no part on trust."""
    results = metrics.get("trust")
    if not results:
        return None

    def apart(entry: Entry) -> Cell:
        difference = entry["mmps"]["fp_less_tp"]
        return difference_cell(difference["mean"], difference["ci"]) if difference else UNKNOWN

    return tabulate(
        f"Attacks under each calibration, members against other examples: {INTERVALS}",
        {
            "calibration": lambda entry: entry["calibration"],
            "attack": text_of("title"),
            "precision": _DECIDED["precision"],
            "recall": _DECIDED["recall"],
            "FPR": _DECIDED["FPR"],
            **_AUROC,
            **rate_columns(("0.001",)),
            "MMPS, FP less TP": apart,
        },
        [
            attack | {"calibration": Cell("") if place else _calibration_title(calibration)}
            for calibration in results["calibrations"]
            for place, attack in enumerate(calibration["attacks"])
        ],
        words=2,
        remarks=(
            "Precision, recall and FPR by the most accurate threshold on the source model. MMPS, "
            "FP less TP: by how many points the mean maximum prediction score of false positives "
            "exceeds that of true ones",
        ),
    )


def not_run_table(metrics: Entry) -> Table:
    """Calibrations that were not run, and why."""
    entries = metrics["trust"]["not_run"]
    reasons = ((entry["title"], entry["reason"]) for entry in entries)
    return pairs_table("Not run", ("calibration", "why"), reasons)


def trust_inputs_csv(metrics: Entry) -> str:
    """One line per calibration, attack and kind of inputs, other examples first; shares."""
    records = []
    for calibration in metrics["trust"]["calibrations"]:
        for attack in calibration["attacks"]:
            for part in (attack, *attack["inputs"]):
                record = {
                    "calibration": calibration["name"],
                    "attack": attack["name"],
                    "against": part.get("kind", "nonmembers"),
                }
                record |= with_interval("auc", part["auc"], part["auc_ci"])
                record |= _decided(part)
                # The members are the same for all.
                record |= _mean_scores(attack["mmps"] | part["mmps"], ("tp", "fp", "fn", "tn"))
                records.append(record)
    return csv_text(records)


def trust_calibration_csv(metrics: Entry) -> str:
    """One line per calibration and attack, members against other examples; shares."""
    records = []
    for calibration in metrics["trust"]["calibrations"]:
        temperature = calibration["temperature"] or {}
        common: dict[str, Any] = {"calibration": calibration["name"]}
        for key in ("mean", "least", "greatest", "at_bound"):
            common[f"temperature_{key}"] = temperature.get(key)
        for side in ("nonmembers", "members"):
            figures = calibration[side]
            for key in (key for key in figures if f"{key}_ci" in figures):
                common |= with_interval(f"{side}_{key}", figures[key], figures[f"{key}_ci"])
        for attack in calibration["attacks"]:
            record = common | {"attack": attack["name"]}
            record |= with_interval("auc", attack["auc"], attack["auc_ci"])
            for key in FPRS:
                record |= with_interval(f"tpr_at_fpr_{key}", *tpr(attack, key))
                record[f"few_false_positives_{key}"] = attack["few_false_positives"][key]
            record |= _decided(attack)
            record |= _mean_scores(attack["mmps"], attack["mmps"])
            records.append(record)
    return csv_text(records)


def _decided(part: Entry) -> dict[str, Any]:
    """What decisions come to by each threshold; `low_0.01_fpr` is by one for few false positives.

    Recall is `tpr`.
    """
    thresholds = {"": part["decision"]}
    thresholds |= {f"low_{key}_": decided for key, decided in part["low"].items()}
    record: dict[str, Any] = {}
    for prefix, decided in thresholds.items():
        for key in ("fpr", "fnr", "tpr", "precision", "balanced_accuracy"):
            record |= with_interval(f"{prefix}{key}", decided[key], decided[f"{key}_ci"])
    return record


def _mean_scores(scores: Entry, keys: Iterable[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key in keys:
        mean = scores[key] or {"mean": None, "ci": None}
        record |= with_interval(f"mmps_{key}", mean["mean"], mean["ci"])
    return record
