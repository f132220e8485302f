"""Several runs in one figure and table: `python attack.py compare RUN RUN … --out DIR`.

As figures 7, 11 and 16 of the LiRA paper: does a network, an augmentation or an optimiser that is
more accurate, or less overfitted, give less away?
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from scipy.stats import t as student

from lira_jax import config
from lira_jax.errors import InputError
from lira_jax.evaluation import FPRS
from lira_jax.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INDIGO,
    OLIVE,
    ORANGE,
    PINK,
    RED,
    SKY,
    WINE,
    Line,
    figure,
    plain,
    rendered,
)
from lira_jax.figures.trust import crossed, legend_of_calibrations, marks_of, tpr_of
from lira_jax.findings import is_few, rate_text
from lira_jax.report.tables import (
    FEW,
    Cell,
    Table,
    attack_cells,
    attack_heads,
    share_cell,
    to_csv,
    to_latex,
    to_markdown,
)
from lira_jax.run.storage import is_remote, write_text, write_whole

# Strong with few shadow models too, as small grids have.
ATTACK = "lira-online-shrinkage"
SCHEMA = 2
_DECIDED = (
    "Confidence, gap and strongest label-only: balanced accuracy by a threshold from the source "
    "models, on which the strongest is chosen too"
)

# What changes no result, or says only where things lie.
_BOOKKEEPING = frozenset(
    {"data.path", "train.checkpoint_minutes", "train.eval_examples", "train.group", "train.width"}
)
_COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK, WINE, INDIGO, OLIVE, GREY, "#8C564B")
_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X<>p"


Interval = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


@dataclass(frozen=True)
class Calibrated:
    """What one calibration of a run comes to.

    Attributes:
        name, title: of the calibration.
        ece: expected calibration error on examples that a model did not train on.
        max_score_auc, max_score_fpr: of the attack on maximum prediction scores, the latter by the
            threshold from the source model.
        lira_auc, lira_tpr: of online LiRA, the latter at 0.1 % FPR.
        few: does that rest on fewer than ten expected false positives?
    """

    name: str
    title: str
    ece: Interval
    max_score_auc: Interval
    max_score_fpr: Interval
    lira_auc: Interval
    lira_tpr: Interval
    few: bool


@dataclass(frozen=True)
class Run:
    """One run's results.

    Attributes:
        name: of its folder.
        metrics: its `metrics.json`.
        entry: the compared attack's part of it.
        fpr, tpr: the compared attack's ROC.
        settings: dotted names to values; empty for scores that were made elsewhere.
        held_out, gap: mean accuracy on non-members, and of members less it, over models, each with
            its 95 % interval by Student's t; None where accuracy is not known.
        label_only: balanced accuracy by the source models' threshold and its interval, of
            label-only attacks and of those beside them, by name; empty where live models were not
            asked.
        strongest: the label-only attack that is strongest on the source models.
        calibrated: by each calibration, none of them first; empty where nothing was predicted on
            inputs from elsewhere.
    """

    name: str
    metrics: dict[str, Any]
    entry: dict[str, Any]
    fpr: Float[np.ndarray, " P"]
    tpr: Float[np.ndarray, " P"]
    settings: dict[str, Any]
    held_out: Interval | None
    gap: Interval | None
    label_only: dict[str, Interval]
    strongest: str | None
    calibrated: tuple[Calibrated, ...]

    @property
    def label(self) -> str:
        """The name, with the ε of DP-SGD where there is one."""
        epsilon = _dp_epsilon(self.metrics)
        return self.name if epsilon is None else f"{self.name} (ε = {_epsilon(epsilon)})"


def compare(runs: Sequence[Path], out: Path) -> str:
    """Compare runs that have been attacked, and write what came out.

    Writes `roc.png`, `.pdf` (online LiRA of every run), `accuracy.png`, `.pdf` (TPR against the
    train-test gap and held-out accuracy; only where some run knows its accuracy), `defences.png`,
    `.pdf` (confidence, label-only attacks and LiRA against held-out accuracy, as figures 5 and 6 of
    Choquette-Choo et al., arXiv 2007.14321; only where some run has label-only results),
    `trade_off.png`, `.pdf`, `.csv`, `.md` and `.tex` (calibration error against what leaks, of
    every calibration of every run that has predictions elsewhere; only where some run has), and the
    table as `compare.csv`, `.md` and `.tex`.

    Args:
        runs: run directories, or folders with the results of `attack.py`, two or more.
        out: folder to write into.

    Returns:
        What the terminal shows.

    Raises:
        InputError: fewer than two runs, one twice or two of one name, one without results or with
            results of another schema, an `out` that cannot be written.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run to compare; give two or more run directories")
    found = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    key = _common_fpr(found)
    table, records = _table(found), _records(found)
    files = _draw_roc(found)
    pictures = {f"roc.{kind}": content for kind, content in files.items() if kind != "svg"}
    known = [run for run in found if run.gap is not None]
    if known:
        files = _draw_accuracy(found, key)
        pictures |= {f"accuracy.{kind}": files[kind] for kind in ("pdf", "png")}
    asked = [run for run in known if run.label_only]
    if asked:
        files = _draw_defences(found, key)
        pictures |= {f"defences.{kind}": files[kind] for kind in ("pdf", "png")}
    texts = {
        "compare.csv": to_csv(list(records[0]), [list(record.values()) for record in records]),
        "compare.md": to_markdown(table),
        "compare.tex": to_latex(table),
    }
    traded = [run for run in found if run.calibrated]
    if traded:
        files = _draw_trade_off(traded)
        pictures |= {f"trade_off.{kind}": files[kind] for kind in ("pdf", "png")}
        of_calibrations, records = _trade_off_table(traded), _trade_off_records(traded)
        texts |= {
            "trade_off.csv": to_csv(list(records[0]), [list(one.values()) for one in records]),
            "trade_off.md": to_markdown(of_calibrations),
            "trade_off.tex": to_latex(of_calibrations),
        }
    for name, text in texts.items():
        write_text(out / name, text)
    for name, content in pictures.items():
        _write(out / name, content)
    lines = [_plain_text(table)]
    if not known:
        lines.append("No run knows its accuracy (logits and labels), so accuracy.png is not drawn.")
    if asked and len(asked) < len(found):
        others = ", ".join(run.name for run in found if run not in asked)
        lines.append(
            f"Without label-only results, or accuracy, and so not in defences.png: {others}; "
            "make them with: python score.py --run RUN --label-only, and attack.py anew"
        )
    if traded and len(traded) < len(found):
        others = ", ".join(run.name for run in found if run not in traded)
        lines.append(
            f"Without predictions on inputs from elsewhere, and so not in trade_off.png: {others}; "
            "make them with: python score.py --run RUN --trust, and attack.py anew"
        )
    lines.append(f"Written to {out}: {', '.join([*texts, *sorted(pictures)])}")
    return "\n".join(lines)


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def _names(runs: Sequence[Path]) -> list[str]:
    """What to call the runs: their folders' names."""
    places: dict[Path, Path] = {}
    names: dict[str, Path] = {}
    for run in runs:
        place = run if is_remote(run) else run.resolve()
        if place in places:
            raise InputError(f"{run}: given twice; give each run once")
        places[place] = run
        # `attack` is where every run has its results, and tells nothing.
        name = place.parent.name if place.name == "attack" else place.name
        if name in names:
            raise InputError(
                f"{names[name]} and {run} are both called {name!r}; rename or copy one of them"
            )
        names[name] = run
    return list(names)


