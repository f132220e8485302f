"""Findings of every kind, made of synthetic scores, for the tests of what people look at."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit

from lira_jax import evaluation, figures
from lira_jax.analysis import verdict
from lira_jax.analysis.statistics import statistic_curves
from lira_jax.attacks import lira, references
from lira_jax.config import AttackConfig, Experiment, flatten
from lira_jax.evaluation import FPRS
from lira_jax.evaluation.judging import Band, Curve
from lira_jax.figures import Drawing, Missing
from lira_jax.findings import Findings, Vulnerability
from lira_jax.score_set import ScoreSet

TABLE_1 = ["yeom", "shokri", "merlin", "morgan", "song-mittal", "sablayrolles", "long", "watson",
           "ye"]  # fmt: skip
NEWER = ["rmia-online", "rmia-offline", "quantile-regression", "gradient-norm",
         "lira-online-gradient-norm"]  # fmt: skip
LIRA = [f"lira-{kind}{variance}" for kind in ("online", "offline")
        for variance in ("", "-global", "-pooled", "-shrinkage")]  # fmt: skip
NAMES = [*TABLE_1, *LIRA, *NEWER]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def score_set(
    models: int = 16, examples: int = 600, leak: float = 1.0, canaries: int = 0
) -> ScoreSet:
    """Scores of a population whose examples differ in difficulty and in how far they leak."""
    rng = np.random.default_rng(0)
    half = rng.random((models // 2, examples)) < 0.5
    keep = np.stack([half, ~half], axis=1).reshape(models, examples)
    labels = rng.integers(0, 10, examples).astype(np.int32)
    easy = rng.normal(3.0, 2.5, examples)
    shift = leak * rng.gamma(1.0, 2.0, examples)
    canary = np.arange(examples) >= examples - canaries
    shift[canary] += 6.0 * leak
    noise = rng.normal(size=(models, examples))
    scores = easy + noise + shift * keep
    logits = rng.normal(size=(models, examples, 10)).astype(np.float32)
    logits[:, np.arange(examples), labels] = -np.inf
    others = np.logaddexp.reduce(logits, axis=2)
    logits[:, np.arange(examples), labels] = scores + others
    return ScoreSet(
        scores.astype(np.float32)[..., np.newaxis], keep, 2, "runs/synthetic",
        labels=labels, logits=logits, canary=canary if canaries else None,
    )  # fmt: skip


def entry(
    name: str, scores: np.ndarray, member: np.ndarray, title: str | None = None
) -> dict[str, Any]:
    """One attack's part of metrics.json, schema 2."""
    curve = evaluation.roc(scores, member)
    nonmembers = member.size - int(member.sum())
    return {
        "name": name,
        "title": f"{name} in words" if title is None else title,
        **evaluation.summary(curve),
        **{k: v for k, v in evaluation.intervals(scores, member, 2).items() if k != "band"},
        "expected_false_positives": {key: fpr * nonmembers for key, fpr in FPRS.items()},
        "few_false_positives": {key: fpr * nonmembers < 10 for key, fpr in FPRS.items()},
        "targets": scores.shape[0],
        "mean_over_targets": evaluation.mean_over_targets(scores, member),
        "shadow_threshold": {
            key: {
                "threshold": 1.5, "fpr": fpr, "tpr": 0.1, "fpr_ci": [0.9 * fpr, 1.1 * fpr],
                "tpr_ci": [0.09, 0.11],
                "precision": {"0.5": 0.99, "0.1": 0.91, "0.01": None},
            }
            for key, fpr in FPRS.items()
        },
    }  # fmt: skip


def findings(
    leak: float = 1.0,
    models: int = 16,
    examples: int = 600,
    canaries: int = 0,
    images: bool = True,
    names: list[str] = NAMES,
    classes: tuple[str, ...] | None = CLASSES,
) -> Findings:
    """Findings with every field of the schema filled in.

    Args:
        leak: 0: nothing tells members from non-members.
    """
    held = score_set(models, examples, leak, canaries)
    rule = references.find(held)
    config = AttackConfig()
    of_lira = lira.attack(held, rule, config)
    rng = np.random.default_rng(1)
    base = of_lira["lira-online"]
    scores = {}
    for place, name in enumerate(names):
        noise = rng.normal(size=base.shape) * (1 + place % 5)
        scores[name] = of_lira.get(name, base + noise)
    member = held.keep
    entries = [entry(name, values, member) for name, values in scores.items()]
    curves = {}
    for name, values in scores.items():
        curve = evaluation.thin(evaluation.roc(values, member))
        grid = np.geomspace(1 / curve.false_positives[-1], 1, 200)
        tpr = curve.tpr[np.searchsorted(curve.fpr, grid, side="right") - 1]
        band = Band(grid, 0.8 * tpr, np.minimum(1.2 * tpr + 0.001, 1))
        curves[name] = Curve(curve, band if name.startswith("lira") else None)
    exposed = vulnerability(base, member)
    natural = ~held.canary if held.canary is not None else np.ones(examples, dtype=bool)
    return Findings(
        metrics=metrics(held, entries, verdict.given_away(exposed, natural)),
        score_set=held,
        curves=curves,
        statistics=statistic_curves(held, rule, config),
        vulnerability=exposed,
        images=digits(examples) if images else None,
        classes=classes,
    )


