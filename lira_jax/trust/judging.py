"""How attacks on predictions are judged, on examples and on inputs from elsewhere.

Every target's thresholds are tuned on its source model (`results.py`). Decisions are judged by the
same resamples of members against the target's own non-members and against every kind of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lira_jax import evaluation

# FPR on the source model's non-members at which the second and third threshold are set.
LOW = {"0.01": 0.01, "0.001": 0.001}


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one attack, higher = member.

    Attributes:
        examples: of each target on all candidates.
        kinds: of each target on the inputs of each kind, by its name.
        source: of each target's source model on all candidates, as its attacker sees them.
    """

    examples: Float[np.ndarray, "N E"]
    kinds: Mapping[str, Float[np.ndarray, "N M"]]
    source: Float[np.ndarray, "N E"]


def source_of(models: int, block: int) -> Int[np.ndarray, " N"]:
    """The source model of each target: the first of the next block."""
    return (np.arange(models) // block + 1) % (models // block) * block


@dataclass(frozen=True, eq=False)
class Judges:
    """What decisions are judged by.

    Attributes:
        keep: membership of the examples.
        block: models that share masks.
        confidence: maximum prediction score of the examples.
        of_kinds: that of each kind's inputs.
    """

    keep: Bool[np.ndarray, "N E"]
    block: int
    confidence: Float[np.ndarray, "N E"]
    of_kinds: Mapping[str, Float[np.ndarray, "N M"]]

    def of(self, scores: Scores, cut: float | None, *, with_ci: bool) -> dict[str, Any]:
        """An attack's part of `metrics.json` (see `results.results`).

        Args:
            scores: of the attack.
            cut: its threshold where it needs no tuning.
            with_ci: also give the AUC against inputs its interval.
        """
        keep, examples = self.keep, self.keep.shape[1]
        # All kinds beside the examples, so that each is judged by the same resamples of members.
        whole = np.concatenate([scores.examples, *scores.kinds.values()], axis=1)
        ends = np.cumsum([examples, *(rows.shape[1] for rows in scores.kinds.values())])
        places = dict(zip(scores.kinds, map(slice, ends[:-1], ends[1:]), strict=True))
        member, other = np.zeros((2, *whole.shape), bool)
        member[:, :examples], other[:, :examples] = keep, ~keep
        others = {"": other}
        for name, place in places.items():
            others[name] = np.zeros(whole.shape, bool)
            others[name][:, place] = True
        called, decided = {}, {}
        for key, least in self._tuned(scores.source, cut).items():
            called[key] = whole >= least[:, np.newaxis]
            reached = evaluation.decisions_against(called[key], member, others, self.block)
            decided[key] = {name: _with_fnr(rates) for name, rates in reached.items()}
        best = called["decision"]

        def decisions(name: str) -> dict[str, Any]:
            low = {key: decided[key][name] for key in LOW}
            return {"decision": decided["decision"][name], "low": low}

        def against(name: str) -> dict[str, Any]:
            both, place = member | others[name], places[name]
            interval = None
            if with_ci:
                interval = evaluation.intervals(whole, member, self.block, nonmember=others[name])[
                    "auc_ci"
                ]
            return {
                "kind": name,
                "auc": evaluation.auc(evaluation.roc(whole[both], member[both])),
                "auc_ci": interval,
                **decisions(name),
                "mmps": {
                    "fp": self._mmps(self.of_kinds[name], best[:, place]),
                    "tn": self._mmps(self.of_kinds[name], ~best[:, place]),
                },
                "by_target": {"fpr": best[:, place].mean(axis=1).tolist()},
            }

        curve = evaluation.roc(scores.examples, keep)
        intervals = evaluation.intervals(scores.examples, keep, self.block)
        positive = best[:, :examples]
        by_target = [evaluation.roc(*pair) for pair in zip(scores.examples, keep, strict=True)]
        false_less_true = _means(self.confidence, positive & ~keep) - _means(
            self.confidence, positive & keep
        )
        return {
            "auc": evaluation.auc(curve),
            "auc_ci": intervals["auc_ci"],
            "tpr_at_fpr": evaluation.summary(curve)["tpr_at_fpr"],
            "tpr_at_fpr_ci": intervals["tpr_at_fpr_ci"],
            "few_false_positives": evaluation.few_false_positives(int((~keep).sum())),
            **decisions(""),
            "mmps": {
                "tp": self._mmps(self.confidence, positive & keep),
                "fp": self._mmps(self.confidence, positive & ~keep),
                "fn": self._mmps(self.confidence, ~positive & keep),
                "tn": self._mmps(self.confidence, ~positive & ~keep),
                "fp_less_tp": self._over_targets(false_less_true),
            },
            "by_target": {
                "auc": [evaluation.auc(own) for own in by_target],
                "tpr": _share(positive, keep),
                "fpr": _share(positive, ~keep),
            },
            "inputs": [against(name) for name in places],
        }

    def _tuned(
        self, source: Float[np.ndarray, "N E"], cut: float | None
    ) -> dict[str, Float[np.ndarray, " N"]]:
        """Each target's thresholds, from its source model."""
        models = len(self.keep)
        tuned = {key: np.empty(models) for key in ("decision", *LOW)}
        for target, place in enumerate(source_of(models, self.block)):
            seen, scores = self.keep[place], source[target]
            best = evaluation.best_threshold(scores, seen) if cut is None else cut
            tuned["decision"][target] = best
            for key, fpr in LOW.items():
                tuned[key][target] = evaluation.threshold_at_fpr(scores[~seen], fpr)
        return tuned

    def _mmps(
        self, confidence: Float[np.ndarray, "N P"], chosen: Bool[np.ndarray, "N P"]
    ) -> dict[str, Any] | None:
        """The mean over targets of the mean maximum prediction score of what is chosen."""
        return self._over_targets(_means(confidence, chosen))

    def _over_targets(self, values: Float[np.ndarray, " N"]) -> dict[str, Any] | None:
        """Mean and interval over the targets that have a value; None where one has none."""
        if not np.isfinite(values).all():
            return None
        mean, interval = evaluation.mean_and_interval(values, self.block)
        return {"mean": mean, "ci": interval}


def _with_fnr(rates: dict[str, Any]) -> dict[str, Any]:
    low, high = rates["tpr_ci"]
    return rates | {"fnr": 1 - rates["tpr"], "fnr_ci": [1 - high, 1 - low]}


def _share(called: Bool[np.ndarray, "N P"], of: Bool[np.ndarray, "N P"]) -> list[float]:
    """The share of each target's that is called a member."""
    return ((called & of).sum(axis=1) / of.sum(axis=1)).tolist()


def _means(
    values: Float[np.ndarray, "N P"], chosen: Bool[np.ndarray, "N P"]
) -> Float[np.ndarray, " N"]:
    """The mean of what is chosen of each row; NaN where nothing is."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
