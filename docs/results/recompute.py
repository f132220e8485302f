"""Recompute every number of docs/results.md from the scores kept beside this script.

    python docs/results/recompute.py            # rewrites docs/results.md and its figures
    python docs/results/recompute.py --pack DIR # first packs the scores of a finished run

No JAX, no images: the attack stage on `cifar10_jpeg.npz` (float16 φ, logits, Merlin shares and
gradient norms of 64 models). What the paper reports stands beside it, as the paper's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_jax import figures, score_set
from lira_jax.analysis import analyse
from lira_jax.config import AttackConfig
from lira_jax.figures import Drawing

sys.path.insert(0, str(Path(__file__).parents[1]))
from kept import HERE, pack
from shared import AT, fill, rate, share, table

SCORES = HERE / "cifar10_jpeg.npz"
PAGE = HERE.parent / "results.md"
DRAWN = ("roc", "by_models", "roc_newer")

# Carlini et al., Table I: TPR at 0.1 % FPR on CIFAR-10 and CIFAR-100, balanced accuracy on both.
TABLE_1: dict[str, tuple[str, float, float, float, float]] = {
    "yeom": ("Yeom et al.", 0.0, 0.0, 59.4, 78.0),
    "shokri": ("Shokri et al.", 0.3, 1.6, 59.6, 74.5),
    "morgan": ("Jayaraman et al.", 0.0, 0.0, 59.4, 76.9),
    "song-mittal": ("Song and Mittal", 0.1, 1.4, 59.5, 77.3),
    "sablayrolles": ("Sablayrolles et al.", 1.7, 7.4, 56.3, 69.1),
    "long": ("Long et al.", 2.2, 4.7, 53.5, 54.5),
    "watson": ("Watson et al.", 1.3, 5.4, 59.1, 70.1),
    "lira-online": ("LiRA, online", 8.4, 27.6, 63.8, 82.6),
}
# The same paper's ablation, TPR at 0.1 % FPR on CIFAR-10 and CIFAR-100.
ABLATION: dict[tuple[str, str], tuple[float, float | None]] = {
    ("global", "LOSS"): (0.0, 0.0),
    ("global", "+ logit scaling"): (0.1, 0.1),
    ("global", "+ multiple queries"): (0.1, 0.1),
    ("offline", "Per-example OUT threshold"): (1.3, 5.2),
    ("offline", "+ logit scaling"): (4.7, 14.7),
    ("offline", "+ Gaussian"): (4.7, 18.9),
    ("offline", "+ multiple queries"): (7.1, 22.3),
    ("online", "Per-example IN & OUT threshold"): (1.7, 7.4),
    ("online", "+ logit scaling"): (1.9, 2.8),
    ("online", "+ Gaussian"): (5.6, 24.1),
    ("online", "+ multiple queries"): (8.4, 27.6),
}
QUERIES = {1: 5.6, 2: 7.5, 18: 8.4}


def blocks(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The generated parts of the page, by name."""
    attacks = {entry["name"]: entry for entry in metrics["attacks"]}
    accuracy = metrics["accuracy"]
    members, others = (
        np.array([one[side] for one in accuracy]) for side in ("member", "nonmember")
    )
    return {
        "setting": (
            f"{metrics['models']} models, {metrics['examples']:,} examples, {metrics['queries']} "
            f"views; every model a target, with {metrics['references']['in']} IN and "
            f"{metrics['references']['out']} OUT references: {metrics['members']:,} members and "
            f"{metrics['nonmembers']:,} non-members in all. The models are right on "
            f"{100 * members.mean():.1f} % of their members and {100 * others.mean():.1f} % of "
            f"the rest (standard deviations over models {100 * members.std(ddof=1):.1f} and "
            f"{100 * others.std(ddof=1):.1f})."
        ),
        "table1": _table_1(attacks),
        "orders": _orders(attacks),
        "ablation": _ablation(metrics["ablation"]),
        "ladder-orders": _ladder_orders(metrics["ablation"]),
        "queries": _queries(metrics["by_queries"]),
        "models": _models(metrics["by_models"]),
        "newer": _newer(attacks),
    }


def _table_1(attacks: Mapping[str, Any]) -> str:
    heads = ["attack", "TPR @ 0.001 % FPR", "TPR @ 0.1 % FPR", "balanced accuracy",
             "paper, CIFAR-10: TPR @ 0.1 %", "bal. acc.", "paper, CIFAR-100: TPR @ 0.1 %",
             "bal. acc."]  # fmt: skip
    rows = []
    for name, (title, c10, c100, accuracy10, accuracy100) in TABLE_1.items():
        entry = attacks[name]
        rows.append([
            f"{title} (`{name}`)", rate(entry, "1e-05"), rate(entry),
            share(entry, "balanced_accuracy"), f"{c10}", f"{accuracy10}", f"{c100}",
            f"{accuracy100}",
        ])  # fmt: skip
    ye = attacks["ye"]
    rows.insert(-1, ["Ye et al. (`ye`)", rate(ye, "1e-05"), rate(ye),
                     share(ye, "balanced_accuracy"), "–", "60.3", "–", "76.9"])  # fmt: skip
    return table(heads, rows)


