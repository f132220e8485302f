"""Several runs in one figure and table: `python attack.py compare RUN RUN … --out DIR`.

As figures 7, 11 and 16 of the LiRA paper: does a network, an augmentation or an optimiser that is
more accurate, or less overfitted, give less away?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from lira_jax import config, config_file, foreign
from lira_jax.array_files import read_npz
from lira_jax.csv_text import csv_text, with_interval
from lira_jax.errors import InputError
from lira_jax.evaluation import FPRS, Roc
from lira_jax.evaluation.wording import is_few, tpr
from lira_jax.figures import compare as figures
from lira_jax.figures.trust import interval_of, low_tpr
from lira_jax.findings import Calibrated, ComparedRun, Interval
from lira_jax.report.formats import to_latex, to_markdown, to_text
from lira_jax.report.tables import (
    AUC,
    INTERVALS,
    UNKNOWN,
    Cell,
    Table,
    rate_columns,
    share_cell,
    value,
)
from lira_jax.run.result_folder import one_writer, replaced
from lira_jax.storage import is_remote, write_text, write_whole

_FIGURES, _TABLES = ("roc", "accuracy", "defences", "trade_off"), ("csv", "md", "tex")
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


def compare(folders: Sequence[Path], out: Path) -> str:
    """Compare runs that have been attacked, and write what came out.

    Writes `roc.png`, `.pdf` (online LiRA of every run), `accuracy.png`, `.pdf` (TPR against the
    train-test gap and held-out accuracy; only where some run knows its accuracy), `defences.png`,
    `.pdf` (confidence, label-only attacks and LiRA against held-out accuracy, as figures 5 and 6 of
    Choquette-Choo et al., arXiv 2007.14321; only where some run has label-only results),
    `trade_off.png`, `.pdf`, `.csv`, `.md` and `.tex` (calibration error against what leaks, of
    every calibration of every run that has predictions elsewhere; only where some run has), and the
    table as `compare.csv`, `.md` and `.tex`.

    Args:
        folders: run directories, or folders with the results of `attack.py`, two or more.
        out: folder to write into.

    Returns:
        What the terminal shows.

    Raises:
        InputError: fewer than two runs, one twice or two of one name, one without results or with
            results of another schema, an `out` that cannot be written, or that another process
            writes to.
    """
    if len(folders) < 2:
        raise InputError(f"{len(folders)} run to compare; give two or more run directories")
    runs = [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    key = _common_fpr(runs)
    known = [run for run in runs if run.gap is not None]
    asked = [run for run in known if run.label_only]
    traded = [run for run in runs if run.calibrated]
    drawn = {"roc": figures.roc(runs)}
    if known:
        drawn["accuracy"] = figures.accuracy(runs, key)
    if asked:
        drawn["defences"] = figures.defences(runs, key)
    tables = {"compare": (_table(runs), _records(runs))}
    if traded:
        drawn["trade_off"] = figures.trade_off(traded)
        tables["trade_off"] = (_trade_off_table(traded), _trade_off_records(traded))
    texts = {}
    for name, (table, records) in tables.items():
        texts[f"{name}.csv"] = csv_text(records)
        texts |= {f"{name}.md": to_markdown(table), f"{name}.tex": to_latex(table)}
    pictures = {
        f"{name}.{kind}": files[kind] for name, files in drawn.items() for kind in ("pdf", "png")
    }
    names = [f"{name}.{ending}" for name in ("compare", "trade_off") for ending in _TABLES]
    names += [f"{name}.{kind}" for name in _FIGURES for kind in ("pdf", "png")]
    stale = [name for name in names if name not in texts and name not in pictures]
    with one_writer(out), replaced(out, list(texts), stale) as folder:
        for name, content in pictures.items():
            write_whole(folder / name, methodcaller("write", content))
        for name, text in texts.items():
            write_text(folder / name, text)
    lines = [to_text(tables["compare"][0])]
    if not known:
        lines.append("No run knows its accuracy (logits and labels), so accuracy.png is not drawn.")
    for shown, what, picture, flag in (
        (asked, "label-only results, or accuracy", "defences.png", "--label-only"),
        (traded, "predictions on inputs from elsewhere", "trade_off.png", "--trust"),
    ):
        if shown and len(shown) < len(runs):
            others = ", ".join(run.name for run in runs if run not in shown)
            lines.append(
                f"Without {what}, and so not in {picture}: {others}; "
                f"make them with: python score.py --run RUN {flag}, and attack.py anew"
            )
    lines.append(f"Written to {out}: {', '.join([*texts, *sorted(pictures)])}")
    return "\n".join(lines)


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


def _read(run: Path, name: str) -> ComparedRun:
    folder = run if (run / "metrics.json").exists() else run / "attack"
    path = folder / "metrics.json"
    if not path.exists():
        raise InputError(
            f"{run}: no attack results ({path} is missing); "
            f"make them with: python attack.py --run {run}"
        )
    advice = f"make it anew with: python attack.py --run {run}"
    metrics = foreign.read_json(path, advice)
    schema = metrics.get("schema") if isinstance(metrics, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path}: has schema {schema}, not {SCHEMA}; {advice}")
    with foreign.reading(path, advice, "damaged"):
        return _from_metrics(run, name, folder, metrics)


def _from_metrics(run: Path, name: str, folder: Path, metrics: dict[str, Any]) -> ComparedRun:
    entry = next((entry for entry in metrics["attacks"] if entry["name"] == ATTACK), None)
    if entry is None:
        path = folder / "metrics.json"
        raise InputError(f"{path}: holds no attack {ATTACK}, which is what is compared")
    if metrics["protocol"] != "leave-block-out":
        raise InputError(
            f"{folder / 'metrics.json'}: made by --protocol {metrics['protocol']}, whose figures "
            f"do not compare; make others with: python attack.py --run {run}"
        )
    sizes = {"fpr": metrics["nonmembers"], "tpr": metrics["members"]}
    roc = _read_curve(folder / "roc.npz", run, sizes)
    held_out = gap = None
    if metrics.get("accuracy"):
        others = np.array([float(row["nonmember"]) for row in metrics["accuracy"]])
        members = np.array([float(row["member"]) for row in metrics["accuracy"]])
        held_out, gap = _mean(others), _mean(members - others)
    label_only = metrics.get("label_only") or {"attacks": (), "strongest": None}
    trust = metrics.get("trust") or {"calibrations": ()}
    epsilon = _dp_epsilon(metrics)
    return ComparedRun(
        name=name,
        label=name if epsilon is None else f"{name} (ε = {_three_digits(epsilon)})",
        metrics=metrics,
        entry=entry,
        roc=roc,
        settings=_settings_of(run, metrics),
        held_out=held_out,
        gap=gap,
        label_only={
            attack["name"]: interval_of(attack["decision"], "balanced_accuracy")
            for attack in label_only["attacks"]
        },
        strongest=label_only["strongest"],
        calibrated=tuple(map(_calibrated, trust["calibrations"])),
    )


def _calibrated(calibration: Mapping[str, Any]) -> Calibrated:
    attacks = {attack["name"]: attack for attack in calibration["attacks"]}
    largest, online = attacks["max-score"], attacks["lira-online"]
    return Calibrated(
        name=calibration["name"],
        title=calibration["title"],
        ece=interval_of(calibration["nonmembers"], "ece"),
        max_score_auc=interval_of(largest, "auc"),
        max_score_fpr=interval_of(largest["decision"], "fpr"),
        lira_auc=interval_of(online, "auc"),
        lira_tpr=low_tpr(online),
        few=is_few(online, "0.001"),
    )


def _dp_epsilon(metrics: Mapping[str, Any]) -> Any:
    """ε of models trained with DP-SGD; None of others."""
    return (metrics.get("versions") or {}).get("dp_epsilon")


def _three_digits(epsilon: Any) -> str:
    try:
        return f"{float(epsilon):.3g}"
    except ValueError:
        return str(epsilon)


def _read_curve(path: Path, run: Path, sizes: Mapping[str, int]) -> Roc:
    advice = f"make it anew with: python attack.py --run {run}"
    names = [f"{ATTACK}.{rate}" for rate in sizes]
    curves = list(read_npz(path, names, advice).values()) if path.exists() else []
    if len(curves) != len(names) or not all(map(_is_curve, curves)):
        raise InputError(f"{path}: missing, damaged, or without {ATTACK}; {advice}")
    if curves[0].shape != curves[1].shape:
        raise InputError(f"{path}: the rates of {ATTACK} are not equally many; {advice}")
    counts = (
        np.rint(curve * size).astype(np.int64)
        for curve, size in zip(curves, sizes.values(), strict=True)
    )
    return Roc(*counts)


def _is_curve(rates: np.ndarray) -> bool:
    plain = rates.ndim == 1 and rates.size and rates.dtype.kind == "f"
    return bool(plain and (np.diff(rates, prepend=0.0, append=1.0) >= 0).all())


def _settings_of(run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    path = run / "config.toml"
    settings = dict(metrics.get("settings") or {})
    if not settings and path.exists():
        settings = config.flatten(config_file.load(path))
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


def _differing(runs: Sequence[ComparedRun]) -> list[str]:
    """Settings in which the runs differ, in the order of the configuration."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        name
        for name in names
        if name not in _BOOKKEEPING
        and not name.startswith(("score.batch", "run."))
        and len({repr(run.settings.get(name)) for run in runs}) > 1
    ]