def _read(run: Path, name: str) -> Run:
    folder = run if (run / "metrics.json").exists() else run / "attack"
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{run}: no attack results ({path} is missing); "
            f"make them with: python attack.py --run {run}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not readable ({error}); make it anew with: python attack.py --run {run}"
        ) from None
    schema = metrics.get("schema") if isinstance(metrics, dict) else None
    if schema != SCHEMA:
        raise InputError(
            f"{path}: has schema {schema}, not {SCHEMA}; "
            f"make it anew with: python attack.py --run {run}"
        )
    try:
        return _from_metrics(run, name, folder, metrics)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({error!r}); make it anew with: python attack.py --run {run}"
        ) from None


def _from_metrics(run: Path, name: str, folder: Path, metrics: dict[str, Any]) -> Run:
    entry = next((one for one in metrics["attacks"] if one["name"] == ATTACK), None)
    if entry is None:
        path = folder / "metrics.json"
        raise InputError(f"{path}: holds no attack {ATTACK}, which is what is compared")
    if metrics["protocol"] != "leave-block-out":
        raise InputError(
            f"{folder / 'metrics.json'}: made by --protocol {metrics['protocol']}, whose figures "
            f"do not compare; make others with: python attack.py --run {run}"
        )
    fpr, tpr = _read_curve(folder / "roc.npz", run)
    accuracy = metrics.get("accuracy")
    held_out = gap = None
    if accuracy:
        others = np.array([float(row["nonmember"]) for row in accuracy])
        held_out = _mean(others)
        gap = _mean(np.array([float(row["member"]) for row in accuracy]) - others)
    found = metrics.get("label_only") or {"attacks": (), "strongest": None}
    return Run(
        name=name,
        metrics=metrics,
        entry=entry,
        fpr=fpr,
        tpr=tpr,
        settings=_settings_of(run, metrics),
        held_out=held_out,
        gap=gap,
        label_only={
            one["name"]: _interval(one["decision"], "balanced_accuracy") for one in found["attacks"]
        },
        strongest=found["strongest"],
        calibrated=tuple(
            _calibrated(one)
            for one in (metrics.get("trust") or {"calibrations": ()})["calibrations"]
        ),
    )


