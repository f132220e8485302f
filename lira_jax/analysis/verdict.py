"""The verdict: what the figures of all attacks come to, in words for a reader who knows no ROC.

By the default attack, which is named before any result: it does better than guessing where its 95 %
interval lies above chance. The interval is widened by Student's t over the folds of targets that
the bootstrap resamples, since a bootstrap over few folds gives too narrow an interval. Only where
another attack surely shows a worse level than the default does is the verdict about that one, with
room for having tried many: then by an interval so wide that those of all other attacks hold at once
(Bonferroni). Where there is no default, as by the protocol of the public code, all are the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.stats import norm
from scipy.stats import t as student

from lira_jax.attacks import DEFAULT, TITLES
from lira_jax.evaluation import FPRS, wording
from lira_jax.findings import Vulnerability

LEVELS = {
    "leak": "Training examples can be recognised",
    "average": "Weak: members are told only on average",
    "open": "Signs of a leak, and too few models to be sure",
    "canaries": "Inserted canaries can be recognised, other examples not surely",
    "none": "No leak found",
    "unknown": "One model attacked: no error can be given",
}
"""An attack is surely better than guessing at a low false-positive rate; over all examples only; it
would be, could the intervals of so few models be relied on; it is on inserted canaries only; no
attack is; there are no intervals to judge by."""

# An example is given away where the attack is right under this share of the models.
GIVEN_AWAY = 0.9
# Calls of members of which it is said how many are coin flips.
FEWEST_CALLS = 100


def given_away(exposed: Vulnerability, natural: Bool[np.ndarray, " E"]) -> int:
    """Examples that the attack is right about under GIVEN_AWAY of the models, surely above chance.

    Args:
        natural: the examples that count, which canaries do not.
    """
    return int(((exposed.success >= GIVEN_AWAY) & (exposed.success_lo > 0.5) & natural).sum())


def verdict(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Judge what `metrics.json` holds.

    Returns:
        level: a key of LEVELS, and its title. sentence: the verdict. hints: what else belongs to
        it, in sentences. attack: the name of the attack that it is about. figure: what it rests on:
        the attack's TPR at an FPR, or its AUC (fpr is None); value, interval, chance, and lower,
        the lower end of the widened interval. attacks, folds: numbers of attacks and of folds of
        targets by which it was widened.
    """
    level, sentence, figure = _judge(metrics)
    hints = [_examples_given_away(metrics), _coin_flips(metrics), _canaries(metrics)]
    if hints[-1] and level in ("none", "unknown"):
        level = "canaries"
    failed = [
        str(entry["name"])
        for entry in (metrics.get("null_check") or {"attacks": ()})["attacks"]
        if not entry["ok"]
    ]
    if failed:
        names = ", ".join(failed)
        hints.append(f"The null check failed for {names}: do not rely on what it found.")
    unsettled = (metrics.get("per_example_fpr") or {"laws": {"unsettled": 0}})["laws"]["unsettled"]
    if unsettled:
        hints.append(
            f"The law that {DEFAULT} rests on did not settle for {unsettled} of "
            f"{metrics['models']} models: read its figures with care."
        )
    if metrics["attacks"][0].get("over") == "examples" and level != "unknown":
        hints.append("One model was attacked: the interval says nothing about others.")
    return {
        "level": level,
        "title": LEVELS[level],
        "sentence": sentence,
        "hints": [hint for hint in hints if hint],
        "attack": figure.entry["name"],
        "figure": {
            "fpr": figure.key and FPRS[figure.key],
            "value": figure.value,
            "interval": figure.interval and list(figure.interval),
            "chance": figure.chance,
            "lower": figure.lower if figure.interval else None,
        },
        "attacks": figure.attacks,
        "folds": metrics["folds"],
    }


def in_words(judged: Mapping[str, Any]) -> str:
    """The verdict's sentence and its hints."""
    return " ".join([judged["sentence"], *judged["hints"]])


@dataclass(frozen=True)
class _Figure:
    """One figure of an attack among others.

    Attributes:
        entry: the attack's part of the metrics.
        key: of the FPR, for the TPR; None for the AUC.
        attacks: how many were tried.
        folds: of targets.
    """

    entry: Mapping[str, Any]
    key: str | None
    attacks: int
    folds: int

    @property
    def value(self) -> float:
        return float(self.entry["tpr_at_fpr"][self.key] if self.key else self.entry["auc"])

    @property
    def interval(self) -> Sequence[float] | None:
        return wording.tpr(self.entry, self.key)[1] if self.key else self.entry.get("auc_ci")

    @property
    def chance(self) -> float:
        return FPRS[self.key] if self.key else 0.5

    @property
    def text(self) -> str:
        return wording.share_text(self.value, self.interval, " %")

    @property
    def chance_text(self) -> str:
        return wording.fpr_text(self.key) if self.key else "50 %"

    @property
    def few(self) -> bool:
        return self.key is not None and wording.is_few(self.entry, self.key)

    @property
    def title(self) -> str:
        return str(self.entry.get("title") or self.entry["name"])

    @property
    def lower(self) -> float:
        """The lower end of an interval that holds for all attacks at once."""
        # Over one target's examples alone there are many of what is resampled.
        one_target = self.entry.get("over") == "examples"
        return self._lower(math.inf if one_target else max(self.folds - 1, 1))

    @property
    def suggests_a_leak(self) -> bool:
        """Whether it would be above chance, could the bootstrap of so few models be relied on."""
        return self._lower(math.inf) > self.chance

    def _lower(self, freedom: float) -> float:
        if self.interval is None:
            return -math.inf
        low, high = self.interval
        # The lower side of a bootstrap interval may have no width at all by chance.
        half = max(self.value - low, (high - low) / 2)
        wider = float(student.ppf(1 - 0.025 / self.attacks, freedom) / norm.ppf(0.975))
        return self.value - half * wider