def _common_fpr(runs: Sequence[ComparedRun]) -> str:
    """0.1 %, or 1 % where in some run too few false positives stand behind it."""
    return "0.01" if any(is_few(run.entry, "0.001") for run in runs) else "0.001"


def _beside(run: ComparedRun) -> tuple[str, str, str]:
    """The attacks that are shown beside LiRA, as far as there are any."""
    return "confidence", "gap", run.strongest or ""


def _measured(interval: Interval | None, few: bool = False) -> Cell:
    return UNKNOWN if interval is None else share_cell(interval[0], interval[1:], few)


def _table(runs: Sequence[ComparedRun]) -> Table:
    differing = _differing(runs)
    any_asked = any(run.label_only for run in runs)
    columns = AUC | rate_columns()
    rows = []
    for run in runs:
        cells = [Cell(run.label), *(Cell(value(run.settings.get(name))) for name in differing)]
        cells += [_measured(run.held_out), _measured(run.gap)]
        cells += [cell(run.entry) for cell in columns.values()]
        if any_asked:
            *others, strongest = (_measured(run.label_only.get(name)) for name in _beside(run))
            cells += [*others, Cell(run.strongest or "–"), strongest]
        rows.append(tuple(cells))
    asked = ("confidence", "gap", "strongest label-only", "its balanced accuracy")
    return Table(
        caption=f"Runs by {ATTACK}: {INTERVALS}",
        heads=(
            "run",
            *(name.rpartition(".")[2].replace("_", " ") for name in differing),
            "accuracy held out",
            "train-test gap",
            *columns,
            *(asked if any_asked else ()),
        ),
        rows=tuple(rows),
        words=1 + len(differing),
        remarks=(_DECIDED,) if any_asked else (),
    )