def _calibrated(one: dict[str, Any]) -> Calibrated:
    attacks = {entry["name"]: entry for entry in one["attacks"]}
    largest, online = attacks["max-score"], attacks["lira-online"]
    return Calibrated(
        name=one["name"],
        title=one["title"],
        ece=_interval(one["nonmembers"], "ece"),
        max_score_auc=_interval(largest, "auc"),
        max_score_fpr=_interval(largest["decision"], "fpr"),
        lira_auc=_interval(online, "auc"),
        lira_tpr=tpr_of(online),
        few=is_few(online, "0.001"),
    )


def _interval(entry: dict[str, Any], key: str) -> Interval:
    low, high = entry[f"{key}_ci"]
    return float(entry[key]), float(low), float(high)


def _dp_epsilon(metrics: dict[str, Any]) -> Any:
    """ε of models trained with DP-SGD; None of others."""
    return (metrics.get("versions") or {}).get("dp_epsilon")


def _epsilon(value: Any) -> str:
    """ε as it is shown: 7.53."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return str(value)


def _read_curve(path: Path, run: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[f"{ATTACK}.fpr"], arrays[f"{ATTACK}.tpr"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise InputError(
            f"{path}: missing, damaged, or without {ATTACK}; "
            f"make it anew with: python attack.py --run {run}"
        ) from None


def _settings_of(run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    path = run / "config.toml"
    settings = dict(metrics.get("settings") or {})
    if not settings and path.exists():
        settings = config.flatten(config.load(path))
    # Views that were used, of those that were scored.
    used = {"score.views": metrics["queries"], "attack.queries": 0}
    return settings | used if settings else {}


def _mean(values: Float[np.ndarray, " N"]) -> Interval:
    """The mean and its 95 % interval; no width where there is one value."""
    mean = float(values.mean())
    if values.size < 2:
        return mean, mean, mean
    half = float(student.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return mean, mean - half, mean + half


def _differing(runs: Sequence[Run]) -> list[str]:
    """Settings in which the runs differ, in the order of the configuration."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if name not in _BOOKKEEPING
        and not name.startswith(("score.batch", "run."))
        and len({repr(run.settings.get(name)) for run in runs}) > 1
    ]


def _common_fpr(runs: Sequence[Run]) -> str:
    """0.1 %, or 1 % where in some run too few false positives stand behind it."""
    return "0.01" if any(is_few(run.entry, "0.001") for run in runs) else "0.001"


def _table(runs: Sequence[Run]) -> Table:
    differing = _differing(runs)
    any_asked = any(run.label_only for run in runs)
    rows = []
    for run in runs:
        cells = [Cell(run.label)]
        cells += [Cell(_value(run.settings.get(name))) for name in differing]
        for measured in (run.held_out, run.gap):
            cells.append(Cell("–") if measured is None else share_cell(measured[0], measured[1:]))
        entry = {key: value for key, value in run.entry.items() if key != "balanced_accuracy"}
        cells += attack_cells(entry)
        if any_asked:
            cells += [_decided_cell(run, name) for name in _beside(run)]
            cells.insert(-1, Cell(run.strongest or "–"))
        rows.append(tuple(cells))
    few = any(cell.few for row in rows for cell in row)
    return Table(
        caption=f"Runs by {ATTACK}: percent, 95 % interval in brackets",
        heads=(
            "run",
            *(name.rpartition(".")[2].replace("_", " ") for name in differing),
            "accuracy held out",
            "train-test gap",
            "AUC",
            *attack_heads(),
            *(
                ("confidence", "gap", "strongest label-only", "its balanced accuracy")
                if any_asked
                else ()
            ),
        ),
        rows=tuple(rows),
        words=1 + len(differing),
        notes=(*((f"* {FEW}",) if few else ()), *((_DECIDED,) if any_asked else ())),
    )


