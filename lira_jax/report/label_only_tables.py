"""Tables of label-only attacks."""

from __future__ import annotations

from typing import Any

from lira_jax.csv_text import csv_text, with_interval
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.wording import TELLING, tpr
from lira_jax.report.tables import (
    ACCURACY,
    AUC,
    INTERVALS,
    Cell,
    Column,
    Entry,
    Table,
    difference_cell,
    false_positives,
    named,
    rate_columns,
    share_cell,
    share_of,
    tabulate,
    text_of,
)

# Of decisions by the source models' threshold. Lower false-positive rates than stand in the tables,
# behind which a few targets' non-members say nothing, are in the CSV file.
_DECIDED: dict[str, Column] = {head: share_of("balanced_accuracy", "decision") for head in ACCURACY}


def label_only_table(metrics: Entry) -> Table | None:
    """Attacks on labels, and beside them on confidences; None where live models were not asked."""
    results = metrics.get("label_only")
    if not results:
        return None

    def asked(entry: Entry) -> Cell:
        queries = entry["label_queries"]
        return Cell("–" if queries is None else f"{queries:,.0f}")

    return tabulate(
        f"Label-only attacks, and others beside them: {INTERVALS}",
        {
            "attack": named,
            "sees": text_of("sees"),
            "labels asked": asked,
            **_DECIDED,
            "over gap": lambda entry: difference_cell(entry["over_gap"], entry["over_gap_ci"]),
            **AUC,
            **rate_columns(TELLING),
        },
        results["attacks"],
        words=2,
        remarks=(
            "Balanced accuracy: of decisions by a threshold from the source models. Over gap: by "
            "how many points it exceeds the gap attack's on the same targets and examples. Labels "
            "asked: of a target, for each example",
        ),
    )


def budget_table(metrics: Entry) -> Table | None:
    """The boundary attack within each number of queries; None where it was not run."""
    points = (metrics.get("label_only") or {}).get("by_budget")
    if not points:
        return None
    asked: dict[str, Column] = {"labels asked": lambda point: Cell(f"{point['queries']:,}")}
    caption = f"The boundary attack by the number of label queries: {INTERVALS}"
    return tabulate(caption, asked | _DECIDED | AUC | rate_columns(TELLING), points)


def outlier_table(metrics: Entry) -> Table | None:
    """Precision of decisions on the most isolated examples and on all; None where not known."""
    results = (metrics.get("label_only") or {}).get("outliers")
    if not results or not results["attacks"]:
        return None
    return tabulate(
        f"Decisions on outliers and on all examples: {INTERVALS}",
        {
            "attack": named,
            "outliers": lambda entry: Cell(f"{entry['outliers']:,}"),
            "precision on outliers": share_of("precision", "of_outliers"),
            "precision on all": share_of("precision", "of_all"),
            "members found among outliers": share_of("tpr", "of_outliers"),
            "among all": share_of("tpr", "of_all"),
        },
        results["attacks"],
        remarks=("Precision as if half of the candidates were members",),
    )


def tuned_table(metrics: Entry) -> Table:
    """What each attack tuned, and how well it then does on the models it tuned it on."""
    return tabulate(
        "Decisions by thresholds from the source models: percent",
        {
            "attack": named,
            "tuned beside the threshold": text_of("chosen"),
            "balanced accuracy on sources": lambda e: share_cell(e["source_balanced_accuracy"]),
            "on targets": share_of("balanced_accuracy", "decision", interval=False),
            "members found": share_of("tpr", "decision", interval=False),
            "falsely accused": share_of("fpr", "decision", interval=False),
            "examples": lambda entry: Cell(f"{entry['examples']:,}"),
        },
        metrics["label_only"]["attacks"],
        words=2,
    )


def label_only_csv(metrics: Entry) -> str:
    """One line per attack and, for the boundary attack, per number of queries; shares."""
    results = metrics["label_only"]
    lines = [(entry["name"], entry) for entry in results["attacks"]]
    lines += [("boundary-by-queries", point) for point in results["by_budget"]]
    records: list[dict[str, Any]] = []
    for name, entry in lines:
        record = {
            "name": name,
            "sees": entry["sees"],
            "chosen": entry["chosen"],
            "label_queries": entry.get("queries", entry["label_queries"]),
            "targets": entry["targets"],
            "examples": entry["examples"],
            "source_balanced_accuracy": entry["source_balanced_accuracy"],
        }
        decided = entry["decision"]
        for key in ("balanced_accuracy", "precision", "tpr", "fpr"):
            record |= with_interval(key, decided[key], decided[f"{key}_ci"])
        for key in ("over_gap", "auc"):
            record |= with_interval(key, entry[key], entry[f"{key}_ci"])
        for key in FPRS:
            record |= with_interval(f"tpr_at_fpr_{key}", *tpr(entry, key))
        for key in FPRS:
            record |= false_positives(entry, key)
        records.append(record)
    return csv_text(records)
