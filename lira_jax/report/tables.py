"""Tables of results, and their Markdown, LaTeX and CSV forms.

A table is made once from `metrics.json` and then rendered, so that the report, the files and the
terminal agree. Rates are shares in [0, 1] in JSON and percent in tables.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lira_jax.evaluation import FPRS

FEW = "fewer than 10 expected false positives behind this rate"
# Rates of which label-only tables tell.
_TELLING = ("0.001", "0.01")


@dataclass(frozen=True)
class Cell:
    """One entry of a table; its text is untrusted and escaped by whatever renders it.

    Attributes:
        text: what it says.
        interval: the 95 % interval of a number, such as "9.30–11.7"; empty if there is none.
        few: a rate that rests on fewer than ten expected false positives.
        code: a name as commands and files have it, set in a fixed-width type.
    """

    text: str
    interval: str = ""
    few: bool = False
    code: str = ""

    @property
    def whole(self) -> str:
        """The entry in one line of plain text."""
        text = self.text + "*" * self.few
        return f"{text} ({self.interval})" if self.interval else text


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        caption: what it shows.
        heads: one per column.
        rows: of as many cells.
        words: columns from the left that hold words, set flush left; the rest are numbers.
        notes: below the table.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    notes: tuple[str, ...] = ()


def percent(share: float) -> str:
    """A share in percent: two decimals below 10 %, one above."""
    return f"{100 * share:.2f}" if abs(share) < 0.09995 else f"{100 * share:.1f}"


def fpr_text(key: str) -> str:
    """A key of FPRS in percent: "0.1 %"."""
    return f"{100 * FPRS[key]:.3f}".rstrip("0").rstrip(".") + " %"


def share_cell(value: float | None, interval: Sequence[float] | None, few: bool = False) -> Cell:
    """A share and its interval, in percent."""
    if value is None:
        return Cell("–")
    between = "" if interval is None else "–".join(percent(end) for end in interval)
    return Cell(percent(value), between, few)


def difference_cell(value: float | None, interval: Sequence[float] | None) -> Cell:
    """A difference of two shares and its interval, in percentage points, with signs."""
    if value is None or interval is None:
        return Cell("–")
    low, high = (_signed(end) for end in interval)
    return Cell(_signed(value), f"{low} to {high}")


def _signed(value: float) -> str:
    # Rounded first, so that what is shown as 0 has no sign.
    points = round(100 * value, 1)
    return f"{points:+.1f}".replace("-", "−") if points else "0.0"


def attack_cells(entry: Mapping[str, Any], keys: Iterable[str] = FPRS) -> tuple[Cell, ...]:
    """AUC, balanced accuracy (if the entry has it) and TPRs of an attack, with intervals."""
    cells = [share_cell(entry["auc"], entry.get("auc_ci"))]
    if "balanced_accuracy" in entry:
        interval = entry.get("balanced_accuracy_ci")
        cells.append(share_cell(entry["balanced_accuracy"], interval))
    intervals = entry.get("tpr_at_fpr_ci") or {}
    few = entry.get("few_false_positives") or {}
    for key in keys:
        rate = entry["tpr_at_fpr"].get(key)
        cells.append(share_cell(rate, intervals.get(key), bool(few.get(key, False))))
    return tuple(cells)


def attack_heads(keys: Iterable[str] = FPRS) -> tuple[str, ...]:
    """Heads of the columns of rates."""
    return tuple(f"TPR @ {fpr_text(key)} FPR" for key in keys)


def main_table(metrics: Mapping[str, Any], field: str = "attacks") -> Table:
    """Every attack with its figures, in the order of `metrics.json`.

    Args:
        metrics: what `metrics.json` holds.
        field: `attacks`, or `canary_attacks` for the same over inserted canaries.
    """
    rows = tuple(
        (Cell(entry.get("title") or entry["name"], code=entry["name"]), *attack_cells(entry))
        for entry in metrics[field]
    )
    what = "Attacks on canaries" if field == "canary_attacks" else "Attacks"
    return Table(
        caption=f"{what}: percent, 95 % interval in brackets",
        heads=("attack", "AUC", "balanced accuracy", *attack_heads()),
        rows=rows,
        notes=_notes(rows),
    )


def ablation_table(metrics: Mapping[str, Any]) -> Table | None:
    """The paper's ablation ladders, step by step; None where they were not run."""
    entries = metrics.get("ablation")
    if not entries:
        return None
    ladders = {"global": "one threshold", "offline": "OUT models", "online": "IN and OUT models"}
    rows = []
    before = None
    for entry in entries:
        ladder = entry["ladder"]
        first = "" if ladder == before else ladders.get(ladder, ladder)
        before = ladder
        figures = {key: value for key, value in entry.items() if key != "balanced_accuracy"}
        rows.append((Cell(first), Cell(entry["step"]), *attack_cells(figures)))
    return Table(
        caption="From the loss to LiRA, step by step: percent, 95 % interval in brackets",
        heads=("references", "step", "AUC", *attack_heads()),
        rows=tuple(rows),
        words=2,
        notes=_notes(rows),
    )