def _beside(run: Run) -> tuple[str, str, str]:
    """The attacks that are shown beside LiRA, as far as there are any."""
    return "confidence", "gap", run.strongest or ""


def _decided_cell(run: Run, name: str) -> Cell:
    found = run.label_only.get(name)
    return Cell("–") if found is None else share_cell(found[0], found[1:])


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table in full precision, as shares; empty where nothing is known."""
    differing = _differing(runs)
    records = []
    for run in runs:
        record: dict[str, Any] = {"run": run.name}
        record |= {name: run.settings.get(name, "") for name in differing}
        record |= {"models": run.metrics["models"], "examples": run.metrics["examples"]}
        measured = {
            "accuracy": run.held_out or ("", "", ""),
            "gap": run.gap or ("", "", ""),
            "auc": (run.entry["auc"], *(run.entry.get("auc_ci") or ("", ""))),
        }
        intervals = run.entry.get("tpr_at_fpr_ci") or {}
        for key in FPRS:
            interval = intervals.get(key) or ("", "")
            measured[f"tpr_at_fpr_{key}"] = (run.entry["tpr_at_fpr"][key], *interval)
        for name, (value, low, high) in measured.items():
            record |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
        record |= {f"few_false_positives_{key}": is_few(run.entry, key) for key in FPRS}
        if any(other.label_only for other in runs):
            record["strongest_label_only"] = run.strongest or ""
            titles = ("confidence", "gap", "label_only")
            for title, name in zip(titles, _beside(run), strict=True):
                value, low, high = run.label_only.get(name) or ("", "", "")
                column = f"{title}_balanced_accuracy"
                record |= {column: value, f"{column}_lo": low, f"{column}_hi": high}
            record["dp_epsilon"] = _dp_epsilon(run.metrics) or ""
        records.append(record)
    return records


_TRADED = {
    "ece": "ECE, non-members",
    "max_score_fpr": "maximum score: FPR",
    "max_score_auc": "maximum score: AUROC",
    "lira_auc": "LiRA online: AUROC",
    "lira_tpr": "LiRA online: TPR @ 0.1 % FPR",
}


def _trade_off_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        for place, one in enumerate(run.calibrated):
            cells = [Cell("" if place else run.label), Cell(one.title)]
            for key in _TRADED:
                value, *ends = getattr(one, key)
                cells.append(share_cell(value, ends, few=one.few and key == "lira_tpr"))
            rows.append(tuple(cells))
    few = any(cell.few for row in rows for cell in row)
    return Table(
        caption="Calibration and what leaks: percent, 95 % interval in brackets",
        heads=("run", "calibration", *_TRADED.values()),
        rows=tuple(rows),
        words=2,
        notes=(f"* {FEW}",) if few else (),
    )


def _trade_off_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The same in full precision, as shares, with the settings in which the runs differ."""
    differing = _differing(runs)
    records = []
    for run in runs:
        for one in run.calibrated:
            record: dict[str, Any] = {"run": run.name}
            record |= {name: run.settings.get(name, "") for name in differing}
            record["calibration"] = one.name
            for key in _TRADED:
                value, low, high = getattr(one, key)
                record |= {key: value, f"{key}_lo": low, f"{key}_hi": high}
            records.append(record | {"few_false_positives": one.few})
    return records


