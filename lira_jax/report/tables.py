"""Tables of results, and the parts that they are made of.

A table is made once from `metrics.json` and then rendered, so that the report, the files and the
terminal agree. Rates are shares in [0, 1] in JSON and percent in tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lira_jax.attacks import TITLES
from lira_jax.csv_text import csv_text, with_interval
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.wording import (
    FEW_NOTE,
    TELLING,
    fpr_text,
    is_few,
    percent,
    points_text,
    tpr,
)
from lira_jax.figures import Missing
from lira_jax.findings import Findings

Entry = Mapping[str, Any]
INTERVALS = "percent, 95 % interval in brackets"
# Attacks that readers know, shown beside the one of the verdict.
KNOWN = ("lira-online", "lira-offline", "rmia-offline", "watson", "yeom")


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
        remarks: below the table.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: int = 1
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks, and what the star means where there is one."""
        few = any(cell.few for row in self.rows for cell in row)
        return (*self.remarks, f"* {FEW_NOTE}") if few else self.remarks


UNKNOWN = Cell("–")
Column = Callable[[Any], Cell]


def tabulate(
    caption: str,
    columns: Mapping[str, Column],
    entries: Iterable[Any],
    words: int = 1,
    remarks: tuple[str, ...] = (),
) -> Table:
    """A table with a row per entry: of each column its head, and the cell that it makes of one."""
    rows = tuple(tuple(cell(entry) for cell in columns.values()) for entry in entries)
    return Table(caption, tuple(columns), rows, words, remarks)


def share_cell(
    value: float | None, interval: Sequence[float] | None = None, few: bool = False
) -> Cell:
    """A share and its interval, in percent."""
    return (
        UNKNOWN
        if value is None
        else Cell(percent(value), "–".join(map(percent, interval or ())), few)
    )


def difference_cell(value: float | None, interval: Sequence[float] | None) -> Cell:
    """A difference of two shares and its interval, in percentage points, with signs."""
    if value is None or interval is None:
        return UNKNOWN
    return Cell(points_text(value), " to ".join(map(points_text, interval)))


def named(entry: Entry) -> Cell:
    """The cell that names an attack."""
    return Cell(str(entry.get("title") or entry["name"]), code=entry["name"])


def text_of(key: str, empty: str = "–") -> Column:
    """Cells of what an entry says under the key."""
    return lambda entry: Cell(str(entry[key] or empty))


def share_of(key: str, of: str = "", interval: bool = True) -> Column:
    """Cells of a share, with the interval `KEY_ci` beside it; of a part of the entry, if named."""

    def cell(entry: Entry) -> Cell:
        part = entry[of] if of else entry
        return share_cell(part[key], part.get(f"{key}_ci") if interval else None)

    return cell


def rate_of(key: str, interval: bool = True) -> Column:
    """Cells of the TPR at one FPR."""

    def cell(entry: Entry) -> Cell:
        rate, limits = tpr(entry, key)
        return share_cell(rate, limits if interval else None, is_few(entry, key))

    return cell


def rate_columns(keys: Iterable[str] = FPRS) -> dict[str, Column]:
    """The columns of TPRs, with intervals."""
    return {f"TPR @ {fpr_text(key)} FPR": rate_of(key) for key in keys}


AUC: dict[str, Column] = {"AUC": share_of("auc")}
ACCURACY: dict[str, Column] = {"balanced accuracy": share_of("balanced_accuracy")}


def main_table(metrics: Entry, field: str = "attacks") -> Table:
    """Every attack with its figures, in the order of `metrics.json`.

    Args:
        metrics: what `metrics.json` holds.
        field: `attacks`, or `canary_attacks` for the same over inserted canaries.
    """
    what = "Attacks on canaries" if field == "canary_attacks" else "Attacks"
    columns = {"attack": named, **AUC, **ACCURACY, **rate_columns()}
    return tabulate(f"{what}: {INTERVALS}", columns, metrics[field])


