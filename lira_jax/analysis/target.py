"""Audit of one model trained anywhere, with a run's shadow models as references. No JAX.

The target's scores φ are of the same examples under the same views as the run's. Told for each
example:

- the log-ratio Λ of the default attack, `lira-bayes`, the evidence that the target trained on it;
- a p-value under OUT: how often a model that did not train on the example scores it as high, under
  the same law as Λ;
- a decision, at a stated false-positive rate: member where Λ reaches a threshold. The threshold is
  chosen on shadow models alone, each attacked by those outside its block; nothing of the target has
  a part in it, so that its truth, where known, tells what the rule really reaches.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lira_jax import evaluation
from lira_jax.analysis import outliers
from lira_jax.attacks import DEFAULT, lira_bayes, references
from lira_jax.config import AttackConfig
from lira_jax.csv_text import csv_text
from lira_jax.errors import InputError
from lira_jax.score_set import (
    LARGEST,
    ScoreSet,
    as_mask,
    check,
    first_unusable,
    read_arrays,
    refuse_other_numbers,
)
from lira_jax.storage import write_text


@dataclass(frozen=True)
class Target:
    """A model's scores on the run's examples.

    Attributes:
        scores: φ, float [E, Q], of the run's views, in their order.
        keep: True where the target trained on the example, bool [E]; None if not known.
        source: where the arrays came from, for messages.
    """

    scores: Float[np.ndarray, "E Q"]
    keep: Bool[np.ndarray, " E"] | None
    source: str


@dataclass(frozen=True)
class TargetAudit:
    """What the shadow models say about a target.

    Attributes:
        source: where the target's scores came from.
        log_ratio: Λ, higher = member, float64 [E].
        p_value: under OUT, one-sided, of the mean φ, float64 [E].
        decision: member by the rule, bool [E].
        member: the truth, bool [E]; None if not known.
        fpr: false-positive rate that the rule was to keep to, a share.
        threshold: a log-ratio of at least that is decided a member, if `calibrate` is "pooled".
        calibrate: the rate is aimed at over all examples ("pooled"), or on each ("per-example"):
            then a p-value of at most `fpr` is decided a member.
        models: shadow models.
        references: their counts, "in" and "out", on the example that has fewest of each.
        views: views used.
        shadow: the rule on shadow models: "nonmembers", pairs of model and example that it was
            chosen on; "fpr" and "tpr" over all of them; "fpr_range", within which 95 % of single
            models' rates lie; "few_false_positives", whether fewer than FEW_FALSE_POSITIVES were
            to be expected.
        figures: of the target, where the truth is known: "members", "nonmembers", "tpr", "fpr" and
            "auc" (None without members or non-members), each with a 95 % interval over examples,
            "tpr_ci", …: Clopper and Pearson's, and for the AUC DeLong's.
        outliers: what is absurd among the shadow models' scores (`outliers.as_json`).
    """

    source: str
    log_ratio: Float[np.ndarray, " E"]
    p_value: Float[np.ndarray, " E"]
    decision: Bool[np.ndarray, " E"]
    member: Bool[np.ndarray, " E"] | None
    fpr: float
    threshold: float
    calibrate: str
    models: int
    references: dict[str, int]
    views: int
    shadow: dict[str, Any]
    figures: dict[str, Any] | None
    outliers: dict[str, Any]


def read_target(path: Path, score_set: ScoreSet, queries: int = 0) -> Target:
    """Read a target's scores, and its membership if the file tells.

    Args:
        path: an .npz file with `scores` [E] or [E, Q], and perhaps `keep` [E] (bool or 0/1).
        score_set: the run's, whose examples and views the target's are.
        queries: views that will be used; the file may hold only these. 0: all.

    Raises:
        InputError: no such file, not a readable `.npz`, an array missing, of another type, or not
            of the run's examples and views, or a score that is NaN or beyond `LARGEST`.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; give an .npz file with the target's `scores`")
    arrays = read_arrays(path)
    if "scores" not in arrays:
        names = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"{path}: no array `scores` (the file holds {names}); add it")
    keep = as_mask(arrays["keep"], "keep", str(path)) if "keep" in arrays else None
    scores = arrays["scores"]
    scores = scores[:, np.newaxis] if scores.ndim == 1 else scores
    return check_target(Target(scores, keep, str(path)), score_set, queries)