def _plain_text(table: Table) -> str:
    rows = [list(table.heads), *([cell.whole for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", f"{table.caption}.", *table.notes])


def _style(place: int) -> tuple[str, Line, str]:
    """Colour, line and marker of the n-th run."""
    colour = _COLOURS[place % len(_COLOURS)]
    line = _LINES[(place + place // len(_COLOURS)) % len(_LINES)]
    return colour, line, _MARKERS[place % len(_MARKERS)]


def _draw_roc(runs: Sequence[Run]) -> dict[str, bytes]:
    nonmembers = max(int(run.metrics["nonmembers"]) for run in runs)
    left = 1 / max(nonmembers, 10)
    labels = [f"{plain(run.name)} ({run.entry['auc']:.3f})" for run in runs]
    columns = 1 if max(map(len, labels)) > 30 else 2
    rows = -(-(len(runs) + 1) // columns) + 1
    with figure(3.13 + 0.125 * rows) as made:
        axes = made.add_subplot()
        fewest = min(int(run.metrics["nonmembers"]) for run in runs)
        axes.axvspan(left, min(10 / fewest, 1), color="0.93", linewidth=0, zorder=0)
        handles = []
        for place, run in enumerate(runs):
            colour, line, _ = _style(place)
            fpr = np.maximum(run.fpr, left)
            highest = np.append(fpr[1:] != fpr[:-1], True)
            tpr = np.maximum(run.tpr[highest], 1e-12)
            axes.step(fpr[highest], tpr, where="post", color=colour, linestyle=line)
            handles.append(Line2D([], [], color=colour, linestyle=line))
        chance: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4.0, 3.0)), "linewidth": 0.8}
        axes.plot([left, 1], [left, 1], zorder=1, **chance)
        axes.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(left, 1))
        axes.set(xlabel="False-positive rate", ylabel="True-positive rate")
        axes.set_aspect("equal")
        axes.grid(linewidth=0.3, color="0.9")
        axes.set_axisbelow(True)
        made.legend(
            [*handles, Line2D([], [], **chance)],
            [*labels, "chance"],
            loc="outside lower center",
            ncols=columns,
            title=f"{ATTACK} (AUC)",
            handlelength=2.6,
            labelspacing=0.25,
        )
        return rendered(made)


def _draw_accuracy(runs: Sequence[Run], key: str) -> dict[str, bytes]:
    """TPR against train-test gap and against held-out accuracy, with intervals both ways."""
    columns = 1 if max(len(run.name) for run in runs) > 24 else 2
    rows = -(-len(runs) // columns)
    with figure(2.3 + 0.125 * rows) as made:
        panels = made.subplots(1, 2, sharey=True)
        handles, labels = [], []
        for place, run in enumerate(runs):
            if run.gap is None or run.held_out is None:
                continue
            colour, _, marker = _style(place)
            rate = 100 * run.entry["tpr_at_fpr"][key]
            interval = (run.entry.get("tpr_at_fpr_ci") or {}).get(key) or (rate / 100, rate / 100)
            face = "white" if is_few(run.entry, key) else colour
            point: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "markerfacecolor": face,
                "markersize": 4.5,
            }
            for axes, (mean, low, high) in zip(panels, (run.gap, run.held_out), strict=True):
                axes.vlines(
                    100 * mean, 100 * interval[0], 100 * interval[1], color=colour, linewidth=0.8
                )
                axes.hlines(rate, 100 * low, 100 * high, color=colour, linewidth=0.8)
                axes.plot([100 * mean], [rate], linestyle="none", **point)
            handles.append(Line2D([], [], linestyle="none", **point))
            labels.append(plain(run.name))
        panels[0].set(xlabel="Train-test gap [points]", ylabel=f"TPR at {rate_text(key)} FPR [%]")
        panels[1].set(xlabel="Accuracy held out [%]")
        for axes in panels:
            axes.set_ylim(bottom=0)
            axes.margins(x=0.12)
            axes.grid(linewidth=0.3, color="0.9")
            axes.set_axisbelow(True)
        made.legend(handles, labels, loc="outside lower center", ncols=columns)
        return rendered(made)


def _draw_defences(runs: Sequence[Run], key: str) -> dict[str, bytes]:
    """Figures 5 and 6 of the label-only paper: each attack against held-out accuracy."""
    labels_of = [run.label for run in runs if run.label_only]
    columns = 1 if max(map(len, labels_of)) > 24 else 2
    rows = -(-(len(labels_of) + 3) // columns)
    floor = min((run.entry["tpr_at_fpr"][key] for run in runs), default=0.0)
    # A log scale has no 0: what lies below is drawn at the edge.
    floor = 100 * max(floor, FPRS[key] / 10) / 2
    with figure(5.3 + 0.125 * rows) as made:
        panels = made.subplots(3, 1, sharex=True)
        handles, labels = [], []
        for place, run in enumerate(runs):
            if not run.label_only or run.held_out is None:
                continue
            colour, _, marker = _style(place)
            rate = run.entry["tpr_at_fpr"][key]
            interval = (run.entry.get("tpr_at_fpr_ci") or {}).get(key) or (rate, rate)
            points = [
                (panels[0], run.label_only.get("confidence"), False, 0.0),
                (panels[1], run.label_only.get("gap"), True, 0.0),
                (panels[1], run.label_only.get(run.strongest or ""), False, 0.0),
                (panels[2], (rate, *interval), is_few(run.entry, key), floor),
            ]
            accuracy, low, high = (100 * value for value in run.held_out)
            for axes, measured, hollow, least in points:
                if measured is None:
                    continue
                value, below, above = (max(100 * one, least) for one in measured)
                axes.hlines(value, low, high, color=colour, linewidth=0.6)
                axes.vlines(accuracy, below, above, color=colour, linewidth=0.8)
                axes.plot(
                    [accuracy], [value], linestyle="none", color=colour, marker=marker,
                    markersize=4.5, markerfacecolor="white" if hollow else colour, clip_on=False,
                )  # fmt: skip
            handles.append(Line2D([], [], linestyle="none", color=colour, marker=marker))
            labels.append(plain(run.label))
        titles = (
            "Confidence attack: balanced accuracy [%]",
            "Label-only: balanced accuracy [%]",
            f"{ATTACK}: TPR at {rate_text(key)} FPR [%]",
        )
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title, loc="left")
            axes.grid(linewidth=0.3, color="0.9")
            axes.set_axisbelow(True)
            axes.margins(x=0.12)
        panels[2].set_yscale("log")
        panels[2].set_ylim(bottom=floor)
        panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        chance: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4.0, 3.0)), "linewidth": 0.8}
        for axes, height in zip(panels, (50, 50, 100 * FPRS[key]), strict=True):
            axes.axhline(height, zorder=1, **chance)
        panels[-1].set_xlabel("Accuracy held out [%]")
        dot: dict[str, Any] = {
            "linestyle": "none",
            "color": "0.3",
            "marker": "o",
            "markersize": 4.5,
        }
        handles += [
            Line2D([], [], **dot),
            Line2D([], [], markerfacecolor="white", **dot),
            Line2D([], [], **chance),
        ]
        labels += [
            "strongest label-only attack",
            "gap; LiRA: few false positives",
            "chance",
        ]
        made.legend(handles, labels, loc="outside lower center", ncols=columns)
        return rendered(made)


