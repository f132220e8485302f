"""Label-only attacks, judged: the part `label_only` of `metrics.json`. No JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lira_jax import evaluation
from lira_jax.attacks import TITLES
from lira_jax.evaluation.judging import Curve, judged
from lira_jax.findings import LabelOnly
from lira_jax.label_only import attacks, outliers
from lira_jax.label_only.answers import LabelAnswers
from lira_jax.label_only.attacks import ATTACKS, Attacked

ALL_TITLES = TITLES | {name: attack.title for name, attack in ATTACKS.items()}


def results(
    answers: LabelAnswers, beside: Mapping[str, Float[np.ndarray, "N L"]]
) -> tuple[dict[str, Any], LabelOnly]:
    """Run and judge every attack that the answers allow.

    Args:
        answers: of source models and targets.
        beside: scores, under the models asked, of attacks that see confidences.

    Returns:
        sources, targets: numbers of models; examples: asked about at most; blocks: of targets.

        attacks: one entry each: name, title; sees: labels, confidences or gradients; chosen: what
        else was tuned; label_queries; examples, that it was run on; source_balanced_accuracy;
        decision: what the threshold from the source models reaches on the targets (balanced
        accuracy, precision at even odds, TPR, FPR, as in `evaluation.decisions`, and threshold,
        None if nothing is called a member); over_gap and over_gap_ci, by how much that balanced
        accuracy exceeds the gap attack's on the same targets and examples, None where there is no
        gap attack; and what every attack's entry has, which is of the targets' own ROC.

        strongest: of those that see labels, the one of the greatest balanced accuracy on the
        source models; None if none was run. by_budget: the same figures of the boundary attack for
        each number of queries. outliers: precision on the most isolated examples, or None.
        not_run: name, title and reason.

        And what figures are drawn from.
    """
    done, not_run = attacks.attack(answers, beside=beside)
    entries, curves = [], {}
    for name, attacked in done.items():
        entry, curves[name] = _entry(answers, attacked, done.get("gap"))
        entries.append({"name": name, "title": ALL_TITLES.get(name, name)} | entry)
    by_labels = [entry for entry in entries if entry["sees"] == "labels"]
    strongest = max(
        by_labels, key=lambda entry: float(entry["source_balanced_accuracy"]), default=None
    )
    by_budget = []
    for queries, attacked in attacks.by_budget(answers):
        entry, _ = _entry(answers, attacked, done.get("gap"))
        by_budget.append({"queries": queries} | entry)
    boundary = done.get("boundary")
    targets = answers.models[answers.sources :]
    metrics = {
        "sources": list(answers.models[: answers.sources]),
        "targets": list(targets),
        "blocks": len({model // answers.block for model in targets}),
        "examples": max(entry["examples"] for entry in entries),
        "attacks": entries,
        "strongest": strongest and strongest["name"],
        "by_budget": by_budget,
        "outliers": _outliers(answers, done),
        "not_run": [
            {"name": name, "title": ALL_TITLES[name], "reason": reason}
            for name, reason in not_run.items()
        ],
    }
    drawn = LabelOnly(
        curves=curves,
        distances=None if boundary is None else boundary.targets,
        member=None if boundary is None else _members(answers, boundary),
    )
    return metrics, drawn


def _members(answers: LabelAnswers, attacked: Attacked) -> np.ndarray:
    return answers.keep[answers.sources + attacked.rows, : attacked.targets.shape[1]]


def _fold(answers: LabelAnswers, attacked: Attacked) -> np.ndarray:
    """The block of each attacked target."""
    return np.array(answers.models)[answers.sources + attacked.rows] // answers.block


def _entry(
    answers: LabelAnswers, attacked: Attacked, gap: Attacked | None
) -> tuple[dict[str, Any], Curve]:
    member, fold = _members(answers, attacked), _fold(answers, attacked)
    entry, curve = judged(attacked.targets, member, fold)
    positive = attacked.targets >= attacked.threshold
    decision = evaluation.decisions(positive, member, fold)
    over_gap, over_gap_ci = None, None
    if gap is not None:
        of_gap = gap.targets[attacked.rows, : member.shape[1]] >= gap.threshold
        over_gap, over_gap_ci = evaluation.difference(positive, of_gap, member, fold)
    finite = np.isfinite(attacked.threshold)
    return {
        "sees": attacked.sees,
        "chosen": attacked.chosen,
        "label_queries": attacked.queries,
        "examples": member.shape[1],
        "source_balanced_accuracy": attacked.on_sources,
        "decision": {"threshold": attacked.threshold if finite else None} | decision,
        "over_gap": over_gap,
        "over_gap_ci": over_gap_ci,
        **entry,
    }, curve


def _outliers(answers: LabelAnswers, done: Mapping[str, Attacked]) -> dict[str, Any] | None:
    """Precision of each attack's decisions on the most isolated examples, and on all."""
    if "features" not in answers.answers:
        return None
    isolated = outliers.find(answers.answers["features"].values)
    rows = []
    for name, attacked in done.items():
        examples = isolated.examples[isolated.examples < attacked.targets.shape[1]]
        member = _members(answers, attacked)
        positive, fold = attacked.targets >= attacked.threshold, _fold(answers, attacked)
        few = member[:, examples]
        if few.all() or not few.any():  # also where there are none
            continue
        rows.append(
            {
                "name": name,
                "title": ALL_TITLES.get(name, name),
                "outliers": int(examples.size),
                "of_outliers": evaluation.decisions(positive[:, examples], few, fold),
                "of_all": evaluation.decisions(positive, member, fold),
            }
        )
    return {
        "examples": [int(example) for example in isolated.examples],
        "delta": list(isolated.delta),
        "near": outliers.NEAR,
        "neighbours": float(isolated.neighbours[isolated.examples].mean()),
        "neighbours_of_all": float(isolated.neighbours.mean()),
        "attacks": rows,
    }