def main_csv(metrics: Entry) -> str:
    """One line per attack, one column per figure; intervals as _lo and _hi, empty where none."""
    records = []
    for entry in metrics["attacks"]:
        record = {"name": entry["name"], "targets": entry["targets"]}
        for key in ("auc", "balanced_accuracy"):
            record |= with_interval(key, entry[key], entry[f"{key}_ci"])
        for key in FPRS:
            record |= with_interval(f"tpr_at_fpr_{key}", *tpr(entry, key))
            record |= false_positives(entry, key)
        records.append(record)
    return csv_text(records)


def false_positives(entry: Entry, key: str) -> dict[str, Any]:
    """Fields of a CSV file: what a TPR rests on."""
    names = ("expected_false_positives", "few_false_positives")
    return {f"{name}_{key}": entry[name][key] for name in names}


def terminal_table(metrics: Entry) -> Table:
    """The same as narrow as a terminal: intervals where they matter most."""
    columns: dict[str, Column] = {
        "attack": text_of("name"),
        **AUC,
        "bal. acc.": share_of("balanced_accuracy", interval=False),
    }
    for key in FPRS:
        telling = key in TELLING
        columns[f"{'TPR ' * telling}@{fpr_text(key)}"] = rate_of(key, interval=telling)
    return tabulate("Percent, 95 % interval in brackets", columns, metrics["attacks"])


def short_table(metrics: Entry) -> Table:
    """The attack of the verdict beside those that readers know, at the rates that matter."""
    entries = {entry["name"]: entry for entry in metrics["attacks"]}
    names = [metrics["verdict"]["attack"], *(name for name in KNOWN if name in entries)]
    if len(names) < 4:
        names += list(entries)[:5]
    return tabulate(
        "Percent, 95 % interval in brackets; all attacks and rates are below",
        {"attack": named, **rate_columns(TELLING), **AUC},
        [entries[name] for name in dict.fromkeys(names)],
    )


def mean_table(metrics: Entry) -> Table | None:
    """Figures of each target's own curve, their mean over targets; None where there are none."""
    entries = [
        entry["mean_over_targets"] | {"name": entry["name"], "title": entry.get("title")}
        for entry in metrics["attacks"]
        if entry.get("mean_over_targets")
    ]
    caption = "Mean over targets, each under a threshold of its own: percent"
    columns = {"attack": named, **AUC, **ACCURACY, **rate_columns()}
    return tabulate(caption, columns, entries) if entries else None


def ablation_table(metrics: Entry) -> Table | None:
    """The paper's ablation ladders, step by step; None where they were not run."""
    entries = metrics.get("ablation")
    if not entries:
        return None
    ladders = {"global": "one threshold", "offline": "OUT models", "online": "IN and OUT models"}
    first = {entry["ladder"]: entry["step"] for entry in reversed(entries)}

    def ladder(entry: Entry) -> Cell:
        name = str(entry["ladder"])
        return Cell(ladders.get(name, name) if entry["step"] == first[name] else "")

    return tabulate(
        f"From the loss to LiRA, step by step: {INTERVALS}",
        {"references": ladder, "step": text_of("step"), **AUC, **rate_columns()},
        entries,
        words=2,
    )


def amounts_table(metrics: Entry, by: str, head: str) -> Table | None:
    """Attacks by the number of `models` or `queries`; None where there is but one."""
    columns = {"attack": text_of("name"), head: text_of(by), **AUC, **rate_columns()}
    entries = metrics.get(f"by_{by}")
    return tabulate(f"By number of {head}: {INTERVALS}", columns, entries) if entries else None


def threshold_table(metrics: Entry, key: str) -> Table:
    """What thresholds from shadow models, aimed at an FPR, reach on the target."""

    def at(name: str) -> Column:
        def cell(entry: Entry) -> Cell:
            reached = entry["shadow_threshold"][key]
            few = name == "tpr" and is_few(entry, key)
            return share_cell(reached[name], reached.get(f"{name}_ci"), few)

        return cell

    def precision(prior: str, entry: Entry) -> Cell:
        return share_cell((entry["shadow_threshold"][key].get("precision") or {}).get(prior))

    return tabulate(
        f"Aimed at {fpr_text(key)} FPR: percent, 95 % interval",
        {
            "attack": named,
            "FPR reached": at("fpr"),
            "TPR reached": at("tpr"),
            "precision, prior ½": partial(precision, "0.5"),
            "precision, prior 10 %": partial(precision, "0.1"),
            "precision, prior 1 %": partial(precision, "0.01"),
        },
        [entry for entry in metrics["attacks"] if key in (entry.get("shadow_threshold") or {})],
    )