def _draw_trade_off(runs: Sequence[Run]) -> dict[str, bytes]:
    """Calibration error against AUROC of the maximum score and against online LiRA's TPR."""
    titles = {one.name: one.title for run in runs for one in run.calibrated}
    marks = marks_of(titles)
    columns = 1 if max(len(run.label) for run in runs) > 24 else 2
    points = [one for run in runs for one in run.calibrated]
    # A log scale has no 0: what lies below is drawn at the edge.
    floor = max(min(one.lira_tpr[0] for one in points), FPRS["0.001"] / 10) / 2
    with figure(4.3 + 0.125 * (-(-(len(runs) + 1) // columns) + len(titles) // 3)) as made:
        upper, lower = made.subplots(2, 1, sharex=True)
        handles = []
        for place, run in enumerate(runs):
            colour, _, _ = _style(place)
            for one in run.calibrated:
                crossed(upper, one.ece, one.max_score_auc, colour, marks[one.name])
                value, low, high = (max(rate, floor) for rate in one.lira_tpr)
                tpr = (value, low, high)
                crossed(lower, one.ece, tpr, colour, marks[one.name], hollow=one.few)
            handles.append(Line2D([], [], color=colour, linewidth=2))
        chance: dict[str, Any] = {"color": "0.6", "linestyle": (0, (4.0, 3.0)), "linewidth": 0.8}
        upper.axhline(50, zorder=1, **chance)
        lower.axhline(0.1, zorder=1, **chance)
        upper.set_title("Maximum score: AUROC [%]", loc="left")
        lower.set_title(
            "LiRA online: TPR at 0.1 % FPR [%]; hollow: few false positives", loc="left"
        )
        lower.set_yscale("log")
        lower.set_ylim(bottom=100 * floor / 1.3)
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.set_xlabel("Expected calibration error, non-members [%]")
        lower.set_xlim(left=0)
        for axes in (upper, lower):
            axes.grid(linewidth=0.3, color="0.9")
            axes.set_axisbelow(True)
        legend_of_calibrations(made, titles)
        made.legend(
            [*handles, Line2D([], [], **chance)],
            [*(plain(run.label) for run in runs), "chance"],
            loc="outside lower center",
            ncols=columns,
        )
        return rendered(made)
