"""What the attack stage hands to figures and report, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from lira_jax.evaluation import Roc
from lira_jax.evaluation.judging import Curve
from lira_jax.score_set import ScoreSet

Interval = tuple[float, float, float]
"""A figure and the ends of its 95 % interval."""


@dataclass(frozen=True)
class Vulnerability:
    """Exposure of every example, all [E]; NaN where all models trained on it, or none.

    Attributes:
        attack: name of the attack to which.
        mean_score_in: its mean score over the targets that trained on the example.
        mean_score_out: the same over those that did not.
        success: share of targets whose membership of the example is called right, the mean of
            the share among members and the share among non-members; ½ is chance.
        success_lo, success_hi: its 95 % interval.
        d: privacy score |μ_in − μ_out| / (σ_in + σ_out) of φ over all models, mean over views.
        rank: 1 is the most exposed; by success, then by d, then by place in the data.
        threshold: the attack score from which on every example of every target is called a member.
        flip_in: how often two targets that trained on the example get different decisions from the
            default attack at `attack.fpr`; NaN with fewer than two; None where it was not run.
        flip_out: the same over those that did not.
        fpr: the false-positive rate on this example at that threshold, by its fitted OUT law.
    """

    attack: str
    mean_score_in: Float[np.ndarray, " E"]
    mean_score_out: Float[np.ndarray, " E"]
    success: Float[np.ndarray, " E"]
    success_lo: Float[np.ndarray, " E"]
    success_hi: Float[np.ndarray, " E"]
    d: Float[np.ndarray, " E"]
    rank: Int[np.ndarray, " E"]
    threshold: float
    flip_in: Float[np.ndarray, " E"] | None = None
    flip_out: Float[np.ndarray, " E"] | None = None
    fpr: Float[np.ndarray, " E"] | None = None

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
        score_set: scores, masks and what else the attacks had; may be memory maps. Absurd scores
            are drawn in, and absurd models left out, except by the protocol `reference-code`.
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


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run's results, to compare with others'.

    Attributes:
        name: of its folder.
        label: the name, with the ε of DP-SGD where there is one.
        metrics: its `metrics.json`.
        entry: the compared attack's part of it.
        roc: the compared attack's ROC.
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
    label: str
    metrics: Mapping[str, Any]
    entry: Mapping[str, Any]
    roc: Roc
    settings: Mapping[str, Any]
    held_out: Interval | None
    gap: Interval | None
    label_only: Mapping[str, Interval]
    strongest: str | None
    calibrated: tuple[Calibrated, ...]