def check_target(target: Target, score_set: ScoreSet, queries: int = 0) -> Target:
    """Refuse a target that is not of the run's examples and views.

    Returns:
        The target, with the views that will be used.

    Raises:
        InputError: see `read_target`.
    """
    source, scores, keep = target.source, target.scores, target.keep
    _, examples, views = score_set.scores.shape
    if scores.ndim != 2 or not scores.shape[1]:
        raise InputError(
            f"{source}: `scores` has shape {scores.shape}; "
            f"must be ({examples},) or ({examples}, {views}): one model's, by example and view"
        )
    refuse_other_numbers(scores, "scores", source)
    if len(scores) != examples:
        raise InputError(
            f"{source}: `scores` is of {len(scores)} examples, {score_set.source} of {examples}; "
            "score the target on the run's examples, in their order"
        )
    given, used = scores.shape[1], queries or views
    if given not in (used, views):
        few = f", or use the first {given} by --attack.queries {given}" if given < used else ""
        raise InputError(
            f"{source}: `scores` holds {given} view{'s' * (given > 1)}, {score_set.source} "
            f"{views}; score the target on the run's views, in their order{few}"
        )
    scores = scores[:, :used]
    if place := first_unusable(scores):
        raise InputError(
            f"{source}: `scores` is {scores[place]} at example {place[0]}, view {place[1]}; "
            f"every score must be finite, and at most {LARGEST:g} in size: compute φ from logits"
        )
    if keep is not None and keep.shape != (examples,):
        raise InputError(
            f"{source}: `keep` has shape {keep.shape}; must be ({examples},), one per example"
        )
    if keep is not None and keep.dtype != np.bool_:
        raise InputError(
            f"{source}: `keep` is {keep.dtype}; save booleans, or 1 (trained on) and 0 (not)"
        )
    return dataclasses.replace(target, scores=scores)


def audit(
    score_set: ScoreSet,
    target: Target,
    config: AttackConfig,
    fpr: float = 0.001,
    progress: bool = True,
) -> TargetAudit:
    """Tell from the run's shadow models what the target trained on.

    All shadow models are references, and the target is centred as they are. Shadow models
    whose scores are absurd are left out, and other absurd scores drawn in, the target's too.

    Args:
        score_set: the run's scores and masks.
        target: from `read_target`, or arrays.
        config: views to use and the centre of references.
        fpr: false-positive rate to decide at, a share in (0, 1).
        progress: show progress bars, if standard error is a terminal.

    Raises:
        InputError: see `score_set.check`, `references.find` and `read_target`; a rate outside
            (0, 1); more views asked for than there are.
    """
    check(score_set, config.queries)
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate of {fpr}: give a share above 0 and below 1")
    target = check_target(target, score_set, config.queries)
    given, absurd = score_set, outliers.find(score_set, config.queries)
    kept = outliers.kept_models(given, references.find(given, few=True), absurd)
    score_set = outliers.as_attacked(given, absurd, kept)
    if absurd:
        bounded = outliers.bounded(target.scores[np.newaxis], absurd)[0]
        target = dataclasses.replace(target, scores=bounded)
    rule = references.find(score_set, few=True)

    shadows = lira_bayes.attack(score_set, rule, config, progress)[DEFAULT]
    threshold = evaluation.threshold_at_fpr(shadows[~score_set.keep], fpr)
    found = lira_bayes.of_targets(score_set, rule, config, target.scores[np.newaxis])
    log_ratio, p_value = found.log_odds[0], np.exp(found.log_tail[0])
    decision, called = log_ratio >= threshold, shadows >= threshold
    if config.calibrate == "per-example":
        decision = p_value <= fpr
        called = lira_bayes.log_tails(score_set, rule, config, progress) <= np.log(fpr)
    return TargetAudit(
        source=target.source,
        log_ratio=log_ratio,
        p_value=p_value,
        decision=decision,
        member=target.keep,
        fpr=fpr,
        threshold=threshold,
        models=score_set.scores.shape[0],
        references=_least(score_set.keep),
        views=target.scores.shape[1],
        calibrate=config.calibrate,
        shadow=_shadow_rates(called, score_set.keep, fpr),
        figures=None if target.keep is None else _reached(log_ratio, decision, target.keep),
        outliers=outliers.as_json(given, absurd, kept),
    )


def _least(keep: Bool[np.ndarray, "N E"]) -> dict[str, int]:
    """References on each side, on the example that has fewest."""
    inside = keep.sum(axis=0)
    return {"in": int(inside.min()), "out": int(len(keep) - inside.max())}


def _shadow_rates(
    decisions: Bool[np.ndarray, "N E"], keep: Bool[np.ndarray, "N E"], fpr: float
) -> dict[str, Any]:
    nonmembers = int((~keep).sum())
    each = (decisions & ~keep).sum(axis=1) / (~keep).sum(axis=1)
    return {
        "nonmembers": nonmembers,
        "fpr": float(decisions[~keep].mean()),
        "fpr_range": np.quantile(each, [0.025, 0.975]).tolist(),
        "tpr": float(decisions[keep].mean()),
        "few_false_positives": fpr * nonmembers < evaluation.FEW_FALSE_POSITIVES,
    }