def accuracy_tables(metrics: Entry) -> tuple[Table, Table]:
    """Accuracy of the models in a few figures, and of each."""
    sides = np.array([[row["member"], row["nonmember"]] for row in metrics["accuracy"]])
    values = 100 * np.column_stack([sides, sides[:, 0] - sides[:, 1]])
    names = ("trained on", "held out", "gap")
    figures = {
        "mean": values.mean(axis=0),
        "standard deviation": values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(3),
        "least": values.min(axis=0),
        "median": np.median(values, axis=0),
        "greatest": values.max(axis=0),
    }

    def table(caption: str, heads: Iterable[str], rows: Iterable[tuple[str, np.ndarray]]) -> Table:
        cells = ((Cell(name), *(Cell(f"{value:.2f}") for value in row)) for name, row in rows)
        return Table(caption, tuple(heads), tuple(cells))

    summary = zip(names, np.stack(list(figures.values()), axis=1), strict=True)
    each = ((str(row["model"]), of) for row, of in zip(metrics["accuracy"], values, strict=True))
    return (
        table(f"Accuracy of {len(values)} models, percent", ("", *figures), summary),
        table("Accuracy of each model, percent", ("model", *names), each),
    )


def label(findings: Findings, example: int) -> str:
    """What the example is labelled; empty where that is not known."""
    labels = findings.score_set.labels
    return "" if labels is None else class_name(findings, int(labels[example]))


def class_name(findings: Findings, number: int) -> str:
    """The name of a class, or its number where names are not known."""
    classes = findings.classes
    return classes[number] if classes is not None and number < len(classes) else f"class {number}"


def exposed_table(findings: Findings, count: int) -> Table:
    """The most exposed examples."""
    exposed = findings.vulnerability
    assert exposed is not None
    title = TITLES.get(exposed.attack, exposed.attack)

    def signed(value: Any) -> Cell:
        return Cell(f"{value:+.2f}".replace("-", "−"))

    return tabulate(
        f"Most exposed to {title} first",
        {
            "example": lambda example: Cell(str(example)),
            "label": lambda example: Cell(label(findings, example) or "–"),
            "rank": lambda example: Cell(str(exposed.rank[example])),
            "success, %": partial(success_cell, findings),
            "d": lambda example: Cell(f"{exposed.d[example]:.2f}"),
            "mean score as IN": lambda example: signed(exposed.mean_score_in[example]),
            "as OUT": lambda example: signed(exposed.mean_score_out[example]),
        },
        exposed.order[:count].tolist(),
        words=2,
    )


def success_cell(findings: Findings, example: int) -> Cell:
    """The share of targets under which the attack is right about the example."""
    exposed = findings.vulnerability
    assert exposed is not None
    interval = (float(exposed.success_lo[example]), float(exposed.success_hi[example]))
    return share_cell(float(exposed.success[example]), interval)


def loss_traces_table(metrics: Entry) -> Table:
    """How good a guess from training alone was, beside chance."""
    return tabulate(
        "Examples named by loss traces that are among as many most exposed, percent",
        {
            "share named": lambda entry: Cell(f"{100 * float(entry[0]):g} %"),
            "examples": lambda entry: Cell(f"{entry[1]['named']:,}"),
            "most exposed": lambda entry: Cell(f"{entry[1]['hits']:,}"),
            "precision, %": lambda entry: share_cell(
                entry[1]["precision"], entry[1]["precision_ci"]
            ),
            "chance, %": lambda entry: Cell(percent(entry[1]["chance"])),
        },
        metrics["loss_traces"]["precision"].items(),
    )