def label_only_table(metrics: Mapping[str, Any]) -> Table | None:
    """Attacks on labels, and beside them on confidences; None where live models were not asked.

    Balanced accuracy is that of decisions by the source models' threshold. Lower false-positive
    rates than stand here, behind which a few targets' non-members say nothing, are in the CSV file.
    """
    found = metrics.get("label_only")
    if not found:
        return None
    rows = []
    for entry in found["attacks"]:
        less = {key: value for key, value in entry.items() if key != "balanced_accuracy"}
        decided = entry["decision"]
        queries = entry["label_queries"]
        rows.append(
            (
                Cell(entry["title"], code=entry["name"]),
                Cell(entry["sees"]),
                Cell("–" if queries is None else f"{queries:,.0f}"),
                share_cell(decided["balanced_accuracy"], decided["balanced_accuracy_ci"]),
                difference_cell(entry["over_gap"], entry["over_gap_ci"]),
                *attack_cells(less, _TELLING),
            )
        )
    return Table(
        caption="Label-only attacks, and others beside them: percent, 95 % interval in brackets",
        heads=(
            "attack",
            "sees",
            "labels asked",
            "balanced accuracy",
            "over gap",
            "AUC",
            *attack_heads(_TELLING),
        ),
        rows=tuple(rows),
        words=2,
        notes=(
            "Balanced accuracy: of decisions by a threshold from the source models. Over gap: by "
            "how many points it exceeds the gap attack's on the same targets and examples. Labels "
            "asked: of a target, for each example",
            *_notes(rows),
        ),
    )


def budget_table(metrics: Mapping[str, Any]) -> Table | None:
    """The boundary attack within each number of queries; None where it was not run."""
    points = (metrics.get("label_only") or {}).get("by_budget")
    if not points:
        return None
    rows = []
    for point in points:
        decided = point["decision"]
        less = {key: value for key, value in point.items() if key != "balanced_accuracy"}
        accuracy = share_cell(decided["balanced_accuracy"], decided["balanced_accuracy_ci"])
        rows.append((Cell(f"{point['queries']:,}"), accuracy, *attack_cells(less, _TELLING)))
    return Table(
        caption="The boundary attack by the number of label queries: percent, 95 % interval in "
        "brackets",
        heads=("labels asked", "balanced accuracy", "AUC", *attack_heads(_TELLING)),
        rows=tuple(rows),
        notes=_notes(rows),
    )