def _verdict(above: Mapping[str, Any], below: Mapping[str, Any]) -> str:
    """Is the first above the second, by intervals that do not overlap?"""
    first, second = above["tpr_at_fpr_ci"][AT], below["tpr_at_fpr_ci"][AT]
    if first[0] > second[1]:
        return "holds"
    return "reversed" if first[1] < second[0] else "undecided"


def _orders(attacks: Mapping[str, Any]) -> str:
    rows = []
    names = list(TABLE_1)
    for column, paper in ((1, "CIFAR-10"), (2, "CIFAR-100")):
        found: dict[str, list[str]] = {"holds": [], "undecided": [], "reversed": []}
        for one in names:
            for other in names:
                if float(TABLE_1[one][column]) > float(TABLE_1[other][column]):  # type: ignore[arg-type]
                    verdict = _verdict(attacks[one], attacks[other])
                    found[verdict].append(f"`{one}` over `{other}`")
        total = sum(map(len, found.values()))
        for verdict, pairs in found.items():
            rows.append([paper, f"{verdict}: {len(pairs)} of {total}", "; ".join(pairs) or "–"])
    return table(["the paper's order on", "here", "pairs"], rows).replace("---:", "---")


def _ablation(entries: Sequence[Mapping[str, Any]]) -> str:
    titles = {"global": "one threshold", "offline": "OUT models", "online": "IN and OUT models"}
    rows = []
    for entry in entries:
        c10, c100 = ABLATION[entry["ladder"], entry["step"]]
        first = rows == [] or rows[-1][-1] != entry["ladder"]
        rows.append([titles[entry["ladder"]] if first else "", entry["step"], rate(entry),
                     f"{c10}", "–" if c100 is None else f"{c100}", entry["ladder"]])  # fmt: skip
    heads = ["references", "step", "TPR @ 0.1 % FPR", "paper, CIFAR-10", "paper, CIFAR-100"]
    return table(heads, [row[:-1] for row in rows]).replace("| --- | ---: |", "| --- | --- |", 1)


def _ladder_orders(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for below, above in itertools.pairwise(entries):
        if below["ladder"] != above["ladder"]:
            continue
        verdict = _verdict(above, below)
        words = {"holds": "gain", "reversed": "loss", "undecided": "not decided"}[verdict]
        old, new = (ABLATION[one["ladder"], one["step"]] for one in (below, above))
        paper = ", ".join(
            "gain" if b > a else "loss" if b < a else "even"
            for a, b in zip(old, new, strict=True)
            if a is not None and b is not None
        )
        rows.append([f"{above['ladder']}: {above['step']}", words, paper])
    return table(["step", "here", "paper (CIFAR-10, -100)"], rows).replace("---:", "---")


def _queries(entries: Sequence[Mapping[str, Any]]) -> str:
    names = {"lira-online": "LiRA online", "lira-online-shrinkage": "shrinkage variance"}
    rows = [
        [f"{count}"]
        + [rate(e) for name in names for e in entries
           if e["queries"] == count and e["name"] == name]
        + [f"{QUERIES[count]}"]
        for count in sorted({entry["queries"] for entry in entries})
    ]  # fmt: skip
    return table(["views", *names.values(), "paper, CIFAR-10, LiRA online"], rows)


def _models(entries: Sequence[Mapping[str, Any]]) -> str:
    names = {"lira-online": "per example", "lira-online-global": "global",
             "lira-online-shrinkage": "shrinkage", "lira-offline": "offline, per example",
             "lira-offline-shrinkage": "offline, shrinkage"}  # fmt: skip
    rows = [
        [f"{count}"]
        + [rate(e) for name in names for e in entries
           if e["models"] == count and e["name"] == name]
        for count in sorted({entry["models"] for entry in entries})
    ]  # fmt: skip
    return table(["shadow models", *names.values()], rows)


def _newer(attacks: Mapping[str, Any]) -> str:
    names = ["lira-online", "lira-online-global", "lira-online-pooled", "lira-online-shrinkage",
             "lira-offline", "lira-offline-shrinkage", "rmia-online", "rmia-offline",
             "quantile-regression", "lira-online-gradient-norm", "gradient-norm",
             "merlin"]  # fmt: skip
    rows = [
        [f"{attacks[name]['title']} (`{name}`)", share(attacks[name], "auc"),
         rate(attacks[name], "0.0001"), rate(attacks[name]), rate(attacks[name], "0.01")]
        for name in names
    ]  # fmt: skip
    heads = ["attack", "AUC", "TPR @ 0.01 % FPR", "TPR @ 0.1 % FPR", "TPR @ 1 % FPR"]
    return table(heads, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Recompute docs/results.md.")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="a finished run to keep first")
    chosen = parser.parse_args()
    if chosen.pack is not None:
        pack(chosen.pack, SCORES)
    findings = analyse.analyse(score_set.read_npz(SCORES), AttackConfig(), progress=True)
    for drawing in figures.draw(findings):
        if isinstance(drawing, Drawing) and drawing.name in DRAWN:
            (HERE / f"{drawing.name}.png").write_bytes(drawing.png)
    fill(PAGE, blocks(findings.metrics))
    print(f"{PAGE}: every number recomputed from {SCORES.name}")


if __name__ == "__main__":
    main()
