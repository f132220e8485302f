"""Write the tables of docs/trust.md from finished runs.

    python docs/trust/tables.py runs/trust

reads what `score.py --trust` and `attack.py` left of every configuration in `configs/trust/`,
rewrites the page between its markers and puts its figures into this folder. What the paper reports
(Hintersdorf et al., arXiv 2111.09076) stands beside it, as the paper's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lira_jax.evaluation import mean_and_interval
from lira_jax.evaluation.wording import percent
from lira_jax.report import compare

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import AT, Entry, fill, points, rate, read, share, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "trust.md"
CONFIGS = HERE.parents[1] / "configs" / "trust"
BLOCK = 2

# Precision, recall and FPR of the maximum score attack on CIFAR-10; then its FPR on permuted and on
# scaled images.
PAPER = {
    "resnet": {
        "none": (0.67, 0.92, 0.45),
        "label smoothing": (0.80, 0.94, 0.24),
        "Laplace": (0.69, 0.64, 0.28),
        "L2": (0.51, 0.29, 0.27),
        "T = 10": (0.65, 0.91, 0.49),
        "inputs": (0.584, 0.998),
    },
    "convnet": {
        "none": (0.65, 0.87, 0.46),
        "label smoothing": (0.78, 1.0, 0.29),
        "Laplace": (0.60, 0.57, 0.38),
        "L2": (0.63, 0.51, 0.31),
        "T = 10": (0.62, 0.72, 0.43),
        "inputs": (0.874, 0.998),
    },
}
# The same columns in our runs: run and calibration.
COLUMNS = (
    ("none", "none", "plain", "plain"),
    ("label smoothing", "label smoothing 0.05", "smooth_0.05", "plain"),
    ("Laplace", "Laplace, probit", "plain", "laplace-probit"),
    ("L2", "L2", "l2", "plain"),
    ("T = 10", "T = 10", "plain", "temperature-10.0"),
)
NETWORKS = {"resnet": ("ResNet-8", "ResNet-18"), "convnet": ("ConvNet", "small CNN")}
ATTACKS = ("entropy", "max-score", "top-3", "gap", "max-score-calibrated", "lira-offline")

Results = Mapping[str, Entry]


def main(runs: Path) -> None:
    """Rewrite the page."""
    found = read(runs, CONFIGS.glob("*.toml"), "trust")
    parts = {
        "paper": _paper(found),
        "inputs": _inputs(found),
        "low": _low(found),
        "mmps": _mmps(found),
        "calibration": _calibration(found),
        "attacks": _attacks(found),
        "differences": _differences(found),
    }
    fill(PAGE, parts)
    figures = runs / "resnet_plain" / "attack" / "figures"
    for name in ("trust_inputs", "trust_fpr"):
        shutil.copyfile(figures / f"{name}.png", HERE / f"{name}.png")
    with tempfile.TemporaryDirectory() as folder:
        compare.compare([runs / cell for cell in found], Path(folder))
        shutil.copyfile(Path(folder) / "trade_off.png", HERE / "trade_off.png")


def _mean(found: Entry | None) -> str:
    return share(found and {"mean": found["mean"], "mean_ci": found["ci"]}, "mean")


def _calibrated(metrics: Entry, name: str) -> Entry:
    return next(one for one in metrics["trust"]["calibrations"] if one["name"] == name)


def _attack(calibrated: Entry, name: str) -> Entry:
    return next(one for one in calibrated["attacks"] if one["name"] == name)


def _kind(attack: Entry, name: str) -> Entry | None:
    return next((one for one in attack["inputs"] if one["kind"] == name), None)


def _run(cell: str) -> str:
    network, kind = cell.split("_", 1)
    return f"{NETWORKS[network][0]}, {kind.replace('_', ' ')}"


def _paper(found: Results) -> str:
    heads = ["max-score attack", *(title for _, title, _, _ in COLUMNS), "on permuted", "on scaled"]
    rows = []
    for network, (ours, theirs) in NETWORKS.items():
        for word, name in (("precision", "precision"), ("recall", "tpr"), ("FPR", "fpr")):
            cells = []
            for _, _, run, calibration in COLUMNS:
                one = found.get(f"{network}_{run}")
                attack = one and _attack(_calibrated(one, calibration), "max-score")
                cells.append(share(attack["decision"], name) if attack else "–")
            plain = _attack(_calibrated(found[f"{network}_plain"], "plain"), "max-score")
            for kind in ("permuted", "scaled"):
                on_kind = _kind(plain, kind)
                known = name == "fpr" and on_kind
                cells.append(share(on_kind["decision"], name) if known else "–")  # type: ignore[index]
            rows.append([f"{ours}, {word}", *cells])
        for place, word in enumerate(("precision", "recall", "FPR")):
            paper = PAPER[network]
            cells = [percent(paper[key][place]) for key, _, _, _ in COLUMNS]
            inputs = paper["inputs"] if word == "FPR" else ()
            rows.append([
                f"paper, {theirs}, {word}", *cells, *([percent(one) for one in inputs] or "––")
            ])  # fmt: skip
    return table(heads, rows)


def _inputs(found: Results) -> str:
    rows = []
    for cell, metrics in found.items():
        if not cell.endswith(("_plain", "_left_out")):
            continue
        plain = _calibrated(metrics, "plain")
        attacks = [_attack(plain, name) for name in ATTACKS]
        rows.append([
            f"{_run(cell)}: other examples",
            *(share(one["decision"], "fpr") for one in attacks),
        ])  # fmt: skip
        for kind in metrics["trust"]["kinds"]:
            on_kind = [_kind(one, kind["name"]) for one in attacks]
            title = kind["title"] + ("" if kind["labelled"] else " (no label)")
            rows.append([
                f"{_run(cell)}: {title}",
                *(share(one["decision"], "fpr") if one else "–" for one in on_kind),
            ])  # fmt: skip
    return table(["called members, %", *(f"`{name}`" for name in ATTACKS)], rows)


def _low(found: Results) -> str:
    rows = []
    for cell in ("resnet_plain", "convnet_plain"):
        plain = _calibrated(found[cell], "plain")
        attacks = [_attack(plain, name) for name in ATTACKS]
        rows.append([
            f"{_run(cell)}: other examples",
            *(share(one["low"][AT], "fpr") for one in attacks),
        ])  # fmt: skip
        rows.append([
            f"{_run(cell)}: members", *(share(one["low"][AT], "tpr") for one in attacks)
        ])  # fmt: skip
        for kind in found[cell]["trust"]["kinds"]:
            on_kind = [_kind(one, kind["name"]) for one in attacks]
            rows.append([
                f"{_run(cell)}: {kind['title']}",
                *(share(one["low"][AT], "fpr") if one else "–" for one in on_kind),
            ])  # fmt: skip
    return table(["called members, %", *(f"`{name}`" for name in ATTACKS)], rows)


def _mmps(found: Results) -> str:
    heads = ["max-score attack: mean maximum score, %", "TP", "FP", "FN", "TN", "FP − TP, points"]
    rows = []
    for cell, metrics in found.items():
        attack = _attack(_calibrated(metrics, "plain"), "max-score")
        mmps = attack["mmps"]
        apart = mmps["fp_less_tp"]
        rows.append([
            _run(cell), *(_mean(mmps[key]) for key in ("tp", "fp", "fn", "tn")),
            "–" if apart is None else points(apart["mean"], apart["ci"]),
        ])  # fmt: skip
        if cell.endswith("_plain"):
            for kind in metrics["trust"]["kinds"]:
                one = _kind(attack, kind["name"])
                assert one is not None
                cells = [_mean(one["mmps"][key]) for key in ("fp", "tn")]
                rows.append([f"{_run(cell)}: {kind['title']}", "–", cells[0], "–", cells[1], "–"])
    return table(heads, rows)


def _calibration(found: Results) -> str:
    heads = [
        "run", "calibration", "accuracy: members", "others", "ECE", "adaptive ECE",
        "overconfidence error", "Brier × 100", "ECE of members",
    ]  # fmt: skip
    rows = []
    for cell, metrics in found.items():
        for one in metrics["trust"]["calibrations"]:
            if one["name"] not in ("plain", "temperature-fit") and not cell.endswith("_plain"):
                continue
            title, fitted = one["title"], one["temperature"]
            if one["name"] == "temperature-fit":
                ends = f"{fitted['least']:.2f}–{fitted['greatest']:.2f}"
                title = f"T fitted: {fitted['mean']:.2f} ({ends})"
            others = one["nonmembers"]
            names = ("accuracy", "ece", "adaptive_ece", "overconfidence_error", "brier")
            rows.append([
                _run(cell), title, percent(one["members"]["accuracy"]),
                *(share(others, name) for name in names), share(one["members"], "ece"),
            ])  # fmt: skip
    return table(heads, rows)


def _attacks(found: Results) -> str:
    names = ("max-score", "entropy", "top-3", "max-score-calibrated", "lira-online")
    heads = ["run", "calibration", *(f"AUC `{name}`" for name in names), "LiRA online: TPR @ 0.1 %"]
    rows = []
    for cell, metrics in found.items():
        for one in metrics["trust"]["calibrations"]:
            if one["name"] not in ("plain", "temperature-fit") and not cell.endswith("_plain"):
                continue
            attacks = [_attack(one, name) for name in names]
            rows.append([
                _run(cell), one["title"], *(share(attack, "auc") for attack in attacks),
                rate(attacks[-1]),
            ])  # fmt: skip
    return table(heads, rows)


def _differences(found: Results) -> str:
    """Each run and calibration against plain predictions of the plain run, target by target."""
    heads = ["against plain, points", "ECE", "FPR of `max-score`", "AUC of `max-score`",
             "AUC of `entropy`", "AUC of `top-3`", "AUC of `lira-online`"]  # fmt: skip
    rows = []
    for cell, metrics in found.items():
        network, kind = cell.split("_", 1)
        if kind == "left_out":
            continue
        reference = _calibrated(found[f"{network}_plain"], "plain")
        for one in metrics["trust"]["calibrations"]:
            if (kind == "plain") == (one["name"] == "plain"):
                continue  # the reference itself, and two changes at once
            ece = 100 * (one["nonmembers"]["ece"] - reference["nonmembers"]["ece"])
            cells = [f"{ece:+.1f}".replace("-", "−")]
            for name, figure in (
                ("max-score", "fpr"), ("max-score", "auc"), ("entropy", "auc"), ("top-3", "auc"),
                ("lira-online", "auc"),
            ):  # fmt: skip
                after, before = (
                    np.array(_attack(both, name)["by_target"][figure]) for both in (one, reference)
                )
                cells.append(points(*mean_and_interval(after - before, BLOCK)))
            title = _run(cell) if kind != "plain" else f"{_run(cell)}, {one['title']}"
            rows.append([title, *cells])
    return table(heads, rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