def outlier_table(metrics: Mapping[str, Any]) -> Table | None:
    """Precision of decisions on the most isolated examples and on all; None where not known."""
    found = (metrics.get("label_only") or {}).get("outliers")
    if not found or not found["attacks"]:
        return None
    rows = []
    for entry in found["attacks"]:
        cells = [Cell(entry["title"], code=entry["name"]), Cell(f"{entry['outliers']:,}")]
        for figure in ("precision", "tpr"):
            for of in ("of_outliers", "of_all"):
                cells.append(share_cell(entry[of][figure], entry[of][f"{figure}_ci"]))
        rows.append(tuple(cells))
    return Table(
        caption="Decisions on outliers and on all examples: percent, 95 % interval in brackets",
        heads=(
            "attack", "outliers", "precision on outliers", "precision on all",
            "members found among outliers", "among all",
        ),
        rows=tuple(rows),
        notes=("Precision as if half of the candidates were members",),
    )  # fmt: skip


def label_only_csv(metrics: Mapping[str, Any]) -> str:
    """One line per attack and, for the boundary attack, per number of queries; shares."""
    found = metrics["label_only"]
    rows: list[dict[str, Any]] = []
    lines = [(entry["name"], entry) for entry in found["attacks"]]
    lines += [("boundary-by-queries", point) for point in found["by_budget"]]
    for name, entry in lines:
        asked = entry.get("queries", entry["label_queries"])
        row = {
            "name": name,
            "sees": entry["sees"],
            "chosen": entry["chosen"],
            "label_queries": "" if asked is None else asked,
            "targets": entry["targets"],
            "examples": entry["examples"],
            "source_balanced_accuracy": entry["source_balanced_accuracy"],
        }
        measured = {
            key: (entry["decision"][key], entry["decision"][f"{key}_ci"])
            for key in ("balanced_accuracy", "precision", "tpr", "fpr")
        }
        measured["over_gap"] = (entry["over_gap"], entry["over_gap_ci"])
        measured["auc"] = (entry["auc"], entry["auc_ci"])
        for key in FPRS:
            measured[f"tpr_at_fpr_{key}"] = (entry["tpr_at_fpr"][key], entry["tpr_at_fpr_ci"][key])
        for key, (value, interval) in measured.items():
            low, high = interval or ("", "")
            row |= {key: "" if value is None else value, f"{key}_lo": low, f"{key}_hi": high}
        for key in FPRS:
            row |= {
                f"expected_false_positives_{key}": entry["expected_false_positives"][key],
                f"few_false_positives_{key}": entry["few_false_positives"][key],
            }
        rows.append(row)
    return to_csv(list(rows[0]), [list(row.values()) for row in rows])


# What is worth its place in tables of calibration, and how it is called.
_CALIBRATION = {
    "accuracy": "accuracy",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "overconfidence_error": "overconfidence error",
}
NONMEMBERS = "other examples"


def trust_fpr_table(metrics: Mapping[str, Any], threshold: str = "decision") -> Table | None:
    """False-positive rates, a row for each kind of inputs; None where there are none.

    Args:
        metrics: what `metrics.json` holds.
        threshold: `decision`, or the key of one for few false positives (`trust.results.LOW`).
    """
    found = metrics.get("trust")
    if not found or not found["kinds"]:
        return None
    attacks = [one for one in found["calibrations"][0]["attacks"] if one["inputs"]]

    def fpr(judged: Mapping[str, Any] | None) -> Cell:
        if judged is None:
            return Cell("–")
        decided = judged["decision"] if threshold == "decision" else judged["low"][threshold]
        return share_cell(decided["fpr"], decided["fpr_ci"])

    rows = [(Cell(NONMEMBERS), *(fpr(one) for one in attacks))]
    for kind in found["kinds"]:
        judged = [_on(one, kind["name"]) for one in attacks]
        rows.append((Cell(kind["title"]), *map(fpr, judged)))
    tuned = "the most accurate threshold on the source model"
    if threshold != "decision":
        share = fpr_text(threshold)
        tuned = f"a threshold that at most {share} of the source model's non-members reach"
    return Table(
        caption=f"Inputs called members though no model trained on them, by {tuned}: percent, "
        "95 % interval in brackets",
        heads=("inputs", *(one["title"] for one in attacks)),
        rows=tuple(rows),
    )


