"""Write the tables and claims of docs/label_only.md from finished runs.

    python docs/label_only/tables.py runs/label_only

reads what `score.py --label-only` and `attack.py` left of every configuration in
`configs/label_only/`, and rewrites the page between its markers. What the paper reports
(Choquette-Choo et al., arXiv 2007.14321) stands beside it, as the paper's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from lira_jax import evaluation
from lira_jax.label_only import answers, attacks
from lira_jax.label_only.answers import LabelAnswers
from lira_jax.label_only.attacks import Attacked
from lira_jax.run import score_files

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import fill, points, rate, read, share, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "label_only.md"
CONFIGS = HERE.parents[1] / "configs" / "label_only"

# Balanced accuracy, percent: CIFAR-100 with 30,000 training points and MNIST with 1,000, each
# without and with MemGuard.
PAPER = {
    "gap": ("Gap", 83.5, 83.5, 53.2, 53.2),
    "confidence": ("Confidence", 88.1, 50.0, 55.7, 50.0),
    "augmentation": ("Augmentation", 84.6, 84.6, 53.9, 53.9),
    "boundary": ("Boundary distance", 88.0, 88.0, 57.8, 57.8),
    "combined": ("Combined", 89.2, 89.2, 58.7, 58.7),
}
BESIDE = (
    "confidence-true-label",
    "noise-gaussian",
    "lira-label-only",
    "carlini-wagner",
    "lira-online",
)
COLUMNS = ("cifar10_plain", "cifar10_memguard", "mnist_plain", "mnist_memguard")
LIRA = "lira-online-shrinkage"

Results = Mapping[str, Mapping[str, Any]]


def main(runs: Path) -> None:
    """Rewrite the page."""
    configs = (path for path in CONFIGS.glob("*.toml") if "pretrained" not in path.stem)
    found = read(runs, configs, "label_only")
    parts = {
        "table1": _table_1(found),
        "low": _low(found),
        "grid": _grid(found),
        "memguard": _memguard(runs, found),
        "gap": _over_gap(found),
        "queries": _queries(runs, found),
        "translations": _translations(runs, found),
        "chance": _chance(found),
        "outliers": _outliers(found),
    }
    fill(PAGE, parts)


def _of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Label-only attacks and those beside them, by name; `augmentation` the better on the source
    model of rotated and translated views."""
    found = {entry["name"]: entry for entry in metrics["label_only"]["attacks"]}
    kinds = [found[name] for name in found if name.startswith("augmentation-")]
    if kinds:
        found["augmentation"] = max(kinds, key=lambda one: one["source_balanced_accuracy"])
    return found


