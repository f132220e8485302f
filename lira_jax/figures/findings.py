"""What the attack stage hands to figures and report, and what both read off it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.special import expit

from lira_jax import evaluation, workers
from lira_jax.attacks import lira
from lira_jax.attacks.references import References
from lira_jax.config import AttackConfig
from lira_jax.evaluation import FPRS, Roc
from lira_jax.score_set import ScoreSet
from lira_jax.vulnerability import Vulnerability

# Examples whose moments are taken at once: 64 MiB of float64 at 256 models.
_CHUNK = 32_768


@dataclass(frozen=True)
class Band:
    """A pointwise 95 % interval of a ROC curve.

    Attributes:
        fpr: where, ascending.
        lo, hi: least and greatest TPR there.
    """

    fpr: Float[np.ndarray, " P"]
    lo: Float[np.ndarray, " P"]
    hi: Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Curve:
    """One attack's ROC as it is drawn.

    Attributes:
        roc: the curve, thinned or not.
        band: its bootstrap interval, if there is one.
    """

    roc: Roc
    band: Band | None = None


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


def statistic_curves(
    score_set: ScoreSet, references: References, config: AttackConfig
) -> dict[str, Roc]:
    """Figure 8 of the LiRA paper: the online attack, one query, on up to six statistics.

    Confidence, cross-entropy, φ, and φ from float32 probabilities as public code takes it, follow
    from φ; the hinge and the plain logit need logits and labels.

    Returns:
        Thinned curves by the statistic's title.
    """
    phi = np.asarray(score_set.scores[:, :, 0], dtype=np.float64)
    probability = expit(phi).astype(np.float32)
    share, rest = (p.astype(np.float64) + 1e-45 for p in (probability, 1 - probability))
    statistics = {
        "φ = log p/(1−p), stable": phi,
        "φ from float32 p": np.log(share) - np.log(rest),
        "cross-entropy −log p": -np.logaddexp(0.0, -phi),
        "confidence p": expit(phi),
    }
    if score_set.logits is not None and score_set.labels is not None:
        own, others = np.empty(phi.shape), np.empty(phi.shape)
        columns = np.arange(phi.shape[1])
        labels, all_logits = score_set.labels, score_set.logits

        def split(model: int) -> None:  # one model at a time: logits may be a large memory map
            logits = np.array(all_logits[model], dtype=np.float64)
            own[model] = logits[columns, labels]
            logits[columns, labels] = -np.inf
            others[model] = logits.max(axis=1)

        for _ in workers.in_order(split, range(phi.shape[0])):
            pass
        statistics |= {"hinge z_y − max z_k": own - others, "logit z_y": own}
    single = replace(config, queries=1)

    def attacked() -> Iterator[tuple[str, Float[np.ndarray, "N E"]]]:
        for title in list(statistics):
            values = statistics.pop(title).astype(np.float64, copy=False)
            shaped = replace(score_set, scores=values[..., np.newaxis])
            found = lira.likelihoods(shaped, references, single, variances=[""])
            yield title, found["lira-online"]

    def curve(one: tuple[str, Float[np.ndarray, "N E"]]) -> tuple[str, Roc]:
        title, scores = one
        return title, evaluation.thin(evaluation.roc(scores, score_set.keep))

    return dict(workers.in_order(curve, attacked(), evaluation.AT_ONCE))


@dataclass(frozen=True)
class ExampleMoments:
    """Statistics of each example's φ over all models, identity view; NaN where too few models.

    Attributes:
        mean_in, mean_out: mean φ.
        std_in, std_out: unbiased standard deviation of φ.
        loss_out: mean cross-entropy loss under the models that did not train on it.
    """

    mean_in: Float[np.ndarray, " E"]
    mean_out: Float[np.ndarray, " E"]
    std_in: Float[np.ndarray, " E"]
    std_out: Float[np.ndarray, " E"]
    loss_out: Float[np.ndarray, " E"]

    @property
    def d(self) -> Float[np.ndarray, " E"]:
        """Privacy score |μ_in − μ_out| / (σ_in + σ_out)."""
        spread = np.maximum(self.std_in + self.std_out, lira.MIN_STD)
        return np.abs(self.mean_in - self.mean_out) / spread


def example_moments(score_set: ScoreSet) -> ExampleMoments:
    """The moments of every example's scores."""
    columns: list[Float[np.ndarray, "5 C"]] = []
    for start in range(0, score_set.keep.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        phi = np.asarray(score_set.scores[:, chunk, 0], dtype=np.float64)
        keep = score_set.keep[:, chunk]
        rows = []
        for side in (keep, ~keep):
            count = side.sum(axis=0)
            mean = phi.sum(axis=0, where=side) / np.where(count > 0, count, np.nan)
            squares = np.square(phi - mean).sum(axis=0, where=side)
            rows += [mean, np.sqrt(squares / np.where(count > 1, count - 1, np.nan))]
        loss = np.logaddexp(0.0, -phi)
        count = (~keep).sum(axis=0)
        rows.append(loss.sum(axis=0, where=~keep) / np.where(count > 0, count, np.nan))
        columns.append(np.stack(rows))
    mean_in, std_in, mean_out, std_out, loss_out = np.concatenate(columns, axis=1)
    return ExampleMoments(mean_in, mean_out, std_in, std_out, loss_out)


def four_examples(moments: ExampleMoments, d: Float[np.ndarray, " E"]) -> dict[str, int]:
    """Four examples as in figure 3: easy and hard, inlier and outlier, chosen by rule.

    Easy is a low mean OUT loss, an outlier has a high privacy score d. Each pick is the example
    nearest to its corner when examples are ranked by both; fewer than four where fewer have at
    least two models on each side.
    """
    usable = np.flatnonzero(np.isfinite(moments.std_in + moments.std_out + d))
    by_loss, by_d = (_ranks(values[usable]) for values in (moments.loss_out, d))
    picks: dict[str, int] = {}
    corners = {
        "easy inlier": by_loss + by_d,
        "hard inlier": -by_loss + by_d,
        "easy outlier": by_loss - by_d,
        "hard outlier": -by_loss - by_d,
    }
    for name, distance in corners.items():
        free = ~np.isin(usable, list(picks.values()))
        if free.any():
            picks[name] = int(usable[free][distance[free].argmin()])
    return picks


def _ranks(values: Float[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


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
