"""What the attack stage hands to figures and report, and what both read off it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lira_jax.evaluation import FPRS, Roc
from lira_jax.evaluation.judging import Curve
from lira_jax.score_set import ScoreSet


@dataclass(frozen=True)
class Vulnerability:
    """Exposure of every example, all [E].

    Attributes:
        mean_log_ratio_in: mean attack score over the targets that trained on the example.
        mean_log_ratio_out: the same over those that did not.
        success: share of targets whose membership of the example is called right, the mean of
            the share among members and the share among non-members; ½ is chance.
        success_lo, success_hi: its 95 % interval.
        d: privacy score |μ_in − μ_out| / (σ_in + σ_out) of φ over all models, mean over views.
        rank: 1 is the most exposed; by success, then by d, then by place in the data.
        threshold: the attack score from which on every example of every target is called a member.
    """

    mean_log_ratio_in: Float[np.ndarray, " E"]
    mean_log_ratio_out: Float[np.ndarray, " E"]
    success: Float[np.ndarray, " E"]
    success_lo: Float[np.ndarray, " E"]
    success_hi: Float[np.ndarray, " E"]
    d: Float[np.ndarray, " E"]
    rank: Int[np.ndarray, " E"]
    threshold: float

    @property
    def order(self) -> Int[np.ndarray, " E"]:
        """Examples, most exposed first."""
        return np.argsort(self.rank)


@dataclass(frozen=True)
class LabelOnly:
    """What label-only attacks are drawn from, beside `metrics.json`.

    Attributes:
        curves: by name of the attack, in the order of tables.
        distances: of targets to the decision boundary; None where they were not asked for.
        member: who of these trained on what.
    """

    curves: Mapping[str, Curve]
    distances: Float[np.ndarray, "T L"] | None
    member: Bool[np.ndarray, "T L"] | None


@dataclass(frozen=True, eq=False)
class Trust:
    """What figures about inputs from elsewhere are drawn from.

    Attributes:
        confidence: maximum prediction score of each model on each example.
        of_kinds: likewise on the inputs of each kind, by its name.
        samples: the first few inputs of each kind, as the network sees them.
    """

    confidence: Float[np.ndarray, "N E"]
    of_kinds: Mapping[str, Float[np.ndarray, "N M"]]
    samples: Mapping[str, UInt8[np.ndarray, "S H W C"]]


@dataclass(frozen=True)
class Findings:
    """All that figures and report are made of.

    Attributes:
        metrics: what `metrics.json` holds, schema 2.
        score_set: scores, masks and what else the attacks had; may be memory maps.
        curves: by name of the attack, in the order of tables.
        statistics: by title, the online attack on other statistics than φ (`statistic_curves`);
            empty where it was not run.
        vulnerability: per example; None where only one model was attacked.
        images: the examples, uint8; None where there are none to draw.
        no_images: why there are none; empty if nothing is to be said of it.
        classes: names of the classes, untrusted text; None where unknown.
        label_only: of label-only attacks; None where live models were not asked.
        trust: of inputs from elsewhere; None where models were not asked.
    """

    metrics: Mapping[str, Any]
    score_set: ScoreSet
    curves: Mapping[str, Curve]
    statistics: Mapping[str, Roc]
    vulnerability: Vulnerability | None = None
    images: UInt8[np.ndarray, "E H W C"] | None = None
    no_images: str = ""
    classes: tuple[str, ...] | None = None
    label_only: LabelOnly | None = None
    trust: Trust | None = None


def telling_fpr(metrics: Mapping[str, Any]) -> str | None:
    """The key of the rate to judge by: 0.1 %, or 1 % where too few false positives stand behind it.

    None where too few stand behind both.
    """
    for key in ("0.001", "0.01"):
        if not any(is_few(entry, key) for entry in metrics["attacks"]):
            return key
    return None


def is_few(entry: Mapping[str, Any], key: str) -> bool:
    """Does the entry's TPR rest on fewer than ten expected false positives?"""
    return bool(entry.get("few_false_positives", {}).get(key, False))


def rate_text(key: str) -> str:
    """A key of FPRS in percent: "0.1 %"."""
    return f"{100 * FPRS[key]:.3f}".rstrip("0").rstrip(".") + " %"