def _lira(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(entry for entry in metrics["attacks"] if entry["name"] == LIRA)


def _accuracy(entry: Mapping[str, Any] | None) -> str:
    return share(entry and entry["decision"], "balanced_accuracy")


def _name(cell: str) -> str:
    data, kind = cell.split("_", 1)
    title = {"cifar10": "CIFAR-10 (JPEG)", "mnist": "MNIST"}[data]
    return f"{title}, {kind.replace('_', ' ')}"


def _table_1(found: Results) -> str:
    heads = ["balanced accuracy, %"]
    for cell in COLUMNS:
        heads.append(_name(cell).removesuffix(", plain").replace(", memguard", " + MemGuard"))
    heads += ["paper: CIFAR-100", "+ MemGuard", "MNIST", "+ MemGuard"]
    attacks = [_of(found[cell]) for cell in COLUMNS]
    rows = []
    for name, (title, *paper) in PAPER.items():
        ours = [_accuracy(one.get(name)) for one in attacks]
        rows.append([f"{title} (`{name}`)", *ours, *map(str, paper)])
    for name in BESIDE:
        rows.append([f"`{name}`", *(_accuracy(one.get(name)) for one in attacks), *["–"] * 4])
    return table(heads, rows)


def _low(found: Results) -> str:
    plain = [_of(found[cell]) for cell in ("cifar10_plain", "mnist_plain")]
    heads = [
        "attack", "CIFAR-10 (JPEG): AUC", "TPR @ 0.1 % FPR", "MNIST: AUC", "TPR @ 0.1 % FPR",
        "CIFAR-10 (JPEG): targets × examples", "labels asked",
    ]  # fmt: skip
    rows = []
    for name, entry in plain[0].items():
        if name in ("augmentation", "confidence-memguard"):
            continue
        cells = []
        for one in plain:
            other = one.get(name)
            cells += [share(other, "auc"), rate(other)]
        queries = entry["label_queries"]
        size = f"{entry['targets']} × {entry['examples']:,}"
        rows.append([f"`{name}`", *cells, size, "–" if queries is None else f"{queries:,.0f}"])
    return table(heads, rows)


def _held_out(metrics: Mapping[str, Any]) -> list[np.ndarray]:
    return [
        np.array([one[side] for one in metrics["accuracy"]]) for side in ("member", "nonmember")
    ]


def _grid(found: Results) -> str:
    heads = [
        "run", "accuracy: members", "held out", "confidence", "gap", "augmentation", "boundary",
        "strongest label-only", "LiRA: TPR @ 0.1 % FPR",
    ]  # fmt: skip
    rows = []
    for cell, metrics in found.items():
        attacks, name = _of(metrics), metrics["label_only"]["strongest"]
        epsilon = (metrics["versions"] or {}).get("dp_epsilon")
        title = _name(cell) + (f" (ε = {float(epsilon):.3g})" if epsilon else "")
        rows.append([
            title, *(f"{100 * side.mean():.1f}" for side in _held_out(metrics)),
            *(_accuracy(attacks[key]) for key in ("confidence", "gap", "augmentation", "boundary")),
            f"{_accuracy(attacks[name])} `{name}`", rate(_lira(metrics)),
        ])  # fmt: skip
    return table(heads, rows)


def _attacked(run: Path) -> tuple[LabelAnswers, dict[str, Attacked]]:
    held = score_files.read_score_set(run)
    found = answers.read(run, held)
    assert found is not None
    return found, attacks.attack(found)[0]


def _fold(found: LabelAnswers, attacked: Attacked) -> np.ndarray:
    return np.array(found.models)[found.sources + attacked.rows] // found.block


def _memguard(runs: Path, found: Results) -> str:
    rows = []
    for data in ("cifar10", "mnist"):
        plain, guarded = (
            answers.read(run, score_files.read_score_set(run))
            for run in (runs / f"{data}_plain", runs / f"{data}_memguard")
        )
        assert plain is not None
        assert guarded is not None
        answered = same = 0
        for name, one in guarded.answers.items():
            if name in ("features", "boundary_queries"):  # no answers of labels; of another budget
                continue
            first, second = plain.answers[name].values[:, : one.values.shape[1]], one.values
            if name == "boundary":  # within as many queries as both were asked
                marks = [both.answers[name].settings["checkpoints"] for both in (plain, guarded)]
                common = sorted(set(marks[0]) & set(marks[1]))
                first, second = (
                    values[..., [mark.index(queries) for queries in common]]
                    for values, mark in zip((first, second), marks, strict=True)
                )
            answered += second.size
            same += int((first == second).sum())
        before, after = (_of(found[f"{data}_{kind}"]) for kind in ("plain", "memguard"))
        rows.append([
            _name(f"{data}_plain").removesuffix(", plain"), _accuracy(before["confidence"]),
            _accuracy(after["confidence"]), f"{same:,} of {answered:,}",
        ])  # fmt: skip
    heads = ["images", "confidence", "confidence, MemGuard", "label-only answers that are the same"]
    return table(heads, rows)


def _over_gap(found: Results) -> str:
    rows = []
    for cell, metrics in found.items():
        attacks = _of(metrics)
        entry = attacks["boundary"]
        value, interval = entry["over_gap"], entry["over_gap_ci"]
        verdict = "above" if interval[0] > 0 else "below" if interval[1] < 0 else "undecided"
        size = f"{entry['targets']} × {entry['examples']}"
        rows.append([_name(cell), size, points(value, interval), verdict])
    return table(["run", "targets × examples", "boundary − gap, points", "boundary is"], rows)


def _queries(runs: Path, found: Results) -> str:
    rows = []
    for cell in ("cifar10_plain", "mnist_plain"):
        held, made = _attacked(runs / cell)
        white_box, boundary = made["carlini-wagner"], made["boundary"]
        member = held.keep[held.sources :, : boundary.targets.shape[1]]
        fold = _fold(held, boundary)
        reference = white_box.targets >= white_box.threshold
        for queries, attacked in attacks.by_budget(held):
            said = attacked.targets >= attacked.threshold
            decided = evaluation.decisions(said, member, fold)
            value, interval = evaluation.difference(said, reference, member, fold)
            rows.append([
                _name(cell).removesuffix(", plain"), f"{queries:,}",
                share(decided, "balanced_accuracy"),
                points(value, interval),
                f"{np.median(attacked.targets[attacked.targets > 0]):.3f}",
            ])  # fmt: skip
        size = white_box.targets[white_box.targets > 0]
        rows.append([
            _name(cell).removesuffix(", plain"), "gradients (Carlini and Wagner)",
            _accuracy(_of(found[cell])["carlini-wagner"]), "–", f"{np.median(size):.3f}",
        ])  # fmt: skip
    heads = ["images", "label queries", "balanced accuracy", "less Carlini and Wagner, points",
             "median distance above 0"]  # fmt: skip
    return table(heads, rows)


def _translations(runs: Path, found: Results) -> str:
    rows = []
    for data in ("cifar10", "mnist"):
        plain, moved = f"{data}_plain", f"{data}_translations"
        gain = _held_out(found[moved])[1] - _held_out(found[plain])[1]
        half = float(student.ppf(0.975, gain.size - 1) * gain.std(ddof=1) / np.sqrt(gain.size))
        cells = [points(gain.mean(), (gain.mean() - half, gain.mean() + half))]
        held, before = _attacked(runs / plain)
        other, after = _attacked(runs / moved)
        assert np.array_equal(held.keep, other.keep), "both runs have the same masks"
        for name in ("augmentation-translation", "augmentation-rotation", "gap"):
            first, second = after[name], before[name]
            examples = min(first.targets.shape[1], second.targets.shape[1])
            said, said_before = (
                (attacked.targets >= attacked.threshold)[:, :examples]
                for attacked in (first, second)
            )
            member, fold = held.keep[held.sources :, :examples], _fold(held, first)
            cells.append(points(*evaluation.difference(said, said_before, member, fold)))
        rows.append([_name(plain).removesuffix(", plain"), *cells])
    heads = ["training with shifts, against none: points", "accuracy held out",
             "translated views", "rotated views", "gap"]  # fmt: skip
    return table(heads, rows)


def _chance(found: Results) -> str:
    rows = []
    for cell, metrics in found.items():
        attacks = _of(metrics)
        names = [name for name in attacks if name not in ("augmentation", "carlini-wagner")]
        above = [
            name for name in names if attacks[name]["decision"]["balanced_accuracy_ci"][0] > 0.5
        ]
        most = max(names, key=lambda one: attacks[one]["decision"]["balanced_accuracy"])
        lira = _lira(metrics)
        rows.append([
            _name(cell), f"{len(above)} of {len(names)}", f"{_accuracy(attacks[most])} `{most}`",
            share(lira, "auc"),
        ])  # fmt: skip
    heads = ["run", "attacks surely above 50 %", "the greatest balanced accuracy", "LiRA's AUC"]
    return table(heads, rows)


def _outliers(found: Results) -> str:
    rows = []
    for cell in ("cifar10_plain", "mnist_plain"):
        held = found[cell]["label_only"]["outliers"]
        for one in held["attacks"]:
            if one["name"] not in ("gap", "boundary", "augmentation-translation", "lira-online"):
                continue
            cells = [share(one[side], "precision") for side in ("of_outliers", "of_all")]
            rows.append([
                _name(cell).removesuffix(", plain"), f"`{one['name']}`", str(one["outliers"]),
                *cells,
            ])  # fmt: skip
    heads = ["images", "attack", "outliers", "precision on outliers", "on all"]
    return table(heads, rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