def _reached(
    log_ratio: Float[np.ndarray, " E"],
    decision: Bool[np.ndarray, " E"],
    member: Bool[np.ndarray, " E"],
) -> dict[str, Any]:
    """What the decisions and the log-ratios come to in truth: `TargetAudit.figures`."""
    reached: dict[str, Any] = {"members": int(member.sum()), "nonmembers": int((~member).sum())}
    for key, chosen in (("tpr", member), ("fpr", ~member)):
        total, called = int(chosen.sum()), int(decision[chosen].sum())
        limits = evaluation.clopper_pearson(called, total)
        reached[key] = called / total if total else None
        reached[f"{key}_ci"] = [float(limit) for limit in limits] if total else None
    reached["auc"] = reached["auc_ci"] = None
    if 0 < member.sum() < member.size:
        reached["auc"], reached["auc_ci"] = evaluation.delong(log_ratio[member], log_ratio[~member])
    return reached


def write(audit: TargetAudit, out: Path) -> None:
    """Write `target.csv` and `target.json` into a folder, which is made if missing.

    `target.csv` has a line per example, most suspicious first: the highest log-ratio, and of equal
    ones the first in the run. `target.json` has all the rest.

    Raises:
        InputError: a folder that cannot be made or written.
    """
    order = np.argsort(-audit.log_ratio, kind="stable")
    columns = {
        "example": order,
        "log_ratio": audit.log_ratio[order],
        "p_value": audit.p_value[order],
        "member_decision": audit.decision[order].astype(int),
    }
    if audit.member is not None:
        columns["member"] = audit.member[order].astype(int)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    write_text(out / "target.csv", csv_text([dict(zip(columns, row, strict=True)) for row in rows]))
    write_text(
        out / "target.json",
        json.dumps(as_json(audit), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )


def as_json(audit: TargetAudit) -> dict[str, Any]:
    """What `target.json` holds; all rates are shares in [0, 1]."""
    return {
        "schema": 1,
        "target": audit.source,
        "attack": DEFAULT,
        "examples": audit.log_ratio.size,
        "views": audit.views,
        "models": audit.models,
        "references": audit.references,
        "fpr": audit.fpr,
        "calibrate": audit.calibrate,
        "threshold": audit.threshold if audit.calibrate == "pooled" else None,
        "shadow": audit.shadow,
        "decided_members": int(audit.decision.sum()),
        "p_value_at_most_fpr": int((audit.p_value <= audit.fpr).sum()),
        "figures": audit.figures,
        "outliers": audit.outliers,
    }


def summary(audit: TargetAudit) -> str:
    """What the terminal shows: decisions, what they rest on, and, if known, how true they are."""
    shadow, examples = audit.shadow, audit.log_ratio.size
    counts = audit.references
    decided, low_p = int(audit.decision.sum()), int((audit.p_value <= audit.fpr).sum())
    low, high = shadow["fpr_range"]
    rule = f"log-ratio of {audit.threshold:.3g} or more"
    if audit.calibrate == "per-example":
        rule = f"p-value of {audit.fpr:g} or less: the rate is aimed at on every example"
    lines = [
        f"{audit.source}: {examples:,} examples, {audit.views} view{'s' * (audit.views > 1)}, "
        f"against {audit.models} shadow models ({counts['in']} IN and {counts['out']} OUT "
        "references).",
        f"Decided to be members at a false-positive rate of {_percent(audit.fpr)} %: {decided:,} "
        f"({rule}).",
        f"The same rule on shadow models: FPR {_percent(shadow['fpr'])} % (single models "
        f"{_percent(low)}–{_percent(high)}), TPR {_percent(shadow['tpr'])} %.",
        f"p-value at most {audit.fpr:g}: {low_p:,} examples, where {audit.fpr * examples:,.3g} "
        "would be expected had it trained on none.",
    ]
    if shadow["few_false_positives"]:
        lines.append(
            f"The threshold rests on fewer than {evaluation.FEW_FALSE_POSITIVES} expected false "
            "positives: add models or examples, or decide at a higher rate."
        )
    if audit.figures is not None:
        figures = audit.figures
        parts = [
            f"{key.upper()} {_percent(figures[key])}{_interval(figures[f'{key}_ci'])} %"
            for key in ("tpr", "fpr", "auc")
            if figures[key] is not None
        ]
        lines.append(
            f"In truth, on {figures['members']:,} members and {figures['nonmembers']:,} "
            f"non-members: {', '.join(parts)} (95 % interval over examples)."
        )
    return "\n".join([*lines, *outliers.in_words(audit.outliers)])


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f" ({_percent(interval[0])}–{_percent(interval[1])})"


def _percent(share: float) -> str:
    """Three digits that count; a bare 0 for none."""
    return f"{100 * share:.3g}"
