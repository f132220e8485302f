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
    """`table`, `ablation` where the ladders were run, and `label_only` where live models were
    asked, each as `.md` and `.tex`."""
    tables = {
        "table": main_table(metrics),
        "ablation": ablation_table(metrics),
        "label_only": label_only_table(metrics),
    }
    return {
        f"{name}.{ending}": render(table)
        for name, table in tables.items()
        if table is not None
        for ending, render in (("md", to_markdown), ("tex", to_latex))
    }


def to_csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()