@cache
def usual() -> Findings:
    """Findings that leak, small; shared by tests that only read them."""
    return findings(models=8, examples=200)


@cache
def drawn() -> tuple[Drawing | Missing, ...]:
    """Every figure of `usual`."""
    return tuple(figures.draw(usual()))


def digits(count: int) -> np.ndarray:
    """Real images, 8×8, grey."""
    from sklearn.datasets import load_digits

    return (load_digits().images[:count, :, :, np.newaxis] * (255 / 16)).astype(np.uint8)


def vulnerability(scores: np.ndarray, member: np.ndarray) -> Vulnerability:
    """Per-example success of one attack, by a threshold at nought."""
    success = ((scores > 0) == member).mean(axis=0)
    width = 1.96 * np.sqrt(success * (1 - success) / len(scores)) + 0.05
    inside = np.where(member, scores, 0).sum(axis=0) / member.sum(axis=0)
    outside = np.where(member, 0, scores).sum(axis=0) / (~member).sum(axis=0)
    return Vulnerability(
        rank=np.argsort(np.argsort(outside - inside, kind="stable"), kind="stable") + 1,
        threshold=0.0,
        d=np.abs(inside - outside) / 8,
        attack="lira-online",
        mean_score_in=inside,
        mean_score_out=outside,
        success=success,
        success_lo=np.maximum(success - width, 0),
        success_hi=np.minimum(success + width, 1),
    )


def metrics(held: ScoreSet, entries: list[dict[str, Any]], given_away: int) -> dict[str, Any]:
    """metrics.json, schema 2, with every field."""
    models, examples, _ = held.scores.shape
    members = int(held.keep.sum())
    first = entries[0]
    by_name = {one["name"]: one for one in entries}
    online = by_name.get("lira-online", first)
    correct = expit(np.asarray(held.scores[:, :, 0])) > 0.5
    ladders = {
        "global": ["LOSS", "+ logit scaling", "+ multiple queries"],
        "offline": ["Per-example OUT threshold", "+ logit scaling", "+ Gaussian",
                    "+ multiple queries"],
        "online": ["Per-example IN & OUT threshold", "+ logit scaling", "+ Gaussian",
                   "+ multiple queries"],
    }  # fmt: skip
    canaries = 0 if held.canary is None else int(held.canary.sum())
    whole = {
        "schema": 2,
        "source": held.source,
        "models": models,
        "examples": examples,
        "queries": 1,
        "protocol": "leave-block-out",
        "rule": "leave-block-out, blocks of 2",
        "references": {"in": models // 2 - 1, "out": models // 2 - 1},
        "centre": "mean",
        "members": members,
        "nonmembers": held.keep.size - members,
        "folds": models // 2,
        "canaries": canaries,
        "attacks": entries,
        "not_run": [{"name": "bavaria", "title": "A variant", "reason": "it needs <more>"}],
        "ablation": [
            {**online, "ladder": ladder, "step": step, "name": f"{ladder}-{place}"}
            for ladder, steps in ladders.items()
            for place, step in enumerate(steps)
        ],
        "by_queries": [{**online, "queries": count} for count in (1, 2, 18)],
        "by_models": [
            {**by_name[name], "models": count, "targets": count}
            for count in (4, 8, 16)
            for name in ("lira-online", "lira-online-global", "lira-online-shrinkage")
            if name in by_name
        ],
        "accuracy": [
            {"model": model, "member": float(right[keep].mean()),
             "nonmember": float(right[~keep].mean())}
            for model, (right, keep) in enumerate(zip(correct, held.keep, strict=True))
        ],
        "vulnerability": {
            "attack": "lira-online", "examples": examples - canaries, "d_median": 0.7,
            "given_away": given_away,
        },
        "epsilon": {
            "attack": "lira-online", "reason": None, "epsilon": 2.31, "clopper_pearson": 2.6,
            "ceiling": 5.1, "delta": 1e-5, "confidence": 0.95, "candidates": len(entries),
            "canaries": examples, "method": "auditing in one run",
        },
        "canary_attacks": entries[:2] if held.canary is not None else None,
        "null_check": {
            "ok": True, "draws": 20, "critical_z": 3.4,
            "attacks": [
                {
                    "name": one["name"], "ok": True, "tpr_at_0.001": None,
                    "auc": {"value": 0.5003, "chance": 0.5, "error": 0.002, "z": 0.1, "ok": True},
                    "tpr_at_0.01": {
                        "value": 0.011, "chance": 0.01, "error": 0.001, "z": 1.0, "ok": True
                    },
                }
                for one in entries
            ],
        },
        "settings": flatten(Experiment()),
        "versions": {"lira_jax": "0.1.0", "numpy": "2.4.6"},
    }  # fmt: skip
    return whole | {"verdict": verdict.verdict(whole)}