def _figures(entries: Sequence[Mapping[str, Any]], key: str | None, folds: int) -> list[_Figure]:
    return [_Figure(entry, key, len(entries), folds) for entry in entries]


def _greatest(figures: Sequence[_Figure]) -> _Figure:
    return max(figures, key=lambda figure: figure.value)


_Judged = tuple[str, str, _Figure]


def _judge(metrics: Mapping[str, Any]) -> _Judged:
    """Level, sentence, and the figure that they rest on."""
    key, folds = wording.telling_fpr(metrics), metrics["folds"]
    named = [entry for entry in metrics["attacks"] if entry["name"] == metrics.get("default")]
    others = [entry for entry in metrics["attacks"] if entry not in named]
    if not named:
        return _judge_among(others, key, folds)
    by_default = _judge_among(named, key, folds)
    by_others = _judge_among(others, key, folds) if others else by_default
    levels = list(LEVELS)
    return min(by_default, by_others, key=lambda judged: levels.index(judged[0]))


def _judge_among(entries: Sequence[Mapping[str, Any]], key: str | None, folds: int) -> _Judged:
    """As `_judge`, by the strongest of these attacks."""
    aucs, tprs = _figures(entries, None, folds), _figures(entries, key or "0.01", folds)
    tried = f"the strongest of {len(aucs)} attacks" if len(aucs) > 1 else "the attack"
    at_low = f"t a false-alarm rate of {_one_in(tprs[0])}"
    if all(auc.interval is None for auc in aucs):
        best = _greatest(tprs)
        few = " (fewer than ten false alarms stand behind this)" if best.few else ""
        sentence = (
            f"A{at_low}, {tried} ({best.title}) recognises {best.text} of the training examples"
            f"{few}, where guessing gives {best.chance_text}; with one model attacked, how far "
            "chance had a part in it cannot be said."
        )
        return "unknown", sentence, best
    leaking = [tpr for tpr in tprs if key and tpr.lower > tpr.chance]
    if leaking:
        # By what is sure of it: of two that are about as strong, the less uncertain one.
        best = max(leaking, key=lambda tpr: tpr.interval[0] if tpr.interval else -math.inf)
        ratio = best.value / best.chance
        times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        sentence = (
            f"A{at_low}, {tried} ({best.title}) recognises {best.text} of the training examples: "
            f"about {times} times as many as guessing."
        )
        return "leak", sentence, best
    above = [auc for auc in aucs if auc.lower > auc.chance]
    if above:
        best = _greatest(above)
        low_rates = (
            f"A{at_low} no attack is surely better than guessing"
            if key
            else "There are too few non-members to judge low false-alarm rates"
        )
        sentence = (
            f"{low_rates}; but of one member and one non-member, {best.title} picks the member in "
            f"{best.text} of cases, where guessing gives {best.chance_text}."
        )
        return "average", sentence, best
    hinting = [
        auc
        for auc, tpr in zip(aucs, tprs, strict=True)
        if auc.suggests_a_leak or (key and tpr.suggests_a_leak)
    ]
    if hinting:
        best = _greatest(hinting)
        sentence = (
            f"Of one member and one non-member, {best.title} picks the member in {best.text} of "
            f"cases, where guessing gives {best.chance_text}; but with {best.entry['targets']} "
            "models attacked such an interval can be too narrow. Train more models."
        )
        return "open", sentence, best
    if key:
        best = _greatest(tprs)
        measured = f"a{at_low}, {tried} ({best.title}) recognises {best.text} of the training "
        measured += "examples"
    else:
        best = _greatest(aucs)
        measured = f"of one member and one non-member, {tried} ({best.title}) picks the member in "
        measured += f"{best.text} of cases"
    sentence = (
        f"No attack does better than guessing within its error: {measured}, where guessing gives "
        f"{best.chance_text}."
    )
    return "none", sentence, best


def _one_in(figure: _Figure) -> str:
    return f"1 in {round(1 / figure.chance):,}"


def _examples_given_away(metrics: Mapping[str, Any]) -> str:
    exposed = metrics.get("vulnerability") or {}
    if not exposed.get("given_away"):
        return ""
    attack = exposed["attack"]
    return (
        f"At its most accurate threshold, {TITLES.get(attack, attack)} is right about "
        f"{exposed['given_away']:,} of {exposed['examples']:,} examples under "
        f"{100 * GIVEN_AWAY:.0f} % of the models or more."
    )


def _coin_flips(metrics: Mapping[str, Any]) -> str:
    exposed = metrics.get("vulnerability") or {}
    flips = exposed.get("coin_flips") or {}
    if flips.get("called", 0) < FEWEST_CALLS:
        return ""
    attack = exposed["attack"]
    return (
        f"Of the {flips['called']:,} times that {TITLES.get(attack, attack)} rightly calls an "
        f"example a member at a false-alarm rate of {100 * flips['fpr']:.3g} %, "
        f"{100 * flips['unrepeated']:.0f} % are coin flips: it would not do so of another model "
        "trained on that example."
    )


def _canaries(metrics: Mapping[str, Any]) -> str:
    """A sentence on inserted canaries, if some attack surely tells them."""
    of_canaries = _figures(metrics.get("canary_attacks") or (), None, metrics["folds"])
    above = [auc for auc in of_canaries if auc.lower > auc.chance]
    if not above:
        return ""
    best = _greatest(above)
    return (
        f"Of one inserted canary that was trained on and one that was not, {best.title} picks "
        f"the right one in {best.text} of cases."
    )