def _fields(name: str, interval: Interval | None) -> dict[str, Any]:
    return with_interval(name, interval and interval[0], interval and interval[1:])


def _settings_in(run: ComparedRun, names: Sequence[str]) -> dict[str, Any]:
    return {"run": run.name, **{name: run.settings.get(name) for name in names}}


def _records(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The table in full precision, as shares; empty where nothing is known."""
    differing = _differing(runs)
    records = []
    for run in runs:
        record = _settings_in(run, differing)
        record |= {"models": run.metrics["models"], "examples": run.metrics["examples"]}
        record |= _fields("accuracy", run.held_out) | _fields("gap", run.gap)
        record |= with_interval("auc", run.entry["auc"], run.entry.get("auc_ci"))
        for key in FPRS:
            record |= with_interval(f"tpr_at_fpr_{key}", *tpr(run.entry, key))
        record |= {f"few_false_positives_{key}": is_few(run.entry, key) for key in FPRS}
        if any(other.label_only for other in runs):
            record["strongest_label_only"] = run.strongest
            titles = ("confidence", "gap", "label_only")
            for title, name in zip(titles, _beside(run), strict=True):
                record |= _fields(f"{title}_balanced_accuracy", run.label_only.get(name))
            record["dp_epsilon"] = _dp_epsilon(run.metrics)
        records.append(record)
    return records


_TRADED = {
    "ece": "ECE, non-members",
    "max_score_fpr": "maximum score: FPR",
    "max_score_auc": "maximum score: AUROC",
    "lira_auc": "LiRA online: AUROC",
    "lira_tpr": "LiRA online: TPR @ 0.1 % FPR",
}


def _trade_off_table(runs: Sequence[ComparedRun]) -> Table:
    rows = []
    for run in runs:
        for place, calibrated in enumerate(run.calibrated):
            figures = (
                _measured(getattr(calibrated, key), calibrated.few and key == "lira_tpr")
                for key in _TRADED
            )
            rows.append((Cell("" if place else run.label), Cell(calibrated.title), *figures))
    return Table(
        caption=f"Calibration and what leaks: {INTERVALS}",
        heads=("run", "calibration", *_TRADED.values()),
        rows=tuple(rows),
        words=2,
    )


def _trade_off_records(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The same in full precision, as shares, with the settings in which the runs differ."""
    differing = _differing(runs)
    records = []
    for run in runs:
        for calibrated in run.calibrated:
            record = _settings_in(run, differing) | {"calibration": calibrated.name}
            for key in _TRADED:
                record |= _fields(key, getattr(calibrated, key))
            records.append(record | {"few_false_positives": calibrated.few})
    return records