def per_example_fpr_tables(metrics: Entry) -> tuple[Table, Table]:
    """Predicted and observed FPRs of examples, and what keeping it on each costs."""
    about = metrics["per_example_fpr"]

    def limits(entry: Entry) -> Cell:
        most = "more" if entry["most"] is None else f"{entry['most']:g}"
        return Cell(f"{entry['least']:g} to {most}")

    groups = tabulate(
        "False-positive rates of examples under the pooled threshold, predicted and observed: "
        + INTERVALS,
        {
            "predicted, times the rate aimed at": limits,
            "pairs": lambda entry: Cell(f"{entry['pairs']:,}"),
            "predicted": share_of("predicted"),
            "observed": share_of("observed"),
        },
        about["groups"],
    )
    names = {  # no codes: these are no attacks, whose lines stand beside their names
        "pooled": "on average over examples (pooled)",
        "per-example": "on every example (per-example)",
    }
    decisions = tabulate(
        f"Decisions aimed at {percent(about['fpr'])} % FPR: {INTERVALS}",
        {
            "rate kept": lambda name: Cell(names[name]),
            "in use": lambda name: Cell("yes" if name == about["in_use"] else "no"),
            "FPR reached": lambda name: share_of("fpr")(about[name]),
            "TPR reached": lambda name: share_of("tpr")(about[name]),
        },
        names,
        words=2,
    )
    return groups, decisions


def null_table(metrics: Entry) -> Table:
    """The null check's figures beside chance."""

    def beside_chance(key: str) -> Column:
        def cell(entry: Entry) -> Cell:
            figure = entry.get(key)
            if not figure or figure.get("value") is None:
                return UNKNOWN
            error = f" ± {100 * figure['error']:.2f}" if figure.get("error") is not None else ""
            return Cell(f"{100 * figure['value']:.2f}{error}", f"{100 * figure['chance']:.2f}")

        return cell

    return tabulate(
        "Percent ± standard error, chance in brackets",
        {
            "attack": lambda entry: Cell(entry["name"], code=entry["name"]),
            "AUC": beside_chance("auc"),
            "TPR, 0.1 % accused": beside_chance("tpr_at_0.001"),
            "TPR, 1 % accused": beside_chance("tpr_at_0.01"),
            "at chance": lambda entry: Cell("yes" if entry["ok"] else "NO"),
        },
        metrics["null_check"]["attacks"],
    )


def pairs_table(
    caption: str, heads: tuple[str, str], pairs: Iterable[tuple[str | Cell, str]]
) -> Table:
    """Two columns of words, such as what is not there, and why."""
    rows = ((Cell(key) if isinstance(key, str) else key, Cell(value)) for key, value in pairs)
    return Table(caption, heads, tuple(rows), words=2)


def not_run_table(entries: Iterable[Entry], caption: str = "Not run") -> Table:
    """Attacks that were not run, and why."""
    reasons = ((named(entry), entry["reason"]) for entry in entries)
    return pairs_table(caption, ("attack", "why"), reasons)


def not_drawn_table(missing: Iterable[Missing]) -> Table:
    """Figures that were not drawn, and why."""
    reasons = ((" · ".join(filter(None, (m.paper, m.title))), m.reason) for m in missing)
    return pairs_table("Figures that were not drawn", ("figure", "why"), reasons)


def settings_table(metrics: Entry) -> Table:
    """The settings of the run, and by what rule it was attacked."""
    settings = dict(metrics.get("settings") or {})
    settings |= {key: metrics.get(key) for key in ("source", "protocol", "centre")}
    pairs = ((name, value(setting)) for name, setting in settings.items())
    return pairs_table("As in the run's config.toml", ("setting", "value"), pairs)


def value(of: Any) -> str:
    """A setting or figure of any form in words."""
    if of is None or of == "":
        return "–"
    if isinstance(of, bool):
        return "yes" if of else "no"
    if isinstance(of, float):
        return f"{of:.4g}"
    if isinstance(of, Mapping):
        return ", ".join(f"{name}: {text}" for name, text in values(of).items())
    if isinstance(of, list | tuple):
        return " – ".join(map(value, of))
    return str(of)


def values(of: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, str]:
    """Settings or figures in words, by their names in words."""
    kept = {key: inner for key, inner in of.items() if key not in without}
    return {str(key).replace("_", " "): value(inner) for key, inner in kept.items()}