def trust_inputs_table(metrics: Mapping[str, Any]) -> Table | None:
    """Plain predictions: every attack, against each kind of inputs; None where there are none."""
    found = metrics.get("trust")
    if not found or not found["kinds"]:
        return None
    titles = {kind["name"]: kind["title"] for kind in found["kinds"]}
    rows = []
    for entry in found["calibrations"][0]["attacks"]:
        decided, mmps = entry["decision"], entry["mmps"]
        rows.append(
            (
                Cell(entry["title"], code=entry["name"]),
                Cell(NONMEMBERS),
                *_decision_cells(decided),
                share_cell(entry["auc"], entry["auc_ci"]),
                *(_score_cell(mmps[side]) for side in ("fp", "tp")),
            )
        )
        for one in entry["inputs"]:
            # The members are the same.
            fpr, precision, *_ = _decision_cells(one["decision"])
            rows.append(
                (
                    Cell(""),
                    Cell(titles[one["kind"]]),
                    fpr,
                    precision,
                    Cell(""),
                    Cell(""),
                    share_cell(one["auc"], one["auc_ci"]),
                    _score_cell(one["mmps"]["fp"]),
                    Cell(""),
                )
            )
    return Table(
        caption="Members against each kind of inputs, plain predictions: percent, 95 % interval in "
        "brackets",
        heads=(
            "attack", "against", "FPR", "precision", "recall", "FNR", "AUROC", "MMPS of FP",
            "MMPS of TP",
        ),
        rows=tuple(rows),
        words=2,
        notes=(
            "By the most accurate threshold on the source model; precision as if half of the "
            "candidates were members; recall, FNR and MMPS of TP are of members, whatever they are "
            "told from. MMPS: mean maximum prediction score of what is rightly (TP) or falsely "
            "(FP) called a member",
        ),
    )  # fmt: skip


def calibration_table(metrics: Mapping[str, Any]) -> Table | None:
    """How well calibrated predictions are; None where there is no part on trust."""
    found = metrics.get("trust")
    if not found:
        return None
    rows = []
    for one in found["calibrations"]:
        others, members = one["nonmembers"], one["members"]
        low, high = others["brier_ci"]
        rows.append(
            (
                Cell(_calibration_title(one)),
                *(share_cell(others[key], others[f"{key}_ci"]) for key in _CALIBRATION),
                Cell(f"{others['brier']:.3f}", f"{low:.3f}–{high:.3f}"),
                share_cell(members["ece"], members["ece_ci"]),
            )
        )
    return Table(
        caption="Calibration on examples that a model did not train on: percent, 95 % interval in "
        "brackets",
        heads=("calibration", *_CALIBRATION.values(), "Brier score", "ECE, members"),
        rows=tuple(rows),
        notes=(
            "ECE: expected calibration error, 15 bins of equal width; adaptive: of equal numbers. "
            "The Brier score is no share: from 0, the best, to 2",
        ),
    )


def calibrated_attacks_table(metrics: Mapping[str, Any]) -> Table | None:
    """Every attack under each calibration; None where there is no part on trust."""
    found = metrics.get("trust")
    if not found:
        return None
    rows = []
    for one in found["calibrations"]:
        for place, entry in enumerate(one["attacks"]):
            fpr, precision, recall, _ = _decision_cells(entry["decision"])
            rows.append(
                (
                    Cell("" if place else _calibration_title(one)),
                    Cell(entry["title"]),
                    precision,
                    recall,
                    fpr,
                    *attack_cells(entry, ("0.001",)),
                    _difference(entry["mmps"]["fp_less_tp"]),
                )
            )
    return Table(
        caption="Attacks under each calibration, members against other examples: percent, 95 % "
        "interval in brackets",
        heads=(
            "calibration", "attack", "precision", "recall", "FPR", "AUROC",
            *attack_heads(("0.001",)), "MMPS, FP less TP",
        ),
        rows=tuple(rows),
        words=2,
        notes=(
            "Precision, recall and FPR by the most accurate threshold on the source model. MMPS, "
            "FP less TP: by how many points the mean maximum prediction score of false positives "
            "exceeds that of true ones",
            *_notes(rows),
        ),
    )  # fmt: skip


def _on(entry: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """An attack's part on a kind of inputs, if it was asked about them."""
    return next((one for one in entry["inputs"] if one["kind"] == kind), None)


def _decision_cells(decided: Mapping[str, Any]) -> tuple[Cell, Cell, Cell, Cell]:
    """FPR, precision, recall and FNR."""
    keys = ("fpr", "precision", "tpr", "fnr")
    fpr, precision, recall, fnr = (share_cell(decided[key], decided[f"{key}_ci"]) for key in keys)
    return fpr, precision, recall, fnr


def _score_cell(found: Mapping[str, Any] | None) -> Cell:
    return Cell("–") if found is None else share_cell(found["mean"], found["ci"])


def _difference(found: Mapping[str, Any] | None) -> Cell:
    return Cell("–") if found is None else difference_cell(found["mean"], found["ci"])


def _calibration_title(one: Mapping[str, Any]) -> str:
    """With the mean of fitted temperatures."""
    if one["name"] != "temperature-fit":
        return str(one["title"])
    return f"{one['title']}, mean {one['temperature']['mean']:.3g}"


def trust_inputs_csv(metrics: Mapping[str, Any]) -> str:
    """One line per calibration, attack and kind of inputs, other examples first; shares."""
    rows = []
    for one in metrics["trust"]["calibrations"]:
        for entry in one["attacks"]:
            for against in (entry, *entry["inputs"]):
                row = {
                    "calibration": one["name"],
                    "attack": entry["name"],
                    "against": against.get("kind", "nonmembers"),
                }
                row |= _columns("auc", against["auc"], against["auc_ci"])
                row |= _decided(against)
                # The members are the same for all.
                row |= _mmps_columns(entry["mmps"] | against["mmps"], ("tp", "fp", "fn", "tn"))
                rows.append(row)
    return to_csv(list(rows[0]), [list(row.values()) for row in rows])


def trust_calibration_csv(metrics: Mapping[str, Any]) -> str:
    """One line per calibration and attack, members against other examples; shares."""
    rows = []
    for one in metrics["trust"]["calibrations"]:
        temperature = one["temperature"] or {}
        common: dict[str, Any] = {"calibration": one["name"]}
        for key in ("mean", "least", "greatest", "at_bound"):
            common[f"temperature_{key}"] = temperature.get(key, "")
        for side in ("nonmembers", "members"):
            for key in (key for key in one[side] if f"{key}_ci" in one[side]):
                common |= _columns(f"{side}_{key}", one[side][key], one[side][f"{key}_ci"])
        for entry in one["attacks"]:
            row = common | {"attack": entry["name"]}
            row |= _columns("auc", entry["auc"], entry["auc_ci"])
            for key in FPRS:
                name = f"tpr_at_fpr_{key}"
                row |= _columns(name, entry["tpr_at_fpr"][key], entry["tpr_at_fpr_ci"][key])
                row[f"few_false_positives_{key}"] = entry["few_false_positives"][key]
            row |= _decided(entry)
            row |= _mmps_columns(entry["mmps"], entry["mmps"])
            rows.append(row)
    return to_csv(list(rows[0]), [list(row.values()) for row in rows])


def _columns(name: str, value: float | None, interval: Sequence[float] | None) -> dict[str, Any]:
    low, high = interval or ("", "")
    return {name: "" if value is None else value, f"{name}_lo": low, f"{name}_hi": high}


def _decided(judged: Mapping[str, Any]) -> dict[str, Any]:
    """What decisions come to by each threshold; `low_0.01_fpr` is by one for few false positives.

    Recall is `tpr`.
    """
    thresholds = {"": judged["decision"]}
    thresholds |= {f"low_{key}_": decided for key, decided in judged["low"].items()}
    row: dict[str, Any] = {}
    for before, decided in thresholds.items():
        for key in ("fpr", "fnr", "tpr", "precision", "balanced_accuracy"):
            row |= _columns(f"{before}{key}", decided[key], decided[f"{key}_ci"])
    return row


def _mmps_columns(found: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in keys:
        mean = found[key] or {"mean": None, "ci": None}
        row |= _columns(f"mmps_{key}", mean["mean"], mean["ci"])
    return row


def _notes(rows: Iterable[Iterable[Cell]]) -> tuple[str, ...]:
    return (f"* {FEW}",) if any(cell.few for row in rows for cell in row) else ()


def to_markdown(table: Table) -> str:
    """The table as GitHub's Markdown; whatever Markdown would read in a name is escaped."""

    def cell(cell: Cell) -> str:
        text = _markdown(cell.text)
        if cell.code:
            text = f"{text} ({_markdown_code(cell.code)})" if cell.text != cell.code else (
                _markdown_code(cell.code)
            )  # fmt: skip
        text += r"\*" * cell.few
        return f"{text} ({cell.interval})" if cell.interval else text

    lines = [
        "| " + " | ".join(_markdown(head) for head in table.heads) + " |",
        "|" + "---|" * table.words + "---:|" * (len(table.heads) - table.words),
        *("| " + " | ".join(cell(one) for one in row) + " |" for row in table.rows),
        "",
        f"{_markdown(table.caption)}.",
        *(f"\n{_markdown(note)}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", _one_line(text))


def _markdown_code(text: str) -> str:
    """Text between as many backticks as it needs; a bar would end the cell."""
    text = _one_line(text).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"


# After a line's end LaTeX would take a bracket or a star for an argument.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--",
    "−": "$-$", "×": r"$\times$", "φ": r"$\phi$", "≤": r"$\le$", "≥": r"$\ge$", "…": r"\dots{}",
    "σ": r"$\sigma$", "μ": r"$\mu$", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "[": "{[}", "*": "{*}", "ε": r"$\varepsilon$",
}  # fmt: skip


def to_latex(table: Table) -> str:
    r"""The table for LaTeX with the package booktabs, in text mode, names escaped."""

    def cell(cell: Cell) -> str:
        text = latex_text(cell.text) + r"\textsuperscript{*}" * cell.few
        return rf"{text} {{\scriptsize ({latex_text(cell.interval)})}}" if cell.interval else text

    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\small",
        rf"\caption{{{latex_text(table.caption)}.}}",
        rf"\begin{{tabular}}{{{'l' * table.words}{'r' * (len(table.heads) - table.words)}}}",
        r"\toprule",
        " & ".join(latex_text(head) for head in table.heads) + r" \\",
        r"\midrule",
    ]
    for place, row in enumerate(table.rows):
        # Where the first of two columns of words begins anew, so does a part of the table.
        if table.words > 1 and place and row[0].text:
            lines.append(r"\midrule")
        lines.append(" & ".join(cell(one) for one in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\\ \footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Tables as `.md` and `.tex`, each where it has something to tell.

    `table`, `ablation` where the ladders were run, `label_only` where live models were asked, and
    `trust_inputs` and `trust_calibration` where models were asked about inputs from elsewhere.
    """
    tables: dict[str, list[Table | None]] = {
        "table": [main_table(metrics)],
        "ablation": [ablation_table(metrics)],
        "label_only": [label_only_table(metrics)],
        "trust_inputs": [trust_inputs_table(metrics)],
        "trust_calibration": [calibration_table(metrics), calibrated_attacks_table(metrics)],
    }
    return {
        f"{name}.{ending}": "\n".join(render(table) for table in held)
        for name, maybe in tables.items()
        if (held := [table for table in maybe if table is not None])
        for ending, render in (("md", to_markdown), ("tex", to_latex))
    }


def to_csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()
